/* A block of a packed weight times tiles, dense form. Included by portable.h. */

static void SYM(f32_dense)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                           activation_fn after) {
    const int k = block->k;
    for (int32_t first = 0; first < block->rows; first += DENSE_ROWS) {
        const int rows = block->rows - first < DENSE_ROWS ? block->rows - first : DENSE_ROWS;
        for (int tile = 0; tile < y.count; tile++) {
            const float *xt = x.at + tile * x.stride;
            const float *it = init.at ? init.at + tile * init.stride + first * TILE : NULL;
            float *yt = y.at + tile * y.stride + first * TILE;
            const float *w = block->values + (size_t)first * k;
            VF acc[DENSE_ROWS][VECTORS];
            UNROLL
            for (int r = 0; r < DENSE_ROWS; r++) {
                const int row = r < rows ? r : 0; /* a short last group computes its first row again */
                for (int v = 0; v < VECTORS; v++)
                    acc[r][v] = it ? SYM(load)(it + row * TILE + v * LANES) : SYM(splat)(bias[first + row]);
            }
            for (int i = 0; i < k; i++, w += DENSE_ROWS) {
                VF xv[VECTORS];
                for (int v = 0; v < VECTORS; v++) xv[v] = SYM(load)(xt + i * TILE + v * LANES);
                UNROLL
                for (int r = 0; r < DENSE_ROWS; r++)
                    for (int v = 0; v < VECTORS; v++) acc[r][v] += xv[v] * w[r];
            }
            UNROLL
            for (int r = 0; r < DENSE_ROWS; r++)
                if (r < rows)
                    for (int v = 0; v < VECTORS; v++) SYM(store)(yt + r * TILE + v * LANES, acc[r][v]);
            if (after) after(yt, (size_t)rows * TILE);
        }
    }
}
