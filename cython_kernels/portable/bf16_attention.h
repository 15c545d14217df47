/* Attention with products of bfloat16: one head of one text. Included after bf16.h; BASE_ISA names the instruction set
 * whose softmax serves, QUERY_TILES and KEYS are its. */

#define BASE(name) PASTE(name, BASE_ISA)
#define SCRATCH_ROW (2 * TILE) /* floats per key, or pair of keys, in scratch */

/* Rows of 16 floats to rows of 16 bfloat16, which are half as long. */
static void SYM(bf16_halve)(const float *x, int features, uint16_t *rows) {
    int f = 0;
#ifdef BF16_HALVES
    for (; f + 2 <= features; f += 2) {
        const VI two = (VI)BF16_HALVES(SYM(load)(x + f * TILE), SYM(load)(x + (f + 1) * TILE));
        memcpy(rows + f * TILE, &two, sizeof two);
    }
#endif
    for (; f < features; f++)
        for (int v = 0; v < VECTORS; v++) {
            const VI both = SYM(bf16_pairs)(SYM(load)(x + f * TILE + v * LANES), SYM(splat)(0.0f));
            for (int i = 0; i < LANES; i++) rows[f * TILE + v * LANES + i] = (uint16_t)both[i];
        }
}

/* scores[key][query] for the KEYS keys at k (pairs of one tile). */
INLINE void SYM(bf16_score_keys)(const float *q, ptrdiff_t q_stride, const float *k, int pairs, const int query_tiles,
                                 int valid, float *scores, VF *max) {
    VF acc[KEYS][QUERY_TILES * VECTORS];
    for (int j = 0; j < KEYS; j++)
        for (int v = 0; v < query_tiles * VECTORS; v++) acc[j][v] = SYM(splat)(0.0f);
    for (int p = 0; p < pairs; p++, k += TILE, q += TILE) {
        VI qv[QUERY_TILES * VECTORS];
        for (int t = 0; t < query_tiles; t++)
            for (int v = 0; v < VECTORS; v++) qv[t * VECTORS + v] = *(const VI *)(q + t * q_stride + v * LANES);
        for (int j = 0; j < KEYS; j++) {
            const VI key = ((const SYM(pair) *)k)[j] - (VI){0};
            for (int v = 0; v < query_tiles * VECTORS; v++) acc[j][v] = SYM(bf16_dot)(acc[j][v], qv[v], key);
        }
    }
    for (int j = 0; j < KEYS; j++)
        for (int v = 0; v < query_tiles * VECTORS; v++) {
            SYM(store)(scores + j * SCRATCH_ROW + v * LANES, acc[j][v]);
            if (j < valid) max[v] = SYM(max)(acc[j][v], max[v]);
        }
}

/* Rows of two keys become one row of pairs, in place; with an odd number of keys the last is paired with 0. */
INLINE void SYM(bf16_pair_weights)(float *weights, int num_keys, const int query_tiles) {
    for (int key = 0; key < num_keys; key += 2)
        for (int v = 0; v < query_tiles * VECTORS; v++) {
            const float *row = weights + (ptrdiff_t)key * SCRATCH_ROW + v * LANES;
            const VF odd = key + 1 < num_keys ? SYM(load)(row + SCRATCH_ROW) : SYM(splat)(0.0f);
            *(VI *)(weights + (ptrdiff_t)key / 2 * SCRATCH_ROW + v * LANES) = SYM(bf16_pairs)(SYM(load)(row), odd);
        }
}

/* out[d][query] = sum over keys of v[d][key] * weight[key][query], times scale, for `depth` features; v holds
 * `head_size` rows per tile of keys. */
INLINE void SYM(bf16_weigh_values)(const uint16_t *v, int head_size, const float *weights, int num_keys,
                                   const int query_tiles, const int depth, const VF *scale, float *out,
                                   ptrdiff_t out_stride) {
    VF acc[KEYS][QUERY_TILES * VECTORS];
    for (int d = 0; d < depth; d++)
        for (int i = 0; i < query_tiles * VECTORS; i++) acc[d][i] = SYM(splat)(0.0f);
    for (int key = 0; key < num_keys; key += 2, weights += SCRATCH_ROW) {
        const uint16_t *values = v + (ptrdiff_t)(key / TILE) * head_size * TILE + key % TILE;
        VI wv[QUERY_TILES * VECTORS];
        for (int i = 0; i < query_tiles * VECTORS; i++) wv[i] = *(const VI *)(weights + i * LANES);
        for (int d = 0; d < depth; d++) {
            const VI value = *(const SYM(pair) *)(values + d * TILE) - (VI){0};
            for (int i = 0; i < query_tiles * VECTORS; i++) acc[d][i] = SYM(bf16_dot)(acc[d][i], wv[i], value);
        }
    }
    for (int d = 0; d < depth; d++)
        for (int t = 0; t < query_tiles; t++)
            for (int i = 0; i < VECTORS; i++)
                SYM(store)(out + t * out_stride + d * TILE + i * LANES,
                           acc[d][t * VECTORS + i] * scale[t * VECTORS + i]);
}

/* One function per phase and number of query tiles, as in attention.h. */
#define BF16_PHASES(NAME, QUERIES)                                                                                  \
    static __attribute__((noinline)) void SYM(bf16_score_##NAME)(const float *q, ptrdiff_t q_stride, const float *k,    \
                                                             int pairs, int valid, float *scores, VF *max) {        \
        SYM(bf16_score_keys)(q, q_stride, k, pairs, QUERIES, valid, scores, max);                                   \
    }                                                                                                               \
    static __attribute__((noinline)) void SYM(bf16_weigh_##NAME)(const uint16_t *v, int head_size,                      \
                                                             const float *weights, int num_keys, const VF *scale,   \
                                                             float *out, ptrdiff_t out_stride) {                    \
        SYM(bf16_weigh_values)(v, head_size, weights, num_keys, QUERIES, KEYS, scale, out, out_stride);             \
    }
BF16_PHASES(wide, QUERY_TILES)
BF16_PHASES(narrow, 1)

/* q.count is QUERY_TILES or 1; q, k and v hold what bf16_attention has made of them. */
INLINE void SYM(bf16_attend)(int query_tiles, const float *q, const float *k, const uint16_t *v, int num_keys,
                             int head_size, float *scratch, tiles_t out) {
    const int is_wide = query_tiles > 1, pairs = (head_size + 1) / 2;
    VF max[QUERY_TILES * VECTORS], sum[QUERY_TILES * VECTORS];
    for (int i = 0; i < query_tiles * VECTORS; i++) max[i] = SYM(splat)(-3.0e38f);
    for (int key = 0; key < num_keys; key += KEYS)
        (is_wide ? SYM(bf16_score_wide) : SYM(bf16_score_narrow))(
            q, pairs * TILE, k + (ptrdiff_t)(key / TILE) * pairs * TILE + key % TILE, pairs, num_keys - key,
            scratch + (ptrdiff_t)key * SCRATCH_ROW, max);
    (is_wide ? BASE(f32_soften_wide) : BASE(f32_soften_narrow))(scratch, num_keys, max, sum);
    SYM(bf16_pair_weights)(scratch, num_keys, query_tiles);
    int d = 0;
    for (; d + KEYS <= head_size; d += KEYS)
        (is_wide ? SYM(bf16_weigh_wide) : SYM(bf16_weigh_narrow))(v + d * TILE, head_size, scratch, num_keys, sum,
                                                                  out.at + d * TILE, out.stride);
    for (; d < head_size; d++)
        SYM(bf16_weigh_values)(v + d * TILE, head_size, scratch, num_keys, query_tiles, 1, sum, out.at + d * TILE,
                               out.stride);
}

static void SYM(bf16_attention)(tiles_t q, tiles_t k, tiles_t v, int num_keys, int head_size, float *scratch,
                                tiles_t out) {
    const int key_tiles = (num_keys + TILE - 1) / TILE, pairs = (head_size + 1) / 2;
    float *k_pairs = scratch + (ptrdiff_t)key_tiles * TILE * SCRATCH_ROW;
    float *q_pairs = k_pairs + (ptrdiff_t)key_tiles * pairs * TILE;
    uint16_t *v_rows = (uint16_t *)(q_pairs + QUERY_TILES * pairs * TILE);
    for (int t = 0; t < key_tiles; t++) {
        SYM(bf16_convert)(k.at + t * k.stride, head_size, k_pairs + (ptrdiff_t)t * pairs * TILE);
        SYM(bf16_halve)(v.at + t * v.stride, head_size, v_rows + (ptrdiff_t)t * head_size * TILE);
    }
    for (int tile = 0, step; tile < q.count; tile += step) {
        step = tile + QUERY_TILES <= q.count ? QUERY_TILES : 1;
        for (int t = 0; t < step; t++)
            SYM(bf16_convert)(q.at + (tile + t) * q.stride, head_size, q_pairs + t * pairs * TILE);
        SYM(bf16_attend)(step, q_pairs, k_pairs, v_rows, num_keys, head_size, scratch, tiles_from(out, tile, step));
    }
}
