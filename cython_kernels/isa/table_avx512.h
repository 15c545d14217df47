/* The table form, by hand. Included by avx512.h inside its target region. */

#define WEIGHTS_AHEAD 4096 /* bytes: streams of weights come from memory, +50 % for a call of one tile */

/* One or two tiles at once: one 64-bit load gives a bundle's 4 offsets, one 128-bit broadcast its 4 weights. A
 * broadcast load per weight would cost a load slot that the FMAs' memory operands need. Each bundle prefetches its
 * share of the x and its own rows of the tiles that run next, `next` tiles further on; 0: none do. */
INLINE void f32_table_tiles__avx512(const block_t *block, const int pair, tiles_t x, tiles_t init, const float *bias,
                                    tiles_t y, int next) {
    const char *a = (const char *)x.at, *b = (const char *)(x.at + (pair ? x.stride : 0));
    const float *w = block->values;
    const uint16_t *at = block->offsets;
    const uint16_t *row = block->row_numbers;
    const int share = (block->k * BUNDLE + block->rows - 1) / block->rows; /* lines of x per bundle and tile */
    const float *ahead = x.at + next * x.stride;
    const ptrdiff_t y_next = next * y.stride;
    float *y0 = y.at, *y1 = y.at + (pair ? y.stride : 0);
    for (int32_t run = 0; run < block->num_runs; run++) {
        const uint32_t count = block->runs[run].count;
        for (uint32_t bundle = block->runs[run].bundles; bundle > 0; bundle--, row += BUNDLE) {
            const int r0 = row[0] * TILE, r1 = row[1] * TILE, r2 = row[2] * TILE, r3 = row[3] * TILE;
            __m512 a0, a1, a2, a3, b0, b1, b2, b3;
            if (init.at) {
                const float *i0 = init.at, *i1 = init.at + (pair ? init.stride : 0);
                a0 = _mm512_load_ps(i0 + r0), a1 = _mm512_load_ps(i0 + r1);
                a2 = _mm512_load_ps(i0 + r2), a3 = _mm512_load_ps(i0 + r3);
                b0 = _mm512_load_ps(i1 + r0), b1 = _mm512_load_ps(i1 + r1);
                b2 = _mm512_load_ps(i1 + r2), b3 = _mm512_load_ps(i1 + r3);
            } else {
                a0 = b0 = _mm512_set1_ps(bias[row[0]]), a1 = b1 = _mm512_set1_ps(bias[row[1]]);
                a2 = b2 = _mm512_set1_ps(bias[row[2]]), a3 = b3 = _mm512_set1_ps(bias[row[3]]);
            }
            if (next) {
                for (int i = 0; i < share; i++, ahead += TILE) {
                    _mm_prefetch((const char *)ahead, _MM_HINT_T1);
                    if (pair) _mm_prefetch((const char *)(ahead + x.stride), _MM_HINT_T1);
                }
                const int rows[BUNDLE] = {r0, r1, r2, r3};
                for (int i = 0; i < BUNDLE; i++) {
                    _mm_prefetch((const char *)(y0 + y_next + rows[i]), _MM_HINT_T1);
                    if (pair) _mm_prefetch((const char *)(y1 + y_next + rows[i]), _MM_HINT_T1);
                }
            }
            for (uint32_t i = count; i > 0; i--, w += BUNDLE, at += BUNDLE) {
                uint64_t o;
                memcpy(&o, at, sizeof o);
                _mm_prefetch((const char *)w + WEIGHTS_AHEAD, _MM_HINT_T0);
                _mm_prefetch((const char *)at + WEIGHTS_AHEAD / 2, _MM_HINT_T0);
                const __m512 w4 = _mm512_broadcast_f32x4(_mm_load_ps(w));
                const __m512 w0 = _mm512_permute_ps(w4, 0x00), w1 = _mm512_permute_ps(w4, 0x55);
                const __m512 w2 = _mm512_permute_ps(w4, 0xaa), w3 = _mm512_permute_ps(w4, 0xff);
                const size_t o0 = o & 0xffff, o1 = o >> 16 & 0xffff, o2 = o >> 32 & 0xffff, o3 = o >> 48;
                a0 = _mm512_fmadd_ps(w0, _mm512_load_ps((const float *)(a + o0)), a0);
                a1 = _mm512_fmadd_ps(w1, _mm512_load_ps((const float *)(a + o1)), a1);
                a2 = _mm512_fmadd_ps(w2, _mm512_load_ps((const float *)(a + o2)), a2);
                a3 = _mm512_fmadd_ps(w3, _mm512_load_ps((const float *)(a + o3)), a3);
                if (!pair) continue;
                b0 = _mm512_fmadd_ps(w0, _mm512_load_ps((const float *)(b + o0)), b0);
                b1 = _mm512_fmadd_ps(w1, _mm512_load_ps((const float *)(b + o1)), b1);
                b2 = _mm512_fmadd_ps(w2, _mm512_load_ps((const float *)(b + o2)), b2);
                b3 = _mm512_fmadd_ps(w3, _mm512_load_ps((const float *)(b + o3)), b3);
            }
            _mm512_store_ps(y0 + r0, a0), _mm512_store_ps(y0 + r1, a1);
            _mm512_store_ps(y0 + r2, a2), _mm512_store_ps(y0 + r3, a3);
            if (!pair) continue;
            _mm512_store_ps(y1 + r0, b0), _mm512_store_ps(y1 + r1, b1);
            _mm512_store_ps(y1 + r2, b2), _mm512_store_ps(y1 + r3, b3);
        }
    }
}

static void f32_table__avx512(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                              activation_fn after) {
    int tile = 0;
    for (; tile + 2 <= y.count; tile += 2) {
        const tiles_t ys = tiles_from(y, tile, 2);
        const int next = tile + 4 <= y.count ? 2 : 0; /* there is no next pair behind the last */
        f32_table_tiles__avx512(block, 1, tiles_from(x, tile, 2), tiles_from(init, tile, 2), bias, ys, next);
        for (int i = 0; after && i < 2; i++) after(ys.at + i * y.stride, (size_t)block->rows * TILE);
    }
    if (tile < y.count) {
        const tiles_t last = tiles_from(y, tile, 1);
        f32_table_tiles__avx512(block, 0, tiles_from(x, tile, 1), tiles_from(init, tile, 1), bias, last, 0);
        if (after) after(last.at, (size_t)block->rows * TILE);
    }
}
