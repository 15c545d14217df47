/* Products of bfloat16, sums in float32. Included after vector.h by an ISA header that defines
 *
 *   BF16_ROWS        rows of the dense kernel: BF16_ROWS * TILE / LANES accumulators
 *   BF16_BLOCK_ROWS  likewise of the block kernel: the largest group of rows that shares its zeros
 *   BF16_DOT(acc, x, w)   its instruction; without it and BF16_PAIRS, plain arithmetic stands for both
 *   BF16_PAIRS(even, odd) likewise: two vectors rounded, element i of both side by side
 *   BF16_HALVES(first, second)  likewise, one vector behind the other; without it, one number at a time
 *
 * A number is rounded to the nearest bfloat16, ties to even. The instructions take denormals for 0, plain arithmetic
 * does not. */

typedef int32_t SYM(pair) __attribute__((may_alias));

INLINE VF SYM(bf16_dot)(VF acc, VI x, VI w) {
#ifdef BF16_DOT
    return (VF)BF16_DOT(acc, x, w);
#else
    const int32_t high = (int32_t)0xffff0000;
    acc += (VF)(x & high) * (VF)(w & high); /* in the order of the instruction: the odd one first */
    return acc + (VF)(x << 16) * (VF)(w << 16);
#endif
}

INLINE VI SYM(bf16_pairs)(VF even, VF odd) {
#ifdef BF16_PAIRS
    return (VI)BF16_PAIRS(even, odd);
#else
    VI rounded[2];
    const VF both[2] = {even, odd};
    for (int i = 0; i < 2; i++) {
        const VI bits = (VI)both[i];
        const VI up = bits + 0x7fff + ((bits >> 16) & 1);
        const VI is_nan = both[i] != both[i]; /* adding could carry it to infinity */
        rounded[i] = (is_nan & (bits | 0x00400000)) | (~is_nan & up);
    }
    return ((rounded[0] >> 16) & 0xffff) | (rounded[1] & (int32_t)0xffff0000);
#endif
}

static void SYM(bf16_convert)(const float *x, int features, float *pairs) {
    for (; features > 0; features -= 2, x += 2 * TILE, pairs += TILE)
        for (int v = 0; v < VECTORS; v++) {
            const VF odd = features > 1 ? SYM(load)(x + TILE + v * LANES) : SYM(splat)(0.0f);
            *(VI *)(pairs + v * LANES) = SYM(bf16_pairs)(SYM(load)(x + v * LANES), odd);
        }
}

/* x * Phi(x) where the result is rounded to bfloat16 next: |error| <= 2e-4 + 3e-7 |x| for half the work. As there, P
 * is a minimax polynomial, of degree 6 in x^2 itself, x clamped to +-3.9 inside, where Phi is taken for 0 and 1. */
static void SYM(bf16_gelu)(float *x, size_t count) {
    static const float c[7] = {0.397874653339386f,     -0.06456904113292694f,  0.008775514550507069f,
                               -0.0008159535354934633f, 4.831430851481855e-05f, -1.6257328070423682e-06f,
                               2.3504282964381673e-08f};
    for (size_t i = 0; i < count; i += LANES) {
        const VF a = SYM(load)(x + i);
        const VF b = SYM(clamp)(a, 3.9f);
        const VF u = b * b;
        VF p = SYM(splat)(c[6]);
        for (int j = 5; j >= 0; j--) p = p * u + c[j];
        SYM(store)(x + i, a * (b * p + 0.5f));
    }
}

static void SYM(bf16_dense)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                            activation_fn after) {
    const int pairs = (block->k + 1) / 2;
    for (int32_t first = 0; first < block->rows; first += BF16_ROWS) {
        const int rows = block->rows - first < BF16_ROWS ? block->rows - first : BF16_ROWS;
        for (int tile = 0; tile < y.count; tile++) {
            const float *xt = x.at + tile * x.stride;
            const float *it = init.at ? init.at + tile * init.stride + first * TILE : NULL;
            float *yt = y.at + tile * y.stride + first * TILE;
            const SYM(pair) *w = (const SYM(pair) *)block->values + (size_t)first * pairs;
            VF acc[BF16_ROWS][VECTORS];
            UNROLL
            for (int r = 0; r < BF16_ROWS; r++) {
                const int row = r < rows ? r : 0; /* a short last group computes its first row again */
                for (int v = 0; v < VECTORS; v++)
                    acc[r][v] = it ? SYM(load)(it + row * TILE + v * LANES) : SYM(splat)(bias[first + row]);
            }
            for (int i = 0; i < pairs; i++, w += BF16_ROWS) {
                VI xv[VECTORS];
                for (int v = 0; v < VECTORS; v++) xv[v] = *(const VI *)(xt + i * TILE + v * LANES);
                UNROLL
                for (int r = 0; r < BF16_ROWS; r++) {
                    const VI wr = w[r] - (VI){0};
                    for (int v = 0; v < VECTORS; v++) acc[r][v] = SYM(bf16_dot)(acc[r][v], xv[v], wr);
                }
            }
            UNROLL
            for (int r = 0; r < BF16_ROWS; r++)
                if (r < rows)
                    for (int v = 0; v < VECTORS; v++) SYM(store)(yt + r * TILE + v * LANES, acc[r][v]);
            if (after) after(yt, (size_t)rows * TILE);
        }
    }
}

/* The lines of x that a group of rows needs, one after the other. */
static void SYM(bf16_block)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                            activation_fn after) {
    const SYM(pair) *w = (const SYM(pair) *)block->values;
    const uint16_t *offsets = block->offsets;
    for (int32_t group = 0, first = 0; group < block->num_runs; group++, first += BF16_BLOCK_ROWS) {
        const int rows = block->rows - first < BF16_BLOCK_ROWS ? block->rows - first : BF16_BLOCK_ROWS;
        const int lines = (int)block->runs[group].count;
        for (int tile = 0; tile < y.count; tile++) {
            const char *xt = (const char *)(x.at + tile * x.stride);
            const float *it = init.at ? init.at + tile * init.stride + first * TILE : NULL;
            float *yt = y.at + tile * y.stride + first * TILE;
            const SYM(pair) *wt = w;
            VF acc[BF16_BLOCK_ROWS][VECTORS];
            UNROLL
            for (int r = 0; r < BF16_BLOCK_ROWS; r++) {
                const int row = r < rows ? r : 0; /* a short last group computes its first row again */
                for (int v = 0; v < VECTORS; v++)
                    acc[r][v] = it ? SYM(load)(it + row * TILE + v * LANES) : SYM(splat)(bias[first + row]);
            }
            for (int i = 0; i < lines; i++, wt += BF16_BLOCK_ROWS) {
                VI xv[VECTORS];
                for (int v = 0; v < VECTORS; v++) xv[v] = *(const VI *)(xt + offsets[i] + v * LANES * 4);
                UNROLL
                for (int r = 0; r < BF16_BLOCK_ROWS; r++) {
                    const VI wr = wt[r] - (VI){0};
                    for (int v = 0; v < VECTORS; v++) acc[r][v] = SYM(bf16_dot)(acc[r][v], xv[v], wr);
                }
            }
            UNROLL
            for (int r = 0; r < BF16_BLOCK_ROWS; r++)
                if (r < rows)
                    for (int v = 0; v < VECTORS; v++) SYM(store)(yt + r * TILE + v * LANES, acc[r][v]);
            if (after) after(yt, (size_t)rows * TILE);
        }
        w += (size_t)lines * BF16_BLOCK_ROWS, offsets += lines;
    }
}

#define DOT_CHAINS 16
#define DOT_OPERATIONS (DOT_CHAINS * LANES * 4)

static void SYM(bf16_dot_loop)(float *x, size_t steps) {
    VF acc[DOT_CHAINS];
    const VI pair = 0x3c003f80 - (VI){0}; /* 1 and 2^-7 */
    for (int i = 0; i < DOT_CHAINS; i++) acc[i] = SYM(load)(x + i * LANES);
    for (; steps > 0; steps--)
        for (int i = 0; i < DOT_CHAINS; i++) acc[i] = SYM(bf16_dot)(acc[i], pair, pair);
    for (int i = 0; i < DOT_CHAINS; i++) SYM(store)(x + i * LANES, acc[i]);
}
