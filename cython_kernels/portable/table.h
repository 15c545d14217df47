/* A block of a packed weight times tiles, table form. Included by portable.h. */

INLINE void SYM(f32_table_tiles)(const block_t *block, const int tiles, const float *x, ptrdiff_t x_stride,
                                 const float *init, ptrdiff_t init_stride, const float *bias, float *y,
                                 ptrdiff_t y_stride) {
    const float *w = block->values;
    const uint16_t *at = block->offsets;
    const uint16_t *row = block->row_numbers;
    int left = block->rows; /* the last bundle repeats its last row: what was stored must not be added to again */
    for (int32_t run = 0; run < block->num_runs; run++) {
        const uint32_t count = block->runs[run].count;
        for (uint32_t bundle = block->runs[run].bundles; bundle > 0; bundle--, row += BUNDLE, left -= BUNDLE) {
            for (int first = 0; first < BUNDLE && first < left; first += TABLE_ROWS) {
                VF acc[TABLE_ROWS][TABLE_TILES * VECTORS];
                for (int r = 0; r < TABLE_ROWS; r++)
                    for (int t = 0; t < tiles; t++)
                        for (int v = 0; v < VECTORS; v++)
                            acc[r][t * VECTORS + v] =
                                init ? SYM(load)(init + t * init_stride + row[first + r] * TILE + v * LANES)
                                     : SYM(splat)(bias[row[first + r]]);
                const float *weight = w + first;
                const uint16_t *offset = at + first;
                for (uint32_t i = count; i > 0; i--, weight += BUNDLE, offset += BUNDLE)
                    for (int r = 0; r < TABLE_ROWS; r++) {
                        const float *xr = (const float *)((const char *)x + offset[r]);
                        const VF wr = SYM(splat)(weight[r]);
                        for (int t = 0; t < tiles; t++)
                            for (int v = 0; v < VECTORS; v++)
                                acc[r][t * VECTORS + v] += SYM(load)(xr + t * x_stride + v * LANES) * wr;
                    }
                for (int r = 0; r < TABLE_ROWS; r++)
                    for (int t = 0; t < tiles; t++)
                        for (int v = 0; v < VECTORS; v++)
                            SYM(store)(y + t * y_stride + row[first + r] * TILE + v * LANES, acc[r][t * VECTORS + v]);
            }
            w += (size_t)count * BUNDLE, at += (size_t)count * BUNDLE;
        }
    }
}

static void SYM(f32_table)(const block_t *block, const float *x, ptrdiff_t x_stride, const float *init,
                           ptrdiff_t init_stride, const float *bias, float *y, ptrdiff_t y_stride, int tiles,
                           activation_fn after) {
    for (int tile = 0, step; tile < tiles; tile += step) {
        const float *xt = x + tile * x_stride, *it = init ? init + tile * init_stride : NULL;
        float *yt = y + tile * y_stride;
        step = tiles - tile >= TABLE_TILES ? TABLE_TILES : 1;
        if (step == TABLE_TILES)
            SYM(f32_table_tiles)(block, TABLE_TILES, xt, x_stride, it, init_stride, bias, yt, y_stride);
        else
            SYM(f32_table_tiles)(block, 1, xt, x_stride, it, init_stride, bias, yt, y_stride);
        for (int t = 0; after && t < step; t++) after(yt + t * y_stride, (size_t)block->rows * TILE);
    }
}
