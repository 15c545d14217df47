# The encoder: groups of whole texts go depth-first through all layers, so that activations stay in cache.
#
# A team is the threads that share one group. With many texts every thread is a team of its own and no barrier
# is met; with few texts all threads form one team that splits every step's rows, heads or tiles. Threads are
# started here and nowhere else.

cimport openmp
from posix.stdlib cimport posix_memalign


cdef extern from "threads.h" nogil:
    void team_barrier()
    double now_s()


# What `Encoder.run(profile=True)` times, in the order a layer runs them; `intermediate` with its activation.
STEPS = ("embeddings", "qkv", "attention", "attention_output", "attention_norm", "intermediate",
         "output", "output_norm", "scatter")
cdef enum:
    EMBEDDINGS, QKV, ATTENTION, ATTENTION_OUTPUT, ATTENTION_NORM, INTERMEDIATE, OUTPUT, OUTPUT_NORM, SCATTER
    NUM_STEPS

cdef struct norm_t:
    const float *gamma
    const float *beta
    float epsilon

cdef struct layer_t:
    linear_t qkv
    linear_t attention_output
    linear_t intermediate
    linear_t output
    norm_t attention_norm
    norm_t output_norm
    activation_fn activation
    int num_heads
    int head_size

cdef struct embeddings_t:
    const float *word
    const float *position
    const float *type
    int features
    norm_t norm
    linear_t projection  # rows == 0: none

# Texts that one team takes through the encoder together, each on whole tiles of its own.
cdef struct group_t:
    int num_texts
    int num_tiles
    int *first_tile  # per text
    int *tiles  # per text
    int *keys  # per text: its first `keys` lanes are attended to
    int32_t *ids  # per lane; -1 where there is no token
    int32_t *positions
    int32_t *types
    int *first_lane  # per text: the lane of position 0 (only filled where nothing else is asked for)
    float **rows  # per lane - or per text, if only position 0 is asked for: where its hidden state goes, or NULL

cdef struct workspace_t:
    float *memory
    size_t size
    float *x  # hidden states
    float *y  # of the next step: context of attention, then what the feed-forward layer returns
    float *qkv  # one panel for a lone thread, all of them for a team
    float *inner  # one k-block of `output` for a lone thread, all of them for a team
    float *scores  # per member


cdef class Encoder:
    """Embeddings and encoder layers, packed; `run` takes token ids to hidden states.

    Args:
        isa: Instruction set of every kernel.
        embeddings: dict with `word` (V, E), `position` (P, E), `token_type` (types, E) or None, `gamma`,
            `beta` (E,), `epsilon`, `projection` (PackedLinear or None); arrays float32, C-contiguous.
        layers: dicts with `qkv`, `attention_output`, `intermediate`, `output`, their norms
            `attention_norm`, `output_norm` (gamma, beta, epsilon), `num_heads` and `activation`. A weight is a
            pair of PackedLinear, for small and for large calls (they may be one object). `qkv` holds per head
            its query, key and value rows, and whole heads per panel; the query rows carry scale·log2(e), see
            `attention` in kernels.h.
        num_threads: Threads of a call.
        head: PackedLinear (n, H) with n <= H that is all anybody wants of the hidden states, or None: `run` then
            returns what it makes of them, n features instead of H.
        small_tiles: A call of at most so many tiles is small. The choice depends on the whole call, never on
            how it is split, so that results do not depend on the number of threads.
        group_tiles: Tiles that a group has at most, unless a single text is longer.
    """

    cdef readonly str isa
    cdef readonly int num_threads, group_tiles, small_tiles, hidden, num_layers
    cdef object owners  # keeps every array alive that a pointer below refers to
    cdef const kernels_t *kernels
    cdef embeddings_t embeddings
    cdef linear_t head  # rows == 0: none
    cdef layer_t *layers  # for small calls, then for large ones
    cdef int qkv_rows, qkv_panel, inner_rows, inner_chunk, vocabulary, num_positions, num_types
    cdef workspace_t *workspaces

    def __cinit__(self):
        self.layers = NULL
        self.workspaces = NULL

    def __init__(self, str isa, dict embeddings, list layers, int num_threads, int group_tiles, int small_tiles=0,
                 PackedLinear head=None):
        self.kernels = find_kernels(isa)
        self.isa, self.num_threads = isa, num_threads
        self.group_tiles, self.small_tiles = group_tiles, small_tiles
        self.num_layers = len(layers)
        if self.num_layers == 0:
            raise ValueError("an encoder needs at least one layer; got none")
        self.owners = (embeddings, layers, head)
        self.layers = <layer_t *>calloc(2 * self.num_layers, sizeof(layer_t))
        self.workspaces = <workspace_t *>calloc(num_threads, sizeof(workspace_t))
        if self.layers == NULL or self.workspaces == NULL:
            raise MemoryError
        cdef embeddings_t *e = &self.embeddings
        word = embeddings["word"]
        self.vocabulary, e.features = word.shape
        e.word, e.position, e.type = address(word), address(embeddings["position"]), address(embeddings["token_type"])
        self.num_positions = embeddings["position"].shape[0]
        self.num_types = 0 if embeddings["token_type"] is None else embeddings["token_type"].shape[0]
        for name in ("position", "token_type"):
            if embeddings[name] is not None and embeddings[name].shape[1] != e.features:
                raise ValueError(f"{name} embeddings must be {e.features} wide, as those of words; "
                                 f"got {embeddings[name].shape[1]}")
        e.norm = norm(embeddings["norm"], e.features)
        self.hidden = e.features
        cdef PackedLinear projection = embeddings["projection"]
        if projection is not None:
            if projection.k != e.features:
                raise ValueError(f"the projection must take {e.features} features; got {projection.k}")
            e.projection = projection.linear
            self.hidden = projection.rows
        if head is not None:
            if head.k != self.hidden or head.rows > self.hidden:
                raise ValueError(f"head must be (n, {self.hidden}) with n <= {self.hidden}; got {head.rows}×{head.k}")
            self.head = head.linear
        cdef int i, choice
        for choice in range(2):
            for i in range(self.num_layers):
                self.add_layer(&self.layers[choice * self.num_layers + i], layers[i], choice)
            link_blocks(layers, choice)

    cdef int add_layer(self, layer_t *layer, dict parts, int choice) except -1:
        cdef PackedLinear qkv = parts["qkv"][choice], attention_output = parts["attention_output"][choice]
        cdef PackedLinear intermediate = parts["intermediate"][choice], output = parts["output"][choice]
        layer.qkv, layer.attention_output = qkv.linear, attention_output.linear
        layer.intermediate, layer.output = intermediate.linear, output.linear
        layer.attention_norm = norm(parts["attention_norm"], self.hidden)
        layer.output_norm = norm(parts["output_norm"], self.hidden)
        layer.num_heads = parts["num_heads"]
        if layer.num_heads < 1 or self.hidden % layer.num_heads:
            raise ValueError(f"num_heads must divide {self.hidden} features; got {layer.num_heads}")
        layer.head_size = self.hidden // layer.num_heads
        if parts["activation"] == "gelu":
            layer.activation = self.kernels.gelu
        elif parts["activation"] == "gelu_tanh":
            layer.activation = self.kernels.gelu_tanh
        else:
            layer.activation = self.kernels.relu
        if (qkv.rows != 3 * self.hidden or output.k != intermediate.rows
                or not (qkv.k == attention_output.k == intermediate.k == self.hidden)
                or not (attention_output.rows == output.rows == self.hidden)):
            raise ValueError(f"the weights of a layer must take and give {self.hidden} features")
        if qkv.panel_rows % (3 * layer.head_size) or qkv.rows % qkv.panel_rows:
            raise ValueError("the panels of qkv must be equal and hold whole heads")
        # a chunk of the feed-forward layer is one k-block of `output` and must be whole panels of `intermediate`
        if output.linear.num_kblocks > 1 and output.kblock % intermediate.panel_rows:
            raise ValueError("a k-block of output must be whole panels of intermediate")
        self.qkv_rows, self.qkv_panel = max(self.qkv_rows, qkv.rows), max(self.qkv_panel, qkv.panel_rows)
        self.inner_rows = max(self.inner_rows, intermediate.rows)
        self.inner_chunk = max(self.inner_chunk, output.kblock)
        return 0

    def __dealloc__(self):
        cdef int i
        if self.workspaces != NULL:
            for i in range(self.num_threads):
                free(self.workspaces[i].memory)
        free(self.workspaces)
        free(self.layers)

    def run(self, const int32_t[:, ::1] ids, const int32_t[:, ::1] mask, const int32_t[:, ::1] types,
            const int32_t[:, ::1] positions, bint first_token_only, bint profile=False):
        """Return hidden states (B, T, H) float32, zero where `mask` is 0 but at position 0.

        With `first_token_only` (B, 1, H), of that position alone; with a head, its n features instead of H.
        With `profile`, return also seconds (1 + num_layers, steps) summed over threads, the number of threads and
        whether the call was large.

        Not reentrant: one call at a time per object.

        Raises:
            ValueError: An id, type or position outside its table, or a text without any token.
        """
        cdef int batch = <int>ids.shape[0], length = <int>ids.shape[1]
        self.check(ids, mask, types, positions)
        cdef int features = self.head.rows if self.head.rows else self.hidden
        hidden = (np.empty if first_token_only else np.zeros)((batch, 1 if first_token_only else length, features),
                                                              np.float32)
        if batch == 0 or length == 0:
            return (hidden, np.zeros((0, NUM_STEPS)), self.num_threads, False) if profile else hidden
        schedule = Schedule(mask, self.num_threads, self.group_tiles)
        cdef bint is_large = schedule.tiles > self.small_tiles
        cdef const layer_t *layers = self.layers + (self.num_layers if is_large else 0)
        cdef list groups = schedule.groups
        cdef int num_groups = len(groups), teams = 1 if schedule.is_team else self.num_threads
        cdef group_t *c_groups = <group_t *>calloc(num_groups, sizeof(group_t))
        cdef float[:, :, ::1] out = hidden
        cdef double[:, ::1] seconds = np.zeros((self.num_threads, (self.num_layers + 1) * NUM_STEPS))
        cdef int i, most_tiles = 0, most_keys = 0, team = self.num_threads
        keep = []
        try:
            if c_groups == NULL:
                raise MemoryError
            for i in range(num_groups):
                keep.append(fill_group(&c_groups[i], groups[i], ids, types, positions, out, first_token_only))
                most_tiles = max(most_tiles, c_groups[i].num_tiles)
                most_keys = max(most_keys, groups[i].most_keys)
            for i in range(teams):
                self.reserve(&self.workspaces[i], most_tiles, most_keys, 1 if teams > 1 else team)
            with nogil:
                if teams > 1:
                    for i in prange(num_groups, num_threads=team, schedule="dynamic", chunksize=1):
                        run_group(self, layers, &c_groups[i], &self.workspaces[threadid()], most_keys, 0, 1,
                                  &seconds[threadid(), 0], first_token_only)
                elif team == 1:
                    for i in range(num_groups):
                        run_group(self, layers, &c_groups[i], &self.workspaces[0], most_keys, 0, 1, &seconds[0, 0],
                                  first_token_only)
                else:
                    with parallel(num_threads=team):
                        run_team(self, layers, c_groups, num_groups, most_keys, &seconds[0, 0],
                                 first_token_only)
        finally:
            free(c_groups)
        if profile:
            return hidden, np.asarray(seconds).sum(0).reshape(self.num_layers + 1, NUM_STEPS), team, is_large
        return hidden

    cdef int check(self, const int32_t[:, ::1] ids, const int32_t[:, ::1] mask, const int32_t[:, ::1] types,
                   const int32_t[:, ::1] positions) except -1:
        """Refuse what would read outside a table."""
        cdef int b, t, n = <int>ids.shape[0], length = <int>ids.shape[1]
        cdef bint used
        for name, array in (("attention_mask", mask), ("token_type_ids", types), ("positions", positions)):
            if array.shape[0] != n or array.shape[1] != length:
                raise ValueError(f"{name} must have the shape of input_ids, {(n, length)}; "
                                 f"got {(array.shape[0], array.shape[1])}")
        for b in range(n):
            used = False
            for t in range(length):
                used = used or mask[b, t] != 0
                if not 0 <= ids[b, t] < self.vocabulary:
                    raise ValueError(f"input_ids[{b}, {t}] must be in 0…{self.vocabulary - 1}; got {ids[b, t]}")
                if self.num_types and not 0 <= types[b, t] < self.num_types:
                    raise ValueError(f"token_type_ids[{b}, {t}] must be in 0…{self.num_types - 1}; got {types[b, t]}")
                if not 0 <= positions[b, t] < self.num_positions:
                    raise ValueError(f"the text of row {b} is too long: token {t} needs position {positions[b, t]}, "
                                     f"the model has {self.num_positions}")
            if length and not used:
                raise ValueError(f"attention_mask[{b}] must have at least one 1; got a row of zeros")
        return 0

    cdef int reserve(self, workspace_t *w, int tiles, int keys, int members) except -1:
        """Make room for `tiles` tiles; kept and reused by later calls."""
        cdef size_t wide = max(self.hidden, self.embeddings.features) * TILE * <size_t>tiles
        cdef size_t qkv = (self.qkv_panel if members == 1 else self.qkv_rows) * TILE * <size_t>tiles
        cdef size_t inner = (self.inner_chunk if members == 1 else self.inner_rows) * TILE * <size_t>tiles
        cdef size_t scores = 2 * TILE * <size_t>((keys + TILE - 1) // TILE * TILE)
        cdef size_t size = (2 * wide + qkv + inner + scores * members) * sizeof(float)
        cdef void *memory = NULL
        if size > w.size:
            free(w.memory)
            w.memory, w.size = NULL, 0
            if posix_memalign(&memory, 1 << 21, size):
                raise MemoryError(f"no memory for {size >> 20} MiB of activations")
            advise_huge(memory, size)
            # vectors of lanes without a token are computed on too: they must be finite
            memset(memory, 0, size)
            w.memory, w.size = <float *>memory, size
        w.x = w.memory
        w.y = w.x + wide
        w.qkv = w.y + wide
        w.inner = w.qkv + qkv
        w.scores = w.inner + inner
        return 0


cdef extern from *:
    """
    #include <sys/mman.h>
    static void advise_huge(void *memory, size_t size) {
    #ifdef MADV_HUGEPAGE
        madvise(memory, size, MADV_HUGEPAGE); /* +3-4 %; a refusal costs nothing else */
    #else
        (void)memory, (void)size;
    #endif
    }
    """
    void advise_huge(void *memory, size_t size) noexcept nogil


cdef const float *address(array) except? NULL:
    if array is None:
        return NULL
    cdef const float[:, ::1] view = array
    return &view[0, 0]


cdef norm_t norm(parts, int features) except *:
    cdef norm_t n
    cdef const float[::1] gamma = parts.gamma, beta = parts.beta
    if gamma.shape[0] != features or beta.shape[0] != features:
        raise ValueError(f"gamma and beta must have {features} elements; got {gamma.shape[0]}, {beta.shape[0]}")
    n.gamma, n.beta, n.epsilon = &gamma[0], &beta[0], parts.epsilon
    return n


# ---- One team, one group ------------------------------------------------------------------------------------


cdef int link_blocks(list layers, int choice) except -1:
    """Tell every block which one a lone thread runs next, layer by layer as `run_layer` does."""
    cdef PackedLinear weight
    cdef block_t *before = NULL
    cdef int b
    order = []
    for parts in layers:
        qkv, attention_output, intermediate, output = (
            parts[step][choice] for step in ("qkv", "attention_output", "intermediate", "output"))
        order += [(qkv, b) for b in range(len(qkv.blocks))]
        order += [(attention_output, b) for b in range(len(attention_output.blocks))]
        kblocks = -(-output.k // output.kblock)
        inner_kblocks = -(-intermediate.k // intermediate.kblock)
        for chunk in range(kblocks):
            rows = range(chunk * output.kblock, min(output.k, (chunk + 1) * output.kblock), intermediate.panel_rows)
            order += [(intermediate, row // intermediate.panel_rows * inner_kblocks + kb)
                      for row in rows for kb in range(inner_kblocks)]
            order += [(output, b) for b in range(chunk, len(output.blocks), kblocks)]
    for weight, b in order:
        if before != NULL:
            before.next = &weight.table[b]
        before = &weight.table[b]
    return 0


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
        self.kernels.scatter(x + tile * stride, features, g.rows + tile * TILE)
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
        self.kernels.embed(e.word, e.position, e.type, g.ids + i * TILE, g.positions + i * TILE, g.types + i * TILE,
                           e.features, tile)
        self.kernels.layer_norm(tile, NULL, e.norm.gamma, e.norm.beta, e.norm.epsilon, e.features, tile)
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
    cdef bint split_panels = qkv.num_panels % team == 0 or (g.num_tiles + 1) // 2 < team
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
        self.kernels.attention(qkv + tile * qkv_stride + 3 * head * size, qkv_stride, keys, keys + size, qkv_stride,
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
        self.kernels.layer_norm(tile, linear.bias, norm.gamma, norm.beta, norm.epsilon, self.hidden, tile)


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


cdef void apply_shared(const linear_t *linear, int first_panel, int last_panel, int first_kb, int last_kb,
                       const float *x, ptrdiff_t x_stride, const float *init, ptrdiff_t init_stride, float *y,
                       ptrdiff_t y_stride, int tiles, int member, int team, activation_fn activation) noexcept nogil:
    """A member's share of `apply`: panels where they divide evenly or tiles are few, pairs of tiles otherwise."""
    cdef int panels = last_panel - first_panel, begin, end, pairs = (tiles + 1) // 2
    if team == 1 or panels % team == 0 or pairs < team:
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


cdef int share(int total, int member, int team) noexcept nogil:
    """Where member's share of `total` units begins; share(total, team, team) == total."""
    return <int>(<int64_t>total * member // team)


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


# ---- Which texts go together --------------------------------------------------------------------------------


class Group:
    """Texts of one group: lists `texts` (row of the batch) and `lanes` (its token positions, keys first)."""

    def __init__(self):
        self.texts, self.lanes, self.keys, self.tiles, self.most_keys = [], [], [], 0, 0

    def add(self, text, lanes, keys):
        self.texts.append(text)
        self.lanes.append(lanes)
        self.keys.append(keys)
        self.tiles += (len(lanes) + TILE - 1) // TILE
        self.most_keys = max(self.most_keys, keys)


class Schedule:
    """Texts spread over groups, and whether one team of all threads takes them.

    Every thread gets the same number of groups of nearly equal size (longest texts first, each to the emptiest
    group); if that cannot be balanced, all threads share each group.
    """

    def __init__(self, mask, int num_threads, int group_tiles):
        texts = []
        tokens_of = np.asarray(mask) != 0
        full = tokens_of.all(1)
        everything = np.arange(tokens_of.shape[1])
        for b in range(tokens_of.shape[0]):
            lanes = everything if full[b] else np.flatnonzero(tokens_of[b])
            keys = len(lanes)
            if lanes[0] != 0:
                lanes = np.append(lanes, 0)  # poolers read position 0 even where it is masked: it asks, unattended
            texts.append(((len(lanes) + TILE - 1) // TILE, b, lanes, keys))
        texts.sort(key=lambda text: -text[0])
        self.tiles = total = sum(text[0] for text in texts)
        rounds = max(1, -(-total // (num_threads * group_tiles)))
        self.groups = self.fill(texts, num_threads * rounds)
        loads = [0] * num_threads
        for i, group in enumerate(self.groups):
            loads[i % num_threads] += group.tiles
        self.is_team = num_threads > 1 and max(loads) * num_threads > 1.15 * total
        if self.is_team:
            self.groups = self.fill(texts, max(1, -(-total // (2 * group_tiles))))

    @staticmethod
    def fill(texts, count):
        groups = [Group() for _ in range(count)]
        for _, b, lanes, keys in texts:
            min(groups, key=lambda group: group.tiles).add(b, lanes, keys)
        return [group for group in sorted(groups, key=lambda group: -group.tiles) if group.texts]


cdef fill_group(group_t *g, group, const int32_t[:, ::1] ids, const int32_t[:, ::1] types,
                const int32_t[:, ::1] positions, float[:, :, ::1] out, bint first_token_only):
    """Lay a Group out in the C structure; return the arrays that own its memory."""
    cdef int num_texts = len(group.texts), num_tiles = group.tiles, i, t, b, lane = 0, n
    cdef int32_t[:, ::1] text = np.zeros((4, num_texts), np.int32)
    cdef int32_t[:, ::1] token = np.zeros((3, num_tiles * TILE), np.int32)
    # position 0 of 16 texts shares a tile, so that there are no more of those than of texts' own tiles
    cdef uintptr_t[::1] rows = np.zeros(num_tiles * TILE, np.uintp)
    cdef const int64_t[::1] lanes
    g.num_texts, g.num_tiles = num_texts, num_tiles
    g.first_tile, g.tiles, g.keys = <int *>&text[0, 0], <int *>&text[1, 0], <int *>&text[2, 0]
    g.first_lane = <int *>&text[3, 0]
    g.ids, g.positions, g.types, g.rows = &token[0, 0], &token[1, 0], &token[2, 0], <float **>&rows[0]
    for i in range(num_texts):
        lanes = group.lanes[i]
        b = group.texts[i]
        n = <int>lanes.shape[0]
        g.first_tile[i], g.tiles[i], g.keys[i] = lane // TILE, (n + TILE - 1) // TILE, group.keys[i]
        for t in range(n):
            g.ids[lane + t] = ids[b, lanes[t]]
            g.positions[lane + t] = positions[b, lanes[t]]
            g.types[lane + t] = types[b, lanes[t]]
            if not first_token_only:
                rows[lane + t] = <uintptr_t>&out[b, lanes[t], 0]
            elif lanes[t] == 0:
                g.first_lane[i], rows[i] = lane + t, <uintptr_t>&out[b, 0, 0]
        for t in range(n, g.tiles[i] * TILE):
            g.ids[lane + t] = -1
        lane += g.tiles[i] * TILE
    return text, token, rows
