# Weights → packed streams and back. kernels.h defines the block forms; this file fills them.

FORMS = ("table", "dense")

# One row of PackedLinear.blocks
BLOCK_FIELDS = ("first_row", "rows", "first_k", "k", "value", "row_number", "run", "num_runs", "num_values")


cdef class PackedLinear:
    """A weight matrix (N, K) packed for one instruction set, with its bias (N,).

    Attributes:
        form: `table` or `dense`.
        isa: Whose register tile the dense form is packed for.
        panel_rows, kblock: Rows and columns of a block; the last ones may be smaller.
        density: Fraction of nonzero weights.
        values, offsets, row_numbers, runs, blocks, bias: The arrays that make it up; handing them to
            `from_arrays` gives an equal object, and `unpack` the weight back.
    """

    cdef readonly str form
    cdef readonly str isa
    cdef readonly int rows, k, panel_rows, kblock
    cdef readonly double density
    cdef readonly object values, offsets, row_numbers, runs, blocks, bias
    cdef linear_t linear
    cdef block_t *table

    def __cinit__(self):
        self.table = NULL

    def __dealloc__(self):
        free(self.table)

    @staticmethod
    def pack(const float[:, :] weight, const float[::1] bias, str form, str isa, int panel_rows, int kblock,
             allocate=np.empty):
        """Pack `weight` (N, K), float32 of any strides, in blocks of panel_rows × kblock.

        Args:
            allocate: `allocate(count, dtype)` returns a 16-byte aligned array.

        Raises:
            ValueError: Sizes out of range, or an unknown form or isa.
        """
        cdef PackedLinear self = PackedLinear()
        cdef int n = <int>weight.shape[0], k = <int>weight.shape[1], group = find_kernels(isa).dense_rows
        if form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}; got {form!r}")
        if not 1 <= kblock <= MAX_KBLOCK or not 1 <= panel_rows <= 65536:
            raise ValueError(f"kblock must be in 1…{MAX_KBLOCK} and panel_rows in 1…65536; got {kblock}, {panel_rows}")
        if n < 1 or k < 1 or bias.shape[0] != n:
            raise ValueError(f"weight (N, K) and bias (N,) must agree; got {n}×{k} and {bias.shape[0]}")
        self.form, self.isa, self.rows, self.k = form, isa, n, k
        self.panel_rows, self.kblock = min(panel_rows, n), min(kblock, k)
        self.bias = allocate(n, np.float32)
        self.bias[:] = bias
        cdef int panels = (n + self.panel_rows - 1) // self.panel_rows, kblocks = (k + self.kblock - 1) // self.kblock
        self.blocks = np.zeros((panels * kblocks, len(BLOCK_FIELDS)), np.int64)
        cdef int64_t[:, ::1] blocks = self.blocks
        cdef int32_t[:, ::1] counts = np.empty((kblocks, n), np.int32)
        cdef int32_t[::1] order = np.empty(self.panel_rows + BUNDLE, np.int32)
        cdef int64_t values = 0, rows = 0, runs = 0, nonzeros
        nonzeros = count_nonzeros(weight, self.kblock, counts)
        self.density = nonzeros / (<double>n * k)
        cdef int panel, kb, b = 0
        for panel in range(panels):
            for kb in range(kblocks):
                blocks[b, 0] = panel * self.panel_rows
                blocks[b, 1] = min(self.panel_rows, n - blocks[b, 0])
                blocks[b, 2] = kb * self.kblock
                blocks[b, 3] = min(self.kblock, k - blocks[b, 2])
                blocks[b, 4], blocks[b, 5], blocks[b, 6] = values, rows, runs
                if form == "dense":
                    blocks[b, 8] = (blocks[b, 1] + group - 1) // group * group * blocks[b, 3]
                else:
                    measure_table(&blocks[b, 0], &counts[kb, 0], order)
                    rows += (blocks[b, 1] + BUNDLE - 1) // BUNDLE * BUNDLE
                    runs += blocks[b, 7]
                # 64-byte alignment of every stream
                values += (blocks[b, 8] + 15) // 16 * 16
                b += 1
        self.values = allocate(values, np.float32)
        self.offsets = allocate(values if form == "table" else 0, np.uint16)
        self.row_numbers = allocate(rows, np.uint16)
        self.runs = allocate(2 * runs, np.uint32)
        cdef float[::1] value_stream = self.values
        cdef uint16_t[::1] offset_stream = self.offsets, row_stream = self.row_numbers
        cdef uint32_t[::1] run_stream = self.runs
        for b in range(panels * kblocks):
            if form == "dense":
                fill_dense(weight, &blocks[b, 0], group, &value_stream[blocks[b, 4]])
            else:
                kb = b % kblocks
                fill_table(weight, &blocks[b, 0], &counts[kb, 0], order, value_stream, offset_stream, row_stream,
                           run_stream)
        self.link()
        return self

    @staticmethod
    def from_arrays(str form, str isa, int rows, int k, int panel_rows, int kblock, double density, dict arrays):
        """Rebuild from the attributes of an earlier object; the arrays are used in place, not copied.

        The arrays must come from `pack` unchanged (the cache verifies a checksum first).
        """
        cdef PackedLinear self = PackedLinear()
        find_kernels(isa)
        self.form, self.isa, self.rows, self.k = form, isa, rows, k
        self.panel_rows, self.kblock, self.density = panel_rows, kblock, density
        self.values, self.offsets = arrays["values"], arrays["offsets"]
        self.row_numbers, self.runs = arrays["row_numbers"], arrays["runs"]
        self.blocks, self.bias = arrays["blocks"], arrays["bias"]
        self.link()
        return self

    cdef int link(self) except -1:
        """Point the C structures at the arrays."""
        cdef const int64_t[:, ::1] blocks = self.blocks
        cdef const kernels_t *kernels = find_kernels(self.isa)
        cdef Py_ssize_t b
        cdef block_t *block
        self.table = <block_t *>calloc(blocks.shape[0], sizeof(block_t))
        if self.table == NULL:
            raise MemoryError
        cdef const float *values = <const float *><uintptr_t>self.values.ctypes.data
        cdef const uint16_t *offsets = <const uint16_t *><uintptr_t>self.offsets.ctypes.data
        cdef const uint16_t *rows = <const uint16_t *><uintptr_t>self.row_numbers.ctypes.data
        cdef const run_t *runs = <const run_t *><uintptr_t>self.runs.ctypes.data
        for b in range(blocks.shape[0]):
            block = &self.table[b]
            block.first_row, block.rows = <int32_t>blocks[b, 0], <int32_t>blocks[b, 1]
            block.first_k, block.k = <int32_t>blocks[b, 2], <int32_t>blocks[b, 3]
            block.values = values + blocks[b, 4]
            block.offsets = offsets + blocks[b, 4]
            block.row_numbers = rows + blocks[b, 5]
            block.runs = runs + blocks[b, 6]
            block.num_runs = <int32_t>blocks[b, 7]
            block.stream_bytes = blocks[b, 8] * 4
            block.run = kernels.dense if self.form == "dense" else kernels.table
        self.linear.blocks = self.table
        self.linear.bias = <const float *><uintptr_t>self.bias.ctypes.data
        self.linear.rows, self.linear.k = self.rows, self.k
        self.linear.num_panels = (self.rows + self.panel_rows - 1) // self.panel_rows
        self.linear.num_kblocks = (self.k + self.kblock - 1) // self.kblock
        return 0

    def unpack(self):
        """Return the weight (N, K): the exact inverse of `pack`."""
        weight = np.zeros((self.rows, self.k), np.float32)
        cdef float[:, ::1] out = weight
        cdef int group = find_kernels(self.isa).dense_rows
        cdef block_t *block
        cdef int b, r, i, j
        cdef int64_t at, row, bundle, run
        for b in range(self.linear.num_panels * self.linear.num_kblocks):
            block = &self.table[b]
            if self.form == "dense":
                for r in range(block.rows):
                    for i in range(block.k):
                        at = (<int64_t>(r // group) * block.k + i) * group + r % group
                        out[block.first_row + r, block.first_k + i] = block.values[at]
                continue
            at = row = 0
            for run in range(block.num_runs):
                for bundle in range(block.runs[run].bundles):
                    for i in range(block.runs[run].count):
                        for j in range(BUNDLE):
                            if block.values[at] != 0.0:
                                out[block.first_row + block.row_numbers[row + j],
                                    block.first_k + block.offsets[at] // (TILE * 4)] = block.values[at]
                            at += 1
                    row += BUNDLE
        return weight

    @property
    def nbytes(self) -> int:
        """Bytes of everything the kernels read."""
        return sum(a.nbytes for a in (self.values, self.offsets, self.row_numbers, self.runs, self.bias))


cdef int64_t count_nonzeros(const float[:, :] weight, int kblock, int32_t[:, ::1] counts) noexcept nogil:
    """counts[kb][row] = nonzeros of the row in that k-block; returns the total."""
    cdef Py_ssize_t row, i
    cdef int64_t total = 0
    cdef int kb
    counts[:, :] = 0
    if weight.strides[0] == 4:
        # a transposed view, as ONNX stores weights: walk memory in its order
        for i in range(weight.shape[1]):
            kb = <int>(i // kblock)
            for row in range(weight.shape[0]):
                counts[kb, row] += weight[row, i] != 0.0
    else:
        for row in range(weight.shape[0]):
            for i in range(weight.shape[1]):
                counts[i // kblock, row] += weight[row, i] != 0.0
    for row in range(weight.shape[0]):
        for kb in range(counts.shape[0]):
            total += counts[kb, row]
    return total


cdef void sort_rows(const int64_t *block, const int32_t *counts, int32_t[::1] order) noexcept nogil:
    """order = the panel's rows by nonzeros, most first (stable), the last one repeated to whole bundles."""
    cdef int rows = <int>block[1], most = <int>block[3], row, nnz, at = 0
    cdef int32_t starts[MAX_KBLOCK + 2]
    memset(starts, 0, sizeof(starts))
    for row in range(rows):
        starts[most - counts[block[0] + row] + 1] += 1
    for nnz in range(1, most + 2):
        starts[nnz] += starts[nnz - 1]
    for row in range(rows):
        nnz = most - counts[block[0] + row]
        order[starts[nnz]] = row
        starts[nnz] += 1
    for at in range(rows, (rows + BUNDLE - 1) // BUNDLE * BUNDLE):
        order[at] = order[rows - 1]


cdef void measure_table(int64_t *block, const int32_t *counts, int32_t[::1] order) noexcept nogil:
    """Set num_runs and num_values of a table block."""
    cdef int bundle, rows = <int>block[1]
    cdef int32_t count, before = -1
    sort_rows(block, counts, order)
    block[7] = block[8] = 0
    for bundle in range((rows + BUNDLE - 1) // BUNDLE):
        count = counts[block[0] + order[bundle * BUNDLE]]
        block[7] += count != before
        block[8] += count * BUNDLE
        before = count


cdef void fill_table(const float[:, :] weight, const int64_t *block, const int32_t *counts, int32_t[::1] order,
                     float[::1] values, uint16_t[::1] offsets, uint16_t[::1] row_numbers,
                     uint32_t[::1] runs) noexcept nogil:
    """Write the streams of one table block. A row shorter than its bundle repeats its last column with weight 0."""
    cdef int rows = <int>block[1], first_k = <int>block[2], k = <int>block[3], bundle, j, i, row
    cdef int64_t at = block[4], run = block[6] - 1, end
    cdef int32_t count, before = -1
    cdef uint16_t offset
    cdef float w
    sort_rows(block, counts, order)
    for bundle in range((rows + BUNDLE - 1) // BUNDLE):
        count = counts[block[0] + order[bundle * BUNDLE]]
        if count != before:
            run += 1
            runs[2 * run], runs[2 * run + 1] = 0, count
            before = count
        runs[2 * run] += 1
        for j in range(BUNDLE):
            row = order[bundle * BUNDLE + j]
            row_numbers[block[5] + bundle * BUNDLE + j] = <uint16_t>row
            end = at + j
            offset = 0
            for i in range(k):
                w = weight[block[0] + row, first_k + i]
                if w != 0.0:
                    offset = <uint16_t>(i * TILE * 4)
                    values[end], offsets[end] = w, offset
                    end += BUNDLE
            while end < at + <int64_t>count * BUNDLE:
                values[end], offsets[end] = 0.0, offset
                end += BUNDLE
        at += <int64_t>count * BUNDLE


cdef void fill_dense(const float[:, :] weight, const int64_t *block, int group, float *values) noexcept nogil:
    """Write one dense block: per group of `group` rows, k-major; rows beyond the block are 0."""
    cdef int rows = <int>block[1], k = <int>block[3], first = 0, g, i, r
    for g in range((rows + group - 1) // group):
        first = g * group
        for i in range(k):
            for r in range(group):
                values[r] = weight[block[0] + first + r, block[2] + i] if first + r < rows else 0.0
            values += group
