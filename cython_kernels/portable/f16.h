/* The table form in half precision: 32 tokens, two tiles, at once. Included after vector.h by an ISA header that defines
 * F16_INSTRUCTIONS and, for its registers of 32 halves, the type and functions below; without it plain C stands for them.
 *
 * A half has 11 bits, so few terms are summed in it: after F16_TERMS the sum is added to one in float32. */

#ifndef F16_INSTRUCTIONS
#include "half.h"

typedef struct {
    float lane[2 * TILE];
} SYM(halves);

INLINE SYM(halves) SYM(f16_zero)(void) { return (SYM(halves)){{0.0f}}; }
INLINE SYM(halves) SYM(f16_load)(const void *line) {
    SYM(halves) x;
    uint16_t bits[2 * TILE];
    memcpy(bits, line, sizeof bits);
    for (int i = 0; i < 2 * TILE; i++) x.lane[i] = float_of(bits[i]);
    return x;
}
INLINE SYM(halves) SYM(f16_fma)(SYM(halves) acc, SYM(halves) x, uint16_t weight) {
    const float w = float_of(weight);
    for (int i = 0; i < 2 * TILE; i++) {
        const float sum = acc.lane[i] + x.lane[i] * w;
        acc.lane[i] = float_of(half_of(sum));
    }
    return acc;
}
/* sums[0 … 31] += acc */
INLINE void SYM(f16_add_to)(SYM(halves) acc, float *sums) {
    for (int i = 0; i < 2 * TILE; i++) sums[i] += acc.lane[i];
}
/* A line of halves from 16 floats of two tiles; `second` may be NULL. */
INLINE void SYM(f16_line)(const float *first, const float *second, void *line) {
    uint16_t bits[2 * TILE];
    for (int i = 0; i < TILE; i++) bits[i] = half_of(first[i]), bits[TILE + i] = second ? half_of(second[i]) : 0;
    memcpy(line, bits, sizeof bits);
}
#endif

static void SYM(f16_convert)(const float *first, const float *second, int features, float *lines) {
    for (int f = 0; f < features; f++)
        SYM(f16_line)(first + f * TILE, second ? second + f * TILE : NULL, lines + f * TILE);
}

static void SYM(f16_table)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                           activation_fn after) {
    for (int tile = 0; tile < y.count; tile += 2) {
        const int count = y.count - tile < 2 ? 1 : 2;
        const char *xt = (const char *)(x.at + tile * x.stride);
        const uint16_t *w = (const uint16_t *)block->values, *at = block->offsets, *row = block->row_numbers;
        for (int32_t run = 0; run < block->num_runs; run++)
            for (uint32_t bundle = block->runs[run].bundles; bundle > 0; bundle--, row += BUNDLE) {
                float sums[BUNDLE][2 * TILE] __attribute__((aligned(64)));
                for (int r = 0; r < BUNDLE; r++) /* all before the first is stored: the last bundle repeats a row */
                    for (int t = 0; t < 2; t++)
                        for (int i = 0; i < TILE; i++)
                            sums[r][t * TILE + i] =
                                init.at ? init.at[(tile + (t < count ? t : 0)) * init.stride + row[r] * TILE + i]
                                        : bias[row[r]];
                for (uint32_t left = block->runs[run].count, terms; left > 0; left -= terms) {
                    SYM(halves) acc[BUNDLE];
                    terms = left < F16_TERMS ? left : F16_TERMS;
                    for (int r = 0; r < BUNDLE; r++) acc[r] = SYM(f16_zero)();
                    for (uint32_t i = terms; i > 0; i--, w += BUNDLE, at += BUNDLE)
                        for (int r = 0; r < BUNDLE; r++)
                            acc[r] = SYM(f16_fma)(acc[r], SYM(f16_load)(xt + at[r]), w[r]);
                    for (int r = 0; r < BUNDLE; r++) SYM(f16_add_to)(acc[r], sums[r]);
                }
                for (int r = 0; r < BUNDLE; r++)
                    for (int t = 0; t < count; t++)
                        memcpy(y.at + (tile + t) * y.stride + row[r] * TILE, sums[r] + t * TILE, TILE * sizeof(float));
            }
        for (int t = 0; after && t < count; t++) after(y.at + (tile + t) * y.stride, (size_t)block->rows * TILE);
    }
}

#ifdef __aarch64__
#define F16_CHAINS 4 /* of two tiles, which are four of 32 registers there */
#else
#define F16_CHAINS 16
#endif
#define F16_OPERATIONS (F16_CHAINS * 2 * TILE * 2)

static void SYM(f16_fma_loop)(float *x, size_t steps) {
    float ones[TILE] __attribute__((aligned(64))), line[TILE] __attribute__((aligned(64))); /* of halves */
    SYM(halves) acc[F16_CHAINS];
    for (int i = 0; i < TILE; i++) ones[i] = 1.0f;
    SYM(f16_line)(ones, ones, line);
    const SYM(halves) factor = SYM(f16_load)(line);
    const uint16_t weight = 0x0400; /* 2^-14: too small to change a 1 */
    for (int i = 0; i < F16_CHAINS; i++) acc[i] = factor;
    for (; steps > 0; steps--)
        for (int i = 0; i < F16_CHAINS; i++) acc[i] = SYM(f16_fma)(acc[i], factor, weight);
    for (int i = 0; i < 2 * TILE; i++) x[i] = 0.0f;
    for (int i = 0; i < F16_CHAINS; i++) SYM(f16_add_to)(acc[i], x);
}
