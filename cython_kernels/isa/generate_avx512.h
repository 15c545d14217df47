/* Generated code: a block's nonzeros as a straight line of instructions, one FMA each, nothing else per weight.
 *
 * Per tile and group of up to GROUP_ROWS rows, one accumulator register each: load the accumulators (from the bias
 * or from `start`), then for every column with a nonzero in the group load its 16 tokens once and per nonzero do
 *     vfmadd231ps zmm_row, zmm_x, dword [weights]{1to16}
 * with the weights as one sequential stream; store. All hot displacements fit the 8-bit compressed form, 7 bytes
 * per instruction. Encodings: Intel SDM volume 2, section 2.7 (EVEX).
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

static size_t f32_code_bound__avx512(const block_t *block) {
    const size_t rows = (size_t)block->rows, k = (size_t)block->k, nonzeros = block->num_values;
    const size_t groups = (rows + GROUP_ROWS - 1) / GROUP_ROWS;
    const size_t columns = nonzeros < groups * k ? nonzeros : groups * k;
    const size_t prefetches = nonzeros / FMAS_PER_PREFETCH + 1 + k + 2 * rows;
    return 7 * (nonzeros + nonzeros / 256 + columns) + 8 * prefetches + 22 * rows + 64;
}

/* Bit r is set where column[r] is not 0 (NaN is not), for `group` rows. */
static uint32_t nonzero_rows(const float *column, int group) {
    const uint32_t rows = (1u << group) - 1;
    const __m512 low = _mm512_maskz_loadu_ps((__mmask16)rows, column);
    const __m512 high = _mm512_maskz_loadu_ps((__mmask16)(rows >> 16), column + 16);
    const __m512 zero = _mm512_setzero_ps();
    return (uint32_t)_mm512_cmp_ps_mask(low, zero, _CMP_NEQ_UQ) |
           (uint32_t)_mm512_cmp_ps_mask(high, zero, _CMP_NEQ_UQ) << 16;
}

static uint8_t *f32_generate__avx512(const block_t *block, const float *columns, int start) {
    uint8_t *p = (uint8_t *)block->code;
    float *stream = (float *)block->values;
    const int rows = block->rows, k = block->k;
    const size_t nonzeros = block->num_values;
    const size_t lines = (size_t)(k + rows + (start == START_INIT ? rows : 0));
    size_t count = 0, line = 0;
    const uint8_t take_arguments[] = {0x4c, 0x89, 0xc8,              /* mov rax, r9: next_x */
                                      0x4c, 0x8b, 0x54, 0x24, 0x08,  /* mov r10, [rsp + 8]: next_y */
                                      0x4c, 0x8b, 0x5c, 0x24, 0x10}; /* mov r11, [rsp + 16]: next_start */
    memcpy(p, take_arguments, sizeof take_arguments);
    p += sizeof take_arguments;
    const uint8_t add_weights[] = {0x48, 0x81, 0xc1, 0x00, 0x04, 0x00, 0x00}; /* add rcx, 256 * 4 */
    for (int i = 1; i * 256 < k; i++) { /* lea r9 + i - 1, [rdi + i * 256 * 64] */
        const uint8_t lea[] = {0x4c, 0x8d, (uint8_t)(0x8f + (i - 1) * 8), 0, (uint8_t)(i * 64), 0, 0};
        memcpy(p, lea, sizeof lea);
        p += sizeof lea;
    }
    for (int first = 0; first < rows; first += GROUP_ROWS) {
        const int group = rows - first < GROUP_ROWS ? rows - first : GROUP_ROWS;
        for (int r = 0; r < group; r++)
            p = start == START_BIAS ? emit_splat(p, r, START_POINTER, (first + r) * 4)
                                    : emit_load(p, r, START_POINTER, (first + r) * TILE * 4);
        for (int i = 0; i < k; i++) {
            const float *column = columns + (ptrdiff_t)i * rows + first;
            uint32_t left = nonzero_rows(column, group);
            if (left) p = emit_load(p, X_REGISTER, X_POINTERS[i / 256], (i % 256 - X_BIAS) * 64);
            for (; left; left &= left - 1) {
                const int r = __builtin_ctz(left);
                if (count && count % 256 == 0) {
                    memcpy(p, add_weights, sizeof add_weights);
                    p += sizeof add_weights;
                }
                if (count % FMAS_PER_PREFETCH == 0)
                    p = emit_prefetch(p, NEXT_BLOCK, (int32_t)(count / FMAS_PER_PREFETCH) * 64);
                for (; line < lines && line * nonzeros <= count * lines; line++)
                    p = emit_prefetch_tile(p, (int)line, k, rows);
                p = emit_fma(p, r, X_REGISTER, WEIGHT_POINTER, ((int32_t)(count % 256) - WEIGHT_BIAS) * 4);
                stream[count++] = column[r];
            }
        }
        for (int r = 0; r < group; r++) p = emit_store(p, r, Y_POINTER, (first + r) * TILE * 4);
    }
    *p++ = 0xc3; /* ret */
    return p;
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
