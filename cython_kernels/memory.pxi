# Arrays on cache lines, memory on huge pages, memory for generated code.


def aligned(Py_ssize_t count, dtype=np.float32):
    """An uninitialised array of `count` elements on a 64-byte boundary."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.empty(count * itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start:start + count * itemsize].view(dtype)


cdef extern from *:
    """
    #include <sys/mman.h>
    #define HUGE_PAGE ((size_t)1 << 21)
    /* Whole huge pages, aligned to them: the fetch of code that lies on many small pages waits for their addresses
     * to be translated. */
    static void *code_reserve(size_t size) {
        char *memory = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return NULL;
        char *aligned = (char *)(((uintptr_t)memory + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
        if (aligned > memory) munmap(memory, (size_t)(aligned - memory));
        munmap(aligned + size, HUGE_PAGE - (size_t)(aligned - memory));
    #ifdef MADV_HUGEPAGE
        madvise(aligned, size, MADV_HUGEPAGE);
    #endif
        return aligned;
    }
    static int code_seal(void *memory, size_t size) { return mprotect(memory, size, PROT_READ | PROT_EXEC); }
    static void code_release(void *memory, size_t size) { munmap(memory, size); }
    """
    size_t HUGE_PAGE
    void *code_reserve(size_t size) nogil
    int code_seal(void *memory, size_t size) nogil
    void code_release(void *memory, size_t size) nogil


cdef extern from *:
    """
    #include <sys/mman.h>
    static void advise_huge(void *memory, size_t size) {
    #ifdef MADV_HUGEPAGE
        madvise(memory, size, MADV_HUGEPAGE); /* 3-4 % faster to read; where it is refused, nothing else changes */
    #else
        (void)memory, (void)size;
    #endif
    }
    """
    void advise_huge(void *memory, size_t size) noexcept nogil


cdef extern from *:
    """
    #ifdef __GLIBC__
    #include <malloc.h>
    static void trim_heap(void) { malloc_trim(0); }
    #else
    static void trim_heap(void) {}
    #endif
    """
    void trim_heap() noexcept nogil


def give_back_memory():
    """Give the system the pages back that malloc keeps for later: after loading a model those are many."""
    with nogil:
        trim_heap()


@cython.final
@cython.no_gc  # the collector would empty `chunks` before __dealloc__ gives them back
cdef class CodeMemory:
    """Memory for generated code and its weights: written until `seal`, executable from then on, never both.

    Several weights of one model share an object, since a huge page is larger than most of them.
    """

    cdef list chunks  # (address, size)
    cdef uint8_t *at
    cdef uint8_t *end

    def __cinit__(self):
        self.chunks = []
        self.at = self.end = NULL

    def __dealloc__(self):
        cdef uintptr_t address
        cdef size_t size
        for address, size in self.chunks:
            code_release(<void *>address, size)

    cdef uint8_t *take(self, size_t size) except NULL:
        """Make room for `size` bytes; whoever fills them moves `at` on."""
        cdef size_t chunk = (size + HUGE_PAGE - 1) // HUGE_PAGE * HUGE_PAGE
        if self.at == NULL or <size_t>(self.end - self.at) < size:
            if self.chunks:  # a second weight is here, so others will follow
                chunk = max(chunk, 8 * HUGE_PAGE)
            self.at = <uint8_t *>code_reserve(chunk)
            if self.at == NULL:
                raise MemoryError(f"no memory for {chunk >> 20} MiB of generated code")
            self.end = self.at + chunk
            self.chunks.append((<uintptr_t>self.at, chunk))
        return self.at

    def seal(self):
        """Make what was written executable."""
        cdef uintptr_t address
        cdef size_t size
        for address, size in self.chunks:
            if code_seal(<void *>address, size):
                raise OSError("this system forbids executable memory (mprotect failed)")
        self.at = self.end = NULL
