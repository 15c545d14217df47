# A packed weight times tiles: by one thread, or a member's share of it.

cdef tiles_t FROM_BIAS  # as `init`: no tiles

# Some panels and k-blocks of a packed weight.
cdef struct part_t:
    const linear_t *linear
    int first_panel
    int last_panel
    int first_kb
    int last_kb


cdef part_t panels_of(const linear_t *linear, int first, int last) noexcept nogil:
    """Panels first … last - 1, all their k-blocks."""
    return part_t(linear, first, last, 0, linear.num_kblocks)


cdef part_t whole(const linear_t *linear) noexcept nogil:
    return panels_of(linear, 0, linear.num_panels)


cdef tiles_t rows_from(tiles_t tiles, ptrdiff_t row) noexcept nogil:
    """The rows of every tile from `row` on, which may be negative: where row 0 of a larger matrix would be."""
    if tiles.at != NULL:
        tiles.at += row * TILE
    return tiles


cdef void apply(part_t part, tiles_t x, tiles_t init, tiles_t y, activation_fn after) noexcept nogil:
    """y = after(init + W x) over a part of W, whose first k-block's first column x begins with.

    init and y begin with row 0 of W. k-block 0 starts from `init`, later ones from y.
    """
    cdef int panel, kb, first
    cdef const linear_t *linear = part.linear
    cdef const block_t *block
    if y.count <= 0:
        return
    for panel in range(part.first_panel, part.last_panel):
        for kb in range(part.first_kb, part.last_kb):
            block = &linear.blocks[panel * linear.num_kblocks + kb]
            first = block.first_k - linear.blocks[part.first_kb].first_k
            block.run(block, rows_from(x, operand_line(linear, first)),
                      rows_from(y if kb else init, block.first_row), linear.bias + block.first_row,
                      rows_from(y, block.first_row), after if kb == part.last_kb - 1 else NULL)


cdef int operand_line(const linear_t *linear, int first) noexcept nogil:
    """The line of its operand at which a k-block's columns begin, `first` columns after the first block's."""
    if linear.operand == OPERAND_BF16:
        return first // 2
    if linear.operand == OPERAND_U8:
        return first // linear.kblock * quad_lines(linear.kblock)
    return first


cdef int quad_lines(int features) noexcept nogil:
    """Lines of a k-block in 8 bits."""
    return (features + 3) // 4 + QUAD_HEADER


cdef ptrdiff_t operand_floats(const linear_t *linear, int features) noexcept nogil:
    """Floats that a tile takes as `linear` takes it, unless it takes float32."""
    if linear.operand == OPERAND_U8:
        return (features + linear.kblock - 1) // linear.kblock * <ptrdiff_t>quad_lines(linear.kblock) * TILE
    return (features + 1) // 2 * <ptrdiff_t>TILE


cdef tiles_t operand(const kernels_t *kernels, const linear_t *linear, tiles_t x, int column, int features, int begin,
                     int end, float *memory) noexcept nogil:
    """x as `linear` takes it: itself, or its `features` features in 16 or 8 bits, in `memory` of
    `whole_pairs(x.count) * operand_floats(linear, features)` floats, tiles `begin` … `end` - 1 of which are written
    now. x begins with what `column` of the weight is multiplied by."""
    cdef int tile, kb, first
    cdef const float *second
    cdef tiles_t taken = tiles_t(memory, operand_floats(linear, features), x.count)
    cdef rounding_t rounding = linear.rounding
    if linear.operand == OPERAND_F32:
        return x
    if linear.operand == OPERAND_BF16:
        for tile in range(begin, end):
            kernels.bf16_convert(x.at + tile * x.stride, features, memory + tile * taken.stride)
        return taken
    if linear.operand == OPERAND_U8:
        for tile in range(begin, end):
            for kb in range((features + linear.kblock - 1) // linear.kblock):
                first = kb * linear.kblock
                if linear.rounding.factors != NULL:
                    rounding.factors = linear.rounding.factors + column + first
                kernels.u8_convert(x.at + tile * x.stride + first * TILE, min(linear.kblock, features - first),
                                   rounding, memory + tile * taken.stride + operand_line(linear, first) * TILE)
        return taken
    taken.stride = features * <ptrdiff_t>TILE // 2
    for tile in range(begin, end):
        if tile % 2 == 0:
            second = x.at + (tile + 1) * x.stride if tile + 1 < x.count else NULL
            kernels.f16_convert(x.at + tile * x.stride, second, features, memory + tile * taken.stride)
    return taken


cdef int whole_pairs(int tiles) noexcept nogil:
    return (tiles + 1) // 2 * 2


cdef void apply_shared(const member_t *m, part_t part, tiles_t x, tiles_t init, tiles_t y,
                       activation_fn after) noexcept nogil:
    """A member's share of `apply`: panels, or pairs of tiles, see `splits_panels`."""
    cdef int panels = part.last_panel - part.first_panel, begin, count, pairs = (y.count + 1) // 2
    if splits_panels(panels, y.count, m.team):
        part.last_panel = part.first_panel + share(panels, m.number + 1, m.team)
        part.first_panel += share(panels, m.number, m.team)
        apply(part, x, init, y, after)
        return
    begin = 2 * share(pairs, m.number, m.team)
    count = min(y.count, 2 * share(pairs, m.number + 1, m.team)) - begin
    apply(part, tiles_from(x, begin, count), tiles_from(init, begin, count), tiles_from(y, begin, count), after)


cdef bint splits_panels(int panels, int tiles, int team) noexcept nogil:
    """Whether a team shares a step by panels: they divide evenly, or there are too few pairs of tiles."""
    return panels % team == 0 or (tiles + 1) // 2 < team


cdef int share(int total, int number, int team) noexcept nogil:
    """Where member `number`'s share of `total` units begins; share(total, team, team) == total."""
    return <int>(<int64_t>total * number // team)


cdef tiles_t tiles_of(const float[:, :, ::1] tiles) except *:
    """The tiles of an array (n, features, 16)."""
    if tiles.shape[2] != TILE:
        raise ValueError(f"tiles must be (n, features, {TILE}); got {tiles.shape[0]}×{tiles.shape[1]}×{tiles.shape[2]}")
    if tiles.shape[0] == 0 or tiles.shape[1] == 0:
        return FROM_BIAS
    return tiles_t(<float *>&tiles[0, 0, 0], tiles.shape[1] * TILE, <int>tiles.shape[0])


cdef int check_gemm(PackedLinear weight, const float[:, :, ::1] x, const float[:, :, ::1] y, init) except -1:
    """Refuse tiles that do not fit the weight."""
    if x.shape[1] != weight.k or y.shape[1] != weight.rows or x.shape[0] != y.shape[0]:
        raise ValueError("x must be (n, K, 16) and y (n, N, 16)")
    if init is not None and init.shape != (y.shape[0], y.shape[1], y.shape[2]):
        raise ValueError("init must have the shape of y")
    if weight.is_generated() and weight.is_residual != (init is not None):
        raise ValueError("a generated weight starts from init if and only if it was packed with is_residual")
    return 0
