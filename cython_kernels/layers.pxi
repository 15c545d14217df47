# One group of texts through the encoder, step by step, by one thread or a team of them.


cdef void run_alone(member_t m, const group_t *group, int thread) noexcept nogil:
    """Take one group through the encoder as thread `thread`, which meets no other."""
    m.group = group
    m.workspace += thread
    m.seconds += thread * (m.encoder.num_layers + 1) * NUM_STEPS
    run_group(m)


cdef void run_team(member_t m, const group_t *groups, int num_groups) noexcept nogil:
    """Take all groups through the encoder; every thread of the parallel region calls this.

    The region may have fewer threads than were asked for (OMP_THREAD_LIMIT, a surrounding region).
    """
    cdef int i
    m.number, m.team = openmp.omp_get_thread_num(), openmp.omp_get_num_threads()
    m.seconds += m.number * (m.encoder.num_layers + 1) * NUM_STEPS
    for i in range(num_groups):
        m.group = &groups[i]
        run_group(m)


cdef void run_group(member_t m) noexcept nogil:
    """Take one group through the whole encoder; m.layer is the first.

    Where only position 0 of each text is asked for, the last layer computes nothing else.
    """
    cdef const encoder_t *e = m.encoder
    cdef const group_t *g = m.group
    cdef double *seconds = m.seconds
    cdef tiles_t x = tiles_t(m.workspace.x, e.hidden * TILE, g.num_tiles)
    cdef tiles_t y = tiles_t(m.workspace.y, e.hidden * TILE, g.num_tiles)
    cdef int i, tile, begin, end, features = e.hidden
    embed_group(&m, x, y)
    for i in range(e.num_layers):
        m.seconds += NUM_STEPS
        m.first_only = g.first_only and i == e.num_layers - 1
        run_layer(&m, x, y)
        m.layer += 1
        x, y = y, x
    if g.first_only:
        x.count = (g.num_texts + TILE - 1) // TILE
    cdef double start = now_s()
    begin, end = share(x.count, m.number, m.team), share(x.count, m.number + 1, m.team)
    if e.head.rows:
        apply(whole(&e.head), tiles_from(x, begin, end - begin), FROM_BIAS, tiles_from(y, begin, end - begin), NULL)
        x, features = y, e.head.rows
    for tile in range(begin, end):
        e.kernels.f32_scatter(x.at + tile * x.stride, features, g.rows + tile * TILE)
    seconds[SCATTER] += now_s() - start
    meet(m.team)  # the workspace is the next group's


cdef void embed_group(const member_t *m, tiles_t x, tiles_t y) noexcept nogil:
    """x = embeddings; y is scratch."""
    cdef double start = now_s()
    cdef const embeddings_t *e = &m.encoder.embeddings
    cdef const group_t *g = m.group
    cdef tiles_t sums = x
    cdef float *tile
    cdef int i, lane, begin = share(x.count, m.number, m.team), end = share(x.count, m.number + 1, m.team)
    if e.projection.rows:
        sums = tiles_t(y.at, e.tables.features * TILE, x.count)
    for i in range(begin, end):
        tile, lane = sums.at + i * sums.stride, i * TILE
        m.encoder.kernels.f32_embed(&e.tables, tokens_t(g.ids + lane, g.positions + lane, g.types + lane), tile)
        m.encoder.kernels.f32_layer_norm(tile, NULL, &e.norm, tile)
    if e.projection.rows:
        apply(whole(&e.projection), tiles_from(sums, begin, end - begin), FROM_BIAS, tiles_from(x, begin, end - begin),
              NULL)
    lap(m, EMBEDDINGS, start)


cdef void run_layer(const member_t *m, tiles_t x, tiles_t y) noexcept nogil:
    """y = layer(x), x is scratch; with m.first_only y holds position 0 of each text, 16 texts to a tile."""
    cdef const layer_t *layer = m.layer
    cdef double start
    cdef tiles_t context
    if m.team == 1:
        attend_panels(m, x, y)
    else:
        attend_together(m, x, y)
    if m.first_only:
        if m.number == 0:
            select_first(m.group, y)
            select_first(m.group, x)
        x.count = y.count = (m.group.num_texts + TILE - 1) // TILE
        meet(m.team)
    # the residual is what the sum starts from; the bias joins in the norm
    start = now_s()
    context = shared_operand(m, &layer.attention_output, y, 0, layer.attention_output.k, m.workspace.x_operand)
    apply_shared(m, whole(&layer.attention_output), context, x, x, NULL)
    start = lap(m, ATTENTION_OUTPUT, start)
    normalise(m, x, &layer.attention_output, &layer.attention_norm)
    lap(m, ATTENTION_NORM, start)
    feed_forward(m, x, y)
    start = now_s()
    normalise(m, y, &layer.output, &layer.output_norm)
    lap(m, OUTPUT_NORM, start)


cdef tiles_t shared_operand(const member_t *m, const linear_t *linear, tiles_t x, int column, int features,
                            float *memory) noexcept nogil:
    """`operand` of all tiles, each member converting its share."""
    cdef int begin = share(x.count, m.number, m.team), end = share(x.count, m.number + 1, m.team)
    cdef tiles_t taken = operand(m.encoder.kernels, linear, x, column, features, begin, end, memory)
    if linear.operand != OPERAND_F32:
        meet(m.team)
    return taken


cdef void attend_panels(const member_t *m, tiles_t x, tiles_t context) noexcept nogil:
    """context = attention of every head, as a lone thread: a panel of heads is projected and, while its queries, keys
    and values are in cache, attended to."""
    cdef const linear_t *qkv = &m.layer.qkv
    cdef int panel, rows = qkv.blocks[0].rows, heads = rows // (3 * m.layer.head_size), text
    cdef tiles_t projected = tiles_t(m.workspace.qkv, rows * TILE, x.count)
    cdef double start = now_s()
    x = shared_operand(m, qkv, x, 0, qkv.k, m.workspace.x_operand)
    for panel in range(qkv.num_panels):
        apply(panels_of(qkv, panel, panel + 1), x, FROM_BIAS, rows_from(projected, -panel * rows), NULL)
        start = lap(m, QKV, start)
        for text in range(m.group.num_texts):
            attend_heads(m, text, panel * heads, heads, projected, context)
        start = lap(m, ATTENTION, start)


cdef void attend_together(const member_t *m, tiles_t x, tiles_t context) noexcept nogil:
    """context = attention of every head, as a team: all panels are projected, then heads are shared."""
    cdef const layer_t *layer = m.layer
    cdef const linear_t *qkv = &layer.qkv
    cdef int rows = qkv.blocks[0].rows, heads = rows // (3 * layer.head_size), unit, units, panel, head
    cdef ptrdiff_t panel_floats = <ptrdiff_t>rows * TILE * x.count
    cdef tiles_t projected = tiles_t(m.workspace.qkv, rows * TILE, x.count), target
    cdef double start = now_s()
    cdef bint split_panels = splits_panels(qkv.num_panels, x.count, m.team)
    cdef int first = share(qkv.num_panels, m.number, m.team) if split_panels else 0
    cdef int last = share(qkv.num_panels, m.number + 1, m.team) if split_panels else qkv.num_panels
    x = shared_operand(m, qkv, x, 0, qkv.k, m.workspace.x_operand)
    for panel in range(first, last):
        projected.at = m.workspace.qkv + panel * panel_floats
        target = rows_from(projected, -panel * rows)
        if split_panels:
            apply(panels_of(qkv, panel, panel + 1), x, FROM_BIAS, target, NULL)
        else:
            apply_shared(m, panels_of(qkv, panel, panel + 1), x, FROM_BIAS, target, NULL)
    start = lap(m, QKV, start)
    units = m.group.num_texts * layer.num_heads
    for unit in range(share(units, m.number, m.team), share(units, m.number + 1, m.team)):
        head = unit % layer.num_heads
        panel = head // heads
        projected.at = m.workspace.qkv + panel * panel_floats
        attend_heads(m, unit // layer.num_heads, head, 1,
                     rows_from(projected, (head - panel * heads) * 3 * layer.head_size), context)
    lap(m, ATTENTION, start)


cdef void attend_heads(const member_t *m, int text, int first_head, int heads, tiles_t qkv,
                       tiles_t context) noexcept nogil:
    """Attention of some heads of one text; qkv begins with the first of them."""
    cdef const group_t *g = m.group
    cdef int head, size = m.layer.head_size, tile = g.first_tile[text], tiles = g.tiles[text]
    cdef tiles_t q, k
    cdef tiles_t keys = tiles_from(qkv, tile, tiles)
    if m.first_only:
        tile, tiles = g.first_lane[text] // TILE, 1
    for head in range(heads):
        q = rows_from(tiles_from(qkv, tile, tiles), 3 * head * size)
        k = rows_from(keys, (3 * head + 1) * size)
        m.encoder.attention(q, k, rows_from(k, size), g.keys[text], size,
                            m.workspace.scores + m.number * m.workspace.member_scores,
                            rows_from(tiles_from(context, tile, tiles), (first_head + head) * size))


cdef void feed_forward(const member_t *m, tiles_t x, tiles_t y) noexcept nogil:
    """y = x + output(activation(intermediate(x))), less output's bias.

    In chunks: some rows of the inner layer, activated, are at once a k-block of the output layer, and never leave
    the cache. A team takes all chunks at once, which saves barriers where cache is no issue.
    """
    cdef const linear_t *intermediate = &m.layer.intermediate
    cdef const linear_t *output = &m.layer.output
    cdef int first_kb = 0, last_kb, first_row, last_row, panel_rows = intermediate.blocks[0].rows
    cdef tiles_t inner
    cdef double start = now_s()
    cdef tiles_t taken = shared_operand(m, intermediate, x, 0, intermediate.k, m.workspace.x_operand)
    while first_kb < output.num_kblocks:
        last_kb = first_kb + 1 if m.team == 1 else output.num_kblocks
        first_row = output.blocks[first_kb].first_k
        last_row = output.blocks[last_kb - 1].first_k + output.blocks[last_kb - 1].k
        inner = tiles_t(m.workspace.inner, (last_row - first_row) * TILE, x.count)
        apply_shared(m, panels_of(intermediate, first_row // panel_rows, (last_row + panel_rows - 1) // panel_rows),
                     taken, FROM_BIAS, rows_from(inner, -first_row), m.layer.activation)
        start = lap(m, INTERMEDIATE, start)
        inner = shared_operand(m, output, inner, first_row, last_row - first_row, m.workspace.inner_operand)
        apply_shared(m, part_t(output, 0, output.num_panels, first_kb, last_kb), inner, x, y, NULL)
        start = lap(m, OUTPUT, start)
        first_kb = last_kb


cdef void normalise(const member_t *m, tiles_t x, const linear_t *linear, const norm_t *norm) noexcept nogil:
    """x = LayerNorm(x + the linear layer's bias) on a member's share of the tiles."""
    cdef int i
    cdef float *tile
    for i in range(share(x.count, m.number, m.team), share(x.count, m.number + 1, m.team)):
        tile = x.at + i * x.stride
        m.encoder.kernels.f32_layer_norm(tile, linear.bias, norm, tile)


cdef void select_first(const group_t *g, tiles_t x) noexcept nogil:
    """Tile t = position 0 of texts 16 t … 16 t + 15; lanes beyond the last text keep what they held.

    In place: a text's own tiles never come before the one it is selected into.
    """
    cdef int text
    cdef ptrdiff_t f
    cdef const float *source
    cdef float *target
    for text in range(g.num_texts):
        source = x.at + (g.first_lane[text] // TILE * x.stride + g.first_lane[text] % TILE)
        target = x.at + (text // TILE * x.stride + text % TILE)
        for f in range(x.stride // TILE):
            target[f * TILE] = source[f * TILE]


cdef double lap(const member_t *m, int step, double start) noexcept nogil:
    """End a step: wait for the team, add the time since `start`, return the time."""
    cdef double now
    meet(m.team)
    now = now_s()
    m.seconds[step] += now - start
    return now


cdef void meet(int team) noexcept nogil:
    if team > 1:
        team_barrier()
