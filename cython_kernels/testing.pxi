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


def gemm(PackedLinear weight, const float[:, :, ::1] x, float[:, :, ::1] y, init=None):
    """y = W x + (init, or the bias), on tiles x (n, K, 16), y (n, N, 16), init as y; may be y itself."""
    cdef const float[:, :, ::1] start
    cdef const float *at = NULL
    if x.shape[1] != weight.k or y.shape[1] != weight.rows or x.shape[0] != y.shape[0]:
        raise ValueError("x must be (n, K, 16) and y (n, N, 16)")
    if weight.form == "generated" and weight.is_residual != (init is not None):
        raise ValueError("a generated weight starts from init if and only if it was packed with is_residual")
    if init is not None:
        start = init
        if start.shape[0] != y.shape[0] or start.shape[1] != y.shape[1]:
            raise ValueError("init must have the shape of y")
        at = &start[0, 0, 0]
    apply(&weight.linear, 0, weight.linear.num_panels, 0, weight.linear.num_kblocks, &x[0, 0, 0], weight.k * TILE, at,
          weight.rows * TILE, &y[0, 0, 0], weight.rows * TILE, <int>x.shape[0], NULL)


def activation(str name, float[::1] x, str isa):
    """x = gelu | gelu_tanh | relu (x) in place; its size must be a multiple of 16."""
    cdef const kernels_t *kernels = find_kernels(isa)
    if x.shape[0] % TILE:
        raise ValueError(f"the size must be a multiple of {TILE}; got {x.shape[0]}")
    functions = {"gelu": 0, "gelu_tanh": 1, "relu": 2}
    if functions[name] == 0:
        kernels.f32_gelu(&x[0], x.shape[0])
    elif functions[name] == 1:
        kernels.f32_gelu_tanh(&x[0], x.shape[0])
    else:
        kernels.f32_relu(&x[0], x.shape[0])


def layer_norm(float[:, ::1] x, bias, const float[::1] gamma, const float[::1] beta, float epsilon,
               float[:, ::1] y, str isa):
    """y = LayerNorm(x + bias) over the features of one tile (features, 16); bias (features,) or None."""
    cdef const float[::1] b
    cdef const float *at = NULL
    if bias is not None:
        b = bias
        at = &b[0]
    find_kernels(isa).f32_layer_norm(&x[0, 0], at, &gamma[0], &beta[0], epsilon, <int>x.shape[0], &y[0, 0])


def attention(const float[:, :, ::1] q, const float[:, :, ::1] k, const float[:, :, ::1] v, int num_keys,
              float[:, :, ::1] out, str isa):
    """One head: q, out (query tiles, d, 16); k, v (key tiles, d, 16); weights are softmax of 2^(q·k)."""
    cdef int d = <int>q.shape[1]
    if not 1 <= num_keys <= k.shape[0] * TILE:
        raise ValueError(f"num_keys must be in 1…{k.shape[0] * TILE}; got {num_keys}")
    cdef float[::1] scratch = aligned(2 * TILE * TILE * k.shape[0])
    find_kernels(isa).f32_attention(&q[0, 0, 0], d * TILE, &k[0, 0, 0], &v[0, 0, 0], d * TILE, <int>q.shape[0],
                                    num_keys, d, &scratch[0], &out[0, 0, 0], d * TILE)
