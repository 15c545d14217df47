# Each kernel alone, on ordinary arrays: for its property tests.


def to_tiles(const float[:, ::1] rows, str isa):
    """Token rows (M, features) → tiles (ceil(M / 16), features, 16); lanes beyond M are 0."""
    cdef const kernels_t *kernels = find_kernels(isa)
    cdef int count = <int>rows.shape[0], features = <int>rows.shape[1], tile, lane
    tiles = aligned((count + TILE - 1) // TILE * features * TILE).reshape(-1, features, TILE)
    cdef float[:, :, ::1] out = tiles
    cdef const float *lanes[TILE]
    for tile in range(out.shape[0]):
        for lane in range(TILE):
            lanes[lane] = &rows[tile * TILE + lane, 0] if tile * TILE + lane < count else NULL
        kernels.f32_gather(lanes, features, &out[tile, 0, 0])
    return tiles


def from_tiles(const float[:, :, ::1] tiles, int count, str isa):
    """Tiles (n, features, 16) → the first `count` token rows (count, features)."""
    cdef const kernels_t *kernels = find_kernels(isa)
    cdef int features = <int>tiles.shape[1], tile, lane
    rows = np.empty((count, features), np.float32)
    cdef float[:, ::1] out = rows
    cdef float *lanes[TILE]
    for tile in range((count + TILE - 1) // TILE):
        for lane in range(TILE):
            lanes[lane] = &out[tile * TILE + lane, 0] if tile * TILE + lane < count else NULL
        kernels.f32_scatter(&tiles[tile, 0, 0], features, lanes)
    return rows


def gemm(PackedLinear weight, const float[:, :, ::1] x, float[:, :, ::1] y, init=None, str after=None):
    """y = after(W x + (init, or the bias)), on tiles x (n, K, 16), y (n, N, 16), init as y; may be y itself."""
    check_gemm(weight, x, y, init)
    cdef activation_fn function = NULL if after is None else find_activation(after, weight.isa)
    cdef float[::1] memory = aligned(whole_pairs(<int>x.shape[0]) * operand_floats(&weight.linear, weight.k) + TILE)
    cdef tiles_t taken = operand(find_kernels(weight.isa), &weight.linear, tiles_of(x), 0, weight.k, 0, <int>x.shape[0],
                                 &memory[0])
    apply(whole(&weight.linear), taken, FROM_BIAS if init is None else tiles_of(init), tiles_of(y),
          function)


def activation(str name, float[::1] x, str isa):
    """x = gelu | gelu_tanh | relu | bf16_gelu (x) in place; its size must be a multiple of 16."""
    cdef activation_fn function = find_activation(name, isa)
    if x.shape[0] % TILE:
        raise ValueError(f"the size must be a multiple of {TILE}; got {x.shape[0]}")
    function(&x[0], x.shape[0])


cdef activation_fn find_activation(str name, str isa) except NULL:
    cdef const kernels_t *kernels = find_kernels(isa)
    cdef activation_fn function = kernels.f32_relu
    if name == "gelu":
        function = kernels.f32_gelu
    elif name == "gelu_tanh":
        function = kernels.f32_gelu_tanh
    elif name == "bf16_gelu":
        function = kernels.bf16_gelu
    elif name != "relu":
        raise KeyError(name)
    if function == NULL:
        raise ValueError(f"isa {isa!r} has no {name}")
    return function


def layer_norm(float[:, ::1] x, bias, const float[::1] gamma, const float[::1] beta, float epsilon,
               float[:, ::1] y, str isa):
    """y = LayerNorm(x + bias) over the features of one tile (features, 16); bias (features,) or None."""
    cdef const float[::1] b
    cdef const float *at = NULL
    if bias is not None:
        b = bias
        at = &b[0]
    cdef norm_t norm = norm_t(&gamma[0], &beta[0], epsilon, <int>x.shape[0])
    find_kernels(isa).f32_layer_norm(&x[0, 0], at, &norm, &y[0, 0])


def attention(const float[:, :, ::1] q, const float[:, :, ::1] k, const float[:, :, ::1] v, int num_keys,
              float[:, :, ::1] out, str isa, bint is_16_bit=False):
    """One head: q, out (query tiles, d, 16); k, v (key tiles, d, 16); weights are softmax of 2^(q·k)."""
    cdef int d = <int>q.shape[1]
    if not 1 <= num_keys <= k.shape[0] * TILE:
        raise ValueError(f"num_keys must be in 1…{k.shape[0] * TILE}; got {num_keys}")
    cdef float[::1] scratch = aligned(attention_scratch(num_keys, d, is_16_bit))
    cdef const kernels_t *kernels = find_kernels(isa)
    cdef attention_fn attend = kernels.bf16_attention if is_16_bit else kernels.f32_attention
    if attend == NULL:
        raise ValueError(f"isa {isa!r} has no attention in 16 bits")
    attend(tiles_of(q), tiles_of(k), tiles_of(v), num_keys, d, &scratch[0], tiles_of(out))


def interpret_code(PackedLinear weight, function_of):
    """Run a generated weight by other functions: `function_of(code, record of weight.layout)` tells the address of a
    block's."""
    if not weight.is_generated():
        raise ValueError(f"only generated forms have code; got {weight.form!r}")
    cdef int b
    cdef block_t *block
    for b in range(weight.num_blocks):
        block = &weight.blocks[b]
        size = <const char *>block.memory + block.memory_bytes - <const char *>block.code
        block.code = <const void *><uintptr_t>function_of((<const char *>block.code)[:size], weight.layout[b])
