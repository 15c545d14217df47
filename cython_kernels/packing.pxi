# Weights → packed streams and back. kernels.h defines the block forms; this file fills them.

FORMS = ("table", "dense", "generated", "bf16_dense", "bf16_block", "bf16_compressed", "f16_table", "f16_generated",
         "s8_table", "s8_dense", "s8_block", "s8_generated")

# Features that a weight may have, whatever a file claims: the bytes of a tile of so many still fit an int.
MAX_FEATURES = 1 << 24
cdef enum:
    FLOAT_BYTES = 4
    QUAD = 4  # columns of 8 bits that are one number
    S8_EXTRA = 2  # numbers more per row: minus its sum, and its scale
    S8_TABLE_QUADS = 256  # of a k-block, whose numbers fit a byte


# What a form asks of its weights.
cdef struct form_t:
    block_fn run  # NULL: the instruction set has no such form
    int rows  # of a row group, which a dense kernel keeps in registers; 0: it is none
    int step  # numbers of a row that lie side by side: columns, of 8 bits quads
    bint is_gathered  # a row group has only the pairs or quads of columns in which one of its weights is not 0
    bint is_compressed  # zeros are left out
    int operand
    bint is_s8  # weights are 8-bit integers, its columns quads of them


cdef form_t form_of(const kernels_t *t, str form) except *:
    """The form's `run` is NULL if the instruction set of table `t` has it not."""
    if form == "table":
        return form_t(t.f32_table, 0, 1, False, False, OPERAND_F32, False)
    if form == "dense":
        return form_t(t.f32_dense, t.f32_dense_rows, 1, False, False, OPERAND_F32, False)
    if form == "generated":
        return form_t(t.f32_generated.run, 0, 1, False, False, OPERAND_F32, False)
    if form == "bf16_dense":
        return form_t(t.bf16_dense, t.bf16_dense_rows, t.bf16_dense_columns, False, False, OPERAND_BF16, False)
    if form == "bf16_block":
        return form_t(t.bf16_block, t.bf16_block_rows, t.bf16_block_columns, True, False, OPERAND_BF16, False)
    if form == "bf16_compressed":
        return form_t(t.bf16_compressed, t.bf16_dense_rows, t.bf16_dense_columns, False, True, OPERAND_BF16, False)
    if form == "f16_table":
        return form_t(t.f16_table, 0, 1, False, False, OPERAND_F16, False)
    if form == "f16_generated":
        return form_t(t.f16_generated.run, 0, 1, False, False, OPERAND_F16, False)
    if form == "s8_table":
        return form_t(t.s8_table, 0, 1, False, False, OPERAND_U8, True)
    if form == "s8_dense":
        return form_t(t.s8_dense, t.s8_dense_rows, t.s8_dense_columns // QUAD, False, False, OPERAND_U8, True)
    if form == "s8_block":
        return form_t(t.s8_block, t.s8_block_rows, t.s8_block_columns // QUAD, True, False, OPERAND_U8, True)
    if form == "s8_generated":
        return form_t(t.s8_generated.run, 0, 1, False, False, OPERAND_U8, True)
    return form_t(NULL, 0, 1, False, False, OPERAND_F32, False)


cdef generator_t generator_of(const kernels_t *t, str form) except *:
    """What makes a form's code; its `generate` is NULL where the form has none."""
    if form == "generated":
        return t.f32_generated
    if form == "f16_generated":
        return t.f16_generated
    if form == "s8_generated":
        return t.s8_generated
    return generator_t(NULL, 0, NULL, NULL)


def forms_of(str isa) -> list[str]:
    """Name the forms that an instruction set has."""
    return [form for form in FORMS if form_of(find_kernels(isa), form).run != NULL]


@cython.final
cdef class PackedLinear:
    """A weight matrix (N, K) packed for one instruction set, with its bias (N,)."""

    cdef readonly str form
    cdef readonly str isa
    cdef readonly int rows, k, panel_rows, kblock
    cdef readonly bint is_residual
    cdef readonly double density
    cdef readonly object values, offsets, row_numbers, runs, bias
    cdef readonly PackedLinear table  # of generated code in 8 bits: the table form that has its numbers there, or None
    cdef form_t kind
    cdef generator_t generator
    cdef const float[::1] x_factor  # of 8 bits (K,), or None
    cdef const float[:, :, ::1] extra  # of 8 bits (k-blocks, S8_EXTRA, N)
    cdef linear_t linear
    cdef block_t *blocks
    cdef int num_blocks
    cdef CodeMemory memory

    def __cinit__(self):
        self.blocks = NULL

    def __dealloc__(self):
        free(self.blocks)

    @staticmethod
    def pack(weight, const float[::1] bias, str form, str isa, int panel_rows, int kblock, bint is_residual=False,
             allocate=np.empty, CodeMemory memory=None, quantization=None, bint with_table=False):
        """Pack `weight` (N, K) of any strides at any address, in blocks of panel_rows × kblock."""
        cdef PackedLinear self = PackedLinear()
        cdef const kernels_t *kernels = find_kernels(isa)
        cdef Py_ssize_t n = weight.shape[0], k = weight.shape[1]
        cdef int most_k
        self.kind, self.generator = form_of(kernels, form), generator_of(kernels, form)
        if self.kind.run == NULL:
            raise ValueError(f"form must be one of {FORMS} and known to isa {isa!r}; got {form!r}")
        if self.kind.is_s8 != (quantization is not None):
            raise ValueError(f"forms of 8 bits, and no others, need a quantization; got {form!r}, {quantization}")
        most_k = MAX_KBLOCK * QUAD if self.kind.is_s8 else MAX_KBLOCK
        if self.is_generated():
            most_k = self.generator.max_k
        if form == "s8_table":
            most_k = S8_TABLE_QUADS * QUAD
        if not 1 <= kblock <= most_k or not 1 <= panel_rows <= 65536:
            raise ValueError(f"kblock must be in 1…{most_k} and panel_rows in 1…65536; got {kblock}, {panel_rows}")
        if kblock < k and kblock % (QUAD if self.kind.is_s8 else 2 if self.kind.operand == OPERAND_BF16 else 1):
            raise ValueError(f"kblock must be whole pairs or quads, or all {k} columns; got {kblock}")
        if not 1 <= n <= MAX_FEATURES or not 1 <= k <= MAX_FEATURES or bias.shape[0] != n:
            raise ValueError(f"weight (N, K), at most {MAX_FEATURES} each, and bias (N,) must agree; "
                             f"got {n}×{k} and {bias.shape[0]}")
        self.form, self.isa, self.rows, self.k, self.is_residual = form, isa, <int>n, <int>k, is_residual
        self.panel_rows, self.kblock = min(panel_rows, n), min(kblock, k)
        self.bias = allocate(n, np.float32)
        self.bias[:] = bias
        self.num_blocks = <int>((n + self.panel_rows - 1) // self.panel_rows * ((k + self.kblock - 1) // self.kblock))
        if self.is_generated() and self.kind.is_s8:
            self.table = PackedLinear.pack(weight, bias, "s8_table", isa, panel_rows, kblock, is_residual, allocate,
                                           quantization=quantization)
        if self.kind.is_s8:
            weight = self.take_integers(weight, quantization, allocate)
        cdef const float[:, :] numbers = weight
        cdef const int32_t[:, ::1] counts = count_each_row(numbers, self.columns(self.kblock), self.kind.is_s8)
        self.lay_out(numbers, counts)
        self.make_room(allocate)
        if self.is_generated():
            self.memory = CodeMemory() if memory is None else memory
            self.generate_code(numbers)
            if not with_table:
                self.table = None
            if memory is None:
                self.memory.seal()
        else:
            self.fill(numbers, counts)
        self.linear.blocks = self.blocks
        self.linear.bias = <const float *><uintptr_t>self.bias.ctypes.data
        self.linear.rows, self.linear.k, self.linear.kblock = self.rows, self.k, self.kblock
        self.linear.operand = self.kind.operand
        self.linear.num_kblocks = <int32_t>counts.shape[0]
        self.linear.num_panels = self.num_blocks // self.linear.num_kblocks
        return self

    cdef object take_integers(self, weight, quantization, allocate):
        """Check the integers, keep what each row has beside them, return them as quads (N, ceil(K / 4))."""
        if weight.dtype != np.int8:
            raise ValueError(f"weights of 8 bits must be int8; got {weight.dtype}")
        scale = quantization.scale
        if scale.shape != (self.rows,) or not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"scale must be ({self.rows},), positive")
        x_scale, zero_point = quantization.x_scale, quantization.x_zero_point
        limits = np.finfo(np.float32)
        if x_scale is not None and not (limits.tiny <= x_scale <= limits.max and 0 <= zero_point <= 255):
            raise ValueError(f"x_scale must be positive, x_zero_point in 0…255; got {x_scale}, {zero_point}")
        self.linear.rounding.scale = 0.0 if x_scale is None else x_scale
        self.linear.rounding.zero_point = 0 if x_scale is None else zero_point
        if quantization.x_factor is not None:
            self.x_factor = np.ascontiguousarray(quantization.x_factor, np.float32)
            if self.x_factor.shape[0] != self.k or not np.isfinite(self.x_factor).all():
                raise ValueError(f"x_factor must be ({self.k},), finite")
            self.linear.rounding.factors = &self.x_factor[0]
        columns = (self.k + QUAD - 1) // QUAD * QUAD
        padded = allocate(self.rows * columns, np.int8).reshape(self.rows, columns)
        padded[:, :self.k], padded[:, self.k:] = weight, 0
        self.density = np.count_nonzero(padded) / (<double>self.rows * self.k)
        # not reduceat, which would make an int32 copy of the weight
        sums = np.stack([padded[:, first:first + self.kblock].sum(1, dtype=np.int32)
                         for first in range(0, self.k, self.kblock)])
        extra = np.empty((len(sums), S8_EXTRA, self.rows), np.float32)
        extra[:, 0] = (-sums).view(np.float32)
        extra[:, 1] = scale
        self.extra = extra
        return padded.view(np.float32)

    cdef bint is_generated(self) noexcept:
        return self.generator.generate != NULL

    cdef int columns(self, int features) noexcept nogil:
        """Numbers that a row of so many features has."""
        return (features + QUAD - 1) // QUAD if self.kind.is_s8 else features

    cdef block_t in_columns(self, Py_ssize_t b) noexcept nogil:
        """Block b with its columns counted as the numbers that are packed."""
        cdef block_t block = self.blocks[b]
        block.first_k, block.k = self.columns(block.first_k), self.columns(block.k)
        return block

    cdef void copy_block(self, const float[:, :] weight, const block_t *block, float *columns) noexcept nogil:
        """columns[k][row] = the block's weights; of 8 bits two more: minus the rows' sums, their scales."""
        cdef int i
        copy_columns(weight, block, columns)
        for i in range(S8_EXTRA if self.kind.is_s8 else 0):
            memcpy(columns + (block.k + i) * <int64_t>block.rows,
                   &self.extra[block.first_k // self.columns(self.kblock), i, block.first_row],
                   block.rows * FLOAT_BYTES)

    cdef int lay_out(self, const float[:, :] weight, const int32_t[:, ::1] counts) except -1:
        """Cut the weight into blocks and decide how large the streams of each are."""
        cdef Py_ssize_t kblocks = counts.shape[0], b, g
        cdef int group = self.kind.rows, step = self.kind.step, found, extra = S8_EXTRA if self.kind.is_s8 else 0
        cdef int32_t[::1] order = np.empty(self.panel_rows + BUNDLE, np.int32)
        cdef bint is_variable = self.kind.is_gathered or self.kind.is_compressed
        cdef float[::1] columns = np.empty(self.kblock * self.panel_rows if is_variable else 1, np.float32)
        cdef uint16_t[::1] live = np.empty(MAX_KBLOCK, np.uint16)
        cdef bint is_table = self.is_table()
        cdef size_t nonzeros = 0
        cdef block_t *block
        cdef block_t cut
        self.blocks = <block_t *>calloc(self.num_blocks, sizeof(block_t))
        if self.blocks == NULL:
            raise MemoryError
        with nogil:
            for b in range(self.num_blocks):
                block = &self.blocks[b]
                block.run = self.kind.run
                block.first_row = <int32_t>(b // kblocks * self.panel_rows)
                block.rows = min(self.panel_rows, self.rows - block.first_row)
                block.first_k = <int32_t>(b % kblocks * self.kblock)
                block.k = min(self.kblock, self.k - block.first_k)
                cut = self.in_columns(b)
                block.num_values = block_nonzeros(block, &counts[b % kblocks, 0])
                nonzeros += block.num_values
                if self.kind.is_gathered:
                    copy_columns(weight, &cut, &columns[0])
                    block.num_runs, block.num_values = (block.rows + group - 1) // group, 0
                    for g in range(block.num_runs):
                        found = live_lines(&columns[0], &cut, g * group, self.kind, &live[0])
                        if self.kind.is_s8:
                            block.num_values += (whole_steps(found, step) + extra) * group
                        else:
                            block.num_values += whole_steps(2 * found, step) // 2 * group
                elif self.kind.is_compressed:
                    copy_columns(weight, block, &columns[0])
                    block.num_values = compress(&columns[0], block, group, step, NULL)
                elif group:
                    block.num_values = <size_t>((block.rows + group - 1) // group * group) \
                        * (whole_steps(cut.k, step) + extra)
                    block.num_values //= 2 if self.kind.operand == OPERAND_BF16 else 1  # counted as floats
                elif is_table:
                    measure_table(&cut, &counts[b % kblocks, 0], &order[0])
                    block.num_runs = cut.num_runs
                    block.num_values = cut.num_values + extra * whole_bundles(block.rows)
                    if self.kind.operand == OPERAND_F16:
                        block.num_values //= 2  # counted as floats; a bundle's are even
                else:
                    block.num_values += extra * block.rows
        if not self.kind.is_s8:  # of which take_integers has counted the weights
            self.density = nonzeros / (<double>self.rows * self.k)
        return 0

    cdef int make_room(self, allocate) except -1:
        """Allocate the streams and point the blocks at their shares, each on a cache line of its own."""
        cdef int b
        cdef size_t num_values = 0, num_offsets = 0, num_rows = 0, num_runs = 0
        cdef bint is_table = self.is_table()
        cdef block_t *block
        for b in range(self.num_blocks):
            num_values += whole_lines(self.blocks[b].num_values)
            num_rows += whole_bundles(self.blocks[b].rows)
            num_runs += self.blocks[b].num_runs
            num_offsets += whole_lines(self.num_offsets(&self.blocks[b]))
        # there may be none of each
        self.values = allocate(0 if self.is_generated() else num_values, np.float32)
        self.offsets = allocate(num_offsets, np.uint8 if is_table and self.kind.is_s8 else np.uint16)
        self.row_numbers = allocate(num_rows if is_table else 0, np.uint16)
        self.runs = allocate(2 * num_runs, np.uint32)
        if self.is_generated():
            return 0
        cdef const float *values = <const float *><uintptr_t>self.values.ctypes.data
        cdef const char *offsets = <const char *><uintptr_t>self.offsets.ctypes.data
        cdef int offset_bytes = self.offsets.itemsize
        cdef const uint16_t *row_numbers = <const uint16_t *><uintptr_t>self.row_numbers.ctypes.data
        cdef const run_t *runs = <const run_t *><uintptr_t>self.runs.ctypes.data
        for b in range(self.num_blocks):
            block = &self.blocks[b]
            block.values, block.memory, block.memory_bytes = values, values, block.num_values * FLOAT_BYTES
            values += whole_lines(block.num_values)
            block.offsets, block.row_numbers, block.runs = <const uint16_t *>offsets, row_numbers, runs
            offsets += whole_lines(self.num_offsets(block)) * offset_bytes
            row_numbers += whole_bundles(block.rows) if is_table else 0
            runs += block.num_runs
        return 0

    cdef bint is_table(self) noexcept:
        return self.form == "table" or self.form == "f16_table" or self.form == "s8_table"

    cdef size_t num_offsets(self, const block_t *block) noexcept:
        """Offsets of a block: one per weight of a table, one per gathered line."""
        if self.is_table():
            if self.kind.operand == OPERAND_F16:
                return 2 * block.num_values
            return block.num_values - (S8_EXTRA * whole_bundles(block.rows) if self.kind.is_s8 else 0)
        if not self.kind.is_gathered:
            return 0
        return block.num_values // self.kind.rows - (S8_EXTRA * block.num_runs if self.kind.is_s8 else 0)

    cdef int fill(self, const float[:, :] weight, const int32_t[:, ::1] counts) except -1:
        """Write the streams of every block, unless code is generated."""
        cdef float[::1] columns = np.empty((self.columns(self.kblock) + S8_EXTRA) * self.panel_rows, np.float32)
        cdef int32_t[::1] order = np.empty(self.panel_rows + BUNDLE, np.int32)
        cdef int64_t[::1] ends = np.empty(3 * self.panel_rows, np.int64)
        cdef int b, group = self.kind.rows, extra = S8_EXTRA if self.kind.is_s8 else 0
        cdef float[::1] values = np.empty(self.kblock * (self.panel_rows + BUNDLE), np.float32)
        cdef uint16_t *halves
        cdef block_t block
        cdef Py_ssize_t i
        with nogil:
            for b in range(self.num_blocks):
                block = self.in_columns(b)
                self.copy_block(weight, &block, &columns[0])
                if self.kind.is_compressed:
                    compress(&columns[0], &block, group, self.kind.step, <uint32_t *>block.values)
                elif self.kind.operand == OPERAND_BF16:
                    fill_bf16(&columns[0], &block, self.kind)
                elif self.kind.is_s8 and group:
                    fill_s8(&columns[0], &block, self.kind)
                elif group:
                    fill_dense(&columns[0], &block, group)
                else:
                    if self.kind.operand == OPERAND_F16:
                        block.values = &values[0]
                    fill_table(&columns[0], &block, &counts[b % counts.shape[0], 0], &order[0], &ends[0], extra)
                    if self.kind.operand == OPERAND_F16:
                        halves = <uint16_t *>self.blocks[b].values
                        for i in range(<Py_ssize_t>(2 * block.num_values)):
                            halves[i] = half_of(values[i])
        return 0

    cdef size_t stream_bytes(self, const block_t *block) noexcept nogil:
        """Bytes of a generated block's weights, whole lines."""
        return lines(block.num_values * (sizeof(uint16_t) if self.kind.operand == OPERAND_F16 else FLOAT_BYTES))

    cdef int generate_code(self, const float[:, :] weight) except -1:
        """Write every block's weights and the code behind them."""
        cdef float[::1] columns = np.empty(self.columns(self.kblock) * self.panel_rows, np.float32)
        cdef size_t stream
        cdef int b, start
        cdef uint8_t *at
        cdef uint8_t *code
        cdef uint8_t *end
        cdef block_t *block
        cdef block_t *table
        cdef block_t cut
        for b in range(self.num_blocks):
            block, table = &self.blocks[b], &self.table.blocks[b] if self.kind.is_s8 else NULL
            stream = self.stream_bytes(block if table == NULL else table)
            at = self.memory.take(stream + lines(self.generator.code_bound(block)))
            with nogil:
                code = at + stream
                block.values, block.memory, block.code = <float *>at, at, code
                cut = block[0]
                if table == NULL:
                    copy_columns(weight, &cut, &columns[0])
                else:
                    memcpy(at, table.values, table.num_values * FLOAT_BYTES)
                    table.values = table.memory = block.values
                    cut.offsets, cut.row_numbers, cut.runs = table.offsets, table.row_numbers, table.runs
                start = START_Y if block.first_k else START_INIT if self.is_residual else START_BIAS
                end = self.generator.generate(&cut, &columns[0], start)
                self.memory.at = code + lines(end - code)
                block.memory_bytes = self.memory.at - at
        if self.kind.is_s8:
            self.table.memory, self.table.values = self.memory, self.values  # none
        return 0

    def unpack(self):
        """Return the weight (N, K): what was packed, rounded in 16 bits, the integers in 8."""
        if self.is_generated():
            raise ValueError("generated code is not unpacked: unpack the table form of the same weight")
        weight = np.zeros((self.rows, self.columns(self.k)), np.float32)
        cdef float[:, ::1] out = weight
        cdef int extra = S8_EXTRA if self.kind.is_s8 else 0
        cdef const float *numbers
        cdef int group = self.kind.rows, step = self.kind.step, b, r, i, j, g, place
        cdef const uint16_t *halves
        cdef const uint16_t *offset
        cdef const uint32_t *masks
        cdef float value
        cdef block_t cut
        cdef block_t *block = &cut
        cdef uint32_t bits
        cdef int64_t at, row, bundle, run, column
        for b in range(self.num_blocks):
            cut = self.in_columns(b)
            if self.kind.is_s8 and group:
                numbers, offset = block.values, block.offsets
                for g in range((block.rows + group - 1) // group):
                    place = block.runs[g].count if self.kind.is_gathered else whole_steps(block.k, step)
                    numbers += extra * group
                    for i in range(place):
                        column = offset[i] // (TILE * 4) if self.kind.is_gathered else i
                        for r in range(g * group, min((g + 1) * group, block.rows)):
                            value = numbers[(i // step * group + r % group) * step + i % step]
                            if not is_zero(value, True) and column < block.k:
                                out[block.first_row + r, block.first_k + column] = value
                    numbers += place * group
                    offset += place
                continue
            if self.form == "dense":
                for r in range(block.rows):
                    for i in range(block.k):
                        at = (<int64_t>(r // group) * block.k + i) * group + r % group
                        out[block.first_row + r, block.first_k + i] = block.values[at]
                continue
            if self.kind.is_compressed:
                masks = <const uint32_t *>block.values
                for g in range((block.rows + group - 1) // group):
                    for place in range((block.k + step - 1) // step):
                        halves, i = <const uint16_t *>(masks + group), 0
                        for r in range(group):
                            for j in range(step):
                                if masks[r] >> j & 1:
                                    bits = <uint32_t>halves[i] << 16
                                    memcpy(&out[block.first_row + g * group + r, block.first_k + place * step + j],
                                           &bits, FLOAT_BYTES)
                                    i += 1
                        masks += group + (i + 1) // 2
                continue
            if step > 1:
                halves, offset = <const uint16_t *>block.values, block.offsets
                for g in range((block.rows + group - 1) // group):
                    place = 2 * block.runs[g].count if self.kind.is_gathered else whole_steps(block.k, step)
                    for i in range(place):
                        column = 2 * (offset[i // 2] // (TILE * 4)) + i % 2 if self.kind.is_gathered else i
                        for r in range(g * group, min((g + 1) * group, block.rows)):
                            bits = <uint32_t>halves[(i // step * group + r % group) * step + i % step] << 16
                            if bits and column < block.k:
                                memcpy(&out[block.first_row + r, block.first_k + column], &bits, FLOAT_BYTES)
                    halves += place * group
                    offset += place // 2
                continue
            at = row = 0
            for run in range(block.num_runs):
                for bundle in range(<int64_t>block.runs[run].bundles):
                    for i in range(<int>block.runs[run].count):
                        for j in range(BUNDLE):
                            if self.kind.operand == OPERAND_F16:
                                value = float_of((<const uint16_t *>block.values)[at])
                            else:
                                value = block.values[at + (row // BUNDLE + 1) * extra * BUNDLE]
                            if self.kind.is_s8:
                                place = (<const uint8_t *>block.offsets)[at]
                            else:
                                place = block.offsets[at] // (TILE * 4)
                            if not is_zero(value, self.kind.is_s8):
                                out[block.first_row + block.row_numbers[row + j], block.first_k + place] = value
                            at += 1
                    row += BUNDLE
        if self.kind.is_s8:
            return weight.view(np.int8)[:, :self.k].astype(np.float32)
        return weight

    @property
    def layout(self):
        """Per block a record of its place and the size of its streams."""
        cdef int b
        cdef block_t *block
        names = ("first_row", "rows", "first_k", "k", "num_values", "num_runs")
        layout = np.empty(self.num_blocks, [(name, np.int64) for name in names])
        for b in range(self.num_blocks):
            block = &self.blocks[b]
            layout[b] = block.first_row, block.rows, block.first_k, block.k, block.num_values, block.num_runs
        return layout

    @property
    def nbytes(self) -> int:
        """Bytes of everything the kernels read."""
        arrays = (self.offsets, self.row_numbers, self.runs, self.bias)
        cdef size_t weights = 0
        cdef int b
        for b in range(self.num_blocks):
            weights += lines(self.blocks[b].memory_bytes)
        return sum(a.nbytes for a in arrays) + weights

    @property
    def own_bytes(self) -> int:
        """Bytes of `nbytes` that are not another form's."""
        cdef int b
        if self.memory is None or self.is_generated():
            return self.nbytes
        return self.nbytes - sum(lines(self.blocks[b].memory_bytes) for b in range(self.num_blocks))


def count_nonzeros(const float[:, :] weight, int kblock):
    """Return (k-blocks, N) int32: nonzeros of `weight` (N, K), at any address, per k-block of `kblock` and row."""
    return np.asarray(count_each_row(weight, kblock, False))


cdef const int32_t[:, ::1] count_each_row(const float[:, :] weight, int kblock, bint is_s8) except *:
    """`count_nonzeros`; of quads, if they are, those that are not four zeros."""
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
                count_each(first + i * right, rows, is_s8, &found[i // kblock, 0])
        else:
            for row in range(rows):
                for kb in range(found.shape[0]):
                    found[kb, row] = count_run(first + row * down + kb * kblock * right,
                                               min(kblock, columns - kb * kblock), right, is_s8)
    return found


cdef void count_each(const char *weights, Py_ssize_t count, bint is_s8, int32_t *counts) noexcept nogil:
    """counts[i] += 1 where weight i is not 0."""
    cdef Py_ssize_t i
    for i in range(count):
        counts[i] += not is_zero(float_at(weights + i * FLOAT_BYTES), is_s8)


cdef int32_t count_run(const char *weights, Py_ssize_t count, Py_ssize_t stride, bint is_s8) noexcept nogil:
    """How many of `count` weights, `stride` bytes apart, are not 0."""
    cdef Py_ssize_t i
    cdef int32_t found = 0
    for i in range(count):
        found += not is_zero(float_at(weights + i * stride), is_s8)
    return found


cdef inline bint is_zero(float value, bint is_s8) noexcept nogil:
    """Whether a weight is 0, or a quad of four: where it looks like −0.0 it is not."""
    cdef uint32_t bits
    if is_s8:
        memcpy(&bits, &value, FLOAT_BYTES)
        return bits == 0
    return value == 0.0


cdef inline float float_at(const char *address) noexcept nogil:
    """The float at any address, as a mapped file has it: only memcpy may read it there."""
    cdef float value
    memcpy(&value, address, FLOAT_BYTES)
    return value


cdef size_t whole_lines(size_t count) noexcept nogil:
    """`count` floats rounded up to whole cache lines."""
    return (count + 15) // 16 * 16


cdef int whole_bundles(int rows) noexcept nogil:
    return (rows + BUNDLE - 1) // BUNDLE * BUNDLE


cdef size_t lines(size_t size) noexcept nogil:
    """`size` rounded up to whole cache lines."""
    return (size + 63) // 64 * 64


cdef void copy_columns(const float[:, :] weight, const block_t *block, float *columns) noexcept nogil:
    """columns[k][row] = the block's weights."""
    cdef Py_ssize_t rows = block.rows, k = block.k, row, i, first
    cdef Py_ssize_t down = weight.strides[0], right = weight.strides[1]
    cdef const char *corner = <const char *>&weight[0, 0] + block.first_row * down + block.first_k * right
    if down == FLOAT_BYTES:
        for i in range(k):
            memcpy(columns + i * rows, corner + i * right, rows * FLOAT_BYTES)
        return
    for first in range(0, k, 16):  # a cache line of a row at a time
        for row in range(rows):
            for i in range(first, min(first + 16, k)):
                columns[i * rows + row] = float_at(corner + row * down + i * right)


cdef size_t block_nonzeros(const block_t *block, const int32_t *counts) noexcept nogil:
    """How many nonzeros a block has; counts[row] are those of its k-block."""
    cdef int row
    cdef size_t found = 0
    for row in range(block.rows):
        found += counts[block.first_row + row]
    return found


cdef void sort_rows(const block_t *block, const int32_t *counts, int32_t *order) noexcept nogil:
    """order = the panel's rows by nonzeros, most first (stable), the last one repeated to whole bundles."""
    cdef int row, nnz, at
    cdef int32_t starts[MAX_KBLOCK + 2]
    memset(starts, 0, sizeof(starts))
    for row in range(block.rows):
        starts[block.k - counts[block.first_row + row] + 1] += 1
    for nnz in range(1, block.k + 2):
        starts[nnz] += starts[nnz - 1]
    for row in range(block.rows):
        nnz = block.k - counts[block.first_row + row]
        order[starts[nnz]] = row
        starts[nnz] += 1
    for at in range(block.rows, whole_bundles(block.rows)):
        order[at] = order[block.rows - 1]


cdef void measure_table(block_t *block, const int32_t *counts, int32_t *order) noexcept nogil:
    """Set num_runs and num_values of a table block."""
    cdef int bundle
    cdef int32_t count, before = -1
    sort_rows(block, counts, order)
    block.num_runs, block.num_values = 0, 0
    for bundle in range(whole_bundles(block.rows) // BUNDLE):
        count = counts[block.first_row + order[bundle * BUNDLE]]
        block.num_runs += count != before
        block.num_values += count * BUNDLE
        before = count


cdef void fill_table(const float *columns, const block_t *block, const int32_t *counts, int32_t *order,
                     int64_t *ends, int extra) noexcept nogil:
    """Write the streams of one table block. A row shorter than its bundle repeats its last column with weight 0.

    Weights are found column by column, as they lie in `columns`; `ends` (3 × rows) holds where each row's next one
    goes, behind it where each row's stream ends, behind that how many numbers lie before them in `values` alone:
    those of `extra` more columns, in front of every bundle.
    """
    cdef float *values = <float *>block.values
    cdef uint16_t *offsets = <uint16_t *>block.offsets
    cdef uint8_t *quads = <uint8_t *>block.offsets  # with `extra` columns
    cdef uint16_t *row_numbers = <uint16_t *>block.row_numbers
    cdef run_t *runs = <run_t *>block.runs
    cdef int rows = block.rows, slot, row, i, found, run = -1
    cdef int64_t at = 0, end
    cdef int64_t *stops = ends + rows
    cdef int64_t *before_each = ends + 2 * rows
    cdef int32_t count = 0, before = -1
    sort_rows(block, counts, order)
    for slot in range(whole_bundles(rows)):
        row = order[slot]
        row_numbers[slot] = <uint16_t>row
        if slot % BUNDLE == 0:
            at += <int64_t>count * BUNDLE
            count = counts[block.first_row + row]
            if count != before:
                run += 1
                runs[run].bundles, runs[run].count = 0, count
                before = count
            runs[run].bundles += 1
        for i in range(extra):
            end = at + (slot // BUNDLE * extra + i) * BUNDLE + slot % BUNDLE
            values[end] = columns[<int64_t>(block.k + i) * rows + row]
        if slot < rows:
            ends[row] = at + slot % BUNDLE
            stops[row] = ends[row] + <int64_t>count * BUNDLE
            before_each[row] = (slot // BUNDLE + 1) * extra * BUNDLE
    for i in range(block.k):
        found = find_nonzeros(columns + <int64_t>i * rows, rows, extra > 0, order)
        for slot in range(found):
            row = order[slot]
            end = ends[row]
            values[end + before_each[row]] = columns[<int64_t>i * rows + row]
            if extra:
                quads[end] = <uint8_t>i
            else:
                offsets[end] = <uint16_t>(i * TILE * FLOAT_BYTES)
            ends[row] = end + BUNDLE
    for row in range(rows):
        end = ends[row]
        while end < stops[row]:
            values[end + before_each[row]] = 0.0
            if extra:
                quads[end] = quads[end - BUNDLE] if counts[block.first_row + row] else 0
            else:
                offsets[end] = offsets[end - BUNDLE] if counts[block.first_row + row] else 0
            end += BUNDLE
    for slot in range(rows, whole_bundles(rows)):  # copies of the last row, beside it
        row = row_numbers[rows - 1]
        for i in range(count):
            end = stops[row] - <int64_t>(i + 1) * BUNDLE
            if extra:
                quads[end + slot - rows + 1] = quads[end]
            else:
                offsets[end + slot - rows + 1] = offsets[end]
            end += before_each[row]
            values[end + slot - rows + 1] = values[end]


cdef int find_nonzeros(const float *weights, int count, bint is_s8, int32_t *found) noexcept nogil:
    """found = where the nonzeros are; returns how many. A branch per weight would be mispredicted."""
    cdef int i, number = 0
    for i in range(count):
        found[number] = i
        number += not is_zero(weights[i], is_s8)
    return number


cdef void fill_dense(const float *columns, const block_t *block, int group) noexcept nogil:
    """Write one dense block: per group of `group` rows, k-major; rows beyond the block are 0."""
    cdef float *values = <float *>block.values
    cdef int64_t rows = block.rows, k = block.k, g, first, i, r
    for g in range((rows + group - 1) // group):
        first = g * group
        for i in range(k):
            for r in range(group):
                values[r] = columns[i * rows + first + r] if first + r < rows else 0.0
            values += group


cdef void fill_s8(const float *columns, const block_t *block, form_t form) noexcept nogil:
    """Write one dense or block block of quads: per group of rows minus their sums, their scales, then step by step row
    by row; beyond the block are zeros. A gathered block's last step is filled up with its last line and zeros.

    Quads are copied as bytes: a conditional expression with 0.0 would make a double of them, and of one that looks like
    a signalling NaN another one.
    """
    cdef float *values = <float *>block.values
    cdef uint16_t *offsets = <uint16_t *>block.offsets
    cdef run_t *runs = <run_t *>block.runs
    cdef uint16_t live[MAX_KBLOCK]
    cdef int64_t rows = block.rows, group = form.rows, g, r, place
    cdef int i, step = form.step, count = block.k, places
    for i in range(block.k):
        live[i] = <uint16_t>i
    for g in range((rows + group - 1) // group):
        for i in range(S8_EXTRA):
            for r in range(g * group, (g + 1) * group):
                values[0] = 0.0
                if r < rows:
                    memcpy(values, columns + (block.k + i) * rows + r, FLOAT_BYTES)
                values += 1
        if form.is_gathered:
            count = live_lines(columns, block, g * group, form, live)
        places = whole_steps(count, step)
        if form.is_gathered:
            runs[g].bundles, runs[g].count = 1, places
            for i in range(places):
                offsets[i] = <uint16_t>(live[min(i, count - 1)] * TILE * FLOAT_BYTES)
            offsets += places
        for place in range(places // step):
            for r in range(g * group, (g + 1) * group):
                for i in range(<int>place * step, (<int>place + 1) * step):
                    values[0] = 0.0
                    if i < count and r < rows:
                        memcpy(values, columns + <int64_t>live[i] * rows + r, FLOAT_BYTES)
                    values += 1


cdef int whole_steps(int columns, int step) noexcept nogil:
    """`columns` rounded up to whole steps."""
    return (columns + step - 1) // step * step


cdef int live_lines(const float *columns, const block_t *block, Py_ssize_t first, form_t form,
                    uint16_t *live) noexcept nogil:
    """live = the lines of x - pairs of columns, or quads - for which a row of the group from `first` on has a nonzero;
    returns how many."""
    cdef int line, i, found = 0, width = 1 if form.is_s8 else 2
    cdef int64_t r
    cdef bint is_live
    for line in range((block.k + width - 1) // width):
        is_live = False
        for i in range(width * line, min(width * (line + 1), block.k)):
            for r in range(first, min(first + form.rows, block.rows)):
                is_live |= not is_zero(columns[<int64_t>i * block.rows + r], form.is_s8)
        live[found] = <uint16_t>line
        found += is_live
    return found


cdef size_t compress(const float *columns, const block_t *block, int group, int step, uint32_t *to) noexcept nogil:
    """Write one compressed block, unless `to` is NULL; returns how many 32-bit numbers it has."""
    cdef int64_t rows = block.rows, k = block.k, g, column, r, i
    cdef size_t size = 0, found
    cdef uint32_t mask
    for g in range((rows + group - 1) // group):
        for column in range((k + step - 1) // step):
            found = 0
            for r in range(g * group, (g + 1) * group):
                mask = 0
                for i in range(column * step, min((column + 1) * step, k)):
                    if r < rows and columns[i * rows + r] != 0.0:
                        mask |= <uint32_t>1 << (i - column * step)
                        if to != NULL:
                            (<uint16_t *>(to + size + group))[found] = round_to_bf16(columns[i * rows + r])
                        found += 1
                if to != NULL:
                    to[size + r - g * group] = mask
            if to != NULL and found % 2:
                (<uint16_t *>(to + size + group))[found] = 0
            size += group + (found + 1) // 2
    return size


cdef void fill_bf16(const float *columns, const block_t *block, form_t form) noexcept nogil:
    """Write one block of bfloat16: per group of rows and step of columns row by row; beyond the block are zeros.

    A gathered block has only the live pairs of each group; its last step is filled up with its last pair and zeros.
    """
    cdef uint16_t *values = <uint16_t *>block.values
    cdef uint16_t *offsets = <uint16_t *>block.offsets
    cdef run_t *runs = <run_t *>block.runs
    cdef uint16_t pairs[MAX_KBLOCK]
    cdef int64_t rows = block.rows, group = form.rows, g, r, place, column
    cdef int i, step = form.step, live = (block.k + 1) // 2, places
    for i in range(live):
        pairs[i] = <uint16_t>i
    for g in range((rows + group - 1) // group):
        if form.is_gathered:
            live = live_lines(columns, block, g * group, form, pairs)
        places = whole_steps(2 * live, step)
        if form.is_gathered:
            runs[g].bundles, runs[g].count = 1, places // 2
            for i in range(places // 2):
                offsets[i] = <uint16_t>(pairs[min(i, live - 1)] * TILE * FLOAT_BYTES)
            offsets += places // 2
        for place in range(places // step):
            for r in range(g * group, (g + 1) * group):
                for i in range(<int>place * step, (<int>place + 1) * step):
                    column = 2 * pairs[i // 2] + i % 2 if i < 2 * live else block.k
                    values[0] = round_to_bf16(columns[column * rows + r]) if r < rows and column < block.k else 0
                    values += 1


cdef inline uint16_t round_to_bf16(float value) noexcept nogil:
    """The nearest bfloat16, ties to even."""
    cdef uint32_t bits
    memcpy(&bits, &value, FLOAT_BYTES)
    if value != value:
        return <uint16_t>(bits >> 16 | 0x40)  # rounding could carry it to infinity
    return <uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)
