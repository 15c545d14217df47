# A packed weight times tiles: by one thread, or a member's share of it.


cdef void apply_shared(const linear_t *linear, int first_panel, int last_panel, int first_kb, int last_kb,
                       const float *x, ptrdiff_t x_stride, const float *init, ptrdiff_t init_stride, float *y,
                       ptrdiff_t y_stride, int tiles, int member, int team, activation_fn activation) noexcept nogil:
    """A member's share of `apply`: panels, or pairs of tiles, see `splits_panels`."""
    cdef int panels = last_panel - first_panel, begin, end, pairs = (tiles + 1) // 2
    if splits_panels(panels, tiles, team):
        apply(linear, first_panel + share(panels, member, team), first_panel + share(panels, member + 1, team),
              first_kb, last_kb, x, x_stride, init, init_stride, y, y_stride, tiles, activation)
        return
    begin, end = 2 * share(pairs, member, team), min(tiles, 2 * share(pairs, member + 1, team))
    apply(linear, first_panel, last_panel, first_kb, last_kb, x + begin * x_stride, x_stride,
          init + begin * init_stride if init != NULL else NULL, init_stride, y + begin * y_stride, y_stride,
          end - begin, activation)


cdef void apply(const linear_t *linear, int first_panel, int last_panel, int first_kb, int last_kb, const float *x,
                ptrdiff_t x_stride, const float *init, ptrdiff_t init_stride, float *y, ptrdiff_t y_stride,
                int tiles, activation_fn activation) noexcept nogil:
    """y = activation(init + W x) over panels and k-blocks (x starts at the first k-block's first column).

    k-block 0 starts from `init` (NULL: from the bias), later ones from y.
    """
    cdef int panel, kb
    cdef const block_t *block
    cdef const float *start
    cdef ptrdiff_t start_stride, row
    if tiles <= 0:
        return
    for panel in range(first_panel, last_panel):
        for kb in range(first_kb, last_kb):
            block = &linear.blocks[panel * linear.num_kblocks + kb]
            row = <ptrdiff_t>block.first_row * TILE
            start, start_stride = y + row, y_stride
            if kb == 0:
                start, start_stride = (init + row if init != NULL else NULL), init_stride
            block.run(block, x + <ptrdiff_t>(block.first_k - linear.blocks[first_kb].first_k) * TILE, x_stride, start,
                      start_stride, linear.bias + block.first_row, y + row, y_stride, tiles,
                      activation if kb == last_kb - 1 else NULL)


cdef bint splits_panels(int panels, int tiles, int team) noexcept nogil:
    """Whether a team shares a step by panels: they divide evenly, or there are too few pairs of tiles."""
    return panels % team == 0 or (tiles + 1) // 2 < team


cdef int share(int total, int member, int team) noexcept nogil:
    """Where member's share of `total` units begins; share(total, team, team) == total."""
    return <int>(<int64_t>total * member // team)
