# The C contract as Cython sees it; documented in kernels.h.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t


cdef extern from "kernels.h" nogil:
    enum:
        TILE
        BUNDLE
        MAX_KBLOCK
        READ_FLOATS

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
        int dense_rows
        block_fn table
        block_fn dense
        block_fn generated
        activation_fn gelu
        activation_fn gelu_tanh
        activation_fn relu
        void (*layer_norm)(float *x, const float *bias, const float *gamma, const float *beta, float epsilon,
                           int features, float *y) noexcept nogil
        void (*attention)(const float *q, ptrdiff_t q_stride, const float *k, const float *v,
                          ptrdiff_t kv_stride, int tiles, int num_keys, int head_size, float *scratch,
                          float *out, ptrdiff_t out_stride) noexcept nogil
        void (*embed)(const float *word, const float *position, const float *type, const int32_t *ids,
                      const int32_t *positions, const int32_t *types, int features, float *tile) noexcept nogil
        void (*scatter)(const float *tile, int features, float *const *rows) noexcept nogil
        void (*gather)(const float *const *rows, int features, float *tile) noexcept nogil
        int fma_floats
        void (*fma_loop)(float *x, float factor, size_t steps) noexcept nogil
        uint32_t (*read_loop)(const float *x, size_t count, size_t times) noexcept nogil


cdef extern from "dispatch.h" nogil:
    enum:
        GENERATED_MAX_K
        START_BIAS, START_INIT, START_Y
    int available_kernels(kernels_t *tables)
    size_t generated_bound(int rows, int k, size_t nonzeros)
    uint8_t *generate(uint8_t *p, float *stream, const float *weight, ptrdiff_t stride, int rows, int k,
                      size_t nonzeros, int start)
