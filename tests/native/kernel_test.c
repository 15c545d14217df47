/* Every kernel of every table that available_kernels() finds, against plain loops in double precision.
 *
 * Needs neither Python nor the engine, so that it runs wherever a C compiler and a CPU (or its emulator) are:
 *     cc -O3 -Icython_kernels tests/native/kernel_test.c -o kernel_test -lm && ./kernel_test
 * Prints what failed, then `N passed, M failed`; the exit code is 1 where M > 0. Bounds are derived: n additions of
 * rounded products err by at most n epsilon times the sum of their absolute values (Higham 2002, section 3.1). */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "dispatch.h"
#include "portable/half.h"

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))
#define GUARD 64 /* floats on either side of an output */
#define EPSILON (double)FLT_EPSILON

static const kernels_t *table;
static int passed, failed;

static void expect(int holds, const char *what, int a, int b, int c) {
    if (holds) {
        passed++;
    } else {
        failed++;
        printf("FAILED %s: %s (%d, %d, %d)\n", table->isa, what, a, b, c);
    }
}

/* ---- Memory and numbers ----------------------------------------------------------------------------------- */

static void *allocate(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes + !bytes)) abort();
    return p;
}

/* `count` NaN on a 64-byte boundary between guard zones. */
static float *guarded(size_t count) {
    float *p = allocate((count + 2 * GUARD) * sizeof *p);
    for (size_t i = 0; i < count + 2 * GUARD; i++) p[i] = NAN;
    for (int i = 0; i < GUARD; i++) p[i] = p[GUARD + count + i] = -12345.0f - (float)i;
    return p + GUARD;
}

static int is_intact(const float *p, size_t count) {
    for (int i = 0; i < GUARD; i++)
        if (p[i - GUARD] != -12345.0f - (float)i || p[count + i] != -12345.0f - (float)i) return 0;
    return 1;
}

static void release(float *p) { free(p - GUARD); }

static uint32_t state = 2463534242u; /* xorshift32, Marsaglia 2003 */
static uint32_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}
static float uniform(void) { return (float)(int32_t)next_random() * (1.0f / 2147483648.0f); } /* [-1, 1] */

static float *random_floats(size_t count) {
    float *p = guarded(count);
    for (size_t i = 0; i < count; i++) p[i] = uniform();
    return p;
}

/* ---- GEMM ------------------------------------------------------------------------------------------------- */

static float *random_weight(int rows, int k, double density) {
    float *w = random_floats((size_t)rows * k);
    for (int i = 0; i < rows * k; i++)
        if ((next_random() >> 8) * (1.0 / 16777216.0) >= density) w[i] = 0.0f;
    return w;
}

static int nonzeros(const float *w, int k) {
    int n = 0;
    for (int i = 0; i < k; i++) n += w[i] != 0.0f;
    return n;
}

static block_t pack_dense(const float *w, int rows, int k) {
    const int group = table->f32_dense_rows, groups = (rows + group - 1) / group;
    float *values = allocate((size_t)groups * group * k * sizeof *values), *p = values;
    for (int first = 0; first < rows; first += group)
        for (int i = 0; i < k; i++)
            for (int r = first; r < first + group; r++) *p++ = r < rows ? w[r * k + i] : 0.0f;
    return (block_t){.run = table->f32_dense, .values = values, .rows = rows, .k = k};
}

/* Rows in reverse, a run per bundle; the last row is repeated to a whole bundle. */
static block_t pack_table(const float *w, int rows, int k) {
    const int bundles = (rows + BUNDLE - 1) / BUNDLE;
    float *values = allocate((size_t)bundles * BUNDLE * k * sizeof *values);
    uint16_t *offsets = allocate((size_t)bundles * BUNDLE * k * sizeof *offsets);
    uint16_t *numbers = allocate((size_t)bundles * BUNDLE * sizeof *numbers);
    run_t *runs = allocate((size_t)bundles * sizeof *runs);
    size_t at = 0;
    for (int b = 0; b < bundles; b++) {
        int most = 0;
        for (int j = 0; j < BUNDLE; j++) {
            const int row = rows - 1 - b * BUNDLE - j;
            numbers[b * BUNDLE + j] = (uint16_t)(row < 0 ? 0 : row);
            const int n = nonzeros(w + numbers[b * BUNDLE + j] * k, k);
            if (n > most) most = n;
        }
        runs[b] = (run_t){.bundles = 1, .count = (uint32_t)most};
        for (int j = 0; j < BUNDLE; j++) {
            const float *row = w + numbers[b * BUNDLE + j] * k;
            size_t end = at + j;
            for (int i = 0; i < k; i++)
                if (row[i] != 0.0f) values[end] = row[i], offsets[end] = (uint16_t)(i * TILE * 4), end += BUNDLE;
            for (; end < at + (size_t)most * BUNDLE; end += BUNDLE) values[end] = 0.0f, offsets[end] = 0;
        }
        at += (size_t)most * BUNDLE;
    }
    return (block_t){.run = table->f32_table, .values = values, .offsets = offsets, .row_numbers = numbers, .runs = runs,
                     .num_runs = bundles, .rows = rows, .k = k};
}

static block_t pack_generated(generator_t form, const float *w, int rows, int k, int start, size_t *size) {
    const int nnz = nonzeros(w, rows * k);
    float *values = allocate((size_t)nnz * sizeof *values), *columns = allocate((size_t)rows * k * sizeof *columns);
    block_t block = {.run = form.run, .values = values, .num_values = (size_t)nnz, .rows = rows, .k = k};
    *size = form.code_bound(&block);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < k; i++) columns[i * rows + r] = w[r * k + i];
    uint8_t *code = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED) abort();
    block.code = code;
    const uint8_t *end = form.generate(&block, columns, start);
    expect(end <= code + *size, "generated code fits its bound", rows, k, nnz);
    if (mprotect(code, *size, PROT_READ | PROT_EXEC)) abort();
    free(columns);
    return block;
}

/* Of halves each factor is rounded to 11 bits, up to 64 terms are summed in them, and what is small errs absolutely. */
static void check_gemm(const block_t *block, const float *w, int tiles, int start, int is_f16, const char *what) {
    const int rows = block->rows, k = block->k;
    const ptrdiff_t x_stride = (k + 1) * TILE, y_stride = (rows + 2) * TILE; /* tiles need not touch */
    float *x = random_floats((size_t)tiles * x_stride), *bias = random_floats((size_t)rows);
    float *y = guarded((size_t)tiles * y_stride), *init = random_floats((size_t)tiles * y_stride);
    float *lines = allocate((size_t)(tiles + 1) / 2 * (size_t)k * 64);
    for (int t = 0; is_f16 && t < tiles; t += 2)
        table->f16_convert(x + t * x_stride, t + 1 < tiles ? x + (t + 1) * x_stride : NULL, k, lines + t / 2 * k * TILE);
    for (ptrdiff_t i = 0; start == START_Y && i < tiles * y_stride; i++) y[i] = init[i];
    block->run(block, is_f16 ? (tiles_t){lines, k * TILE / 2, tiles} : (tiles_t){x, x_stride, tiles},
               (tiles_t){start == START_BIAS ? NULL : start == START_Y ? y : init, y_stride, tiles},
               start == START_BIAS ? bias : NULL, (tiles_t){y, y_stride, tiles}, NULL);
    int is_close = 1, is_confined = is_intact(y, (size_t)tiles * y_stride);
    for (int t = 0; t < tiles; t++)
        for (int r = 0; r < rows + 2; r++)
            for (int lane = 0; lane < TILE; lane++) {
                const ptrdiff_t at = t * y_stride + r * TILE + lane;
                if (r >= rows) { /* between the tiles */
                    is_confined &= start == START_Y ? y[at] == init[at] : isnan(y[at]);
                    continue;
                }
                double sum = start == START_BIAS ? bias[r] : init[at], size = fabs(sum);
                for (int i = 0; i < k; i++) {
                    const double product = (double)w[r * k + i] * x[t * x_stride + i * TILE + lane];
                    sum += product, size += fabs(product);
                }
                is_close &= fabs(y[at] - sum) <= (is_f16 ? 68 * size / 2048 + (k + 1) * 4 / 16777216.0
                                                         : (nonzeros(w + r * k, k) + 1) * EPSILON * size);
            }
    expect(is_close, what, rows, k, tiles);
    expect(is_confined, "gemm writes inside its rows only", rows, k, tiles);
    release(x), release(bias), release(y), release(init), free(lines);
}

/* The table form of halves. */
static block_t pack_f16_table(const float *w, int rows, int k) {
    block_t block = pack_table(w, rows, k);
    size_t count = 0;
    for (int32_t run = 0; run < block.num_runs; run++) count += (size_t)block.runs[run].count * BUNDLE;
    uint16_t *halves = allocate(count * sizeof *halves);
    for (size_t i = 0; i < count; i++) halves[i] = half_of(block.values[i]);
    free((void *)block.values);
    block.run = table->f16_table;
    block.values = (float *)halves;
    return block;
}

/* Integers of 8 bits: with all scales 1 the result is an integer, and the right one. */
static void check_s8(const float *w, int rows, int k, int tiles) {
    const int group = table->s8_dense_rows, quads = (k + 3) / 4, groups = (rows + group - 1) / group;
    const ptrdiff_t x_stride = (k + 1) * TILE, y_stride = (rows + 2) * TILE, line_stride = (quads + QUAD_HEADER) * TILE;
    const rounding_t rounding = {1.0f, 117, NULL};
    float *x = random_floats((size_t)(tiles * x_stride)), *bias = random_floats((size_t)rows);
    float *lines = allocate((size_t)(tiles * line_stride) * sizeof *lines), *y = guarded((size_t)(tiles * y_stride));
    float *values = allocate((size_t)(groups * group * (quads + 2)) * sizeof *values), *to = values;
    int8_t *integers = allocate((size_t)(rows * k));
    for (int i = 0; i < rows * k; i++) integers[i] = (int8_t)(w[i] == 0.0f ? 0 : (int)(next_random() % 256) - 128);
    for (int i = 0; i < tiles * x_stride; i++) x[i] = rintf(300.0f * x[i]);
    for (int r = 0; r < rows; r++) bias[r] = 0.0f;
    for (int g = 0; g < groups; g++)
        for (int line = -2; line < quads; line++)
            for (int r = g * group; r < (g + 1) * group; r++, to++) {
                int32_t number = 0;
                const float one = 1.0f;
                if (r < rows && line == -2)
                    for (int i = 0; i < k; i++) number -= integers[r * k + i];
                if (r < rows && line == -1) memcpy(&number, &one, sizeof number);
                for (int i = 0; r < rows && line >= 0 && i < 4 && 4 * line + i < k; i++)
                    number |= (int32_t)((uint32_t)(uint8_t)integers[r * k + 4 * line + i] << (8 * i));
                memcpy(to, &number, sizeof number);
            }
    for (int t = 0; t < tiles; t++) table->u8_convert(x + t * x_stride, k, rounding, lines + t * line_stride);
    block_t block = {0};
    block.rows = rows, block.k = k, block.values = values;
    table->s8_dense(&block, (tiles_t){lines, line_stride, tiles}, (tiles_t){NULL, y_stride, tiles}, bias,
                    (tiles_t){y, y_stride, tiles}, NULL);
    int is_exact = 1, is_confined = is_intact(y, (size_t)(tiles * y_stride));
    for (int t = 0; t < tiles; t++)
        for (int r = 0; r < rows + 2; r++)
            for (int lane = 0; lane < TILE; lane++) {
                const ptrdiff_t at = t * y_stride + r * TILE + lane;
                int64_t sum = 0;
                for (int i = 0; r < rows && i < k; i++) {
                    const float number = x[t * x_stride + i * TILE + lane];
                    sum += integers[r * k + i] * (int64_t)fmaxf(-117.0f, fminf(138.0f, number));
                }
                if (r < rows) is_exact &= y[at] == (float)sum;
                else is_confined &= isnan(y[at]);
            }
    expect(is_exact, "s8_dense", rows, k, tiles);
    expect(is_confined, "s8_dense writes inside its rows only", rows, k, tiles);
    release(x), release(bias), release(y), free(lines), free(values), free(integers);
}

static void test_gemm(void) {
    const int ks[] = {1, 7, 256, 300, 1000}, tile_counts[] = {1, 2, 3, 5};
    const int rows[] = {1, 3, 4, 5, table->f32_dense_rows, table->f32_dense_rows + 1, 2 * table->f32_dense_rows - 1, 31, 61};
    const double densities[] = {0.0, 0.1, 0.5, 1.0};
    for (int n = 0; n < LENGTH(rows); n++)
        for (int i = 0; i < LENGTH(ks); i++)
            for (int d = 0; d < LENGTH(densities); d++) {
                float *w = random_weight(rows[n], ks[i], densities[d]);
                const int tiles = tile_counts[(n + i + d) % LENGTH(tile_counts)];
                block_t blocks[3] = {pack_dense(w, rows[n], ks[i]), pack_table(w, rows[n], ks[i]),
                                     pack_f16_table(w, rows[n], ks[i])};
                if (table->s8_dense_columns == 4) check_s8(w, rows[n], ks[i], tiles);
                for (int start = START_BIAS; start <= START_Y; start++) {
                    check_gemm(&blocks[0], w, tiles, start, 0, "dense");
                    check_gemm(&blocks[1], w, tiles, start, 0, "table");
                    if (table->f16_table) check_gemm(&blocks[2], w, tiles, start, 1, "f16_table");
                    for (int is_f16 = 0; is_f16 < 2; is_f16++) {
                        generator_t form = is_f16 ? table->f16_generated : table->f32_generated;
                        /* the code for half precision is written on more CPUs than run it */
                        if (is_f16 && !form.run && table->f32_generated.run && code_model())
                            form = code_model()->f16_generated;
                        if (ks[i] > form.max_k) continue;
                        size_t size;
                        block_t block = pack_generated(form, w, rows[n], ks[i], start, &size);
                        if (!is_f16 || table->f16_generated.run)
                            check_gemm(&block, w, tiles, start, is_f16, is_f16 ? "f16_generated" : "generated");
                        free((void *)block.values);
                        munmap((void *)block.code, size);
                    }
                }
                for (int b = 0; b < 3; b++) {
                    free((void *)blocks[b].values), free((void *)blocks[b].offsets);
                    free((void *)blocks[b].row_numbers), free((void *)blocks[b].runs);
                }
                release(w);
            }
}

/* ---- Elementwise ------------------------------------------------------------------------------------------ */

static double gelu(double x) { return 0.5 * x * (1.0 + erf(x * M_SQRT1_2)); }
static double gelu_tanh(double x) {
    return 0.5 * x * (1.0 + tanh(sqrt(M_2_PI) * (x + 0.044715 * x * x * x)));
}
static double relu(double x) { return x > 0.0 ? x : 0.0; }

static void check_activation(void (*kernel)(float *, size_t), double (*oracle)(double), double absolute,
                             double relative, const char *what) {
    enum { COUNT = 1 << 16 };
    float *x = guarded(COUNT), *y = guarded(COUNT);
    for (int i = 0; i < COUNT; i++) /* half a fine grid on [-8, 8], half every magnitude */
        x[i] = y[i] = i % 2 ? (float)(i - COUNT / 2) * 16.0f / COUNT : uniform() * powf(10.0f, 38.0f * uniform());
    x[0] = y[0] = NAN, x[1] = y[1] = -0.0f, x[2] = y[2] = FLT_MAX, x[3] = y[3] = -FLT_MAX, x[4] = y[4] = INFINITY;
    kernel(y, COUNT);
    int is_close = isnan(y[0]) && y[4] == INFINITY;
    for (int i = 1; i < COUNT; i++)
        if (i != 4) is_close &= fabs(y[i] - oracle(x[i])) <= absolute + relative * fabs(x[i]);
    expect(is_close, what, COUNT, 0, 0);
    expect(is_intact(y, COUNT), "activation keeps to its array", COUNT, 0, 0);
    release(x), release(y);
}

static void test_activations(void) {
    check_activation(table->f32_gelu, gelu, 1e-6, 1.2e-7, "gelu"); /* as kernels.h promises */
    check_activation(table->f32_gelu_tanh, gelu_tanh, 1e-6, 1.2e-7, "gelu_tanh");
    check_activation(table->f32_relu, relu, 0.0, 0.0, "relu");
}

/* Inputs lie in [-1, 1] and the deviation is about 0.58, so errors of mean and variance, (features + 4) epsilon
 * each, reach the result at most (1 / 0.5 + 2) fold. */
static void check_layer_norm(int features, int has_bias, int in_place) {
    const size_t count = (size_t)features * TILE;
    float *x = random_floats(count), *copy = guarded(count), *bias = random_floats((size_t)features);
    float *gamma = random_floats((size_t)features), *beta = random_floats((size_t)features);
    float *other = guarded(count), *y = in_place ? x : other;
    const float epsilon = 0.1f;
    const norm_t norm = {gamma, beta, epsilon, features};
    memcpy(copy, x, count * sizeof *x);
    table->f32_layer_norm(x, has_bias ? bias : NULL, &norm, y);
    int is_close = 1;
    for (int lane = 0; lane < TILE; lane++) {
        double mean = 0.0, variance = 0.0;
        for (int f = 0; f < features; f++) mean += (copy[f * TILE + lane] + (has_bias ? (double)bias[f] : 0.0)) / features;
        for (int f = 0; f < features; f++) {
            const double d = copy[f * TILE + lane] + (has_bias ? (double)bias[f] : 0.0) - mean;
            variance += d * d / features;
        }
        const double scale = 1.0 / sqrt(variance + epsilon);
        for (int f = 0; f < features; f++) {
            const double d = copy[f * TILE + lane] + (has_bias ? (double)bias[f] : 0.0) - mean;
            const double error = (features + 4) * EPSILON * scale * (2.0 + fabs(d) * scale * (2.0 + scale));
            is_close &= fabs(y[f * TILE + lane] - (d * scale * gamma[f] + beta[f])) <= error + 4 * EPSILON;
        }
    }
    expect(is_close, "layer_norm", features, has_bias, in_place);
    expect(is_intact(x, count) && is_intact(other, count), "layer_norm keeps to its tile", features, 0, 0);
    release(x), release(copy), release(bias), release(gamma), release(beta), release(other);
}

/* ---- Attention -------------------------------------------------------------------------------------------- */

/* exp2 errs by 3e-7 relatively (elementwise.h), a score by (d + 1) epsilon |q||k|, which the exponential turns into
 * a relative error; the maximum's rounding cancels. Then come n products and additions, twice. */
static void check_attention(int tiles, int num_keys, int d) {
    const int key_tiles = (num_keys + TILE - 1) / TILE;
    const ptrdiff_t q_stride = (d + 3) * TILE, kv_stride = (2 * d + 1) * TILE, out_stride = (d + 1) * TILE;
    float *q = random_floats((size_t)(tiles * q_stride)), *k = random_floats((size_t)(key_tiles * kv_stride));
    float *v = k + d * TILE, *out = guarded((size_t)(tiles * out_stride));
    float *scratch = guarded((size_t)(2 * TILE * TILE * key_tiles));
    double *p = malloc((size_t)num_keys * sizeof *p);
    table->f32_attention((tiles_t){q, q_stride, tiles}, (tiles_t){k, kv_stride, key_tiles},
                         (tiles_t){v, kv_stride, key_tiles}, num_keys, d, scratch, (tiles_t){out, out_stride, tiles});
    int is_close = 1;
    for (int query = 0; query < tiles * TILE; query++) {
        const float *qs = q + query / TILE * q_stride + query % TILE;
        double most = -INFINITY, total = 0.0, size = 0.0;
        for (int key = 0; key < num_keys; key++) {
            p[key] = 0.0;
            double s = 0.0;
            for (int i = 0; i < d; i++) {
                const double product = (double)qs[i * TILE] * k[key / TILE * kv_stride + i * TILE + key % TILE];
                p[key] += product, s += fabs(product);
            }
            if (p[key] > most) most = p[key];
            if (s > size) size = s;
        }
        for (int key = 0; key < num_keys; key++) total += p[key] = exp2(p[key] - most);
        for (int i = 0; i < d; i++) {
            double sum = 0.0, absolute = 0.0;
            for (int key = 0; key < num_keys; key++) {
                const double product = p[key] / total * v[key / TILE * kv_stride + i * TILE + key % TILE];
                sum += product, absolute += fabs(product);
            }
            const double error = 2 * (3e-7 + (d + 3) * EPSILON * 2 * size) + 2 * (num_keys + 2) * EPSILON;
            is_close &= fabs(out[query / TILE * out_stride + i * TILE + query % TILE] - sum) <= error * absolute + 1e-30;
        }
    }
    for (int t = 0; t < tiles; t++) /* the row between two heads' tiles */
        for (int lane = 0; lane < TILE; lane++) is_close &= isnan(out[t * out_stride + d * TILE + lane]);
    expect(is_close, "attention", tiles, num_keys, d);
    expect(is_intact(out, (size_t)(tiles * out_stride)) && is_intact(scratch, (size_t)(2 * TILE * TILE * key_tiles)),
           "attention keeps to out and scratch", tiles, num_keys, d);
    release(q), release(k), release(out), release(scratch), free(p);
}

/* ---- Token rows <-> tiles --------------------------------------------------------------------------------- */

static void check_embed(int features, int has_position, int has_type) {
    enum { WORDS = 50, POSITIONS = 40, TYPES = 2 };
    float *word = random_floats((size_t)(WORDS * features)), *position = random_floats((size_t)(POSITIONS * features));
    float *type = random_floats((size_t)(TYPES * features)), *tile = guarded((size_t)(features * TILE));
    int32_t ids[TILE], positions[TILE], types[TILE];
    for (int lane = 0; lane < TILE; lane++) {
        ids[lane] = lane % 5 == 3 ? -1 : (int32_t)(next_random() % WORDS);
        positions[lane] = (int32_t)(next_random() % POSITIONS), types[lane] = (int32_t)(next_random() % TYPES);
    }
    ids[0] = WORDS - 1, positions[0] = POSITIONS - 1, types[0] = TYPES - 1; /* a read beyond is out of bounds */
    const tables_t tables = {word, NULL, NULL, has_position ? position : NULL, has_type ? type : NULL, features};
    table->f32_embed(&tables, (tokens_t){ids, positions, types}, tile);
    int is_close = 1;
    for (int f = 0; f < features; f++)
        for (int lane = 0; lane < TILE; lane++) {
            double sum = 0.0;
            if (ids[lane] >= 0) {
                sum = word[ids[lane] * features + f];
                if (has_position) sum += position[positions[lane] * features + f];
                if (has_type) sum += type[types[lane] * features + f];
            }
            is_close &= fabs(tile[f * TILE + lane] - sum) <= (ids[lane] < 0 ? 0.0 : 3 * EPSILON);
        }
    expect(is_close && is_intact(tile, (size_t)(features * TILE)), "embed", features, has_position, has_type);
    release(word), release(position), release(type), release(tile);
}

static void check_scatter_gather(int features, int missing) {
    float *rows[TILE], *copies[TILE];
    float *tile = guarded((size_t)(features * TILE));
    for (int lane = 0; lane < TILE; lane++) {
        rows[lane] = lane < TILE - missing ? random_floats((size_t)features) : NULL;
        copies[lane] = lane < TILE - missing ? guarded((size_t)features) : NULL;
    }
    table->f32_gather((const float *const *)rows, features, tile);
    table->f32_scatter(tile, features, copies);
    int is_equal = is_intact(tile, (size_t)(features * TILE));
    for (int lane = 0; lane < TILE; lane++) {
        for (int f = 0; f < features; f++)
            is_equal &= tile[f * TILE + lane] == (rows[lane] ? rows[lane][f] : 0.0f) &&
                        (!rows[lane] || copies[lane][f] == rows[lane][f]);
        if (rows[lane]) is_equal &= is_intact(copies[lane], (size_t)features);
    }
    expect(is_equal, "gather and scatter", features, missing, 0);
    release(tile);
    for (int lane = 0; lane < TILE - missing; lane++) release(rows[lane]), release(copies[lane]);
}

/* ---- The loops that measure the machine -------------------------------------------------------------------- */

/* Each step rounds once or twice, by at most epsilon of the value so far. */
static void check_fma_loop(int steps) {
    const size_t count = (size_t)table->f32_fma_count;
    float *x = random_floats(count), *before = guarded(count);
    memcpy(before, x, count * sizeof *x);
    table->f32_fma_loop(x, 0.25f, (size_t)steps);
    int is_close = 1;
    for (size_t i = 0; i < count; i++) {
        const double expected = before[i] * pow(1.25, steps);
        is_close &= fabs(x[i] - expected) <= 2 * steps * EPSILON * fabs(expected);
    }
    expect(is_close && is_intact(x, count), "fma_loop", steps, 0, 0);
    release(x), release(before);
}

static void check_read_loop(int units, int times) {
    const int count = units * READ_FLOATS;
    float *x = random_floats((size_t)count);
    uint32_t all = 0;
    for (int i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, x + i, sizeof word);
        all ^= word;
    }
    expect(table->read_loop(x, (size_t)count, (size_t)times) == (times % 2 ? all : 0), "read_loop", units, times, 0);
    release(x);
}

int main(void) {
    const kernels_t *tables[NUM_ISAS];
    const int count = available_kernels(tables);
    const int features[] = {1, 15, 16, 17, 31, 32, 48, 100, 257};
    const int keys[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 128}, heads[] = {1, 2, 4, 5, 8, 16, 32, 64, 100};
    for (int isa = 0; isa < count; isa++) {
        const int before = passed;
        table = tables[isa];
        test_gemm();
        test_activations();
        for (int i = 0; i < LENGTH(features); i++)
            for (int flags = 0; flags < 4; flags++) {
                if (features[i] > 4) check_layer_norm(features[i], flags & 1, flags >> 1);
                check_embed(features[i], flags & 1, flags >> 1);
                check_scatter_gather(features[i], 5 * flags);
            }
        for (int i = 0; i < LENGTH(keys); i++)
            for (int j = 0; j < LENGTH(heads); j++) check_attention(1 + (i + j) % 4, keys[i], heads[j]);
        for (int i = 0; i < 4; i++) {
            check_fma_loop(i * i);
            check_read_loop(1 + i, i), check_read_loop(1 + i, 1);
        }
        printf("%s: %d passed\n", table->isa, passed - before);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
