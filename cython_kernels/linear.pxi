# A packed weight on ordinary arrays: heads behind the encoder.


def linear(PackedLinear weight, const float[:, ::1] x, int num_threads=1):
    """y = x Wᵀ + bias for token rows x (M, K) → (M, N), float32."""
    if weight.is_residual and weight.is_generated():
        raise ValueError("this weight was generated to start from init: use gemm")
    if x.shape[1] != weight.k:
        raise ValueError(f"x must be (M, {weight.k}); got {x.shape[0]}×{x.shape[1]}")
    rows = np.empty((x.shape[0], weight.rows), np.float32)
    cdef float[:, ::1] out = rows
    cdef const kernels_t *kernels = find_kernels(weight.isa)
    # two tiles at a time: what the table kernel of AVX-512 computes together
    cdef int step = 2 * TILE, steps = (<int>x.shape[0] + step - 1) // step, i
    # x, at most as many pairs or quads with their headers, y
    cdef Py_ssize_t width = 2 * weight.k + 1 + weight.rows + (QUAD_HEADER + 1) * weight.linear.num_kblocks
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
    cdef tiles_t x_tiles
    for tile in range(tiles):
        for lane in range(TILE):
            token = first + tile * TILE + lane
            sources[lane] = &x[token, 0] if token < x.shape[0] else NULL
        kernels.f32_gather(sources, weight.k, memory + tile * weight.k * TILE)
    x_tiles = operand(kernels, weight, tiles_t(memory, weight.k * TILE, tiles), 0, weight.k, 0, tiles,
                      y + 2 * TILE * weight.rows)
    apply(whole(weight), x_tiles, FROM_BIAS, tiles_t(y, weight.rows * TILE, tiles),
          NULL)
    for tile in range(tiles):
        for lane in range(TILE):
            token = first + tile * TILE + lane
            targets[lane] = &out[token, 0] if token < x.shape[0] else NULL
        kernels.f32_scatter(y + tile * weight.rows * TILE, weight.rows, targets)
