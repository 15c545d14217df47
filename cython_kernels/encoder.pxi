# The encoder: groups of whole texts go depth-first through all layers, so that activations stay in cache.
#
# A team is the threads that share one group. With many texts every thread is a team of its own and no barrier
# is met; with few texts all threads form one team that splits every step's rows, heads or tiles.
# `Encoder.run` starts the threads.


@cython.final
cdef class Encoder:
    """Embeddings and encoder layers, packed; `run` takes token ids to hidden states."""

    cdef readonly str isa
    cdef readonly int num_threads, small_tiles
    cdef readonly bint is_16_bit
    cdef object owners  # keeps every array alive that a pointer below refers to
    cdef encoder_t encoder
    cdef int qkv_rows, qkv_panel, inner_rows, inner_chunk, vocabulary, num_positions, num_types
    cdef int most_head_size
    cdef ptrdiff_t x_floats, inner_floats, chunk_floats  # at most of a tile that a weight takes in fewer bits
    cdef workspace_t *workspaces

    def __cinit__(self):
        self.workspaces = NULL

    def __init__(self, str isa, embeddings, list layers, int num_threads, int small_tiles=0,
                 PackedLinear head=None, bint is_16_bit=False):
        cdef encoder_t *encoder = &self.encoder
        encoder.kernels = find_kernels(isa)
        encoder.attention = encoder.kernels.bf16_attention if is_16_bit else encoder.kernels.f32_attention
        if encoder.attention == NULL:
            raise ValueError(f"isa {isa!r} has no attention in 16 bits")
        self.is_16_bit = is_16_bit
        self.isa, self.num_threads, self.small_tiles = isa, num_threads, small_tiles
        encoder.num_layers = len(layers)
        if encoder.num_layers == 0:
            raise ValueError("an encoder needs at least one layer; got none")
        self.owners = (embeddings, layers, head)
        encoder.layers = <layer_t *>calloc(2 * encoder.num_layers, sizeof(layer_t))
        self.workspaces = <workspace_t *>calloc(num_threads, sizeof(workspace_t))
        if encoder.layers == NULL or self.workspaces == NULL:
            raise MemoryError
        cdef embeddings_t *e = &encoder.embeddings
        word, position, token_type = embeddings.word, embeddings.position, embeddings.token_type
        self.vocabulary, e.tables.features = word.shape
        if embeddings.word_scale is not None:
            if word.dtype != np.int8 or embeddings.word_scale.shape != (self.vocabulary,):
                raise ValueError("a scale per word needs words of int8, and one for each")
            e.tables.word_s8, e.tables.word_scale = address_s8(word), address_1d(embeddings.word_scale)
        else:
            e.tables.word = address(word)
        e.tables.position, e.tables.type = address(position), address(token_type)
        self.num_positions, self.num_types = len(position), 0 if token_type is None else len(token_type)
        for name, table in (("position", position), ("token_type", token_type)):
            if table is not None and table.shape[1] != e.tables.features:
                raise ValueError(f"{name} embeddings must be {e.tables.features} wide, as those of words; "
                                 f"got {table.shape[1]}")
        e.norm = norm(embeddings.norm, e.tables.features)
        encoder.hidden = e.tables.features
        cdef PackedLinear projection = embeddings.projection
        if projection is not None:
            if projection.k != e.tables.features:
                raise ValueError(f"the projection must take {e.tables.features} features; got {projection.k}")
            e.projection = projection.linear
            encoder.hidden = projection.rows
        if head is not None:
            if head.k != self.hidden or head.rows > self.hidden:
                raise ValueError(f"head must be (n, {self.hidden}) with n <= {self.hidden}; got {head.rows}×{head.k}")
            encoder.head = head.linear
        cdef int i, choice
        for choice in range(2):
            for i in range(encoder.num_layers):
                self.add_layer(&encoder.layers[choice * encoder.num_layers + i], layers[i], choice)
            link_blocks(layers, choice)

    @property
    def hidden(self) -> int:
        """Features H of a hidden state."""
        return self.encoder.hidden

    cdef int add_layer(self, layer_t *layer, parts, int choice) except -1:
        cdef PackedLinear qkv = parts.qkv[choice], attention_output = parts.attention_output[choice]
        cdef PackedLinear intermediate = parts.intermediate[choice], output = parts.output[choice]
        cdef int hidden = self.encoder.hidden
        layer.qkv, layer.attention_output = qkv.linear, attention_output.linear
        layer.intermediate, layer.output = intermediate.linear, output.linear
        layer.attention_norm = norm(parts.attention_norm, hidden)
        layer.output_norm = norm(parts.output_norm, hidden)
        layer.num_heads = parts.num_heads
        # all heads together may be narrower than the hidden state, whose tiles their context shares
        cdef int context = attention_output.k
        if layer.num_heads < 1 or context % layer.num_heads:
            raise ValueError(f"num_heads must divide {context} features; got {layer.num_heads}")
        layer.head_size = context // layer.num_heads
        if parts.activation == "gelu":
            layer.activation = self.encoder.kernels.f32_gelu
            # it is rounded before it is multiplied
            if output.linear.operand == OPERAND_BF16 or (output.linear.operand == OPERAND_U8 and self.is_16_bit):
                layer.activation = self.encoder.kernels.bf16_gelu
        elif parts.activation == "gelu_tanh":
            layer.activation = self.encoder.kernels.f32_gelu_tanh
        else:
            layer.activation = self.encoder.kernels.f32_relu
        if (output.k != intermediate.rows or not (qkv.k == intermediate.k == hidden)
                or not (attention_output.rows == output.rows == hidden)):
            raise ValueError(f"the weights of a layer must take and give {hidden} features")
        if qkv.rows != 3 * context or context > hidden:
            raise ValueError(f"query, key and value must give as many features as attention's output takes, at most "
                             f"{hidden}; got {qkv.rows} together, {context} taken")
        if qkv.panel_rows % (3 * layer.head_size) or qkv.rows % qkv.panel_rows:
            raise ValueError("the panels of qkv must be equal and hold whole heads")
        # a chunk of the feed-forward layer is one k-block of `output` and must be whole panels of `intermediate`
        if output.linear.num_kblocks > 1 and output.kblock % intermediate.panel_rows:
            raise ValueError("a k-block of output must be whole panels of intermediate")
        self.qkv_rows, self.qkv_panel = max(self.qkv_rows, qkv.rows), max(self.qkv_panel, qkv.panel_rows)
        self.inner_rows = max(self.inner_rows, intermediate.rows)
        self.most_head_size = max(self.most_head_size, layer.head_size)
        self.inner_chunk = max(self.inner_chunk, output.kblock)
        cdef PackedLinear weight
        for weight in (qkv, attention_output, intermediate):
            self.x_floats = max(self.x_floats, narrow_floats(&weight.linear, weight.k))
        self.inner_floats = max(self.inner_floats, narrow_floats(&output.linear, output.k))
        self.chunk_floats = max(self.chunk_floats, narrow_floats(&output.linear, output.kblock))
        return 0

    def __dealloc__(self):
        cdef int i
        if self.workspaces != NULL:
            for i in range(self.num_threads):
                free(self.workspaces[i].memory)
        free(self.workspaces)
        free(self.encoder.layers)

    def run(self, const int32_t[:, ::1] ids, const int32_t[:, ::1] types, const int32_t[:, ::1] positions, schedule,
            bint first_token_only, bint profile=False):
        """Run one batch: hidden states (B, T, H), float32."""
        cdef int batch = <int>ids.shape[0], length = <int>ids.shape[1]
        self.check(ids, types, positions)
        cdef int features = self.encoder.head.rows if self.encoder.head.rows else self.encoder.hidden
        hidden = (np.empty if first_token_only else np.zeros)((batch, 1 if first_token_only else length, features),
                                                              np.float32)
        if batch == 0 or length == 0:
            return (hidden, np.zeros((0, NUM_STEPS)), self.num_threads, False) if profile else hidden
        cdef list groups = list(schedule.groups)
        cdef int num_groups = len(groups), team = self.num_threads, teams = 1 if schedule.is_team else team
        cdef group_t *c_groups = <group_t *>calloc(num_groups, sizeof(group_t))
        cdef float[:, :, ::1] out = hidden
        cdef double[:, ::1] seconds = np.zeros((team, (self.encoder.num_layers + 1) * NUM_STEPS))
        cdef member_t alone = member_t(&self.encoder, self.encoder.layers, NULL, self.workspaces, 0, 1, False,
                                       &seconds[0, 0])
        cdef int i, tiles = 0, most_tiles = 0, most_keys = 0
        cdef bint is_large
        keep = []
        try:
            if c_groups == NULL:
                raise MemoryError
            for i in range(num_groups):
                keep.append(fill_group(&c_groups[i], groups[i], ids, types, positions, out, first_token_only))
                tiles += c_groups[i].num_tiles
                most_tiles = max(most_tiles, c_groups[i].num_tiles)
                most_keys = max(most_keys, c_groups[i].most_keys)
            is_large = tiles > self.small_tiles
            if is_large:
                alone.layer += self.encoder.num_layers
            for i in range(teams):
                self.reserve(&self.workspaces[i], most_tiles, most_keys, 1 if teams > 1 else team)
            with nogil:
                if teams > 1:
                    for i in prange(num_groups, num_threads=team, schedule="dynamic", chunksize=1):
                        run_alone(alone, &c_groups[i], threadid())
                elif team == 1:
                    for i in range(num_groups):
                        run_alone(alone, &c_groups[i], 0)
                else:
                    with parallel(num_threads=team):
                        run_team(alone, c_groups, num_groups)
        finally:
            free(c_groups)
        if profile:
            return hidden, np.asarray(seconds).sum(0).reshape(-1, NUM_STEPS), team, is_large
        return hidden

    cdef int check(self, const int32_t[:, ::1] ids, const int32_t[:, ::1] types,
                   const int32_t[:, ::1] positions) except -1:
        """Refuse what would read outside a table."""
        cdef int b, t, n = <int>ids.shape[0], length = <int>ids.shape[1]
        for name, array in (("token_type_ids", types), ("positions", positions)):
            if array.shape[0] != n or array.shape[1] != length:
                raise ValueError(f"{name} must have the shape of input_ids, {(n, length)}; "
                                 f"got {(array.shape[0], array.shape[1])}")
        for b in range(n):
            for t in range(length):
                if not 0 <= ids[b, t] < self.vocabulary:
                    raise ValueError(f"input_ids[{b}, {t}] must be in 0…{self.vocabulary - 1}; got {ids[b, t]}")
                if self.num_types and not 0 <= types[b, t] < self.num_types:
                    raise ValueError(f"token_type_ids[{b}, {t}] must be in 0…{self.num_types - 1}; got {types[b, t]}")
                if not 0 <= positions[b, t] < self.num_positions:
                    raise ValueError(f"the text of row {b} is too long: token {t} needs position {positions[b, t]}, "
                                     f"the model has {self.num_positions}")
        return 0

    cdef int reserve(self, workspace_t *w, int tiles, int keys, int members) except -1:
        """Make room for `tiles` tiles; kept and reused by later calls."""
        cdef size_t wide = max(self.encoder.hidden, self.encoder.embeddings.tables.features) * TILE * <size_t>tiles
        cdef size_t qkv = (self.qkv_panel if members == 1 else self.qkv_rows) * TILE * <size_t>tiles
        cdef int inner_features = self.inner_chunk if members == 1 else self.inner_rows
        cdef size_t inner = inner_features * TILE * <size_t>tiles
        cdef size_t x_halves = self.x_floats * whole_pairs(tiles)
        cdef size_t inner_halves = (self.chunk_floats if members == 1 else self.inner_floats) * whole_pairs(tiles)
        w.member_scores = attention_scratch(keys, self.most_head_size, self.is_16_bit)
        cdef size_t count = 2 * wide + qkv + inner + x_halves + inner_halves + w.member_scores * members
        cdef size_t size = count * sizeof(float)
        cdef void *memory = NULL
        if size > w.size:
            free(w.memory)
            w.memory, w.size = NULL, 0
            if posix_memalign(&memory, 1 << 21, size):
                raise MemoryError(f"no memory for {size >> 20} MiB of activations")
            advise_huge(memory, size)
            # lanes without a token are computed on, too, and must be finite
            memset(memory, 0, size)
            w.memory, w.size = <float *>memory, size
        w.x = w.memory
        w.y = w.x + wide
        w.qkv = w.y + wide
        w.inner = w.qkv + qkv
        w.x_operand = w.inner + inner
        w.inner_operand = w.x_operand + x_halves
        w.scores = w.inner_operand + inner_halves
        return 0


cdef ptrdiff_t narrow_floats(const linear_t *linear, int features) noexcept nogil:
    """`operand_floats` of a weight that takes fewer than 32 bits, otherwise 0."""
    return 0 if linear.operand == OPERAND_F32 else operand_floats(linear, features)


cdef const float *address(array) except? NULL:
    if array is None:
        return NULL
    cdef const float[:, ::1] view = array
    return &view[0, 0]


cdef const float *address_1d(const float[::1] view) except? NULL:
    return &view[0]


cdef const int8_t *address_s8(const int8_t[:, ::1] view) except? NULL:
    return &view[0, 0]


cdef norm_t norm(parts, int features) except *:
    cdef norm_t n
    cdef const float[::1] gamma = parts.gamma, beta = parts.beta
    if gamma.shape[0] != features or beta.shape[0] != features:
        raise ValueError(f"gamma and beta must have {features} elements; got {gamma.shape[0]}, {beta.shape[0]}")
    n.gamma, n.beta, n.epsilon, n.features = &gamma[0], &beta[0], parts.epsilon, features
    return n


cdef int link_blocks(list layers, int choice) except -1:
    """Tell every block which one a lone thread runs next, layer by layer as `run_layer` does."""
    cdef PackedLinear weight, qkv, attention_output, intermediate, output
    cdef block_t *before = NULL
    cdef int b, kblocks, inner_kblocks
    order = []
    for parts in layers:
        qkv, attention_output, intermediate, output = (
            getattr(parts, step)[choice] for step in ("qkv", "attention_output", "intermediate", "output"))
        order += [(qkv, b) for b in range(qkv.num_blocks)]
        order += [(attention_output, b) for b in range(attention_output.num_blocks)]
        kblocks, inner_kblocks = output.linear.num_kblocks, intermediate.linear.num_kblocks
        for chunk in range(kblocks):
            rows = range(chunk * output.kblock, min(output.k, (chunk + 1) * output.kblock), intermediate.panel_rows)
            order += [(intermediate, row // intermediate.panel_rows * inner_kblocks + kb)
                      for row in rows for kb in range(inner_kblocks)]
            order += [(output, b) for b in range(chunk, output.num_blocks, kblocks)]
    for weight, b in order:
        if before != NULL:
            before.next = &weight.blocks[b]
        before = &weight.blocks[b]
    return 0


cdef fill_group(group_t *g, group, const int32_t[:, ::1] ids, const int32_t[:, ::1] types,
                const int32_t[:, ::1] positions, float[:, :, ::1] out, bint first_token_only):
    """Lay a group out in the C structure; return the arrays that own its memory.

    Raises:
        ValueError: It does not lie inside the batch.
    """
    cdef list texts = group.texts, lanes_of = group.lanes, keys = group.keys
    cdef int num_texts = len(texts), num_tiles = 0, i, t, b, lane = 0, n
    cdef int64_t at
    if not len(lanes_of) == len(keys) == num_texts or num_texts == 0:
        raise ValueError(f"a group needs lanes and keys for each text; got {num_texts} texts, {len(lanes_of)} lanes, "
                         f"{len(keys)} keys")
    for i in range(num_texts):
        num_tiles += (len(lanes_of[i]) + TILE - 1) // TILE
    cdef int32_t[:, ::1] text = np.zeros((4, num_texts), np.int32)
    cdef int32_t[:, ::1] token = np.zeros((3, num_tiles * TILE), np.int32)
    # position 0 of 16 texts shares a tile, so that there are no more of those than of texts' own tiles
    cdef uintptr_t[::1] rows = np.zeros(num_tiles * TILE, np.uintp)
    cdef const int64_t[::1] lanes
    g.num_texts, g.num_tiles, g.first_only = num_texts, num_tiles, first_token_only
    g.first_tile, g.tiles, g.keys = <int *>&text[0, 0], <int *>&text[1, 0], <int *>&text[2, 0]
    g.first_lane = <int *>&text[3, 0]
    g.ids, g.positions, g.types, g.rows = &token[0, 0], &token[1, 0], &token[2, 0], <float **>&rows[0]
    for i in range(num_texts):
        lanes = lanes_of[i]
        b = texts[i]
        n = <int>lanes.shape[0]
        g.first_tile[i], g.tiles[i], g.keys[i] = lane // TILE, (n + TILE - 1) // TILE, keys[i]
        if not 0 <= b < ids.shape[0] or not 1 <= g.keys[i] <= n:
            raise ValueError(f"text {b} must be in 0…{ids.shape[0] - 1} and its keys in 1…{n}; got {g.keys[i]} keys")
        g.most_keys = max(g.most_keys, g.keys[i])
        for t in range(n):
            at = lanes[t]
            if not 0 <= at < ids.shape[1]:
                raise ValueError(f"lanes of text {b} must be in 0…{ids.shape[1] - 1}; got {at}")
            g.ids[lane + t] = ids[b, at]
            g.positions[lane + t] = positions[b, at]
            g.types[lane + t] = types[b, at]
            if not first_token_only:
                rows[lane + t] = <uintptr_t>&out[b, at, 0]
            elif at == 0:
                g.first_lane[i], rows[i] = lane + t, <uintptr_t>&out[b, 0, 0]
        for t in range(n, g.tiles[i] * TILE):
            g.ids[lane + t] = -1
        lane += g.tiles[i] * TILE
        if first_token_only and rows[i] == 0:
            raise ValueError(f"lanes of text {b} must hold position 0, which is asked for")
    return text, token, rows
