/* Blocks of 8-bit integers by tile registers, dense or of gathered lines: 32 rows × 32 tokens at a time. Included after
 * vector.h and bf16_tiles.h, whose registers it uses: of weights 16 rows × 64 columns, of x 16 lines of quads. */
#include "integers.h"

#define S8_COLUMNS 64 /* columns of a register of weights: the packing's step */

INLINE void SYM(s8_tiles)(const block_t *block, const int is_gathered, tiles_t x, tiles_t init, const float *bias,
                          tiles_t y, activation_fn after) {
    int steps = (block->k + S8_COLUMNS - 1) / S8_COLUMNS;
    const int tail = is_gathered ? 0 : (block->k % S8_COLUMNS + 3) / 4; /* lines of the last step; 0: all */
    const uint16_t *offsets = block->offsets;
    const float *stream = block->values;
    float gathered[2][2][REGISTER] __attribute__((aligned(LINE)));
    float last[2][REGISTER] __attribute__((aligned(LINE)));
    int32_t sums[4][REGISTER] __attribute__((aligned(LINE)));
    SYM(waiting_rows) waiting = {.count = 0};
    TILES_REGISTERS
    TILES_BEGIN
    memset(last, 0, sizeof last);
    for (int32_t first = 0; first < block->rows; first += TILE_ROWS) {
        const float *corrections = stream, *scales = stream + TILE_ROWS, *w = stream + 2 * TILE_ROWS;
        if (is_gathered) steps = (int)block->runs[first / TILE_ROWS].count / HALF;
        const int share = SYM(lines_per_step)(steps);
        stream = w + (size_t)steps * 2 * REGISTER;
        for (int tile = 0; tile < y.count; tile += 2) {
            const int other = tile + 1 < y.count ? tile + 1 : tile; /* the last of an odd number is computed twice */
            const float *header[2] = {x.at + tile * x.stride, x.at + other * x.stride};
            const float *const xs[2] = {header[0] + QUAD_HEADER * TILE, header[1] + QUAD_HEADER * TILE};
            TILE_ZERO(0);
            TILE_ZERO(1);
            TILE_ZERO(2);
            TILE_ZERO(3);
            if (is_gathered && steps > 0) SYM(gather_step)(xs, offsets, 0, gathered);
            for (int step = 0; step < steps; step++) {
                const float *b[2];
                SYM(step_lines)(xs, is_gathered ? offsets : NULL, step, steps, tail, gathered, last, b);
                TILE_LOAD(4, w + (size_t)step * 2 * REGISTER, LINE);
                TILE_LOAD(6, b[0], LINE);
                TILE_S8_DOT(0, 4, 6);
                TILE_LOAD(7, b[1], LINE);
                TILE_S8_DOT(1, 4, 7);
                TILE_LOAD(5, w + (size_t)step * 2 * REGISTER + REGISTER, LINE);
                TILE_S8_DOT(2, 5, 6);
                TILE_S8_DOT(3, 5, 7);
                SYM(activate)(&waiting, after, share);
            }
            SYM(activate)(&waiting, after, ALL_LINES); /* where there are no steps */
            waiting.first = waiting.count = 0;
            TILE_STORE(0, sums[0], LINE);
            TILE_STORE(1, sums[1], LINE);
            TILE_STORE(2, sums[2], LINE);
            TILE_STORE(3, sums[3], LINE);
            for (int i = 0; i < 4; i++) {
                const int half = i / 2, at = first + half * HALF, t = i % 2 ? other : tile;
                const int rows = block->rows - at < HALF ? block->rows - at : HALF;
                const float *it = init.at ? init.at + t * init.stride + at * TILE : NULL;
                float *yt = y.at + t * y.stride + at * TILE;
                if (rows <= 0 || (i % 2 && other == tile)) continue;
                for (int r = 0; r < rows; r++)
                    for (int v = 0; v < VECTORS; v++) {
                        const int lane = r * TILE + v * LANES;
                        const VI zero = *(const VI *)(header[i % 2] + TILE + v * LANES);
                        const VI sum = *(const VI *)(sums[i] + lane) + SYM(s8_splat)(corrections + half * HALF + r) * zero;
                        const VF start = it ? SYM(load)(it + lane) : SYM(splat)(bias[at + r]);
                        SYM(store)(yt + lane, SYM(s8_scaled)(sum, SYM(load)(header[i % 2] + v * LANES),
                                                             scales[half * HALF + r], start));
                    }
                if (after) SYM(wait_for)(&waiting, yt, rows);
            }
        }
        if (is_gathered) offsets += steps * HALF;
    }
    SYM(activate)(&waiting, after, ALL_LINES);
    TILES_END
}

static void SYM(s8_dense)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                          activation_fn after) {
    SYM(s8_tiles)(block, 0, x, init, bias, y, after);
}

static void SYM(s8_block)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                          activation_fn after) {
    SYM(s8_tiles)(block, 1, x, init, bias, y, after);
}

#define S8_OPERATIONS (4 * HALF * TILE * S8_COLUMNS * 2)

static void SYM(s8_dot_loop)(float *x, size_t steps) {
    uint8_t factors[4 * REGISTER] __attribute__((aligned(LINE)));
    TILES_REGISTERS
    TILES_BEGIN
    memset(factors, 1, sizeof factors);
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    TILE_LOAD(4, factors, LINE);
    TILE_LOAD(5, factors, LINE);
    for (; steps > 0; steps--) {
        TILE_S8_DOT(0, 4, 5);
        TILE_S8_DOT(1, 4, 5);
        TILE_S8_DOT(2, 4, 5);
        TILE_S8_DOT(3, 4, 5);
    }
    int32_t sums[REGISTER] __attribute__((aligned(LINE)));
    TILE_STORE(0, sums, LINE);
    for (int i = 0; i < TILE; i++) x[i] = (float)sums[i];
    TILES_END
}
