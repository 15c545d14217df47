/* Token rows to tiles and back. Included by portable.h. */

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

/* Features f … f + 15 of a word. */
INLINE void SYM(word16)(const tables_t *tables, int32_t id, int f, SYM(row16) *row) {
    const size_t at = (size_t)id * tables->features + f;
    if (tables->word_scale)
        *row = __builtin_convertvector(*(const SYM(bytes16u) *)(tables->word_s8 + at), SYM(row16)) *
               tables->word_scale[id];
    else
        *row = *(const SYM(row16u) *)(tables->word + at);
}

static void SYM(f32_embed)(const tables_t *tables, tokens_t tokens, float *tile) {
    const float *position = tables->position, *type = tables->type;
    const int32_t *ids = tokens.ids, *positions = tokens.positions, *types = tokens.types;
    const int features = tables->features;
    int f = 0;
    for (; f + TILE <= features; f += TILE) {
        SYM(row16) m[TILE];
        for (int lane = 0; lane < TILE; lane++) {
            if (ids[lane] < 0) {
                m[lane] = (SYM(row16)){0};
                continue;
            }
            SYM(word16)(tables, ids[lane], f, &m[lane]);
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
                const size_t at = (size_t)ids[lane] * features + f;
                a = tables->word_scale ? (float)tables->word_s8[at] * tables->word_scale[ids[lane]] : tables->word[at];
                if (type) a += type[(size_t)types[lane] * features + f];
                if (position) a += position[(size_t)positions[lane] * features + f];
            }
            tile[f * TILE + lane] = a;
        }
}

static void SYM(f32_scatter)(const float *tile, int features, float *const *rows) {
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

static void SYM(f32_gather)(const float *const *rows, int features, float *tile) {
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
