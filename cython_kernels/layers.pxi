# One group of texts through the encoder, step by step, by one thread or a team of them.


cdef void run_team(Encoder self, const layer_t *layers, const group_t *groups, int num_groups, int most_keys,
                   double *seconds, bint first_only) noexcept nogil:
    """Take all groups through the encoder; every thread of the parallel region calls this.

    The region may have fewer threads than were asked for (OMP_THREAD_LIMIT, a surrounding region).
    """
    cdef int i, member = openmp.omp_get_thread_num(), team = openmp.omp_get_num_threads()
    for i in range(num_groups):
        run_group(self, layers, &groups[i], &self.workspaces[0], most_keys, member, team,
                  seconds + member * (self.num_layers + 1) * NUM_STEPS, first_only)


cdef void run_group(Encoder self, const layer_t *layers, const group_t *g, const workspace_t *w, int most_keys,
                    int member, int team, double *seconds, bint first_only) noexcept nogil:
    """Take one group through the whole encoder, as member `member` of `team` threads.

    Where only position 0 of each text is asked for, the last layer computes nothing else.
    """
    cdef int i, tile, tiles = g.num_tiles, last = self.num_layers - 1
    cdef float *x = w.x
    cdef float *y = w.y
    embed_group(self, g, x, y, member, team, seconds)
    for i in range(self.num_layers):
        run_layer(self, &layers[i], g, w, x, y, most_keys, member, team, seconds + (i + 1) * NUM_STEPS,
                  first_only and i == last)
        x, y = y, x
    if first_only:
        tiles = (g.num_texts + TILE - 1) // TILE
    cdef double start = now_s()
    cdef int begin = share(tiles, member, team), end = share(tiles, member + 1, team), features = self.hidden
    cdef ptrdiff_t stride = features * TILE
    if self.head.rows:
        apply(&self.head, 0, self.head.num_panels, 0, self.head.num_kblocks, x + begin * stride, stride, NULL, 0,
              y + begin * stride, stride, end - begin, NULL)
        x, features = y, self.head.rows
    for tile in range(begin, end):
        self.kernels.f32_scatter(x + tile * stride, features, g.rows + tile * TILE)
    seconds[SCATTER] += now_s() - start
    meet(team)  # the workspace is the next group's


cdef void embed_group(Encoder self, const group_t *g, float *x, float *y, int member, int team,
                      double *seconds) noexcept nogil:
    """x = embeddings; y is scratch."""
    cdef double start = now_s()
    cdef embeddings_t *e = &self.embeddings
    cdef size_t stride = e.features * TILE
    cdef float *first = y if e.projection.rows else x
    cdef float *tile
    cdef int i, begin = share(g.num_tiles, member, team), end = share(g.num_tiles, member + 1, team)
    for i in range(begin, end):
        tile = first + i * stride
        self.kernels.f32_embed(e.word, e.position, e.type, g.ids + i * TILE, g.positions + i * TILE, g.types + i * TILE,
                               e.features, tile)
        self.kernels.f32_layer_norm(tile, NULL, e.norm.gamma, e.norm.beta, e.norm.epsilon, e.features, tile)
    if e.projection.rows:
        apply(&e.projection, 0, e.projection.num_panels, 0, e.projection.num_kblocks, first + begin * stride, stride,
              NULL, 0, x + begin * <size_t>(self.hidden * TILE), self.hidden * TILE, end - begin, NULL)
    meet(team)
    seconds[EMBEDDINGS] += now_s() - start


cdef void run_layer(Encoder self, const layer_t *layer, const group_t *g, const workspace_t *w, float *x, float *y,
                    int most_keys, int member, int team, double *seconds, bint first_only) noexcept nogil:
    """y = layer(x), x is scratch; with `first_only` y holds position 0 of each text, 16 texts to a tile."""
    cdef int tiles = g.num_tiles
    cdef ptrdiff_t stride = self.hidden * TILE
    cdef double start
    if team == 1:
        attend_panels(self, layer, g, w, x, y, seconds, first_only)
    else:
        attend_together(self, layer, g, w, x, y, most_keys, member, team, seconds, first_only)
    if first_only:
        tiles = (g.num_texts + TILE - 1) // TILE
        if member == 0:
            select_first(g, y, self.hidden)
            select_first(g, x, self.hidden)
        meet(team)
    # the residual is what the sum starts from; the bias joins in the norm
    start = now_s()
    apply_shared(&layer.attention_output, 0, layer.attention_output.num_panels, 0,
                 layer.attention_output.num_kblocks, y, stride, x, stride, x, stride, tiles, member, team, NULL)
    start = lap(&seconds[ATTENTION_OUTPUT], start, team)
    normalise(self, x, &layer.attention_output, &layer.attention_norm, tiles, member, team)
    lap(&seconds[ATTENTION_NORM], start, team)
    feed_forward(layer, w, x, y, stride, tiles, member, team, seconds)
    start = now_s()
    normalise(self, y, &layer.output, &layer.output_norm, tiles, member, team)
    lap(&seconds[OUTPUT_NORM], start, team)


cdef void attend_panels(Encoder self, const layer_t *layer, const group_t *g, const workspace_t *w, const float *x,
                        float *context, double *seconds, bint first_only) noexcept nogil:
    """context = attention of every head, as a lone thread: a panel of heads is projected and, while its queries, keys
    and values are in cache, attended to."""
    cdef const linear_t *qkv = &layer.qkv
    cdef int panel, rows = qkv.blocks[0].rows, heads = rows // (3 * layer.head_size), text
    cdef double start = now_s()
    for panel in range(qkv.num_panels):
        apply(qkv, panel, panel + 1, 0, qkv.num_kblocks, x, self.hidden * TILE, NULL, 0,
              w.qkv - <ptrdiff_t>(panel * rows) * TILE, rows * TILE, g.num_tiles, NULL)
        start = lap(&seconds[QKV], start, 1)
        for text in range(g.num_texts):
            attend_heads(self, layer, g, text, panel * heads, heads, w.qkv, rows, w.scores, context, first_only)
        start = lap(&seconds[ATTENTION], start, 1)


cdef void attend_together(Encoder self, const layer_t *layer, const group_t *g, const workspace_t *w, const float *x,
                          float *context, int most_keys, int member, int team, double *seconds,
                          bint first_only) noexcept nogil:
    """context = attention of every head, as a team: all panels are projected, then heads are shared."""
    cdef const linear_t *qkv = &layer.qkv
    cdef int rows = qkv.blocks[0].rows, heads = rows // (3 * layer.head_size), unit, units, panel, head
    cdef ptrdiff_t panel_floats = <ptrdiff_t>rows * TILE * g.num_tiles
    cdef float *scores = w.scores + member * <size_t>(2 * TILE * ((most_keys + TILE - 1) // TILE * TILE))
    cdef double start = now_s()
    cdef bint split_panels = splits_panels(qkv.num_panels, g.num_tiles, team)
    cdef int first = share(qkv.num_panels, member, team) if split_panels else 0
    cdef int last = share(qkv.num_panels, member + 1, team) if split_panels else qkv.num_panels
    for panel in range(first, last):
        apply_shared(qkv, panel, panel + 1, 0, qkv.num_kblocks, x, self.hidden * TILE, NULL, 0,
                     w.qkv + panel * panel_floats - <ptrdiff_t>(panel * rows) * TILE, rows * TILE, g.num_tiles,
                     0 if split_panels else member, 1 if split_panels else team, NULL)
    start = lap(&seconds[QKV], start, team)
    units = g.num_texts * layer.num_heads
    for unit in range(share(units, member, team), share(units, member + 1, team)):
        head = unit % layer.num_heads
        panel = head // heads
        attend_heads(self, layer, g, unit // layer.num_heads, head, 1,
                     w.qkv + panel * panel_floats + (head - panel * heads) * 3 * layer.head_size * TILE, rows, scores,
                     context, first_only)
    lap(&seconds[ATTENTION], start, team)


cdef void attend_heads(Encoder self, const layer_t *layer, const group_t *g, int text, int first_head, int heads,
                       const float *qkv, int rows, float *scores, float *context, bint first_only) noexcept nogil:
    """Attention of some heads of one text; qkv points at the first of them, in tiles of `rows` rows."""
    cdef int head, size = layer.head_size * TILE, first_tile = g.first_tile[text], tile = first_tile
    cdef int tiles = g.tiles[text]
    cdef ptrdiff_t qkv_stride = rows * TILE, stride = self.hidden * TILE
    cdef const float *keys
    if first_only:
        tile, tiles = g.first_lane[text] // TILE, 1
    for head in range(heads):
        keys = qkv + first_tile * qkv_stride + (3 * head + 1) * size
        self.kernels.f32_attention(qkv + tile * qkv_stride + 3 * head * size, qkv_stride, keys, keys + size, qkv_stride,
                                   tiles, g.keys[text], layer.head_size, scores,
                                   context + tile * stride + (first_head + head) * size, stride)


cdef void feed_forward(const layer_t *layer, const workspace_t *w, const float *x, float *y, ptrdiff_t stride,
                       int tiles, int member, int team, double *seconds) noexcept nogil:
    """y = x + output(activation(intermediate(x))), less output's bias.

    In chunks: some rows of the inner layer, activated, are at once a k-block of the output layer, and never leave
    the cache. A team takes all chunks at once, which saves barriers where cache is no issue.
    """
    cdef const linear_t *output = &layer.output
    cdef int first_kb = 0, last_kb
    cdef ptrdiff_t inner_stride
    cdef double start = now_s()
    while first_kb < output.num_kblocks:
        last_kb = first_kb + 1 if team == 1 else output.num_kblocks
        inner_stride = (output.blocks[last_kb - 1].first_k + output.blocks[last_kb - 1].k
                        - output.blocks[first_kb].first_k) * TILE
        run_inner(layer, first_kb, last_kb, x, stride, w.inner, inner_stride, tiles, member, team)
        start = lap(&seconds[INTERMEDIATE], start, team)
        apply_shared(output, 0, output.num_panels, first_kb, last_kb, w.inner, inner_stride, x, stride, y, stride,
                     tiles, member, team, NULL)
        start = lap(&seconds[OUTPUT], start, team)
        first_kb = last_kb


cdef void normalise(Encoder self, float *x, const linear_t *linear, const norm_t *norm, int tiles, int member,
                    int team) noexcept nogil:
    """x = LayerNorm(x + the linear layer's bias) on a member's share of the tiles."""
    cdef int i
    cdef float *tile
    for i in range(share(tiles, member, team), share(tiles, member + 1, team)):
        tile = x + i * <ptrdiff_t>(self.hidden * TILE)
        self.kernels.f32_layer_norm(tile, linear.bias, norm.gamma, norm.beta, norm.epsilon, self.hidden, tile)


cdef void run_inner(const layer_t *layer, int first_kb, int last_kb, const float *x, ptrdiff_t stride, float *inner,
                    ptrdiff_t inner_stride, int tiles, int member, int team) noexcept nogil:
    """inner = activation(intermediate(x)) for the rows that are k-blocks first_kb … last_kb - 1 of `output`."""
    cdef int first_row = layer.output.blocks[first_kb].first_k
    cdef int last_row = layer.output.blocks[last_kb - 1].first_k + layer.output.blocks[last_kb - 1].k
    cdef int panel_rows = layer.intermediate.blocks[0].rows
    # panels address rows of the whole inner layer: shift the buffer so that first_row is its start
    apply_shared(&layer.intermediate, first_row // panel_rows, (last_row + panel_rows - 1) // panel_rows, 0,
                 layer.intermediate.num_kblocks, x, stride, NULL, 0, inner - <ptrdiff_t>first_row * TILE,
                 inner_stride, tiles, member, team, layer.activation)


cdef void select_first(const group_t *g, float *tiles, int features) noexcept nogil:
    """Tile t = position 0 of texts 16 t … 16 t + 15; lanes beyond the last text keep what they held.

    In place: a text's own tiles never come before the one it is selected into.
    """
    cdef int text, f
    cdef const float *source
    cdef float *target
    for text in range(g.num_texts):
        source = tiles + (<ptrdiff_t>(g.first_lane[text] // TILE) * features * TILE + g.first_lane[text] % TILE)
        target = tiles + (<ptrdiff_t>(text // TILE) * features * TILE + text % TILE)
        for f in range(features):
            target[f * TILE] = source[f * TILE]


cdef double lap(double *seconds, double start, int team) noexcept nogil:
    """End a step: wait for the team, add the time since `start`, return the time."""
    cdef double now
    meet(team)
    now = now_s()
    seconds[0] += now - start
    return now


cdef void meet(int team) noexcept nogil:
    if team > 1:
        team_barrier()
