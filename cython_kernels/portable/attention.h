/* Attention: one head of one text. Included by portable.h. */

#define SCRATCH_ROW (2 * TILE) /* floats per key in scratch */

/* scores[key][query] for the KEYS keys at k (same tile); max over the first `valid` of them. */
INLINE void SYM(f32_score_keys)(const float *q, ptrdiff_t q_stride, const float *k, int head_size,
                                const int query_tiles, int valid, float *scores, VF *max) {
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
INLINE void SYM(f32_weigh_values)(const float *v, ptrdiff_t kv_stride, const float *weights, int num_keys,
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
INLINE void SYM(f32_soften)(float *scores, int num_keys, const int query_tiles, const VF *max, VF *sum) {
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
    static __attribute__((noinline)) void SYM(f32_score_##NAME)(const float *q, ptrdiff_t q_stride, const float *k,   \
                                                            int head_size, int valid, float *scores, VF *max) {   \
        SYM(f32_score_keys)(q, q_stride, k, head_size, QUERIES, valid, scores, max);                                  \
    }                                                                                                             \
    static __attribute__((noinline)) void SYM(f32_soften_##NAME)(float *scores, int num_keys, const VF *max,          \
                                                             VF *sum) {                                           \
        SYM(f32_soften)(scores, num_keys, QUERIES, max, sum);                                                         \
    }                                                                                                             \
    static __attribute__((noinline)) void SYM(f32_weigh_##NAME)(const float *v, ptrdiff_t kv_stride,                  \
                                                            const float *weights, int num_keys, const VF *scale,  \
                                                            float *out, ptrdiff_t out_stride) {                   \
        SYM(f32_weigh_values)(v, kv_stride, weights, num_keys, QUERIES, KEYS, scale, out, out_stride);                \
    }
PHASES(wide, QUERY_TILES)
PHASES(narrow, 1)

/* q.count is QUERY_TILES or 1, and known to the compiler. */
INLINE void SYM(f32_attend)(tiles_t q, tiles_t k, tiles_t v, int num_keys, int head_size, float *scratch, tiles_t out) {
    const int is_wide = q.count > 1;
    VF max[QUERY_TILES * VECTORS], sum[QUERY_TILES * VECTORS];
    for (int i = 0; i < q.count * VECTORS; i++) max[i] = SYM(splat)(-3.0e38f);
    for (int key = 0; key < num_keys; key += KEYS)
        (is_wide ? SYM(f32_score_wide) : SYM(f32_score_narrow))(
            q.at, q.stride, k.at + key / TILE * k.stride + key % TILE, head_size, num_keys - key,
            scratch + (ptrdiff_t)key * SCRATCH_ROW, max);
    (is_wide ? SYM(f32_soften_wide) : SYM(f32_soften_narrow))(scratch, num_keys, max, sum);
    int d = 0;
    for (; d + KEYS <= head_size; d += KEYS)
        (is_wide ? SYM(f32_weigh_wide) : SYM(f32_weigh_narrow))(v.at + d * TILE, v.stride, scratch, num_keys, sum,
                                                                out.at + d * TILE, out.stride);
    for (; d < head_size; d++)
        SYM(f32_weigh_values)(v.at + d * TILE, v.stride, scratch, num_keys, q.count, 1, sum, out.at + d * TILE,
                              out.stride);
}

static void SYM(f32_attention)(tiles_t q, tiles_t k, tiles_t v, int num_keys, int head_size, float *scratch,
                               tiles_t out) {
    int tile = 0;
    for (; tile + QUERY_TILES <= q.count; tile += QUERY_TILES)
        SYM(f32_attend)(tiles_from(q, tile, QUERY_TILES), k, v, num_keys, head_size, scratch,
                        tiles_from(out, tile, QUERY_TILES));
    for (; tile < q.count; tile++)
        SYM(f32_attend)(tiles_from(q, tile, 1), k, v, num_keys, head_size, scratch, tiles_from(out, tile, 1));
}
