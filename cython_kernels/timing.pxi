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
    """Return the least seconds that each of `weights` takes for y = W x + (init, or the bias), on one thread."""
    cdef PackedLinear weight
    cdef tiles_t from_tiles = FROM_BIAS if init is None else tiles_of(init)
    cdef Py_ssize_t b
    cdef double seconds
    cdef tiles_t taken
    best = [float("inf")] * len(weights)
    if x.shape[0] < 1:
        raise ValueError("x must be (n, K, 16) with n >= 1; got n = 0")
    for weight in weights:
        check_gemm(weight, x, y, init)
        for b in range(1, weight.num_blocks):
            weight.blocks[b - 1].next = &weight.blocks[b]
        weight.blocks[weight.num_blocks - 1].next = weight.blocks
    cdef float[::1] memory = aligned(whole_pairs(<int>x.shape[0]) * max(
        operand_floats(&(<PackedLinear>weight).linear, <int>x.shape[1]) for weight in weights))
    for _ in range(repeats):
        for number, weight in enumerate(weights):
            taken = operand(find_kernels(weight.isa), &weight.linear, tiles_of(x), 0, weight.k, 0, <int>x.shape[0],
                            &memory[0])
            seconds = time_once(weight, taken, from_tiles, tiles_of(y))
            best[number] = min(best[number], seconds)
    return best


cdef double time_once(PackedLinear weight, tiles_t x, tiles_t init, tiles_t y) noexcept:
    """Time one run of a cold weight."""
    cdef Py_ssize_t i
    cdef const block_t *block = weight.blocks
    cdef double start
    for i in range(weight.num_blocks):
        flush(block[i].memory, block[i].memory_bytes)
        flush(block[i].offsets, weight.num_offsets(&block[i]) * <size_t>weight.offsets.itemsize)
    if block.code != NULL and y.count >= TILE // 2:
        # in a call of many tiles the block that ran before has fetched this one
        touch(<const float *>block.memory, block.memory_bytes // FLOAT_BYTES)
    start = now_s()
    apply(whole(&weight.linear), x, init, y, NULL)
    return now_s() - start


cdef void touch(const float *memory, Py_ssize_t count) noexcept nogil:
    """Read every cache line."""
    cdef volatile float sink = 0.0
    cdef Py_ssize_t i
    for i in range(0, count, 16):
        sink = sink + memory[i]
