/* The contract between the engine and its kernels: memory layouts and one table of functions per ISA.
 *
 * Activations lie in tiles of TILE tokens: element (feature f, token lane i) of a tile is tile[f * TILE + i].
 * Vector lanes are tokens, so that no kernel shuffles, transposes or reduces across lanes, and a lane's result
 * never depends on its neighbours. Operands of 16-bit products lie in tiles of pairs: features 2 j and 2 j + 1 of lane
 * i are 16-bit numbers 2 i and 2 i + 1 of line j, so a line has 64 bytes, too. Operands of 8-bit products lie in tiles of
 * quads: features 4 j … 4 j + 3 of lane i are bytes 4 i … 4 i + 3 of line j. Every tile row is 64-byte aligned. Buffers
 * are padded to whole tiles by the caller; lanes without a token hold finite numbers that nobody reads.
 *
 * Strides are counted in floats. Kernels are single-threaded, allocate nothing and never fail; whoever calls
 * them has checked every size.
 *
 * Names: <dtype of the operands>_<operation>; an ISA's function of that name ends in __<isa>. A kernel for another
 * dtype is another field.
 */
#ifndef TOOLKIT_KERNELS_H
#define TOOLKIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define TILE 16          /* tokens per tile: one 512-bit vector of float */
#define BUNDLE 4         /* rows that the table kernel computes together */
#define MOST_SUMS 256    /* of f16_fma_loop, bf16_dot_loop and s8_dot_loop */
#define READ_FLOATS 128  /* unit of read_loop */
#define MAX_KBLOCK 1024  /* byte offsets of a k-block, k * TILE * 4, must fit 16 bits */
#define F16_TERMS 64     /* of a row that are summed in half precision before they join its sum in float32 */

/* `bundles` consecutive bundles of BUNDLE rows, each row with `count` entries. Rows are sorted by count,
 * so that the count seldom changes and the end of the kernel's inner loop is predicted. */
typedef struct {
    uint32_t bundles;
    uint32_t count;
} run_t;

/* A run of tiles: `count` of them, `stride` floats apart, the first at `at`. */
typedef struct {
    float *at;
    ptrdiff_t stride;
    int count;
} tiles_t;

/* `count` tiles of a run, from its tile `first` on; NULL stays NULL. */
static inline tiles_t tiles_from(tiles_t tiles, int first, int count) {
    return (tiles_t){tiles.at ? tiles.at + first * tiles.stride : NULL, tiles.stride, count};
}

/* What a block's sums start from: the bias (one float per row), a tile that is not y, or y itself. */
enum { START_BIAS, START_INIT, START_Y };

/* x of a block: tiles; tiles of pairs of bfloat16; halves of two tiles side by side, so half as many tiles of as many
 * bytes; for each k-block a header of QUAD_HEADER lines and a tile of quads, see u8_convert. */
enum { OPERAND_F32, OPERAND_BF16, OPERAND_F16, OPERAND_U8 };

#define QUAD_HEADER 2 /* lines: per lane the scale (float), and the integer that stands for 0 (int32) */

/* How features become 8-bit integers: scale 0: from each lane's smallest feature to its largest, 0 among them. */
typedef struct {
    float scale;
    int32_t zero_point; /* 0 … 255 */
    const float *factors; /* what each feature is multiplied by before; NULL: 1 */
} rounding_t;

struct block;

/* x = activation(x) in place, `count` floats, a multiple of TILE. */
typedef void (*activation_fn)(float *x, size_t count);

/* y[row][:] = init[row][:] + sum over k of weight[row][k] * x[k][:], for y.count tiles; x and init have as many.
 *
 * x       at the block's first k; only read.
 * init    what the sum starts from, at the block's first row (y itself to accumulate, the residual for a first
 *         k-block); only read. init.at is NULL: start from bias[row]. May equal y, never overlap it otherwise.
 * bias    at the block's first row; read only where init.at is NULL.
 * y       at the block's first row; every row of the block is written in every tile.
 * after   applied to the block's rows of a tile as soon as they are written, or NULL. */
typedef void (*block_fn)(const struct block *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                         activation_fn after);

/* One (row panel, k-block) of a packed weight matrix. The table form uses values, offsets, row_numbers and runs:
 * per bundle `count` groups of BUNDLE values and BUNDLE byte offsets (k * TILE * sizeof(float)); the last bundle is
 * filled up by repeating its last row. The dense form uses values only: per group of `f32_dense_rows` rows, k-major.
 * The dense form of bfloat16 has 16-bit numbers for values: per group of `bf16_dense_rows` rows and step of
 * `bf16_dense_columns` columns all of the group's first row, then of its second, …, filled up with zeros. x is a tile
 * of pairs, init and y are tiles. The block form, for weights pruned in blocks, has per group only the lines of x for
 * which one of its weights is not 0: runs[group].count of them, whole steps, at byte offsets; columns are theirs.
 * The compressed form leaves the zeros of the dense one out: per group and step one 32-bit mask per row, then the
 * weights whose bits are set, row by row, an even number of 16-bit numbers.
 * The generated form has been generated to start from the bias or from init, and must be called so.
 *
 * The forms of 8 bits take quads for weights: 32-bit numbers of four columns of a row. They are laid out as the float32
 * forms of the same name are, with two numbers more per row, in front of the weights of a row group or bundle: for each
 * row minus the sum of its integers, then for each row its scale. With x_q the integers of x, z its zero point,
 *
 *     y[row] = start + float(sum of weight[row] * x_q - z * sum of weight[row]) * x_scale * scale[row]
 *
 * where the integers are exact. The table form has the numbers of quads, a byte each, for offsets. Generated code reads the numbers of the table form, and both may read the same ones. The
 * dense and the block form of tile registers have steps of s8_dense_columns columns, as those of bfloat16. */
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
    int32_t operand; /* what its blocks take for x */
    int32_t kblock;  /* columns of every block but the last */
    rounding_t rounding; /* of OPERAND_U8 */
} linear_t;

typedef struct {
    const float *gamma; /* [features] */
    const float *beta;  /* [features] */
    float epsilon;
    int features;
} norm_t;

typedef void (*attention_fn)(tiles_t q, tiles_t k, tiles_t v, int num_keys, int head_size, float *scratch,
                             tiles_t out);

/* Floats for the scores of two query tiles; in 16 bits also for keys, values and two tiles of queries, all in steps of
 * 32, and for a product of tile registers. */
static inline size_t attention_scratch(int num_keys, int head_size, int is_16_bit) {
    const size_t keys = ((size_t)num_keys + 31) / 32 * 32, width = ((size_t)head_size + 31) / 32 * 32;
    return 2 * TILE * keys + (is_16_bit ? keys * width + TILE * width + 1024 : 0);
}

/* Tables of rows of `features` floats; position and type may be NULL. Where word_scale is not, rows of words are 8-bit
 * integers at word_s8, and row i is those of row i times word_scale[i]. */
typedef struct {
    const float *word;
    const int8_t *word_s8;
    const float *word_scale;
    const float *position;
    const float *type;
    int features;
} tables_t;

/* Per lane a row of each table; ids[lane] < 0: no token. */
typedef struct {
    const int32_t *ids;
    const int32_t *positions;
    const int32_t *types;
} tokens_t;

/* A generated form: NULL and 0 where there is none. `generate` reads a block's weights, columns[k][rows], of which
 * num_values are not 0. It writes these to block->values, and to block->code the function that `run` calls, for sums that
 * start from `start`; it returns the end of the code, which has at most code_bound bytes. Of the block both read rows,
 * k <= max_k, and num_values. In 8 bits the weights are, instead of columns, the table form of the block, in its values,
 * offsets, row_numbers and runs; num_values are its quads that are not 0 and the two numbers of each row. */
typedef struct {
    block_fn run;
    int max_k;
    size_t (*code_bound)(const block_t *block);
    uint8_t *(*generate)(const block_t *block, const float *columns, int start);
} generator_t;

typedef struct {
    const char *isa;

    /* The forms of a float32 block. */
    block_fn f32_table;
    block_fn f32_dense;
    int f32_dense_rows; /* rows that the dense kernel keeps in registers: the packing's row group */
    generator_t f32_generated;

    /* bfloat16 with sums in float32: NULL and 0 where the CPU has no such products. bf16_convert makes a tile of pairs of
     * a tile of `features` features; it rounds to nearest, ties to even. */
    block_fn bf16_dense;
    int bf16_dense_rows, bf16_dense_columns;
    block_fn bf16_block;
    int bf16_block_rows, bf16_block_columns;
    block_fn bf16_compressed; /* row groups and steps of the dense form; NULL but with tile registers */
    void (*bf16_convert)(const float *x, int features, float *pairs);
    activation_fn bf16_gelu; /* |error| <= 2e-4 + 3e-7 |x|: for what is rounded to bfloat16 next */

    /* The table and the generated form in half precision, with sums in float32 of F16_TERMS terms each: values are halves.
     * Their x has lines of 32 tokens, features of two tiles side by side; f16_convert makes them of one or two (second may
     * be NULL). */
    block_fn f16_table;
    generator_t f16_generated;
    void (*f16_convert)(const float *first, const float *second, int features, float *lines);

    /* Integers, exact: features of 8 bits without a sign times weights of 8 bits with one. Every instruction set has the
     * table and the dense form; the block form, of gathered lines, is as that of bfloat16.
     * u8_convert writes the header and the lines of one k-block of `features` features, round to nearest, ties to even:
     * x / scale + zero point, cut to 0 … 255; the header has what the kernels of this table take for the zero point. */
    block_fn s8_table;
    block_fn s8_dense;
    int s8_dense_rows, s8_dense_columns;
    block_fn s8_block; /* NULL but with tile registers */
    int s8_block_rows, s8_block_columns;
    generator_t s8_generated;
    void (*u8_convert)(const float *x, int features, rounding_t rounding, float *lines);

    activation_fn f32_gelu; /* |error| of both GELUs <= 1e-6 + 1.2e-7 |x| */
    activation_fn f32_gelu_tanh;
    activation_fn f32_relu;

    /* y = gamma * (x + bias - mean) / sqrt(variance + epsilon) + beta over the features of one tile, two passes.
     * bias may be NULL. x is scratch afterwards; y may equal x. */
    void (*f32_layer_norm)(float *x, const float *bias, const norm_t *norm, float *y);

    /* One head of one sequence, the query tiles of q (q.count >= 1, as out.count) against keys 0 … num_keys - 1
     * in the tiles of k and v. q is scaled so that weights are 2^(q.k); q, k, v and out begin at the head's first
     * feature, and only out is written. scratch is 64-byte aligned and holds attention_scratch floats. bf16_attention
     * multiplies in bfloat16 and is NULL where there is no such product; exponentials and sums are float32 in both. */
    attention_fn f32_attention;
    attention_fn bf16_attention;

    /* tile[f][i] = sum of the rows word[ids[i]], position[positions[i]], type[types[i]]; lanes without a token
     * become 0. */
    void (*f32_embed)(const tables_t *tables, tokens_t tokens, float *tile);

    /* Between a tile and token rows: rows[lane] points at `features` floats, NULL lanes are skipped (scatter)
     * or read as 0 (gather). */
    void (*f32_scatter)(const float *tile, int features, float *const *rows);
    void (*f32_gather)(const float *const *rows, int features, float *tile);

    /* Measures, not parts of a model. f32_fma_loop: x[i] += factor * x[i], `steps` times, for the f32_fma_count floats
     * at x, which stay in registers. read_loop: read `count` floats, a multiple of READ_FLOATS, `times` times; returns
     * the exclusive or of all 32-bit words read, so 0 where `times` is even. Both x are 64-byte aligned. */
    int f32_fma_count;
    void (*f32_fma_loop)(float *x, float factor, size_t steps);
    /* Products of halves, of bfloat16, or of 8-bit integers, from registers, so many operations per step, summed up in
     * at most MOST_SUMS numbers at x. */
    int f16_fma_operations;
    void (*f16_fma_loop)(float *x, size_t steps);
    int bf16_dot_operations;
    void (*bf16_dot_loop)(float *x, size_t steps);
    int s8_dot_operations;
    void (*s8_dot_loop)(float *x, size_t steps);
    uint32_t (*read_loop)(const float *x, size_t count, size_t times);
} kernels_t;

#endif
