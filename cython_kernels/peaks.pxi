# What the machine can do at most, for the roofline: arithmetic in registers, and reading at each distance.

cdef enum:
    REPETITION_US = 1000  # long beside starting the threads, short beside what interrupts them

READ_BYTES = READ_FLOATS * 4

# A loop of products, and its operations per step; of float32, whose loop takes a factor, NULL.
cdef struct peak_t:
    void (*loop)(float *x, size_t steps) noexcept nogil
    double work


def fma_peak(str isa, int num_threads, double seconds, str precision="fp32") -> float:
    """Measure multiply-adds on registers: GFLOP/s (GOP/s) of all threads, two operations each."""
    cdef const kernels_t *kernels = find_kernels(isa)
    check_measure(num_threads, seconds)
    cdef peak_t peak = peak_of(kernels, precision)
    if peak.work == 0:
        raise ValueError(f"isa {isa!r} multiplies no {precision}")
    cdef int count = max(<int>MOST_SUMS, kernels.f32_fma_count)
    cdef float[:, ::1] x = aligned(num_threads * count).reshape(num_threads, count)
    cdef size_t steps = 1 << 10  # found with one thread: waiting for others does not make a repetition long
    cdef double start, best = 0.0, end = now_s() + seconds
    cdef int i
    x[:, :] = 1.0
    with nogil:
        while is_short(peak.work * steps, best):
            steps *= 2
            start = now_s()
            multiply(kernels, peak, &x[0, 0], steps)
            best = max(best, peak.work * steps / (now_s() - start))
        best = 0.0
        while best == 0.0 or now_s() < end:
            start = now_s()
            for i in prange(num_threads, num_threads=num_threads, schedule="static", chunksize=1):
                multiply(kernels, peak, &x[i, 0], steps)
            best = max(best, peak.work * steps * num_threads / (now_s() - start))
    return best / 1e9


cdef peak_t peak_of(const kernels_t *kernels, str precision) noexcept:
    """The loop of a precision; its work is 0 where the instruction set multiplies none."""
    if precision == "fp32":
        return peak_t(NULL, 2.0 * kernels.f32_fma_count)
    if precision == "fp16":
        return peak_t(kernels.f16_fma_loop, kernels.f16_fma_operations)
    if precision == "bf16":
        return peak_t(kernels.bf16_dot_loop, kernels.bf16_dot_operations)
    return peak_t(kernels.s8_dot_loop, kernels.s8_dot_operations if precision == "int8" else 0)


cdef void multiply(const kernels_t *kernels, peak_t peak, float *x, size_t steps) noexcept nogil:
    if peak.loop != NULL:
        peak.loop(x, steps)
    else:
        kernels.f32_fma_loop(x, 1e-9, steps)  # too small to change a 1, and no multiplication by 0


def read_bandwidth(str isa, int num_threads, Py_ssize_t size, double seconds) -> float:
    """Measure reading: GB/s of all threads, each reading its own `size` bytes again and again."""
    cdef const kernels_t *kernels = find_kernels(isa)
    check_measure(num_threads, seconds)
    if size < READ_BYTES or size % READ_BYTES:
        raise ValueError(f"size must be a multiple of {READ_BYTES}; got {size}")
    cdef size_t times = 0
    cdef uint32_t[::1] sink = np.zeros(num_threads, np.uint32)
    cdef double start, work = <double>size, best = 0.0, end
    cdef void *memory = NULL
    cdef char *at
    cdef int i
    if posix_memalign(&memory, HUGE_PAGE, num_threads * size):
        raise MemoryError(f"no memory for {num_threads} buffers of {size >> 20} MiB")
    at = <char *>memory
    advise_huge(memory, num_threads * size)
    with nogil:
        for i in prange(num_threads, num_threads=num_threads, schedule="static", chunksize=1):
            memset(at + i * size, 1, size)  # by its reader; pages never written to would all be the one page of zeros
        while is_short(work * times, best):
            times = times * 2 if times else 1
            start = now_s()
            sink[0] = kernels.read_loop(<const float *>at, size // 4, times)
            best = max(best, work * times / (now_s() - start))
        best, end = 0.0, now_s() + seconds
        while best == 0.0 or now_s() < end:
            start = now_s()
            for i in prange(num_threads, num_threads=num_threads, schedule="static", chunksize=1):
                sink[i] = kernels.read_loop(<const float *>(at + i * size), size // 4, times)
            best = max(best, work * times * num_threads / (now_s() - start))
        free(memory)
    return best / 1e9


cdef bint is_short(double work, double rate) noexcept nogil:
    """Whether `work` ends too soon at the best rate so far, which one interrupted repetition does not change."""
    return work < rate * REPETITION_US * 1e-6 or rate == 0.0


cdef int check_measure(int num_threads, double seconds) except -1:
    if num_threads < 1 or not seconds > 0:
        raise ValueError(f"num_threads must be at least 1 and seconds above 0; got {num_threads}, {seconds}")
    return 0
