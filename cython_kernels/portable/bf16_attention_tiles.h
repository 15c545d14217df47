/* Attention by tile registers: one head of one text. Included after bf16_tiles.h. BASE_ISA names the instruction set
 * whose softmax serves, of QUERY_TILES tiles at a time, BF16_BASE the one whose conversions do.
 *
 * Keys come 32 at a time, features padded with zeros to a multiple of 32. Scores: a register of 16 keys × 32 features
 * times one of 32 features × 16 queries. Context: one of 16 features × 32 keys times one of 32 keys × 16 queries. */

#define BASE(name) PASTE(name, BASE_ISA)
#define BF16(name) PASTE(name, BF16_BASE)
#define SCRATCH_ROW (2 * TILE) /* floats per key, or pair of keys, in scratch: two tiles of queries */

/* `count` tiles of rows of `features` floats as pairs, each tile `lines` lines long, zeros behind its own. */
static void SYM(pad_pairs)(tiles_t x, int features, int lines, float *pairs) {
    for (int t = 0; t < x.count; t++, pairs += lines * TILE) {
        memset(pairs, 0, (size_t)lines * LINE);
        BF16(bf16_convert)(x.at + t * x.stride, features, pairs);
    }
}

/* Pairs [pair][key] of a tile of keys to rows [key][pair]: what a register of keys holds, 16 pairs at a time. */
static void SYM(keys_to_rows)(const float *pairs, int lines, float *rows) {
    for (int first = 0; first < lines; first += HALF)
        for (int key = 0; key < TILE; key++)
            for (int p = 0; p < HALF; p++)
                memcpy(rows + first * TILE + key * HALF + p, pairs + (first + p) * TILE + key, sizeof(float));
}

/* Values of 32 keys, feature by feature: 32 numbers of 16 bits a line. */
static void SYM(values_to_rows)(tiles_t v, int features, int padded, float *halves, float *rows) {
    memset(rows, 0, (size_t)padded * LINE);
    for (int t = 0; t < v.count; t++) {
        BF16(bf16_halve)(v.at + t * v.stride, features, (uint16_t *)halves);
        for (int f = 0; f < features; f++)
            memcpy((char *)rows + f * LINE + t * LINE / 2, (char *)halves + f * LINE / 2, LINE / 2);
    }
}

/* sums (two by two registers, `sum_stride` bytes from row to row, the second pair of them `below` and the second of a
 * pair `right` floats on) = a · b over `steps`; registers of a are `a_step` apart and its two rows of them `a_below`,
 * those of b, lines `b_stride` bytes apart, `b_step` and `b_right` floats. */
INLINE void SYM(multiply_tiles)(const float *a, ptrdiff_t a_step, ptrdiff_t a_below, const float *b, size_t b_stride,
                                ptrdiff_t b_step, ptrdiff_t b_right, int steps, float *sums, size_t sum_stride,
                                ptrdiff_t below, ptrdiff_t right) {
    static const float zeros[REGISTER] __attribute__((aligned(LINE))) = {0.0f};
    TILES_REGISTERS
    TILE_LOAD(0, zeros, LINE);
    TILE_LOAD(1, zeros, LINE);
    TILE_LOAD(2, zeros, LINE);
    TILE_LOAD(3, zeros, LINE);
    for (int step = 0; step < steps; step++, a += a_step, b += b_step) {
        TILE_LOAD(4, a, LINE);
        TILE_LOAD(6, b, b_stride);
        TILE_BF16_DOT(0, 4, 6);
        TILE_LOAD(7, b + b_right, b_stride);
        TILE_BF16_DOT(1, 4, 7);
        TILE_LOAD(5, a + a_below, LINE);
        TILE_BF16_DOT(2, 5, 6);
        TILE_BF16_DOT(3, 5, 7);
    }
    TILE_STORE(0, sums, sum_stride);
    TILE_STORE(1, sums + right, sum_stride);
    TILE_STORE(2, sums + below, sum_stride);
    TILE_STORE(3, sums + below + right, sum_stride);
}

static void SYM(bf16_attention)(tiles_t q, tiles_t k, tiles_t v, int num_keys, int head_size, float *scratch,
                                tiles_t out) {
    const int blocks = (num_keys + 31) / 32, tiles = (num_keys + TILE - 1) / TILE;
    const int padded = (head_size + 31) / 32 * 32, lines = padded / 2, steps = padded / 32;
    const ptrdiff_t block_floats = (ptrdiff_t)padded * TILE; /* of 32 keys, in 16 bits */
    float *keys = scratch + (ptrdiff_t)blocks * 32 * SCRATCH_ROW;
    float *values = keys + blocks * block_floats;
    float *queries = values + blocks * block_floats, *part = queries + 2 * lines * TILE;
    TILES_BEGIN
    for (int block = 0; block < blocks; block++) {
        const int count = tiles - 2 * block < 2 ? tiles - 2 * block : 2;
        float *rows = keys + block * block_floats;
        memset(rows, 0, (size_t)block_floats * sizeof *rows);
        for (int t = 0; t < count; t++) {
            SYM(pad_pairs)(tiles_from(k, 2 * block + t, 1), head_size, lines, queries);
            SYM(keys_to_rows)(queries, lines, rows + t * lines * TILE);
        }
        SYM(values_to_rows)(tiles_from(v, 2 * block, count), head_size, padded, queries, values + block * block_floats);
    }
    for (int tile = 0; tile < q.count; tile += 2) {
        const int count = q.count - tile < 2 ? q.count - tile : 2;
        BASE(vf) max[SCRATCH_ROW * sizeof(float) / sizeof(BASE(vf))], sum[sizeof max / sizeof *max];
        float highest[SCRATCH_ROW], scale[SCRATCH_ROW];
        memset(queries, 0, 2 * (size_t)lines * LINE);
        SYM(pad_pairs)(tiles_from(q, tile, count), head_size, lines, queries);
        for (int block = 0; block < blocks; block++)
            SYM(multiply_tiles)(keys + block * block_floats, REGISTER, lines * TILE, queries, LINE, REGISTER,
                                lines * TILE, steps, scratch + (ptrdiff_t)block * 32 * SCRATCH_ROW,
                                SCRATCH_ROW * sizeof(float), HALF * SCRATCH_ROW, TILE);
        memcpy(highest, scratch, sizeof highest);
        for (int key = 1; key < num_keys; key++)
            for (int i = 0; i < SCRATCH_ROW; i++) {
                const float score = scratch[(ptrdiff_t)key * SCRATCH_ROW + i];
                highest[i] = score > highest[i] ? score : highest[i];
            }
        memcpy(max, highest, sizeof max);
        for (int t = 0; t < 2; t += QUERY_TILES) {
            const int at = t * (int)(sizeof max / sizeof *max) / 2;
            BASE(f32_soften_wide)(scratch + t * TILE, num_keys, max + at, sum + at);
        }
        memset(scratch + (ptrdiff_t)num_keys * SCRATCH_ROW, 0,
               (size_t)(blocks * 32 - num_keys) * SCRATCH_ROW * sizeof(float));
        BF16(bf16_pair_weights)(scratch, blocks * 32, 2);
        memcpy(scale, sum, sizeof scale);
        for (int first = 0; first < head_size; first += 32) {
            SYM(multiply_tiles)(values + first * TILE, block_floats, REGISTER, scratch, SCRATCH_ROW * sizeof(float),
                                HALF * SCRATCH_ROW, TILE, blocks, part, LINE, 2 * REGISTER, REGISTER);
            for (int f = first; f < head_size && f < first + 32; f++)
                for (int t = 0; t < count; t++)
                    for (int i = 0; i < TILE; i++)
                        out.at[(tile + t) * out.stride + f * TILE + i] =
                            part[(f - first) / HALF * 2 * REGISTER + t * REGISTER + (f - first) % HALF * TILE + i] *
                            scale[t * TILE + i];
        }
    }
    TILES_END
}
