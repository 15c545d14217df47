/* Blocks of bfloat16 by tile registers, dense, of gathered lines, or compressed: 32 rows × 32 tokens at a time. Included after vector.h and
 * matrix_tiles.h.
 *
 * A register of weights is 16 rows × 32 columns; one of x is 16 lines of pairs, so 32 features of a tile's 16 tokens,
 * as they lie in memory; one of sums is 16 rows of a tile. Registers 0 … 3 hold the sums of two row groups × two tiles,
 * 4 and 5 the weights, 6 and 7 x. */

#define HALF 16          /* rows of a register of sums */
#define TILE_ROWS 32     /* rows of two: the packing's row group */
#define TILE_COLUMNS 32  /* columns of a register of weights: the packing's step */
#define LINE 64          /* bytes */
#define REGISTER 256     /* floats */

/* What a register of sums starts from: `count` rows of init, or of the bias, and zeros. */
static void SYM(start_sums)(float *sums, const float *init, const float *bias, int count) {
    for (int r = 0; r < HALF; r++)
        for (int i = 0; i < TILE; i++)
            sums[r * TILE + i] = r >= count ? 0.0f : init ? init[r * TILE + i] : bias[r];
}

/* The lines of x that step `step` of a gathered group takes, side by side. */
INLINE void SYM(gather_lines)(const float *x, const uint16_t *offsets, float *lines) {
    for (int i = 0; i < HALF; i++) memcpy(lines + i * TILE, (const char *)x + offsets[i], LINE);
}

/* Likewise of two tiles. What step i + 1 takes is gathered before step i multiplies: a register waits for what was just
 * stored. */
INLINE void SYM(gather_step)(const float *const x[2], const uint16_t *offsets, int step,
                             float gathered[2][2][REGISTER]) {
    for (int t = 0; t < 2; t++) SYM(gather_lines)(x[t], offsets + step * HALF, gathered[step % 2][t]);
}

/* Where the lines of two tiles lie that `step` multiplies: in x, gathered unless `offsets` is NULL, or in `last`, if the
 * last step has `tail` lines only: what lies behind x is not its own. */
INLINE void SYM(step_lines)(const float *const x[2], const uint16_t *offsets, int step, int steps, int tail,
                            float gathered[2][2][REGISTER], float last[2][REGISTER], const float *lines[2]) {
    if (offsets && step + 1 < steps) SYM(gather_step)(x, offsets, step + 1, gathered);
    for (int t = 0; t < 2; t++) {
        lines[t] = offsets ? gathered[step % 2][t] : x[t] + (size_t)step * REGISTER;
        if (!tail || step < steps - 1) continue;
        memcpy(last[t], lines[t], (size_t)tail * LINE);
        lines[t] = last[t];
    }
}

/* Rows of the 32 × 32 sums before, which lie in y and wait for their activation: it runs between the tile products of the
 * sums that follow, a share per step, since a product keeps the vector units free for 16 cycles. */
typedef struct {
    float *at[4];
    int lines[4], first, count;
} SYM(waiting_rows);

INLINE void SYM(wait_for)(SYM(waiting_rows) *waiting, float *at, int lines) {
    waiting->at[waiting->count] = at;
    waiting->lines[waiting->count++] = lines;
}

INLINE void SYM(activate)(SYM(waiting_rows) *waiting, activation_fn after, int lines) {
    while (lines > 0 && waiting->first < waiting->count) {
        const int i = waiting->first, now = waiting->lines[i] < lines ? waiting->lines[i] : lines;
        after(waiting->at[i], (size_t)now * TILE);
        waiting->at[i] += now * TILE;
        waiting->lines[i] -= now;
        waiting->first += waiting->lines[i] == 0;
        lines -= now;
    }
}

#define ALL_LINES (4 * HALF)

/* The lines that each of `steps` steps activates, so that none is left. */
INLINE int SYM(lines_per_step)(int steps) { return steps > 0 ? (ALL_LINES + steps - 1) / steps : 0; }

/* Write the weights of one row group as a dense block has them; return where the next group's are. A step is 32 masks,
 * one of 32 columns per row, and the weights whose bits are set, an even number of them in all. */
static const float *SYM(expand_group)(const float *from, int steps, float *weights) {
    for (; steps > 0; steps--) {
        const uint32_t *masks = (const uint32_t *)from;
        const uint16_t *values = (const uint16_t *)(masks + TILE_ROWS);
        for (int r = 0; r < TILE_ROWS; r++, weights += HALF) {
#ifdef EXPAND_WORDS
            EXPAND_WORDS(weights, masks[r], values);
#else
            uint16_t row[TILE_COLUMNS];
            for (int i = 0, next = 0; i < TILE_COLUMNS; i++) row[i] = masks[r] >> i & 1 ? values[next++] : 0;
            memcpy(weights, row, sizeof row);
#endif
            values += __builtin_popcount(masks[r]);
        }
        from = (const float *)(((uintptr_t)values + 3) & ~(uintptr_t)3);
    }
    return from;
}

#define DENSE_TILES 0
#define GATHERED_TILES 1
#define COMPRESSED_TILES 2

INLINE void SYM(bf16_tiles)(const block_t *block, const int form, tiles_t x, tiles_t init, const float *bias,
                            tiles_t y, activation_fn after) {
    const int is_gathered = form == GATHERED_TILES;
    int steps = (block->k + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int tail = is_gathered ? 0 : (block->k % TILE_COLUMNS + 1) / 2; /* lines of the last step; 0: all */
    const uint16_t *offsets = block->offsets;
    const float *stream = block->values;
    float expanded[form == COMPRESSED_TILES ? MAX_KBLOCK * HALF : 1] __attribute__((aligned(LINE)));
    float gathered[2][2][REGISTER] __attribute__((aligned(LINE)));
    float from_bias[2][REGISTER] __attribute__((aligned(LINE)));
    float part[4][REGISTER] __attribute__((aligned(LINE))); /* where a register would reach beyond the block */
    float last[2][REGISTER] __attribute__((aligned(LINE)));
    SYM(waiting_rows) waiting = {.count = 0};
    TILES_REGISTERS
    TILES_BEGIN
    memset(last, 0, sizeof last);
    for (int32_t first = 0; first < block->rows; first += TILE_ROWS) {
        const float *w = stream;
        if (is_gathered) steps = (int)block->runs[first / TILE_ROWS].count / HALF;
        if (form == COMPRESSED_TILES) {
            stream = SYM(expand_group)(stream, steps, expanded);
            w = expanded;
        } else {
            stream += (size_t)steps * 2 * REGISTER;
        }
        const int share = SYM(lines_per_step)(steps);
        const int rows[2] = {block->rows - first < HALF ? block->rows - first : HALF,
                             block->rows - first - HALF < HALF ? block->rows - first - HALF : HALF};
        for (int half = 0; !init.at && half < 2; half++)
            SYM(start_sums)(from_bias[half], NULL, bias + first + half * HALF, rows[half]);
        for (int tile = 0; tile < y.count; tile += 2) {
            const int other = tile + 1 < y.count ? tile + 1 : tile; /* the last of an odd number is computed twice */
            const float *const xs[2] = {x.at + tile * x.stride, x.at + other * x.stride};
            const float *from[4];
            float *to[4];
            for (int i = 0; i < 4; i++) {
                const int half = i / 2, t = i % 2 ? other : tile, at = (first + half * HALF) * TILE;
                const float *start = init.at ? init.at + t * init.stride + at : NULL;
                const int is_whole = rows[half] == HALF;
                if (start && !is_whole) SYM(start_sums)(part[i], start, NULL, rows[half]);
                from[i] = start ? is_whole ? start : part[i] : from_bias[half];
                to[i] = is_whole && !(i % 2 && other == tile) ? y.at + t * y.stride + at : part[i];
            }
            TILE_LOAD(0, from[0], LINE);
            TILE_LOAD(1, from[1], LINE);
            TILE_LOAD(2, from[2], LINE);
            TILE_LOAD(3, from[3], LINE);
            if (is_gathered && steps > 0) SYM(gather_step)(xs, offsets, 0, gathered);
            for (int step = 0; step < steps; step++) {
                const float *b[2];
                SYM(step_lines)(xs, is_gathered ? offsets : NULL, step, steps, tail, gathered, last, b);
                TILE_LOAD(4, w + (size_t)(2 * step) * REGISTER, LINE);
                TILE_LOAD(6, b[0], LINE);
                TILE_BF16_DOT(0, 4, 6);
                TILE_LOAD(7, b[1], LINE);
                TILE_BF16_DOT(1, 4, 7);
                TILE_LOAD(5, w + (size_t)(2 * step + 1) * REGISTER, LINE);
                TILE_BF16_DOT(2, 5, 6);
                TILE_BF16_DOT(3, 5, 7);
                SYM(activate)(&waiting, after, share);
            }
            SYM(activate)(&waiting, after, ALL_LINES); /* where there are no steps */
            waiting.first = waiting.count = 0;
            TILE_STORE(0, to[0], LINE);
            TILE_STORE(1, to[1], LINE);
            TILE_STORE(2, to[2], LINE);
            TILE_STORE(3, to[3], LINE);
            for (int i = 0; i < 4; i++) {
                const int count = rows[i / 2];
                float *yt = y.at + (i % 2 ? other : tile) * y.stride + (first + i / 2 * HALF) * TILE;
                if (count <= 0 || (i % 2 && other == tile)) continue;
                if (to[i] == part[i]) memcpy(yt, part[i], (size_t)count * LINE);
                if (after) SYM(wait_for)(&waiting, yt, count);
            }
        }
        if (is_gathered) offsets += steps * HALF;
    }
    SYM(activate)(&waiting, after, ALL_LINES);
    TILES_END
}

static void SYM(bf16_dense)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                            activation_fn after) {
    SYM(bf16_tiles)(block, DENSE_TILES, x, init, bias, y, after);
}

static void SYM(bf16_block)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                            activation_fn after) {
    SYM(bf16_tiles)(block, GATHERED_TILES, x, init, bias, y, after);
}

static void SYM(bf16_compressed)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                                 activation_fn after) {
    SYM(bf16_tiles)(block, COMPRESSED_TILES, x, init, bias, y, after);
}

#define DOT_OPERATIONS (4 * HALF * TILE * TILE_COLUMNS * 2)

static void SYM(bf16_dot_loop)(float *x, size_t steps) {
    uint16_t factors[2 * REGISTER] __attribute__((aligned(LINE)));
    float sums[REGISTER] __attribute__((aligned(LINE)));
    TILES_REGISTERS
    TILES_BEGIN
    memset(sums, 0, sizeof sums);
    for (int i = 0; i < 2 * REGISTER; i++) factors[i] = i % 2 ? 0x3c00 : 0x3f80; /* 2^-7 and 1 */
    TILE_LOAD(0, sums, LINE);
    TILE_LOAD(1, sums, LINE);
    TILE_LOAD(2, sums, LINE);
    TILE_LOAD(3, sums, LINE);
    TILE_LOAD(4, factors, LINE);
    TILE_LOAD(5, factors, LINE);
    for (; steps > 0; steps--) {
        TILE_BF16_DOT(0, 4, 5);
        TILE_BF16_DOT(1, 4, 5);
        TILE_BF16_DOT(2, 4, 5);
        TILE_BF16_DOT(3, 4, 5);
    }
    TILE_STORE(0, sums, LINE);
    memcpy(x, sums, LINE);
    TILES_END
}
