# How long a packed weight takes, out of all caches.


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
