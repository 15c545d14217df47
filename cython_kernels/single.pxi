# Each kernel alone, on ordinary arrays: for its property tests and for heads that stand behind the encoder.


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


def linear(PackedLinear weight, const float[:, ::1] x, int num_threads=1):
    """y = x Wᵀ + bias for token rows x (M, K) → (M, N), float32.

    Raises:
        ValueError: x has not K columns.
    """
    if weight.is_residual and weight.form == "generated":
        raise ValueError("this weight was generated to start from init: use gemm")
    if x.shape[1] != weight.k:
        raise ValueError(f"x must be (M, {weight.k}); got {x.shape[0]}×{x.shape[1]}")
    rows = np.empty((x.shape[0], weight.rows), np.float32)
    cdef float[:, ::1] out = rows
    cdef const kernels_t *kernels = find_kernels(weight.isa)
    # two tiles at a time: what the table kernel of AVX-512 computes together
    cdef int step = 2 * TILE, steps = (<int>x.shape[0] + step - 1) // step, i
    cdef Py_ssize_t width = weight.k + weight.rows
    cdef float[:, ::1] memory = aligned(num_threads * step * width).reshape(num_threads, step * width)
    with nogil:
        for i in prange(steps, num_threads=num_threads, schedule="static"):
            linear_step(kernels, &weight.linear, x, i * step, &memory[threadid(), 0], out)
    return rows


cdef void linear_step(const kernels_t *kernels, const linear_t *weight, const float[:, ::1] x, int first,
                      float *memory, float[:, ::1] out) noexcept nogil:
    cdef const float *sources[TILE]
    cdef float *targets[TILE]
    cdef int tile, lane, token, tiles = 2 if x.shape[0] - first > TILE else 1
    cdef float *y = memory + 2 * TILE * weight.k
    for tile in range(tiles):
        for lane in range(TILE):
            token = first + tile * TILE + lane
            sources[lane] = &x[token, 0] if token < x.shape[0] else NULL
        kernels.f32_gather(sources, weight.k, memory + tile * weight.k * TILE)
    apply(weight, 0, weight.num_panels, 0, weight.num_kblocks, memory, weight.k * TILE, NULL, 0, y,
          weight.rows * TILE, tiles, NULL)
    for tile in range(tiles):
        for lane in range(TILE):
            token = first + tile * TILE + lane
            targets[lane] = &out[token, 0] if token < x.shape[0] else NULL
        kernels.f32_scatter(y + tile * weight.rows * TILE, weight.rows, targets)


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


def aligned(Py_ssize_t count, dtype=np.float32):
    """An uninitialised array of `count` elements on a 64-byte boundary."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.empty(count * itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start:start + count * itemsize].view(dtype)


cdef extern from *:
    """
    /* Put memory out of every cache, so that whoever reads it next waits as for a weight of a large model. */
    static void flush(const void *memory, size_t size) {
        const uintptr_t end = (uintptr_t)memory + size;
        for (uintptr_t line = (uintptr_t)memory & ~(uintptr_t)63; line < end; line += 64) {
    #if defined(__x86_64__)
            __builtin_ia32_clflush((const void *)line);
    #elif defined(__aarch64__)
            __asm__ volatile("dc civac, %0" : : "r"(line) : "memory");
    #endif
        }
        __sync_synchronize();
    }
    """
    void flush(const void *memory, size_t size) noexcept nogil


def time_gemm(list weights, const float[:, :, ::1] x, float[:, :, ::1] y, init, int repeats):
    """Return the least seconds that each of `weights` takes for y = W x + (init, or the bias), on one thread.

    Every weight comes from memory, as the layers of a model do, which follow one another and are too many to stay
    in cache; x, y and init, as `gemm` takes them, are in cache as far as they fit. The weights take turns, so that
    whatever else the machine does meets them all.
    """
    cdef PackedLinear weight
    cdef const float[:, :, ::1] start
    cdef const float *at = NULL
    cdef Py_ssize_t b
    cdef double seconds
    if init is not None:
        start = init
        at = &start[0, 0, 0]
    best = [float("inf")] * len(weights)
    for weight in weights:
        if x.shape[1] != weight.k or y.shape[1] != weight.rows or x.shape[0] != y.shape[0] or x.shape[0] < 1:
            raise ValueError("x must be (n, K, 16) and y (n, N, 16)")
        if init is not None and (start.shape[0] != y.shape[0] or start.shape[1] != y.shape[1]):
            raise ValueError("init must have the shape of y")
        for b in range(1, len(weight.blocks)):
            weight.table[b - 1].next = &weight.table[b]
        weight.table[len(weight.blocks) - 1].next = weight.table
    for _ in range(repeats):
        for number, weight in enumerate(weights):
            with nogil:
                seconds = time_once(&weight.linear, x, at, y)
            best[number] = min(best[number], seconds)
    return best


cdef double time_once(const linear_t *weight, const float[:, :, ::1] x, const float *init,
                      float[:, :, ::1] y) noexcept nogil:
    """Time one run of a cold weight."""
    cdef Py_ssize_t i, blocks = <Py_ssize_t>weight.num_panels * weight.num_kblocks
    cdef int tiles = <int>x.shape[0]
    cdef ptrdiff_t x_stride = weight.k * TILE, y_stride = weight.rows * TILE
    cdef const block_t *block = weight.blocks
    cdef double start
    for i in range(blocks):
        flush(block[i].memory, block[i].memory_bytes)
        if block[i].num_runs:
            flush(block[i].offsets, block[i].num_values * sizeof(uint16_t))
    if block.code != NULL and tiles >= TILE:
        # in a call of many tiles the block that ran before has fetched this one
        touch(<const float *>block.memory, block.memory_bytes // FLOAT_BYTES)
    start = now_s()
    apply(weight, 0, weight.num_panels, 0, weight.num_kblocks, &x[0, 0, 0], x_stride, init, y_stride, &y[0, 0, 0],
          y_stride, tiles, NULL)
    return now_s() - start


cdef void touch(const float *memory, Py_ssize_t count) noexcept nogil:
    """Read every cache line."""
    cdef volatile float sink = 0.0
    cdef Py_ssize_t i
    for i in range(0, count, 16):
        sink = sink + memory[i]
