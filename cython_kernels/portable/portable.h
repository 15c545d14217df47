/* Every kernel, once, in the compilers' vector extension. An ISA header defines ISA_NAME, LANES and the
 * register tiles below, opens its target region and includes this file; what it does better by hand it then
 * replaces in its table.
 *
 *   LANES        floats per vector register: 16, 8 or 4
 *   TABLE_ROWS   rows of a bundle that the table kernel computes at once, on TABLE_TILES tiles:
 *                TABLE_ROWS * TABLE_TILES * TILE / LANES accumulators
 *   DENSE_ROWS   rows of the dense kernel: DENSE_ROWS * TILE / LANES accumulators
 *   QUERY_TILES  query tiles that attention keeps in registers
 *   KEYS         keys per step of attention: KEYS * QUERY_TILES * TILE / LANES accumulators
 *   VECTOR_MAX, VECTOR_MIN  the instructions, where the vector extension has no spelling that compiles to them
 */
#include <string.h>

#include "kernels.h"

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define SYM(name) PASTE(name, ISA_NAME)
#define VECTORS (TILE / LANES) /* vectors per tile row */

typedef float SYM(vf) __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t SYM(vi) __attribute__((vector_size(LANES * 4), may_alias));
typedef float SYM(row16) __attribute__((vector_size(64), may_alias));
typedef float SYM(row16u) __attribute__((vector_size(64), may_alias, aligned(4)));
#define VF SYM(vf)
#define VI SYM(vi)

/* Accumulators stay in registers only where their loop is unrolled whole; by themselves compilers stop at 16. */
#define UNROLL _Pragma("GCC unroll 32")
#define INLINE static inline __attribute__((always_inline))

INLINE VF SYM(load)(const float *p) { return *(const VF *)p; }
INLINE void SYM(store)(float *p, VF x) { *(VF *)p = x; }
INLINE VF SYM(splat)(float x) { return x - (VF){0}; } /* unlike x + 0 a plain copy, whatever the sign of x */
INLINE VF SYM(select)(VI mask, VF yes, VF no) { return (VF)(((VI)yes & mask) | ((VI)no & ~mask)); }
/* As the SSE instructions: the second operand where either is NaN. Callers put the data second. */
#ifdef VECTOR_MAX
INLINE VF SYM(max)(VF a, VF b) { return (VF)VECTOR_MAX(a, b); }
INLINE VF SYM(min)(VF a, VF b) { return (VF)VECTOR_MIN(a, b); }
#else
INLINE VF SYM(max)(VF a, VF b) { return SYM(select)(a > b, a, b); }
INLINE VF SYM(min)(VF a, VF b) { return SYM(select)(a < b, a, b); }
#endif

/* ---- GEMM: table form ------------------------------------------------------------------------------------- */

INLINE void SYM(table_tiles)(const block_t *block, const int tiles, const float *x, ptrdiff_t x_stride,
                             const float *init, ptrdiff_t init_stride, const float *bias, float *y,
                             ptrdiff_t y_stride) {
    const float *w = block->values;
    const uint16_t *at = block->offsets;
    const uint16_t *row = block->row_numbers;
    int left = block->rows; /* the last bundle repeats its last row: what was stored must not be added to again */
    for (int32_t run = 0; run < block->num_runs; run++) {
        const uint32_t count = block->runs[run].count;
        for (uint32_t bundle = block->runs[run].bundles; bundle > 0; bundle--, row += BUNDLE, left -= BUNDLE) {
            for (int first = 0; first < BUNDLE && first < left; first += TABLE_ROWS) {
                VF acc[TABLE_ROWS][TABLE_TILES * VECTORS];
                for (int r = 0; r < TABLE_ROWS; r++)
                    for (int t = 0; t < tiles; t++)
                        for (int v = 0; v < VECTORS; v++)
                            acc[r][t * VECTORS + v] =
                                init ? SYM(load)(init + t * init_stride + row[first + r] * TILE + v * LANES)
                                     : SYM(splat)(bias[row[first + r]]);
                const float *weight = w + first;
                const uint16_t *offset = at + first;
                for (uint32_t i = count; i > 0; i--, weight += BUNDLE, offset += BUNDLE)
                    for (int r = 0; r < TABLE_ROWS; r++) {
                        const float *xr = (const float *)((const char *)x + offset[r]);
                        const VF wr = SYM(splat)(weight[r]);
                        for (int t = 0; t < tiles; t++)
                            for (int v = 0; v < VECTORS; v++)
                                acc[r][t * VECTORS + v] += SYM(load)(xr + t * x_stride + v * LANES) * wr;
                    }
                for (int r = 0; r < TABLE_ROWS; r++)
                    for (int t = 0; t < tiles; t++)
                        for (int v = 0; v < VECTORS; v++)
                            SYM(store)(y + t * y_stride + row[first + r] * TILE + v * LANES, acc[r][t * VECTORS + v]);
            }
            w += (size_t)count * BUNDLE, at += (size_t)count * BUNDLE;
        }
    }
}

static void SYM(table)(const block_t *block, const float *x, ptrdiff_t x_stride, const float *init,
                       ptrdiff_t init_stride, const float *bias, float *y, ptrdiff_t y_stride, int tiles,
                       activation_fn after) {
    for (int tile = 0, step; tile < tiles; tile += step) {
        const float *xt = x + tile * x_stride, *it = init ? init + tile * init_stride : NULL;
        float *yt = y + tile * y_stride;
        step = tiles - tile >= TABLE_TILES ? TABLE_TILES : 1;
        if (step == TABLE_TILES)
            SYM(table_tiles)(block, TABLE_TILES, xt, x_stride, it, init_stride, bias, yt, y_stride);
        else
            SYM(table_tiles)(block, 1, xt, x_stride, it, init_stride, bias, yt, y_stride);
        for (int t = 0; after && t < step; t++) after(yt + t * y_stride, (size_t)block->rows * TILE);
    }
}

/* ---- GEMM: dense form ------------------------------------------------------------------------------------- */

static void SYM(dense)(const block_t *block, const float *x, ptrdiff_t x_stride, const float *init,
                       ptrdiff_t init_stride, const float *bias, float *y, ptrdiff_t y_stride, int tiles,
                       activation_fn after) {
    const int k = block->k;
    for (int32_t first = 0; first < block->rows; first += DENSE_ROWS) {
        const int rows = block->rows - first < DENSE_ROWS ? block->rows - first : DENSE_ROWS;
        for (int tile = 0; tile < tiles; tile++) {
            const float *xt = x + tile * x_stride;
            const float *it = init ? init + tile * init_stride + first * TILE : NULL;
            float *yt = y + tile * y_stride + first * TILE;
            const float *w = block->values + (size_t)first * k;
            VF acc[DENSE_ROWS][VECTORS];
            UNROLL
            for (int r = 0; r < DENSE_ROWS; r++) {
                const int row = r < rows ? r : 0; /* a short last group computes its first row again */
                for (int v = 0; v < VECTORS; v++)
                    acc[r][v] = it ? SYM(load)(it + row * TILE + v * LANES) : SYM(splat)(bias[first + row]);
            }
            for (int i = 0; i < k; i++, w += DENSE_ROWS) {
                VF xv[VECTORS];
                for (int v = 0; v < VECTORS; v++) xv[v] = SYM(load)(xt + i * TILE + v * LANES);
                UNROLL
                for (int r = 0; r < DENSE_ROWS; r++)
                    for (int v = 0; v < VECTORS; v++) acc[r][v] += xv[v] * w[r];
            }
            UNROLL
            for (int r = 0; r < DENSE_ROWS; r++)
                if (r < rows)
                    for (int v = 0; v < VECTORS; v++) SYM(store)(yt + r * TILE + v * LANES, acc[r][v]);
            if (after) after(yt, (size_t)rows * TILE);
        }
    }
}

/* ---- Elementwise ------------------------------------------------------------------------------------------ */

/* 2^x for x <= 127; below -126 it returns 2^-126, which sums of softmax lose. Degree-5 minimax of 2^f on
 * [-1/2, 1/2]; relative error below 3e-7, rounding included. */
INLINE VF SYM(exp2)(VF x) {
    x = SYM(max)(SYM(splat)(-126.0f), x); /* this order hands a NaN on */
    const VF magic = SYM(splat)(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    const VF shifted = x + magic;
    const VF f = x - (shifted - magic);
    VF p = SYM(splat)(0.0013276472454890609f);
    p = p * f + 0.009675541892647743f;
    p = p * f + 0.05550713092088699f;
    p = p * f + 0.24022120237350464f;
    p = p * f + 0.6931469440460205f;
    p = p * f + 1.0000001192092896f;
    return (VF)((VI)p + ((VI)shifted << 23));
}

/* x * Phi(x), Phi(x) = 1/2 + x P(x^2) with x clamped to +-5.5 inside; P is a degree-13 minimax polynomial in
 * u = 2 x^2 / 5.5^2 - 1, whose coefficients keep their float32 accuracy where powers of x^2 lose it. */
static void SYM(gelu)(float *x, size_t count) {
    static const float c[14] = {0.12855194509029388f,   -0.06417197734117508f,  0.047735605388879776f,
                                -0.03880469501018524f,  0.03211359307169914f,   -0.025941897183656693f,
                                0.020029546692967415f,  -0.015373255126178265f, 0.011425280012190342f,
                                -0.006292717065662146f, 0.0024753392208367586f, -0.002518210094422102f,
                                0.0025922644417732954f, -0.0009117480367422104f};
    for (size_t i = 0; i < count; i += LANES) {
        const VF a = SYM(load)(x + i);
        const VF b = SYM(max)(SYM(splat)(-5.5f), SYM(min)(SYM(splat)(5.5f), a));
        const VF u = b * b * (2.0f / 30.25f) - 1.0f;
        VF p = SYM(splat)(c[13]);
        for (int j = 12; j >= 0; j--) p = p * u + c[j];
        SYM(store)(x + i, a * (b * p + 0.5f));
    }
}

/* x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))), which equals the tanh form. */
static void SYM(gelu_tanh)(float *x, size_t count) {
    const float c = -2.302208198f; /* -2 sqrt(2/pi) log2(e) */
    for (size_t i = 0; i < count; i += LANES) {
        const VF a = SYM(load)(x + i);
        const VF e = SYM(min)(SYM(splat)(120.0f), (a * a * 0.044715f + 1.0f) * a * c);
        SYM(store)(x + i, a / (SYM(exp2)(e) + 1.0f));
    }
}

static void SYM(relu)(float *x, size_t count) {
    for (size_t i = 0; i < count; i += LANES) {
        const VF a = SYM(load)(x + i);
        SYM(store)(x + i, SYM(select)(a < SYM(splat)(0.0f), SYM(splat)(0.0f), a));
    }
}

static void SYM(layer_norm)(float *x, const float *bias, const float *gamma, const float *beta, float epsilon,
                            int features, float *y) {
    VF mean[VECTORS], scale[VECTORS];
    for (int v = 0; v < VECTORS; v++) mean[v] = scale[v] = SYM(splat)(0.0f);
    for (int f = 0; f < features; f++)
        for (int v = 0; v < VECTORS; v++) {
            float *p = x + f * TILE + v * LANES;
            VF a = SYM(load)(p);
            if (bias) {
                a += bias[f];
                SYM(store)(p, a);
            }
            mean[v] += a;
        }
    for (int v = 0; v < VECTORS; v++) mean[v] /= (float)features;
    for (int f = 0; f < features; f++)
        for (int v = 0; v < VECTORS; v++) {
            const VF d = SYM(load)(x + f * TILE + v * LANES) - mean[v];
            scale[v] += d * d;
        }
    for (int v = 0; v < VECTORS; v++)
        for (int lane = 0; lane < LANES; lane++)
            scale[v][lane] = 1.0f / __builtin_sqrtf(scale[v][lane] / (float)features + epsilon);
    for (int f = 0; f < features; f++)
        for (int v = 0; v < VECTORS; v++) {
            const VF a = SYM(load)(x + f * TILE + v * LANES);
            SYM(store)(y + f * TILE + v * LANES, (a - mean[v]) * scale[v] * gamma[f] + beta[f]);
        }
}

/* ---- Attention -------------------------------------------------------------------------------------------- */

#define SCRATCH_ROW (2 * TILE) /* floats per key in scratch */

/* scores[key][query] for the KEYS keys at k (same tile); max over the first `valid` of them. */
INLINE void SYM(score_keys)(const float *q, ptrdiff_t q_stride, const float *k, int head_size, const int query_tiles,
                            int valid, float *scores, VF *max) {
    VF acc[KEYS][QUERY_TILES * VECTORS];
    for (int j = 0; j < KEYS; j++)
        for (int v = 0; v < query_tiles * VECTORS; v++) acc[j][v] = SYM(splat)(0.0f);
    const float *end = k + (ptrdiff_t)head_size * TILE;
    for (; k < end; k += TILE, q += TILE) {
        VF qv[QUERY_TILES * VECTORS];
        for (int t = 0; t < query_tiles; t++)
            for (int v = 0; v < VECTORS; v++) qv[t * VECTORS + v] = SYM(load)(q + t * q_stride + v * LANES);
        for (int j = 0; j < KEYS; j++)
            for (int v = 0; v < query_tiles * VECTORS; v++) acc[j][v] += qv[v] * k[j];
    }
    for (int j = 0; j < KEYS; j++)
        for (int v = 0; v < query_tiles * VECTORS; v++) SYM(store)(scores + j * SCRATCH_ROW + v * LANES, acc[j][v]);
    if (valid >= KEYS) {
        for (int j = 0; j < KEYS; j++)
            for (int v = 0; v < query_tiles * VECTORS; v++) max[v] = SYM(max)(acc[j][v], max[v]);
        return;
    }
    for (int j = 0; j < valid; j++)
        for (int v = 0; v < query_tiles * VECTORS; v++)
            max[v] = SYM(max)(SYM(load)(scores + j * SCRATCH_ROW + v * LANES), max[v]);
}

/* out[d][query] = sum over keys of v[d][key] * weight[key][query], times scale, for `depth` features. */
INLINE void SYM(weigh_values)(const float *v, ptrdiff_t kv_stride, const float *weights, int num_keys,
                              const int query_tiles, const int depth, const VF *scale, float *out,
                              ptrdiff_t out_stride) {
    VF acc[KEYS][QUERY_TILES * VECTORS];
    for (int d = 0; d < depth; d++)
        for (int i = 0; i < query_tiles * VECTORS; i++) acc[d][i] = SYM(splat)(0.0f);
    for (int first = 0; first < num_keys; first += TILE, v += kv_stride) {
        const float *end = v + (num_keys - first < TILE ? num_keys - first : TILE);
        for (const float *key = v; key < end; key++, weights += SCRATCH_ROW) {
            VF wv[QUERY_TILES * VECTORS];
            for (int i = 0; i < query_tiles * VECTORS; i++) wv[i] = SYM(load)(weights + i * LANES);
            for (int d = 0; d < depth; d++)
                for (int i = 0; i < query_tiles * VECTORS; i++) acc[d][i] += wv[i] * key[d * TILE];
        }
    }
    for (int d = 0; d < depth; d++)
        for (int t = 0; t < query_tiles; t++)
            for (int i = 0; i < VECTORS; i++)
                SYM(store)(out + t * out_stride + d * TILE + i * LANES,
                           acc[d][t * VECTORS + i] * scale[t * VECTORS + i]);
}

/* scores = 2^(scores - max), column by column; sum = 1 / their sums. */
INLINE void SYM(soften)(float *scores, int num_keys, const int query_tiles, const VF *max, VF *sum) {
    VF top[QUERY_TILES * VECTORS], total[QUERY_TILES * VECTORS];
    for (int i = 0; i < query_tiles * VECTORS; i++) top[i] = max[i], total[i] = SYM(splat)(0.0f);
    for (const float *end = scores + (ptrdiff_t)num_keys * SCRATCH_ROW; scores < end; scores += SCRATCH_ROW)
        for (int i = 0; i < query_tiles * VECTORS; i++) {
            const VF e = SYM(exp2)(SYM(load)(scores + i * LANES) - top[i]);
            total[i] += e;
            SYM(store)(scores + i * LANES, e);
        }
    for (int i = 0; i < query_tiles * VECTORS; i++) sum[i] = 1.0f / total[i];
}

/* One function per phase and number of query tiles: in one large function the compilers spill accumulators. */
#define PHASES(NAME, QUERIES)                                                                                     \
    static __attribute__((noinline)) void SYM(score_##NAME)(const float *q, ptrdiff_t q_stride, const float *k,   \
                                                            int head_size, int valid, float *scores, VF *max) {   \
        SYM(score_keys)(q, q_stride, k, head_size, QUERIES, valid, scores, max);                                  \
    }                                                                                                             \
    static __attribute__((noinline)) void SYM(soften_##NAME)(float *scores, int num_keys, const VF *max,          \
                                                             VF *sum) {                                           \
        SYM(soften)(scores, num_keys, QUERIES, max, sum);                                                         \
    }                                                                                                             \
    static __attribute__((noinline)) void SYM(weigh_##NAME)(const float *v, ptrdiff_t kv_stride,                  \
                                                            const float *weights, int num_keys, const VF *scale,  \
                                                            float *out, ptrdiff_t out_stride) {                   \
        SYM(weigh_values)(v, kv_stride, weights, num_keys, QUERIES, KEYS, scale, out, out_stride);                \
    }
PHASES(wide, QUERY_TILES)
PHASES(narrow, 1)

INLINE void SYM(attend)(const float *q, ptrdiff_t q_stride, const float *k, const float *v, ptrdiff_t kv_stride,
                        const int query_tiles, int num_keys, int head_size, float *scratch, float *out,
                        ptrdiff_t out_stride) {
    const int is_wide = query_tiles > 1;
    VF max[QUERY_TILES * VECTORS], sum[QUERY_TILES * VECTORS];
    for (int i = 0; i < query_tiles * VECTORS; i++) max[i] = SYM(splat)(-3.0e38f);
    for (int key = 0; key < num_keys; key += KEYS)
        (is_wide ? SYM(score_wide) : SYM(score_narrow))(q, q_stride, k + (key / TILE) * kv_stride + key % TILE,
                                                        head_size, num_keys - key,
                                                        scratch + (ptrdiff_t)key * SCRATCH_ROW, max);
    (is_wide ? SYM(soften_wide) : SYM(soften_narrow))(scratch, num_keys, max, sum);
    int d = 0;
    for (; d + KEYS <= head_size; d += KEYS)
        (is_wide ? SYM(weigh_wide) : SYM(weigh_narrow))(v + d * TILE, kv_stride, scratch, num_keys, sum,
                                                        out + d * TILE, out_stride);
    for (; d < head_size; d++)
        SYM(weigh_values)(v + d * TILE, kv_stride, scratch, num_keys, query_tiles, 1, sum, out + d * TILE,
                          out_stride);
}

static void SYM(attention)(const float *q, ptrdiff_t q_stride, const float *k, const float *v, ptrdiff_t kv_stride,
                           int tiles, int num_keys, int head_size, float *scratch, float *out,
                           ptrdiff_t out_stride) {
    int tile = 0;
    for (; tile + QUERY_TILES <= tiles; tile += QUERY_TILES)
        SYM(attend)(q + tile * q_stride, q_stride, k, v, kv_stride, QUERY_TILES, num_keys, head_size, scratch,
                    out + tile * out_stride, out_stride);
    for (; tile < tiles; tile++)
        SYM(attend)(q + tile * q_stride, q_stride, k, v, kv_stride, 1, num_keys, head_size, scratch,
                    out + tile * out_stride, out_stride);
}

/* ---- Token rows <-> tiles --------------------------------------------------------------------------------- */

/* Transpose 16 x 16 floats in four rounds of pairwise interleaving. */
#define ZIP(a, b, lo, hi)                                                                                         \
    lo = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);                   \
    hi = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)

INLINE void SYM(transpose16)(SYM(row16) *m) {
    SYM(row16) n[TILE];
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < TILE / 2; i++) {
            ZIP(m[i], m[i + TILE / 2], n[2 * i], n[2 * i + 1]);
        }
        for (int i = 0; i < TILE; i++) m[i] = n[i];
    }
}

static void SYM(embed)(const float *word, const float *position, const float *type, const int32_t *ids,
                       const int32_t *positions, const int32_t *types, int features, float *tile) {
    int f = 0;
    for (; f + TILE <= features; f += TILE) {
        SYM(row16) m[TILE];
        for (int lane = 0; lane < TILE; lane++) {
            if (ids[lane] < 0) {
                m[lane] = (SYM(row16)){0};
                continue;
            }
            m[lane] = *(const SYM(row16u) *)(word + (size_t)ids[lane] * features + f);
            if (type) m[lane] += *(const SYM(row16u) *)(type + (size_t)types[lane] * features + f);
            if (position) m[lane] += *(const SYM(row16u) *)(position + (size_t)positions[lane] * features + f);
        }
        SYM(transpose16)(m);
        for (int i = 0; i < TILE; i++) *(SYM(row16) *)(tile + (f + i) * TILE) = m[i];
    }
    for (; f < features; f++)
        for (int lane = 0; lane < TILE; lane++) {
            float a = 0.0f;
            if (ids[lane] >= 0) {
                a = word[(size_t)ids[lane] * features + f];
                if (type) a += type[(size_t)types[lane] * features + f];
                if (position) a += position[(size_t)positions[lane] * features + f];
            }
            tile[f * TILE + lane] = a;
        }
}

static void SYM(scatter)(const float *tile, int features, float *const *rows) {
    int f = 0;
    for (; f + TILE <= features; f += TILE) {
        SYM(row16) m[TILE];
        for (int i = 0; i < TILE; i++) m[i] = *(const SYM(row16) *)(tile + (f + i) * TILE);
        SYM(transpose16)(m);
        for (int lane = 0; lane < TILE; lane++)
            if (rows[lane]) *(SYM(row16u) *)(rows[lane] + f) = m[lane];
    }
    for (; f < features; f++)
        for (int lane = 0; lane < TILE; lane++)
            if (rows[lane]) rows[lane][f] = tile[f * TILE + lane];
}

static void SYM(gather)(const float *const *rows, int features, float *tile) {
    int f = 0;
    for (; f + TILE <= features; f += TILE) {
        SYM(row16) m[TILE];
        for (int lane = 0; lane < TILE; lane++)
            m[lane] = rows[lane] ? (SYM(row16))*(const SYM(row16u) *)(rows[lane] + f) : (SYM(row16)){0};
        SYM(transpose16)(m);
        for (int i = 0; i < TILE; i++) *(SYM(row16) *)(tile + (f + i) * TILE) = m[i];
    }
    for (; f < features; f++)
        for (int lane = 0; lane < TILE; lane++) tile[f * TILE + lane] = rows[lane] ? rows[lane][f] : 0.0f;
}

#include "peaks.h"

#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
static const kernels_t SYM(portable) = {
    .isa = STRINGIFY(ISA_NAME),
    .dense_rows = DENSE_ROWS,
    .table = SYM(table),
    .dense = SYM(dense),
    .generated = NULL,
    .gelu = SYM(gelu),
    .gelu_tanh = SYM(gelu_tanh),
    .relu = SYM(relu),
    .layer_norm = SYM(layer_norm),
    .attention = SYM(attention),
    .embed = SYM(embed),
    .scatter = SYM(scatter),
    .gather = SYM(gather),
    .fma_floats = CHAINS * LANES,
    .fma_loop = SYM(fma_loop),
    .read_loop = SYM(read_loop),
};

#undef VECTOR_MAX
#undef VECTOR_MIN
#undef STRINGIFY
#undef STRINGIFY_
#undef CHAINS
#undef ZIP
#undef SCRATCH_ROW
#undef PHASES
#undef INLINE
#undef UNROLL
#undef VI
#undef VF
#undef VECTORS
#undef SYM
#undef PASTE
#undef PASTE_
