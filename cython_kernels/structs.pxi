# The C contract as Cython sees it, documented in kernels.h; then the structures that steps hand to each other.

cdef extern from "kernels.h" nogil:
    enum:
        TILE
        BUNDLE
        MAX_KBLOCK
        READ_FLOATS
        MOST_SUMS
        START_BIAS, START_INIT, START_Y
        OPERAND_F32, OPERAND_BF16, OPERAND_F16, OPERAND_U8
        QUAD_HEADER

    ctypedef struct run_t:
        uint32_t bundles
        uint32_t count

    ctypedef struct tiles_t:
        float *at
        ptrdiff_t stride
        int count

    tiles_t tiles_from(tiles_t tiles, int first, int count)

    ctypedef struct block_t

    ctypedef void (*activation_fn)(float *x, size_t count) noexcept nogil
    ctypedef void (*block_fn)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                              activation_fn after) noexcept nogil

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

    ctypedef struct rounding_t:
        float scale
        int32_t zero_point
        const float *factors

    ctypedef struct linear_t:
        const block_t *blocks
        const float *bias
        int32_t rows
        int32_t k
        int32_t num_panels
        int32_t num_kblocks
        int32_t operand
        int32_t kblock
        rounding_t rounding

    ctypedef struct norm_t:
        const float *gamma
        const float *beta
        float epsilon
        int features

    ctypedef void (*attention_fn)(tiles_t q, tiles_t k, tiles_t v, int num_keys, int head_size, float *scratch,
                                  tiles_t out) noexcept nogil
    size_t attention_scratch(int num_keys, int head_size, bint is_16_bit)

    ctypedef struct tables_t:
        const float *word
        const int8_t *word_s8
        const float *word_scale
        const float *position
        const float *type
        int features

    ctypedef struct tokens_t:
        const int32_t *ids
        const int32_t *positions
        const int32_t *types

    ctypedef struct generator_t:
        block_fn run
        int max_k
        size_t (*code_bound)(const block_t *block) noexcept nogil
        uint8_t *(*generate)(const block_t *block, const float *columns, int start) noexcept nogil

    ctypedef struct kernels_t:
        const char *isa
        block_fn f32_table
        block_fn f32_dense
        int f32_dense_rows
        generator_t f32_generated
        block_fn bf16_dense
        int bf16_dense_rows, bf16_dense_columns
        block_fn bf16_block
        int bf16_block_rows, bf16_block_columns
        block_fn bf16_compressed
        void (*bf16_convert)(const float *x, int features, float *pairs) noexcept nogil
        activation_fn bf16_gelu
        block_fn f16_table
        generator_t f16_generated
        void (*f16_convert)(const float *first, const float *second, int features, float *lines) noexcept nogil
        block_fn s8_table
        block_fn s8_dense
        int s8_dense_rows, s8_dense_columns
        block_fn s8_block
        int s8_block_rows, s8_block_columns
        generator_t s8_generated
        void (*u8_convert)(const float *x, int features, rounding_t rounding, float *lines) noexcept nogil
        activation_fn f32_gelu
        activation_fn f32_gelu_tanh
        activation_fn f32_relu
        void (*f32_layer_norm)(float *x, const float *bias, const norm_t *norm, float *y) noexcept nogil
        attention_fn f32_attention
        attention_fn bf16_attention
        void (*f32_embed)(const tables_t *tables, tokens_t tokens, float *tile) noexcept nogil
        void (*f32_scatter)(const float *tile, int features, float *const *rows) noexcept nogil
        void (*f32_gather)(const float *const *rows, int features, float *tile) noexcept nogil
        int f32_fma_count
        void (*f32_fma_loop)(float *x, float factor, size_t steps) noexcept nogil
        int f16_fma_operations
        void (*f16_fma_loop)(float *x, size_t steps) noexcept nogil
        int bf16_dot_operations
        void (*bf16_dot_loop)(float *x, size_t steps) noexcept nogil
        int s8_dot_operations
        void (*s8_dot_loop)(float *x, size_t steps) noexcept nogil
        uint32_t (*read_loop)(const float *x, size_t count, size_t times) noexcept nogil


cdef extern from "portable/half.h" nogil:
    uint16_t half_of(float value)
    float float_of(uint16_t half)


cdef extern from "dispatch.h" nogil:
    enum:
        NUM_ISAS, NUM_MODELS
    const kernels_t *MODELS[]
    int available_kernels(const kernels_t **tables)
    const kernels_t *code_model()
    const kernels_t *trapped_kernels()
    bint is_amx_refused()


cdef extern from "threads.h" nogil:
    void team_barrier()
    double now_s()


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
    tables_t tables
    norm_t norm
    linear_t projection  # rows == 0: none

cdef struct encoder_t:
    const kernels_t *kernels
    attention_fn attention
    embeddings_t embeddings
    linear_t head  # rows == 0: none
    layer_t *layers  # for small calls, then for large ones
    int num_layers
    int hidden

# Texts that one team takes through the encoder together, each on whole tiles of its own.
cdef struct group_t:
    int num_texts
    int num_tiles
    bint first_only  # only position 0 of each text is asked for
    int *first_tile  # per text
    int *tiles  # per text
    int *keys  # per text: its first `keys` lanes are attended to
    int most_keys
    int32_t *ids  # per lane; -1 where there is no token
    int32_t *positions
    int32_t *types
    int *first_lane  # per text: the lane of position 0 (only filled with first_only)
    float **rows  # per lane - or per text, with first_only: where its hidden state goes, or NULL

cdef struct workspace_t:
    float *memory
    size_t size
    float *x  # hidden states
    float *y  # of the next step: context of attention, then what the feed-forward layer returns
    float *qkv  # one panel for a lone thread, all of them for a team
    float *inner  # one k-block of `output` for a lone thread, all of them for a team
    float *x_operand  # what a weight of 16 bits takes: hidden states, or the context of attention
    float *inner_operand  # likewise, of `inner`
    float *scores  # of each member in turn
    size_t member_scores  # floats of each

# One thread of a team that takes a group through the encoder: what it works on, and which share is its own.
cdef struct member_t:
    const encoder_t *encoder
    const layer_t *layer  # at work, or the first
    const group_t *group
    workspace_t *workspace
    int number  # 0 … team - 1
    int team  # threads
    bint first_only  # of the layer at work: only position 0 of each text is asked for
    double *seconds  # of the layer at work, per step

# What `Encoder.run(profile=True)` times, in the order a layer runs them; `intermediate` with its activation.
STEPS = ("embeddings", "qkv", "attention", "attention_output", "attention_norm", "intermediate",
         "output", "output_norm", "scatter")
cdef enum:
    EMBEDDINGS, QKV, ATTENTION, ATTENTION_OUTPUT, ATTENTION_NORM, INTERMEDIATE, OUTPUT, OUTPUT_NORM, SCATTER
    NUM_STEPS
