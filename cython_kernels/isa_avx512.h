/* AVX-512 (F, VL, DQ, BW): 32 registers of 512 bits; a tile row is one register.
 * The features named here are exactly those that dispatch.h asks the CPU for. */
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")
#endif
#define ISA_NAME avx512
#define LANES 16
#define DENSE_ROWS 24 /* divides 384, 768, 1024, 3072; 24 of 32 registers accumulate */
#define QUERY_TILES 2
#define KEYS 8
#define VECTOR_MAX _mm512_max_ps
#define VECTOR_MIN _mm512_min_ps
#include "portable.h"
#undef ISA_NAME
#undef LANES
#undef DENSE_ROWS
#undef QUERY_TILES
#undef KEYS

/* Two tiles at once: one 64-bit load gives a bundle's 4 offsets, one 128-bit broadcast its 4 weights, and each
 * serves two FMAs. A broadcast load per weight would cost a load slot that the FMAs' memory operands need. */
static void table_pair_avx512(const block_t *block, const float *x0, const float *x1, const float *i0,
                              const float *i1, const float *bias, float *y0, float *y1) {
    const char *a = (const char *)x0, *b = (const char *)x1;
    const float *w = block->values;
    const uint16_t *at = block->offsets;
    const uint16_t *row = block->row_numbers;
    for (int32_t run = 0; run < block->num_runs; run++) {
        const uint32_t count = block->runs[run].count;
        for (uint32_t bundle = block->runs[run].bundles; bundle > 0; bundle--, row += BUNDLE) {
            const int r0 = row[0] * TILE, r1 = row[1] * TILE, r2 = row[2] * TILE, r3 = row[3] * TILE;
            __m512 a0, a1, a2, a3, b0, b1, b2, b3;
            if (i0) {
                a0 = _mm512_load_ps(i0 + r0), a1 = _mm512_load_ps(i0 + r1);
                a2 = _mm512_load_ps(i0 + r2), a3 = _mm512_load_ps(i0 + r3);
                b0 = _mm512_load_ps(i1 + r0), b1 = _mm512_load_ps(i1 + r1);
                b2 = _mm512_load_ps(i1 + r2), b3 = _mm512_load_ps(i1 + r3);
            } else {
                a0 = b0 = _mm512_set1_ps(bias[row[0]]), a1 = b1 = _mm512_set1_ps(bias[row[1]]);
                a2 = b2 = _mm512_set1_ps(bias[row[2]]), a3 = b3 = _mm512_set1_ps(bias[row[3]]);
            }
            for (uint32_t i = count; i > 0; i--, w += BUNDLE, at += BUNDLE) {
                uint64_t o;
                memcpy(&o, at, sizeof o);
                const __m512 w4 = _mm512_broadcast_f32x4(_mm_load_ps(w));
                const __m512 w0 = _mm512_permute_ps(w4, 0x00), w1 = _mm512_permute_ps(w4, 0x55);
                const __m512 w2 = _mm512_permute_ps(w4, 0xaa), w3 = _mm512_permute_ps(w4, 0xff);
                const size_t o0 = o & 0xffff, o1 = o >> 16 & 0xffff, o2 = o >> 32 & 0xffff, o3 = o >> 48;
                a0 = _mm512_fmadd_ps(w0, _mm512_load_ps((const float *)(a + o0)), a0);
                b0 = _mm512_fmadd_ps(w0, _mm512_load_ps((const float *)(b + o0)), b0);
                a1 = _mm512_fmadd_ps(w1, _mm512_load_ps((const float *)(a + o1)), a1);
                b1 = _mm512_fmadd_ps(w1, _mm512_load_ps((const float *)(b + o1)), b1);
                a2 = _mm512_fmadd_ps(w2, _mm512_load_ps((const float *)(a + o2)), a2);
                b2 = _mm512_fmadd_ps(w2, _mm512_load_ps((const float *)(b + o2)), b2);
                a3 = _mm512_fmadd_ps(w3, _mm512_load_ps((const float *)(a + o3)), a3);
                b3 = _mm512_fmadd_ps(w3, _mm512_load_ps((const float *)(b + o3)), b3);
            }
            _mm512_store_ps(y0 + r0, a0), _mm512_store_ps(y0 + r1, a1);
            _mm512_store_ps(y0 + r2, a2), _mm512_store_ps(y0 + r3, a3);
            _mm512_store_ps(y1 + r0, b0), _mm512_store_ps(y1 + r1, b1);
            _mm512_store_ps(y1 + r2, b2), _mm512_store_ps(y1 + r3, b3);
        }
    }
}

static void table_pairs_avx512(const block_t *block, const float *x, ptrdiff_t x_stride, const float *init,
                               ptrdiff_t init_stride, const float *bias, float *y, ptrdiff_t y_stride, int tiles,
                               activation_fn after) {
    int tile = 0;
    for (; tile + 2 <= tiles; tile += 2) {
        const float *i0 = init ? init + tile * init_stride : NULL;
        table_pair_avx512(block, x + tile * x_stride, x + (tile + 1) * x_stride, i0, init ? i0 + init_stride : NULL,
                          bias, y + tile * y_stride, y + (tile + 1) * y_stride);
        for (int i = 0; after && i < 2; i++) after(y + (tile + i) * y_stride, (size_t)block->rows * TILE);
    }
    if (tile < tiles)
        table_avx512(block, x + tile * x_stride, x_stride, init ? init + tile * init_stride : NULL, init_stride, bias,
                     y + tile * y_stride, y_stride, 1, after);
}
#include "generate_avx512.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
