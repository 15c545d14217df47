/* A block of a packed weight times tiles, table form. Included by portable.h. */

INLINE void SYM(f32_table_tiles)(const block_t *block, const int tiles, tiles_t x, tiles_t init, const float *bias,
                                 tiles_t y) {
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
                                init.at ? SYM(load)(init.at + t * init.stride + row[first + r] * TILE + v * LANES)
                                        : SYM(splat)(bias[row[first + r]]);
                const float *weight = w + first;
                const uint16_t *offset = at + first;
                for (uint32_t i = count; i > 0; i--, weight += BUNDLE, offset += BUNDLE)
                    for (int r = 0; r < TABLE_ROWS; r++) {
                        const float *xr = (const float *)((const char *)x.at + offset[r]);
                        const VF wr = SYM(splat)(weight[r]);
                        for (int t = 0; t < tiles; t++)
                            for (int v = 0; v < VECTORS; v++)
                                acc[r][t * VECTORS + v] += SYM(load)(xr + t * x.stride + v * LANES) * wr;
                    }
                for (int r = 0; r < TABLE_ROWS; r++)
                    for (int t = 0; t < tiles; t++)
                        for (int v = 0; v < VECTORS; v++)
                            SYM(store)(y.at + t * y.stride + row[first + r] * TILE + v * LANES,
                                       acc[r][t * VECTORS + v]);
            }
            w += (size_t)count * BUNDLE, at += (size_t)count * BUNDLE;
        }
    }
}

static void SYM(f32_table)(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                           activation_fn after) {
    for (int tile = 0, step; tile < y.count; tile += step) {
        step = y.count - tile >= TABLE_TILES ? TABLE_TILES : 1;
        const tiles_t xs = tiles_from(x, tile, step), inits = tiles_from(init, tile, step);
        const tiles_t ys = tiles_from(y, tile, step);
        if (step == TABLE_TILES)
            SYM(f32_table_tiles)(block, TABLE_TILES, xs, inits, bias, ys);
        else
            SYM(f32_table_tiles)(block, 1, xs, inits, bias, ys);
        for (int t = 0; after && t < step; t++) after(ys.at + t * y.stride, (size_t)block->rows * TILE);
    }
}
