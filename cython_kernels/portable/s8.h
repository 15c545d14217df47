/* Products of 8-bit integers, four columns at a time, with sums in 32 bits. Included after vector.h by an ISA header that
 * defines
 *
 *   S8_ROWS        rows of the dense kernel: S8_ROWS * TILE / LANES accumulators
 *   S8_DOT(acc, x, w)   its instruction: acc + the products of four bytes, of x without a sign, of w with one
 *   S8_MADD(a, b)  where there is none: its instruction for sums of two products of 16 bits; without both plain
 *                  arithmetic stands for them
 *   S8_FLIP        the instruction takes x with a sign: 128 is taken off the features and off the zero point
 *   S8_ROUND(x)    its instruction for the nearest integers, ties to even; what does not fit becomes the smallest
 *   S8_QUADS(x)    with it: bytes 0 … 255 of four vectors of integers, cut off beyond, element i of all side by side
 *
 * No form saturates: a sum of four products has at most 18 bits, and of MAX_KBLOCK columns 27. */

#include "integers.h"

#define FLOAT_TRICK 12582912.0f /* 1.5 * 2^23: adding it leaves an integer in the low bits, rounded to even */

typedef int16_t SYM(words) __attribute__((vector_size(LANES * 4), may_alias));

INLINE VI SYM(s8_dot)(VI acc, VI x, VI w) {
#if defined(S8_DOT)
    return (VI)S8_DOT(acc, x, w);
#elif defined(S8_MADD)
    typedef SYM(words) words;
    const words even = (words)(x & 0x00ff00ff), odd = (words)((VI)((words)x >> 8) & 0x00ff00ff);
    const words w_even = ((words)w << 8) >> 8, w_odd = (words)w >> 8;
    return acc + (VI)S8_MADD(even, w_even) + (VI)S8_MADD(odd, w_odd);
#else
    for (int shift = 0; shift < 32; shift += 8) acc += ((x >> shift) & 0xff) * ((w << (24 - shift)) >> 24);
    return acc;
#endif
}

#ifdef S8_MADD
/* Bytes 0 and 2 of a quad of weights as two words, then bytes 1 and 3: once for all tiles. */
INLINE void SYM(s8_widen)(const float *weights, int quads, int32_t *wide) {
    for (int i = 0; i < quads; i++, weights += S8_ROWS, wide += 2 * S8_ROWS)
        for (int r = 0; r < S8_ROWS; r++) {
            int8_t byte[4];
            memcpy(byte, weights + r, sizeof byte);
            wide[r] = (int32_t)((uint32_t)byte[2] << 16 | (uint16_t)byte[0]);
            wide[S8_ROWS + r] = (int32_t)((uint32_t)byte[3] << 16 | (uint16_t)byte[1]);
        }
}

INLINE VI SYM(s8_madd)(VI x, int32_t weights) {
    const VI w = weights - (VI){0};
    return (VI)S8_MADD(x, w);
}
#endif

static void SYM(s8_dense)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                          activation_fn after) {
    const int quads = (block->k + 3) / 4;
    const float *group = block->values;
#ifdef S8_MADD
    int32_t wide[2 * S8_ROWS * MAX_KBLOCK];
#endif
    for (int32_t first = 0; first < block->rows; first += S8_ROWS, group += S8_ROWS * (quads + 2)) {
        const int rows = block->rows - first < S8_ROWS ? block->rows - first : S8_ROWS;
#ifdef S8_MADD
        SYM(s8_widen)(group + 2 * S8_ROWS, quads, wide);
#endif
        for (int tile = 0; tile < y.count; tile++) {
            const float *xt = x.at + tile * x.stride;
            const float *it = init.at ? init.at + tile * init.stride + first * TILE : NULL;
            const float *scales = group + S8_ROWS;
            float *yt = y.at + tile * y.stride + first * TILE;
            VI acc[S8_ROWS][VECTORS];
            UNROLL
            for (int r = 0; r < S8_ROWS; r++)
                for (int v = 0; v < VECTORS; v++)
                    acc[r][v] = SYM(s8_splat)(group + r) * *(const VI *)(xt + TILE + v * LANES);
            xt += QUAD_HEADER * TILE;
#ifdef S8_MADD
            const int32_t *w = wide;
            for (int i = 0; i < quads; i++, w += 2 * S8_ROWS) {
                VI even[VECTORS], odd[VECTORS];
                for (int v = 0; v < VECTORS; v++) {
                    const VI xv = *(const VI *)(xt + i * TILE + v * LANES);
                    even[v] = xv & 0x00ff00ff, odd[v] = (xv >> 8) & 0x00ff00ff;
                }
                UNROLL
                for (int r = 0; r < S8_ROWS; r++)
                    for (int v = 0; v < VECTORS; v++)
                        acc[r][v] += SYM(s8_madd)(even[v], w[r]) + SYM(s8_madd)(odd[v], w[S8_ROWS + r]);
            }
#else
            const float *w = group + 2 * S8_ROWS;
            for (int i = 0; i < quads; i++, w += S8_ROWS) {
                VI xv[VECTORS];
                for (int v = 0; v < VECTORS; v++) xv[v] = *(const VI *)(xt + i * TILE + v * LANES);
                UNROLL
                for (int r = 0; r < S8_ROWS; r++) {
                    const VI wr = SYM(s8_splat)(w + r);
                    for (int v = 0; v < VECTORS; v++) acc[r][v] = SYM(s8_dot)(acc[r][v], xv[v], wr);
                }
            }
#endif
            xt -= QUAD_HEADER * TILE;
            UNROLL
            for (int r = 0; r < S8_ROWS; r++) {
                if (r >= rows) continue;
                for (int v = 0; v < VECTORS; v++) {
                    const VF start = it ? SYM(load)(it + r * TILE + v * LANES) : SYM(splat)(bias[first + r]);
                    SYM(store)(yt + r * TILE + v * LANES,
                               SYM(s8_scaled)(acc[r][v], SYM(load)(xt + v * LANES), scales[r], start));
                }
            }
            if (after) after(yt, (size_t)rows * TILE);
        }
    }
}

INLINE void SYM(s8_table_tiles)(const block_t *block, const int tiles, tiles_t x, tiles_t init, const float *bias,
                                tiles_t y) {
    const float *w = block->values;
    const char *quads = (const char *)(x.at + QUAD_HEADER * TILE);
    const uint8_t *at = (const uint8_t *)block->offsets;
    const uint16_t *row = block->row_numbers;
    int left = block->rows; /* the last bundle repeats its last row: what was stored must not be added to again */
    for (int32_t run = 0; run < block->num_runs; run++)
        for (uint32_t bundle = block->runs[run].bundles; bundle > 0; bundle--, row += BUNDLE, left -= BUNDLE) {
            const float *scales = w + BUNDLE;
            VI acc[BUNDLE][2 * VECTORS];
            for (int r = 0; r < BUNDLE; r++)
                for (int t = 0; t < tiles; t++)
                    for (int v = 0; v < VECTORS; v++)
                        acc[r][t * VECTORS + v] =
                            SYM(s8_splat)(w + r) * *(const VI *)(x.at + t * x.stride + TILE + v * LANES);
            w += 2 * BUNDLE;
            for (uint32_t i = block->runs[run].count; i > 0; i--, w += BUNDLE, at += BUNDLE) {
                UNROLL
                for (int r = 0; r < BUNDLE; r++) {
                    const VI wr = SYM(s8_splat)(w + r);
                    const char *line = quads + at[r] * (TILE * 4);
                    for (int t = 0; t < tiles; t++)
                        for (int v = 0; v < VECTORS; v++)
                            acc[r][t * VECTORS + v] =
                                SYM(s8_dot)(acc[r][t * VECTORS + v],
                                            *(const VI *)(line + (t * x.stride + v * LANES) * 4), wr);
                }
            }
            for (int r = 0; r < BUNDLE && r < left; r++)
                for (int t = 0; t < tiles; t++)
                    for (int v = 0; v < VECTORS; v++) {
                        const int from = row[r] * TILE + v * LANES;
                        const VF start = init.at ? SYM(load)(init.at + t * init.stride + from) : SYM(splat)(bias[row[r]]);
                        SYM(store)(y.at + t * y.stride + from,
                                   SYM(s8_scaled)(acc[r][t * VECTORS + v], SYM(load)(x.at + t * x.stride + v * LANES),
                                                  scales[r], start));
                    }
        }
}

static void SYM(s8_table)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                          activation_fn after) {
    for (int tile = 0, step; tile < y.count; tile += step) {
        step = y.count - tile >= 2 ? 2 : 1;
        const tiles_t xs = tiles_from(x, tile, step), inits = tiles_from(init, tile, step);
        const tiles_t ys = tiles_from(y, tile, step);
        if (step == 2)
            SYM(s8_table_tiles)(block, 2, xs, inits, bias, ys);
        else
            SYM(s8_table_tiles)(block, 1, xs, inits, bias, ys);
        for (int t = 0; after && t < step; t++) after(ys.at + t * y.stride, (size_t)block->rows * TILE);
    }
}

INLINE VF SYM(feature)(const float *x, const float *factors, int f) {
    return SYM(load)(x + f * TILE) * (factors ? factors[f] : 1.0f);
}

static void SYM(u8_convert)(const float *x, int features, rounding_t rounding, float *lines) {
    const float *factors = rounding.factors;
    for (int v = 0; v < VECTORS; v++) {
        const float *xv = x + v * LANES;
        float *to = lines + v * LANES;
        VF scale = SYM(splat)(rounding.scale), zero = SYM(splat)((float)rounding.zero_point);
        if (rounding.scale == 0.0f) {
            VF low = SYM(splat)(0.0f), high = low;
            for (int f = 0; f < features; f++) {
                const VF number = SYM(feature)(xv, factors, f);
                low = SYM(min)(number, low), high = SYM(max)(number, high);
            }
            scale = (high - low) / 255.0f;
            /* a lane of zeros, of next to nothing, or NaN */
            scale = SYM(select)(1.0f / scale <= SYM(splat)(FLT_MAX), scale, SYM(splat)(1.0f));
            const VF place = SYM(min)(SYM(splat)(255.0f), SYM(max)(SYM(splat)(0.0f), -low / scale));
            zero = (place + FLOAT_TRICK) - FLOAT_TRICK;
        }
        const VF inverse = 1.0f / scale, highest = 255.0f - zero;
        const VI point = __builtin_convertvector(zero, VI);
        SYM(store)(to, scale);
#ifdef S8_FLIP
        *(VI *)(to + TILE) = point - 128;
#else
        *(VI *)(to + TILE) = point;
#endif
        to += QUAD_HEADER * TILE;
        for (int f = 0; f < features; f += 4, to += TILE) {
#ifdef S8_QUADS
            VI number[4] = {{0}};
            for (int i = 0; i < 4 && f + i < features; i++)
                number[i] = (VI)S8_ROUND(SYM(min)(highest, SYM(feature)(xv, factors, f + i) * inverse)) + point;
            const VI quad = (VI)S8_QUADS(number);
#else
            VI quad = {0};
            for (int i = 0; i < 4 && f + i < features; i++) {
                const VF scaled = SYM(feature)(xv, factors, f + i) * inverse;
                const VF number = SYM(min)(highest, SYM(max)(-zero, scaled));
                const VI bits = (VI)(number + FLOAT_TRICK) - 0x4b400000 + point;
                quad |= bits << (8 * i);
            }
#endif
#ifdef S8_FLIP
            quad ^= (int32_t)0x80808080;
#endif
            *(VI *)to = quad;
        }
    }
}

#define S8_CHAINS 16
#define S8_OPERATIONS (S8_CHAINS * LANES * 8)

static void SYM(s8_dot_loop)(float *x, size_t steps) {
    VI acc[S8_CHAINS];
    for (int i = 0; i < S8_CHAINS; i++) acc[i] = *(const VI *)(x + i * LANES);
    const VI factor = (acc[0] & 0x01010101) | 1; /* not known to the compiler */
    for (; steps > 0; steps--)
        for (int i = 0; i < S8_CHAINS; i++) acc[i] = SYM(s8_dot)(acc[i], factor, factor);
    for (int i = 0; i < S8_CHAINS; i++) *(VI *)(x + i * LANES) = acc[i] & 0x3fffffff; /* no NaN */
}
