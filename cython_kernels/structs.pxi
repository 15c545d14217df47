# The C contract as Cython sees it, documented in kernels.h; then the structures that steps hand to each other.

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


cdef extern from "threads.h" nogil:
    void team_barrier()
    double now_s()


cdef struct norm_t:
    const float *gamma
    const float *beta
    float epsilon

cdef struct layer_t:
    linear_t qkv
    linear_t attention_output
    linear_t intermediate
    linear_t output
    norm_t attention_norm
    norm_t output_norm
    activation_fn activation
    int num_heads
    int head_size

cdef struct embeddings_t:
    const float *word
    const float *position
    const float *type
    int features
    norm_t norm
    linear_t projection  # rows == 0: none

# Texts that one team takes through the encoder together, each on whole tiles of its own.
cdef struct group_t:
    int num_texts
    int num_tiles
    int *first_tile  # per text
    int *tiles  # per text
    int *keys  # per text: its first `keys` lanes are attended to
    int32_t *ids  # per lane; -1 where there is no token
    int32_t *positions
    int32_t *types
    int *first_lane  # per text: the lane of position 0 (only filled where nothing else is asked for)
    float **rows  # per lane - or per text, if only position 0 is asked for: where its hidden state goes, or NULL

cdef struct workspace_t:
    float *memory
    size_t size
    float *x  # hidden states
    float *y  # of the next step: context of attention, then what the feed-forward layer returns
    float *qkv  # one panel for a lone thread, all of them for a team
    float *inner  # one k-block of `output` for a lone thread, all of them for a team
    float *scores  # per member
