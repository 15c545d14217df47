# Weights → packed streams and back. kernels.h defines the block forms; this file fills them.

FORMS = ("table", "dense", "generated")

# One row of PackedLinear.blocks
BLOCK_FIELDS = ("first_row", "rows", "first_k", "k", "value", "row_number", "run", "num_runs", "num_values",
                "code", "memory_bytes")


# Features that a weight may have. Bytes of a tile of so many still fit an int, whatever a file claims.
MAX_FEATURES = 1 << 24
cdef enum:
    FLOAT_BYTES = 4


cdef class PackedLinear:
    """A weight matrix (N, K) packed for one instruction set, with its bias (N,).

    Attributes:
        form: `table`, `dense` or `generated`.
        isa: Whose register tile the dense form is packed for.
        panel_rows, kblock: Rows and columns of a block; the last ones may be smaller.
        density: Fraction of nonzero weights.
        is_residual: Sums start from `init`, not from the bias (only the generated form must know).
        values, offsets, row_numbers, runs, blocks, bias: The arrays that make it up.
    """

    cdef readonly str form
    cdef readonly str isa
    cdef readonly int rows, k, panel_rows, kblock
    cdef readonly bint is_residual
    cdef readonly double density
    cdef readonly object values, offsets, row_numbers, runs, blocks, bias
    cdef linear_t linear
    cdef block_t *table
    cdef uint8_t *code
    cdef CodeMemory memory

    def __cinit__(self):
        self.table = NULL
        self.code = NULL

    def __dealloc__(self):
        free(self.table)

    @staticmethod
    def pack(const float[:, :] weight, const float[::1] bias, str form, str isa, int panel_rows, int kblock,
             bint is_residual=False, allocate=np.empty, CodeMemory memory=None):
        """Pack `weight` (N, K), float32 of any strides at any address, in blocks of panel_rows × kblock.

        Args:
            allocate: `allocate(count, dtype)` returns a 16-byte aligned array.
            memory: Where generated code goes; the caller seals it before the first run. None: of its own.

        Raises:
            ValueError: Sizes out of range, or an unknown form or isa.
            OSError: `generated`, where the system forbids executable memory.
        """
        cdef PackedLinear self = PackedLinear()
        cdef const kernels_t *kernels = find_kernels(isa)
        cdef Py_ssize_t n = weight.shape[0], k = weight.shape[1]
        cdef int most_k = kernels.f32_generated_max_k if form == "generated" else MAX_KBLOCK
        if form not in FORMS or (form == "generated" and kernels.f32_generated == NULL):
            raise ValueError(f"form must be one of {FORMS} and known to isa {isa!r}; got {form!r}")
        if not 1 <= kblock <= most_k or not 1 <= panel_rows <= 65536:
            raise ValueError(f"kblock must be in 1…{most_k} and panel_rows in 1…65536; got {kblock}, {panel_rows}")
        if not 1 <= n <= MAX_FEATURES or not 1 <= k <= MAX_FEATURES or bias.shape[0] != n:
            raise ValueError(f"weight (N, K), at most {MAX_FEATURES} each, and bias (N,) must agree; "
                             f"got {n}×{k} and {bias.shape[0]}")
        self.form, self.isa, self.rows, self.k, self.is_residual = form, isa, <int>n, <int>k, is_residual
        self.panel_rows, self.kblock = min(panel_rows, n), min(kblock, k)
        self.bias = allocate(n, np.float32)
        self.bias[:] = bias
        cdef int32_t[:, ::1] counts = count_nonzeros(weight, self.kblock)
        self.lay_out(counts, kernels.f32_dense_rows)
        cdef const int64_t[::1] last = self.blocks[len(self.blocks) - 1]
        cdef int64_t values = last[4] + whole_lines(last[8]), rows = last[5] + whole_bundles(last[1])
        self.values = allocate(values if form != "generated" else 0, np.float32)
        self.offsets = allocate(values if form == "table" else 0, np.uint16)
        self.row_numbers = allocate(rows if form == "table" else 0, np.uint16)
        self.runs = allocate(2 * (last[6] + last[7]), np.uint32)
        if form == "generated":
            self.memory = CodeMemory() if memory is None else memory
            self.generate_code(weight)
            if memory is None:
                self.memory.seal()
        else:
            self.fill(weight, counts, kernels.f32_dense_rows)
        self.link()
        return self

    cdef int lay_out(self, const int32_t[:, ::1] counts, int group) except -1:
        """Cut the weight into blocks and decide how large the streams of each are, and where they begin."""
        cdef Py_ssize_t panels = (self.rows + self.panel_rows - 1) // self.panel_rows, kblocks = counts.shape[0], b
        self.blocks = np.zeros((panels * kblocks, len(BLOCK_FIELDS)), np.int64)
        cdef int64_t[:, ::1] blocks = self.blocks
        cdef int32_t[::1] order = np.empty(self.panel_rows + BUNDLE, np.int32)
        cdef bint is_dense = self.form == "dense", is_table = self.form == "table"
        cdef int64_t values = 0, rows = 0, runs = 0, nonzeros = 0
        with nogil:
            for b in range(blocks.shape[0]):
                blocks[b, 0] = b // kblocks * self.panel_rows
                blocks[b, 1] = min(self.panel_rows, self.rows - blocks[b, 0])
                blocks[b, 2] = b % kblocks * self.kblock
                blocks[b, 3] = min(self.kblock, self.k - blocks[b, 2])
                blocks[b, 4], blocks[b, 5], blocks[b, 6] = values, rows, runs
                measure_generated(&blocks[b, 0], &counts[b % kblocks, 0])
                nonzeros += blocks[b, 8]
                if is_dense:
                    blocks[b, 8] = (blocks[b, 1] + group - 1) // group * group * blocks[b, 3]
                elif is_table:
                    measure_table(&blocks[b, 0], &counts[b % kblocks, 0], &order[0])
                    rows += whole_bundles(blocks[b, 1])
                    runs += blocks[b, 7]
                values += whole_lines(blocks[b, 8])  # 64-byte alignment of every stream
        self.density = nonzeros / (<double>self.rows * self.k)
        return 0

    cdef int fill(self, const float[:, :] weight, const int32_t[:, ::1] counts, int group) except -1:
        """Write the streams of every block of the dense or table form."""
        cdef const int64_t[:, ::1] blocks = self.blocks
        cdef float[::1] columns = np.empty(self.kblock * self.panel_rows, np.float32)
        cdef int32_t[::1] order = np.empty(self.panel_rows + BUNDLE, np.int32)
        cdef int64_t[::1] ends = np.empty(2 * self.panel_rows, np.int64)
        # there may be none of each
        cdef float *values = <float *><uintptr_t>self.values.ctypes.data
        cdef uint16_t *offsets = <uint16_t *><uintptr_t>self.offsets.ctypes.data
        cdef uint16_t *row_numbers = <uint16_t *><uintptr_t>self.row_numbers.ctypes.data
        cdef uint32_t *runs = <uint32_t *><uintptr_t>self.runs.ctypes.data
        cdef bint is_dense = self.form == "dense"
        cdef Py_ssize_t b
        with nogil:
            for b in range(blocks.shape[0]):
                copy_columns(weight, &blocks[b, 0], &columns[0])
                if is_dense:
                    fill_dense(&columns[0], &blocks[b, 0], group, values + blocks[b, 4])
                else:
                    fill_table(&columns[0], &blocks[b, 0], &counts[b % counts.shape[0], 0], &order[0], &ends[0],
                               values + blocks[b, 4], offsets + blocks[b, 4], row_numbers + blocks[b, 5],
                               runs + 2 * blocks[b, 6])
        return 0

    cdef int generate_code(self, const float[:, :] weight) except -1:
        """Write every block's weights and the code behind them."""
        cdef int64_t[:, ::1] blocks = self.blocks
        cdef float[::1] scratch = np.empty(self.kblock * self.panel_rows, np.float32)
        cdef size_t bound = 0, value_bytes
        cdef Py_ssize_t b
        cdef int start
        cdef uint8_t *at
        cdef block_t block
        cdef const kernels_t *kernels = find_kernels(self.isa)
        for b in range(blocks.shape[0]):
            block.rows, block.k, block.num_values = <int32_t>blocks[b, 1], <int32_t>blocks[b, 3], blocks[b, 8]
            bound += lines(blocks[b, 8] * 4) + lines(kernels.f32_code_bound(&block))
        self.code = self.memory.take(bound)
        at = self.code
        with nogil:
            for b in range(blocks.shape[0]):
                value_bytes = lines(blocks[b, 8] * 4)
                copy_columns(weight, &blocks[b, 0], &scratch[0])
                blocks[b, 4] = (at - self.code) // 4
                blocks[b, 9] = at - self.code + value_bytes
                start = START_Y if blocks[b, 2] else START_INIT if self.is_residual else START_BIAS
                block.rows, block.k, block.num_values = <int32_t>blocks[b, 1], <int32_t>blocks[b, 3], blocks[b, 8]
                block.values, block.code = <float *>at, at + value_bytes
                at = kernels.f32_generate(&block, &scratch[0], start)
                at = self.code + lines(at - self.code)
                blocks[b, 10] = (at - self.code) - blocks[b, 4] * 4
        self.memory.at = at
        return 0

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
        if self.form == "generated":
            values = <const float *>self.code
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
            block.num_values = blocks[b, 8]
            block.memory, block.memory_bytes = block.values, block.num_values * 4
            block.next = NULL
            if self.form == "dense":
                block.run = kernels.f32_dense
            elif self.form == "table":
                block.run = kernels.f32_table
            else:
                block.run = kernels.f32_generated
                block.code, block.memory_bytes = self.code + blocks[b, 9], blocks[b, 10]
        self.linear.blocks = self.table
        self.linear.bias = <const float *><uintptr_t>self.bias.ctypes.data
        self.linear.rows, self.linear.k = self.rows, self.k
        self.linear.num_panels = (self.rows + self.panel_rows - 1) // self.panel_rows
        self.linear.num_kblocks = (self.k + self.kblock - 1) // self.kblock
        return 0

    def unpack(self):
        """Return the weight (N, K): the exact inverse of `pack` for the table and dense forms."""
        if self.form == "generated":
            raise ValueError("generated code is not unpacked: unpack the table form of the same weight")
        weight = np.zeros((self.rows, self.k), np.float32)
        cdef float[:, ::1] out = weight
        cdef int group = find_kernels(self.isa).f32_dense_rows
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
                for bundle in range(<int64_t>block.runs[run].bundles):
                    for i in range(<int>block.runs[run].count):
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
        arrays = (self.values, self.offsets, self.row_numbers, self.runs, self.bias)
        return sum(a.nbytes for a in arrays) + int(self.blocks[:, 10].sum())


def count_nonzeros(const float[:, :] weight, int kblock):
    """Return (k-blocks, N) int32: nonzeros of `weight` (N, K), at any address, per k-block of `kblock` and row."""
    if kblock < 1:
        raise ValueError(f"kblock must be at least 1; got {kblock}")
    counts = np.zeros(((weight.shape[1] + kblock - 1) // kblock, weight.shape[0]), np.int32)
    cdef int32_t[:, ::1] found = counts
    cdef Py_ssize_t i, row, kb, rows = weight.shape[0], columns = weight.shape[1]
    cdef Py_ssize_t down = weight.strides[0], right = weight.strides[1]
    if rows == 0 or columns == 0:
        return counts
    cdef const char *first = <const char *>&weight[0, 0]
    with nogil:
        if down == FLOAT_BYTES:  # a transposed view, as ONNX stores weights: walk memory in its order
            for i in range(columns):
                count_each(first + i * right, rows, &found[i // kblock, 0])
        else:
            for row in range(rows):
                for kb in range(found.shape[0]):
                    found[kb, row] = count_run(first + row * down + kb * kblock * right,
                                               min(kblock, columns - kb * kblock), right)
    return counts


cdef void count_each(const char *weights, Py_ssize_t count, int32_t *counts) noexcept nogil:
    """counts[i] += 1 where weight i is not 0."""
    cdef Py_ssize_t i
    for i in range(count):
        counts[i] += float_at(weights + i * FLOAT_BYTES) != 0.0


cdef int32_t count_run(const char *weights, Py_ssize_t count, Py_ssize_t stride) noexcept nogil:
    """How many of `count` weights, `stride` bytes apart, are not 0."""
    cdef Py_ssize_t i
    cdef int32_t found = 0
    for i in range(count):
        found += float_at(weights + i * stride) != 0.0
    return found


cdef inline float float_at(const char *address) noexcept nogil:
    """The float at any address, as a mapped file has it: only memcpy may read it there."""
    cdef float value
    memcpy(&value, address, FLOAT_BYTES)
    return value


cdef int64_t whole_lines(int64_t count) noexcept nogil:
    """`count` floats rounded up to whole cache lines."""
    return (count + 15) // 16 * 16


cdef int64_t whole_bundles(int64_t rows) noexcept nogil:
    return (rows + BUNDLE - 1) // BUNDLE * BUNDLE


cdef size_t lines(size_t size) noexcept nogil:
    """`size` rounded up to whole cache lines."""
    return (size + 63) // 64 * 64


cdef void copy_columns(const float[:, :] weight, const int64_t *block, float *columns) noexcept nogil:
    """columns[k][row] = the block's weights."""
    cdef Py_ssize_t rows = block[1], k = block[3], row, i, first
    cdef Py_ssize_t down = weight.strides[0], right = weight.strides[1]
    cdef const char *corner = <const char *>&weight[0, 0] + block[0] * down + block[2] * right
    if down == FLOAT_BYTES:
        for i in range(k):
            memcpy(columns + i * rows, corner + i * right, rows * FLOAT_BYTES)
        return
    for first in range(0, k, 16):  # a cache line of a row at a time
        for row in range(rows):
            for i in range(first, min(first + 16, k)):
                columns[i * rows + row] = float_at(corner + row * down + i * right)


cdef void measure_generated(int64_t *block, const int32_t *counts) noexcept nogil:
    """Set num_values of a generated block: its nonzeros."""
    cdef int row
    block[8] = 0
    for row in range(<int>block[1]):
        block[8] += counts[block[0] + row]


cdef void sort_rows(const int64_t *block, const int32_t *counts, int32_t *order) noexcept nogil:
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
    for at in range(rows, <int>whole_bundles(rows)):
        order[at] = order[rows - 1]


cdef void measure_table(int64_t *block, const int32_t *counts, int32_t *order) noexcept nogil:
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


cdef void fill_table(const float *columns, const int64_t *block, const int32_t *counts, int32_t *order,
                     int64_t *ends, float *values, uint16_t *offsets, uint16_t *row_numbers,
                     uint32_t *runs) noexcept nogil:
    """Write the streams of one table block. A row shorter than its bundle repeats its last column with weight 0.

    Weights are found column by column, since so they lie; `ends` (2 × rows) holds where each row's next one goes,
    behind it where each row's stream ends.
    """
    cdef int rows = <int>block[1], slot, row, i, found
    cdef int64_t at = 0, run = -1, end
    cdef int64_t *stops = ends + rows
    cdef int32_t count = 0, before = -1
    sort_rows(block, counts, order)
    for slot in range(<int>whole_bundles(rows)):
        row = order[slot]
        row_numbers[slot] = <uint16_t>row
        if slot % BUNDLE == 0:
            at += <int64_t>count * BUNDLE
            count = counts[block[0] + row]
            if count != before:
                run += 1
                runs[2 * run], runs[2 * run + 1] = 0, count
                before = count
            runs[2 * run] += 1
        if slot < rows:
            ends[row] = at + slot % BUNDLE
            stops[row] = ends[row] + <int64_t>count * BUNDLE
    for i in range(<int>block[3]):
        found = find_nonzeros(columns + <int64_t>i * rows, rows, order)
        for slot in range(found):
            row = order[slot]
            end = ends[row]
            values[end], offsets[end] = columns[<int64_t>i * rows + row], <uint16_t>(i * TILE * 4)
            ends[row] = end + BUNDLE
    for row in range(rows):
        end = ends[row]
        while end < stops[row]:
            values[end] = 0.0
            offsets[end] = offsets[end - BUNDLE] if counts[block[0] + row] else 0
            end += BUNDLE
    for slot in range(rows, <int>whole_bundles(rows)):  # copies of the last row, beside it
        row = row_numbers[rows - 1]
        for i in range(count):
            end = stops[row] - <int64_t>(i + 1) * BUNDLE
            values[end + slot - rows + 1], offsets[end + slot - rows + 1] = values[end], offsets[end]


cdef int find_nonzeros(const float *weights, int count, int32_t *found) noexcept nogil:
    """found = where the nonzeros are; returns how many. Without a branch per weight: nobody can predict it."""
    cdef int i, number = 0
    for i in range(count):
        found[number] = i
        number += weights[i] != 0.0
    return number


cdef void fill_dense(const float *columns, const int64_t *block, int group, float *values) noexcept nogil:
    """Write one dense block: per group of `group` rows, k-major; rows beyond the block are 0."""
    cdef int64_t rows = block[1], k = block[3], g, first, i, r
    for g in range((rows + group - 1) // group):
        first = g * group
        for i in range(k):
            for r in range(group):
                values[r] = columns[i * rows + first + r] if first + r < rows else 0.0
            values += group
