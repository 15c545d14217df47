/* Generated code: a block's nonzeros as a straight line of instructions, one FMA each, nothing else per weight.
 *
 * Per tile and group of up to GROUP_ROWS rows, one accumulator register each: load the accumulators (from the bias
 * or from `start`), then for every column with a nonzero in the group load its 16 tokens once and per nonzero do
 *     vfmadd231ps zmm_row, zmm_x, dword [weights]{1to16}
 * with the weights as one sequential stream; store. All hot displacements fit the 8-bit compressed form, 7 bytes
 * per instruction. Encodings: Intel SDM volume 2, section 2.7 (EVEX).
 *
 * Of 8-bit integers the same with quads for columns: the accumulators are sums in 32 bits that start from the correction
 * for the zero point, vpdpbusd takes the place of the FMA, and at the end every sum is scaled and added to what the
 * float32 form would have started from. The stream of weights holds the corrections in front of a group's weights and
 * the scales behind them.
 *
 * Nothing here would hide a wait for memory: the accumulators of a group of rows all start with a load, and code is
 * not fetched ahead. So a block prefetches between its own instructions (in one burst the prefetches would queue up
 * before the loads) the x, y and start of the tile it runs next, and bit by bit the block that runs next.
 *
 * Included by avx512.h inside its target region. */

#define GROUP_ROWS 30     /* zmm0 … zmm29 accumulate, zmm31 holds x */
#define X_REGISTER 31
#define X_BIAS 128        /* rows by which the x pointer is ahead, so that 8-bit displacements reach 256 rows */
#define WEIGHT_BIAS 128   /* likewise, in weights */
#define GENERATED_MAX_K 512 /* two x pointers of 256 rows each */

#define FMAS_PER_PREFETCH 64 /* 12 to 14 bytes per nonzero: after 14 tiles the next block is there */

/* The generated function. x and weights point X_BIAS rows and WEIGHT_BIAS floats ahead; start is what the block was
 * generated for. One line per FMAS_PER_PREFETCH nonzeros is prefetched from next_block on, and of the tile that
 * runs next all of x, y and, for START_INIT, start. */
typedef void (*generated_fn)(const float *x, float *y, const float *start, const float *weights,
                             const char *next_block, const float *next_x, const float *next_y,
                             const float *next_start);

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 };
enum { Y_POINTER = RSI, START_POINTER = RDX, WEIGHT_POINTER = RCX };
enum { NEXT_BLOCK = R8, NEXT_X = RAX, NEXT_Y = R10, NEXT_START = R11 };
static const int X_POINTERS[] = {RDI, R9}; /* each serves 256 rows of x */

/* One EVEX.512.W0 instruction: opcode reg, vector, [base + displacement]; `scale` is what the compressed
 * displacement counts in (64 for a whole register, 4 for a broadcast element). */
static uint8_t *emit_evex(uint8_t *p, int map, int prefix, uint8_t opcode, int reg, int vector, int broadcast,
                          int base, int32_t displacement, int scale) {
    *p++ = 0x62;
    *p++ = (uint8_t)((~reg >> 3 & 1) << 7 | 1 << 6 | (~base >> 3 & 1) << 5 | (~reg >> 4 & 1) << 4 | map);
    *p++ = (uint8_t)((~vector & 15) << 3 | 1 << 2 | prefix);
    *p++ = (uint8_t)(2 << 5 | broadcast << 4 | (~vector >> 4 & 1) << 3);
    *p++ = opcode;
    const int32_t compressed = displacement / scale;
    if (compressed * scale == displacement && compressed >= -128 && compressed <= 127) {
        *p++ = (uint8_t)(0x40 | (reg & 7) << 3 | (base & 7));
        *p++ = (uint8_t)compressed;
    } else {
        *p++ = (uint8_t)(0x80 | (reg & 7) << 3 | (base & 7));
        memcpy(p, &displacement, 4);
        p += 4;
    }
    return p;
}

/* Likewise of registers alone: opcode reg, vector, other. */
static uint8_t *emit_evex_registers(uint8_t *p, int map, int prefix, uint8_t opcode, int reg, int vector, int other) {
    *p++ = 0x62;
    *p++ = (uint8_t)((~reg >> 3 & 1) << 7 | (~other >> 4 & 1) << 6 | (~other >> 3 & 1) << 5 | (~reg >> 4 & 1) << 4 | map);
    *p++ = (uint8_t)((~vector & 15) << 3 | 1 << 2 | prefix);
    *p++ = (uint8_t)(2 << 5 | (~vector >> 4 & 1) << 3);
    *p++ = opcode;
    *p++ = (uint8_t)(0xc0 | (reg & 7) << 3 | (other & 7));
    return p;
}

static uint8_t *emit_load(uint8_t *p, int reg, int base, int32_t displacement) { /* vmovaps zmm, [m512] */
    return emit_evex(p, 1, 0, 0x28, reg, 0, 0, base, displacement, 64);
}
static uint8_t *emit_store(uint8_t *p, int reg, int base, int32_t displacement) { /* vmovaps [m512], zmm */
    return emit_evex(p, 1, 0, 0x29, reg, 0, 0, base, displacement, 64);
}
static uint8_t *emit_splat(uint8_t *p, int reg, int base, int32_t displacement) { /* vbroadcastss zmm, [m32] */
    return emit_evex(p, 2, 1, 0x18, reg, 0, 0, base, displacement, 4);
}
static uint8_t *emit_fma(uint8_t *p, int acc, int x, int base, int32_t displacement) { /* vfmadd231ps … {1to16} */
    return emit_evex(p, 2, 1, 0xb8, acc, x, 1, base, displacement, 4);
}

static uint8_t *emit_dot(uint8_t *p, int acc, int x, int base, int32_t displacement) { /* vpdpbusd … {1to16} */
    return emit_evex(p, 2, 1, 0x50, acc, x, 1, base, displacement, 4);
}
static uint8_t *emit_multiply_int(uint8_t *p, int to, int x, int base, int32_t displacement) { /* vpmulld … {1to16} */
    return emit_evex(p, 2, 1, 0x40, to, x, 1, base, displacement, 4);
}
static uint8_t *emit_to_float(uint8_t *p, int reg) { /* vcvtdq2ps zmm, zmm */
    return emit_evex_registers(p, 1, 0, 0x5b, reg, 0, reg);
}
static uint8_t *emit_multiply(uint8_t *p, int to, int x) { /* vmulps zmm, zmm, zmm */
    return emit_evex_registers(p, 1, 0, 0x59, to, to, x);
}
static uint8_t *emit_scale(uint8_t *p, int to, int base, int32_t displacement) { /* vmulps … {1to16} */
    return emit_evex(p, 1, 0, 0x59, to, to, 1, base, displacement, 4);
}
static uint8_t *emit_add(uint8_t *p, int to, int base, int32_t displacement) { /* vaddps zmm, zmm, [m512] */
    return emit_evex(p, 1, 0, 0x58, to, to, 0, base, displacement, 64);
}
static uint8_t *emit_add_splat(uint8_t *p, int to, int base, int32_t displacement) { /* vaddps … {1to16} */
    return emit_evex(p, 1, 0, 0x58, to, to, 1, base, displacement, 4);
}

static uint8_t *emit_prefetch(uint8_t *p, int base, int32_t displacement) { /* prefetcht1 [base + displacement] */
    const uint8_t opcode[] = {(uint8_t)(0x40 | base >> 3), 0x0f, 0x18, (uint8_t)(0x90 | (base & 7))};
    memcpy(p, opcode, sizeof opcode);
    memcpy(p + sizeof opcode, &displacement, 4);
    return p + sizeof opcode + 4;
}

/* Line `line` of the next tile: x has k of them, then y and start `rows` each. */
static uint8_t *emit_prefetch_tile(uint8_t *p, int line, int k, int rows) {
    if (line < k) return emit_prefetch(p, NEXT_X, line * 64);
    if (line < k + rows) return emit_prefetch(p, NEXT_Y, (line - k) * 64);
    return emit_prefetch(p, NEXT_START, (line - k - rows) * 64);
}

/* Bytes of code at most, for `numbers` in the stream of weights and `k` lines of x. */
static size_t code_bound(const block_t *block, size_t k, size_t numbers) {
    const size_t rows = (size_t)block->rows, groups = (rows + GROUP_ROWS - 1) / GROUP_ROWS;
    const size_t columns = numbers < groups * k ? numbers : groups * k;
    const size_t prefetches = numbers / FMAS_PER_PREFETCH + 1 + k + 2 * rows;
    return 7 * (numbers + numbers / 256 + columns) + 8 * prefetches + 46 * rows + 22 * groups + 64;
}

static size_t f32_code_bound__avx512(const block_t *block) {
    return code_bound(block, (size_t)block->k, block->num_values);
}

static size_t s8_code_bound__avx512(const block_t *block) {
    return code_bound(block, (size_t)(block->k + 3) / 4 + QUAD_HEADER, block->num_values);
}

/* Bit r is set where column[r] is not 0 (NaN is not; of 8-bit integers no bit counts as a sign), for `group` rows. */
static uint32_t nonzero_rows(const float *column, int group, int is_s8) {
    const uint32_t rows = (1u << group) - 1;
    const __m512 low = _mm512_maskz_loadu_ps((__mmask16)rows, column);
    const __m512 high = _mm512_maskz_loadu_ps((__mmask16)(rows >> 16), column + 16);
    const __m512 zero = _mm512_setzero_ps();
    if (is_s8) {
        const __m512i a = _mm512_castps_si512(low), b = _mm512_castps_si512(high);
        return (uint32_t)_mm512_test_epi32_mask(a, a) | (uint32_t)_mm512_test_epi32_mask(b, b) << 16;
    }
    return (uint32_t)_mm512_cmp_ps_mask(low, zero, _CMP_NEQ_UQ) |
           (uint32_t)_mm512_cmp_ps_mask(high, zero, _CMP_NEQ_UQ) << 16;
}

/* Where the next number of the stream of weights is, behind WEIGHT_POINTER, which moves on every 256 numbers. Every so
 * many numbers another line of the next block is prefetched. */
static uint8_t *emit_next_weight(uint8_t *p, size_t count, int32_t *displacement) {
    const uint8_t add_weights[] = {0x48, 0x81, 0xc1, 0x00, 0x04, 0x00, 0x00}; /* add rcx, 256 * 4 */
    if (count && count % 256 == 0) {
        memcpy(p, add_weights, sizeof add_weights);
        p += sizeof add_weights;
    }
    if (count % FMAS_PER_PREFETCH == 0)
        p = emit_prefetch(p, NEXT_BLOCK, (int32_t)(count / FMAS_PER_PREFETCH) * 64);
    *displacement = ((int32_t)(count % 256) - WEIGHT_BIAS) * 4;
    return p;
}

static uint8_t *emit_load_x(uint8_t *p, int line) {
    return emit_load(p, X_REGISTER, X_POINTERS[line / 256], (line % 256 - X_BIAS) * 64);
}

INLINE uint8_t *generate(const block_t *block, const float *columns, const int start, const int is_s8) {
    uint8_t *p = (uint8_t *)block->code;
    float *stream = (float *)block->values;
    const int rows = block->rows, k = is_s8 ? (block->k + 3) / 4 : block->k, header = is_s8 ? QUAD_HEADER : 0;
    const size_t numbers = block->num_values;
    const size_t lines = (size_t)(header + k + rows + (start == START_INIT ? rows : 0));
    size_t count = 0, line = 0;
    int32_t at;
    const uint8_t take_arguments[] = {0x4c, 0x89, 0xc8,              /* mov rax, r9: next_x */
                                      0x4c, 0x8b, 0x54, 0x24, 0x08,  /* mov r10, [rsp + 8]: next_y */
                                      0x4c, 0x8b, 0x5c, 0x24, 0x10}; /* mov r11, [rsp + 16]: next_start */
    memcpy(p, take_arguments, sizeof take_arguments);
    p += sizeof take_arguments;
    for (int i = 1; i * 256 < header + k; i++) { /* lea r9 + i - 1, [rdi + i * 256 * 64] */
        const uint8_t lea[] = {0x4c, 0x8d, (uint8_t)(0x8f + (i - 1) * 8), 0, (uint8_t)(i * 64), 0, 0};
        memcpy(p, lea, sizeof lea);
        p += sizeof lea;
    }
    for (int first = 0; first < rows; first += GROUP_ROWS) {
        const int group = rows - first < GROUP_ROWS ? rows - first : GROUP_ROWS;
        if (is_s8) p = emit_load_x(p, 1);
        for (int r = 0; r < group; r++)
            if (is_s8) {
                p = emit_next_weight(p, count, &at);
                p = emit_multiply_int(p, r, X_REGISTER, WEIGHT_POINTER, at);
                stream[count++] = columns[(ptrdiff_t)k * rows + first + r];
            } else {
                p = start == START_BIAS ? emit_splat(p, r, START_POINTER, (first + r) * 4)
                                        : emit_load(p, r, START_POINTER, (first + r) * TILE * 4);
            }
        for (int i = 0; i < k; i++) {
            const float *column = columns + (ptrdiff_t)i * rows + first;
            uint32_t left = nonzero_rows(column, group, is_s8);
            if (left) p = emit_load_x(p, header + i);
            for (; left; left &= left - 1) {
                const int r = __builtin_ctz(left);
                p = emit_next_weight(p, count, &at);
                for (; line < lines && line * numbers <= count * lines; line++)
                    p = emit_prefetch_tile(p, (int)line, header + k, rows);
                p = (is_s8 ? emit_dot : emit_fma)(p, r, X_REGISTER, WEIGHT_POINTER, at);
                memcpy(stream + count++, column + r, sizeof *stream);
            }
        }
        if (is_s8) p = emit_load_x(p, 0);
        for (int r = 0; r < group; r++) {
            if (is_s8) {
                p = emit_to_float(p, r);
                p = emit_multiply(p, r, X_REGISTER);
                p = emit_next_weight(p, count, &at);
                p = emit_scale(p, r, WEIGHT_POINTER, at);
                stream[count++] = columns[(ptrdiff_t)(k + 1) * rows + first + r];
                p = start == START_BIAS ? emit_add_splat(p, r, START_POINTER, (first + r) * 4)
                                        : emit_add(p, r, START_POINTER, (first + r) * TILE * 4);
            }
            p = emit_store(p, r, Y_POINTER, (first + r) * TILE * 4);
        }
    }
    *p++ = 0xc3; /* ret */
    return p;
}

static uint8_t *f32_generate__avx512(const block_t *block, const float *columns, int start) {
    return generate(block, columns, start, 0);
}

static uint8_t *s8_generate__avx512(const block_t *block, const float *columns, int start) {
    return generate(block, columns, start, 1);
}

static void f32_generated__avx512(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                                  activation_fn after) {
    const generated_fn code = (generated_fn)(uintptr_t)block->code;
    const size_t step = (block->num_values / FMAS_PER_PREFETCH + 1) * 64;
    const size_t end = block->next ? block->next->memory_bytes : 0;
    size_t at = 0;
    for (int tile = 0; tile < y.count; tile++, at += step) {
        /* when the next block is there, touching one's own memory again costs nothing; likewise the last tile */
        const char *next_block = at < end ? (const char *)block->next->memory + at : (const char *)block->memory;
        const int next = tile + 1 < y.count ? tile + 1 : tile;
        code(x.at + tile * x.stride + X_BIAS * TILE, y.at + tile * y.stride,
             init.at ? init.at + tile * init.stride : bias, block->values + WEIGHT_BIAS, next_block,
             x.at + next * x.stride, y.at + next * y.stride, init.at ? init.at + next * init.stride : bias);
        if (after) after(y.at + tile * y.stride, (size_t)block->rows * TILE);
    }
}
