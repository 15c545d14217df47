/* The contract between the engine and its kernels: memory layouts and one table of functions per ISA.
 *
 * Activations lie in tiles of TILE tokens: element (feature f, token lane i) of a tile is tile[f * TILE + i].
 * Vector lanes are tokens, so that no kernel shuffles, transposes or reduces across lanes, and a lane's result
 * never depends on its neighbours. Every tile row is 64-byte aligned. Buffers are padded to whole tiles by the
 * caller; lanes without a token hold finite numbers that nobody reads.
 *
 * Strides are counted in floats. Kernels are single-threaded, allocate nothing and never fail; whoever calls
 * them has checked every size.
 *
 * Names are coordinates: <dtype of the operands>_<operation>, in an ISA's own functions followed by __<isa>.
 */
#ifndef TOOLKIT_KERNELS_H
#define TOOLKIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define TILE 16          /* tokens per tile: one 512-bit vector of float */
#define BUNDLE 4         /* rows that the table kernel computes together */
#define READ_FLOATS 128  /* unit of read_loop */
#define MAX_KBLOCK 1024  /* byte offsets of a k-block, k * TILE * 4, must fit 16 bits */

/* `bundles` consecutive bundles of BUNDLE rows, each row with `count` entries: constant trip counts predict. */
typedef struct {
    uint32_t bundles;
    uint32_t count;
} run_t;

/* What a block's sums start from: the bias (one float per row), a tile that is not y, or y itself. */
enum { START_BIAS, START_INIT, START_Y };

struct block;

/* x = activation(x) in place, `count` floats, a multiple of TILE. */
typedef void (*activation_fn)(float *x, size_t count);

/* y[row][:] = init[row][:] (+)= sum over k of weight[row][k] * x[k][:], for `tiles` tiles.
 *
 * x       first tile at the block's first k; tiles lie x_stride apart.
 * init    what the sum starts from, at the block's first row, tiles init_stride apart (y itself to accumulate,
 *         the residual for a first k-block), or NULL: start from bias[row]. May equal y, never overlap it otherwise.
 * bias    at the block's first row; read only where init is NULL.
 * y       at the block's first row; every row of the block is written in every tile.
 * after   applied to the block's rows of a tile as soon as they are written, or NULL. */
typedef void (*block_fn)(const struct block *block, const float *x, ptrdiff_t x_stride, const float *init,
                         ptrdiff_t init_stride, const float *bias, float *y, ptrdiff_t y_stride, int tiles,
                         activation_fn after);

/* One (row panel, k-block) of a packed weight matrix. The table form uses values, offsets, row_numbers and runs:
 * per bundle `count` groups of BUNDLE values and BUNDLE byte offsets (k * TILE * sizeof(float)); the last bundle is
 * filled up by repeating its last row. The dense form
 * uses values only: per group of `f32_dense_rows` rows, k-major. The generated form has been generated to start from
 * the bias or from init, and must be called so. */
typedef struct block {
    block_fn run;
    const float *values;
    const uint16_t *offsets;
    const uint16_t *row_numbers;
    const run_t *runs;
    const void *code;         /* generated form: the machine code; values is its weight stream */
    const struct block *next; /* what runs after this block where one thread runs them all, or NULL: prefetched */
    const void *memory;       /* the bytes to prefetch: weights, and code right behind them */
    size_t memory_bytes;
    size_t num_values;
    int32_t num_runs;
    int32_t first_row;
    int32_t rows;
    int32_t first_k;
    int32_t k;
} block_t;

typedef struct {
    const block_t *blocks; /* [num_panels][num_kblocks] */
    const float *bias;     /* [rows] */
    int32_t rows;
    int32_t k;
    int32_t num_panels;
    int32_t num_kblocks;
} linear_t;

typedef struct {
    const char *isa;

    /* The forms of a float32 block. */
    block_fn f32_table;
    block_fn f32_dense;
    int f32_dense_rows; /* rows that the dense kernel keeps in registers: the packing's row group */

    /* The generated form: all NULL and 0 where there is none. f32_generate reads a block's weights, columns[k][rows], of
     * which num_values are not 0; it writes those to block->values, to block->code the function that f32_generated
     * calls, for sums that start from `start`, and returns the end of it. f32_code_bound: how many bytes of code that
     * is at most. Both read the block's rows, k <= f32_generated_max_k, and num_values. */
    block_fn f32_generated;
    int f32_generated_max_k;
    size_t (*f32_code_bound)(const block_t *block);
    uint8_t *(*f32_generate)(const block_t *block, const float *columns, int start);

    activation_fn f32_gelu; /* |error| of both GELUs <= 1e-6 + 1.2e-7 |x| */
    activation_fn f32_gelu_tanh;
    activation_fn f32_relu;

    /* y = gamma * (x + bias - mean) / sqrt(variance + epsilon) + beta over the features of one tile, two passes.
     * bias may be NULL. x is scratch afterwards; y may equal x. */
    void (*f32_layer_norm)(float *x, const float *bias, const float *gamma, const float *beta, float epsilon,
                       int features, float *y);

    /* One head of one sequence, `tiles` query tiles (any number >= 1) against keys 0 … num_keys - 1.
     * q is scaled so that weights are 2^(q.k); q, k, v and out point at the head's first feature in the first
     * tile; query tiles lie q_stride apart (k, v: kv_stride; out: out_stride). scratch holds
     * 2 * TILE * (num_keys rounded up to TILE) floats, 64-byte aligned. */
    void (*f32_attention)(const float *q, ptrdiff_t q_stride, const float *k, const float *v, ptrdiff_t kv_stride,
                      int tiles, int num_keys, int head_size, float *scratch, float *out, ptrdiff_t out_stride);

    /* tile[f][i] = sum of the rows word[ids[i]], position[positions[i]], type[types[i]] (each of `features`
     * floats; position and type may be NULL); lanes with ids[i] < 0 become 0. */
    void (*f32_embed)(const float *word, const float *position, const float *type, const int32_t *ids,
                  const int32_t *positions, const int32_t *types, int features, float *tile);

    /* Between a tile and token rows: rows[lane] points at `features` floats, NULL lanes are skipped (scatter)
     * or read as 0 (gather). */
    void (*f32_scatter)(const float *tile, int features, float *const *rows);
    void (*f32_gather)(const float *const *rows, int features, float *tile);

    /* Measures, not parts of a model. f32_fma_loop: x[i] += factor * x[i], `steps` times, for the f32_fma_count floats
     * at x, which stay in registers. read_loop: read `count` floats, a multiple of READ_FLOATS, `times` times; returns
     * the exclusive or of all 32-bit words read, so 0 where `times` is even. Both x are 64-byte aligned. */
    int f32_fma_count;
    void (*f32_fma_loop)(float *x, float factor, size_t steps);
    uint32_t (*read_loop)(const float *x, size_t count, size_t times);
} kernels_t;

#endif
