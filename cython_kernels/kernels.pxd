# The C contract as Cython sees it; documented in kernels.h.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t


cdef extern from "kernels.h" nogil:
    enum:
        TILE
        BUNDLE
        MAX_KBLOCK
        READ_FLOATS
        START_BIAS, START_INIT, START_Y

    ctypedef struct run_t:
        uint32_t bundles
        uint32_t count

    ctypedef struct block_t

    ctypedef void (*activation_fn)(float *x, size_t count) noexcept nogil
    ctypedef void (*block_fn)(const block_t *block, const float *x, ptrdiff_t x_stride, const float *init,
                              ptrdiff_t init_stride, const float *bias, float *y, ptrdiff_t y_stride,
                              int tiles, activation_fn after) noexcept nogil

    ctypedef struct block_t:
        block_fn run
        const float *values
        const uint16_t *offsets
        const uint16_t *row_numbers
        const run_t *runs
        const void *code
        const block_t *next
        const void *memory
        size_t memory_bytes
        size_t num_values
        int32_t num_runs
        int32_t first_row
        int32_t rows
        int32_t first_k
        int32_t k

    ctypedef struct linear_t:
        const block_t *blocks
        const float *bias
        int32_t rows
        int32_t k
        int32_t num_panels
        int32_t num_kblocks

    ctypedef struct kernels_t:
        const char *isa
        block_fn f32_table
        block_fn f32_dense
        int f32_dense_rows
        block_fn f32_generated
        int f32_generated_max_k
        size_t (*f32_code_bound)(const block_t *block) noexcept nogil
        uint8_t *(*f32_generate)(const block_t *block, const float *columns, int start) noexcept nogil
        activation_fn f32_gelu
        activation_fn f32_gelu_tanh
        activation_fn f32_relu
        void (*f32_layer_norm)(float *x, const float *bias, const float *gamma, const float *beta, float epsilon,
                               int features, float *y) noexcept nogil
        void (*f32_attention)(const float *q, ptrdiff_t q_stride, const float *k, const float *v,
                              ptrdiff_t kv_stride, int tiles, int num_keys, int head_size, float *scratch,
                              float *out, ptrdiff_t out_stride) noexcept nogil
        void (*f32_embed)(const float *word, const float *position, const float *type, const int32_t *ids,
                          const int32_t *positions, const int32_t *types, int features, float *tile) noexcept nogil
        void (*f32_scatter)(const float *tile, int features, float *const *rows) noexcept nogil
        void (*f32_gather)(const float *const *rows, int features, float *tile) noexcept nogil
        int f32_fma_count
        void (*f32_fma_loop)(float *x, float factor, size_t steps) noexcept nogil
        uint32_t (*read_loop)(const float *x, size_t count, size_t times) noexcept nogil


cdef extern from "dispatch.h" nogil:
    enum:
        NUM_ISAS
    int available_kernels(const kernels_t **tables)
