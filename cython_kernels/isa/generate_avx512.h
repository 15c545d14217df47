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
 * float32 form would have started from. The numbers are those of the table form, which reads the same ones: a group is
 * GROUP_BUNDLES of its bundles, whose rows advance side by side, so a group's numbers are read in about the order they
 * lie in, through several pointers of 256 numbers each.
 *
 * In half precision an FMA serves two tiles at once. Its accumulators start from 0; after every F16_TERMS terms of a row,
 * and at the end of its group, its halves are widened and join the float32 sums of both tiles, in y.
 *
 * Nothing here would hide a wait for memory: the accumulators of a group of rows all start with a load, and code is
 * not fetched ahead. So a block prefetches between its own instructions (in one burst the prefetches would queue up
 * before the loads) the x, y and start of the tile (or pair) it runs next, and bit by bit the block that runs next.
 *
 * Included by avx512.h inside its target region. */

#define GROUP_ROWS 30     /* zmm0 … zmm29 accumulate, zmm31 holds x */
#define GROUP_BUNDLES (GROUP_ROWS / BUNDLE)
#define FIRST_TILE 30     /* what has been widened for it */
#define X_REGISTER 31
#define X_BIAS 128        /* rows by which the x pointer is ahead, so that 8-bit displacements reach 256 rows */
#define WEIGHT_BIAS 128   /* likewise, in weights */
#define GENERATED_MAX_K 512 /* two x pointers of 256 rows each */

#define FMAS_PER_PREFETCH 64 /* 12 to 14 bytes per nonzero (9 to 11 in half precision): after 14 calls the next block is there */

/* The generated function. x and weights point X_BIAS rows and WEIGHT_BIAS numbers ahead; start is what the block was
 * generated for. One line per FMAS_PER_PREFETCH nonzeros is prefetched from next_block on, and of the tile that
 * runs next all of x, y and, for START_INIT, start. What ends in `other` is the second tile's of a pair: half precision
 * alone reads it. It may be the first tile's, whose sums are stored last. */
typedef void (*generated_fn)(const float *x, float *y, const float *start, const float *weights,
                             const char *next_block, const float *next_x, const float *next_y,
                             const float *next_start, const float *next_y_other, const float *next_start_other,
                             float *y_other, const float *start_other);

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum { WEIGHT_POINTER = RCX, NEXT_BLOCK = R8 };
enum { NEXT_LINES = RAX }; /* next_x, then one after the other what lies on the stack: see emit_prefetch_tile */
static const int X_POINTERS[] = {RDI, R9}; /* each serves 256 rows of x */
static const int Y_POINTERS[] = {RSI, R10}, START_POINTERS[] = {RDX, R11}; /* of the first tile and the other */
/* Of 8-bit integers, into a group's numbers: 256 each, the last one also what lies behind. The caller's are saved. */
static const int WINDOWS[] = {R10, R11, RBX, RBP, R13, R14, R15}, SAVED[] = {RBX, RBP, R13, R14, R15};
enum { NUM_WINDOWS = 7, NUM_SAVED = 5 };

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

static uint8_t *emit_fma_halves(uint8_t *p, int acc, int x, int base, int32_t displacement) { /* vfmadd231ph … {1to32} */
    return emit_evex(p, 6, 1, 0xb8, acc, x, 1, base, displacement, 2);
}
static uint8_t *emit_zero(uint8_t *p, int reg) { /* vpxord zmm, zmm, zmm */
    return emit_evex_registers(p, 1, 1, 0xef, reg, reg, reg);
}
static uint8_t *emit_widen(uint8_t *p, int to, int from) { /* vcvtph2ps zmm, ymm */
    return emit_evex_registers(p, 2, 1, 0x13, to, 0, from);
}
static uint8_t *emit_upper_half(uint8_t *p, int reg) { /* vextracti32x8 ymm, zmm, 1 */
    p = emit_evex_registers(p, 3, 1, 0x3b, reg, 0, reg);
    *p++ = 1;
    return p;
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

static uint8_t *emit_argument(uint8_t *p, int reg, int number) { /* mov reg, [rsp + 8 * number]: from 1 on */
    const uint8_t opcode[] = {(uint8_t)(0x48 | (reg >> 3) << 2), 0x8b, (uint8_t)(0x44 | (reg & 7) << 3), 0x24,
                              (uint8_t)(8 * number)};
    memcpy(p, opcode, sizeof opcode);
    return p + sizeof opcode;
}

/* Line `line` of the next tile or pair: x has k of them, then y and, where sums start from init, start have `rows` each.
 * `saved` registers lie on the stack above the arguments. */
static uint8_t *emit_prefetch_tile(uint8_t *p, int line, int k, int rows, int start, int saved) {
    if (line < k) return emit_prefetch(p, NEXT_LINES, line * 64);
    const int array = (line - k) / rows, row = (line - k) % rows;
    if (row == 0) p = emit_argument(p, NEXT_LINES, saved + (start == START_INIT ? 1 + array : 1 + 2 * array));
    return emit_prefetch(p, NEXT_LINES, row * 64);
}

/* Bytes of code at most, for `numbers` in the stream of weights and `k` lines of x. */
static size_t code_bound(const block_t *block, size_t k, size_t numbers) {
    const size_t rows = (size_t)block->rows, groups = (rows + GROUP_ROWS - 1) / GROUP_ROWS;
    const size_t columns = numbers < groups * k ? numbers : groups * k;
    const size_t prefetches = numbers / FMAS_PER_PREFETCH + 1 + k + 2 * rows;
    return 7 * (numbers + numbers / 256 + columns) + 8 * prefetches + 20 * rows + 64;
}

static size_t f32_code_bound__avx512(const block_t *block) {
    return code_bound(block, (size_t)block->k, block->num_values);
}

static size_t f16_code_bound__avx512(const block_t *block) {
    const size_t rows = (size_t)block->rows, times_widened = rows + block->num_values / F16_TERMS;
    return code_bound(block, (size_t)block->k, block->num_values) + 6 * rows + 65 * times_widened + 8 * 2 * rows;
}

static size_t s8_code_bound__avx512(const block_t *block) {
    const size_t rows = (size_t)block->rows, groups = rows / (GROUP_BUNDLES * BUNDLE) + 1;
    return code_bound(block, (size_t)(block->k + 3) / 4 + QUAD_HEADER, block->num_values) + 3 * block->num_values +
           7 * (groups * (NUM_WINDOWS + 2 + (size_t)(block->k + 3) / 4) + 8 * rows);
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

/* Every so many numbers another line of the next block is prefetched. */
static uint8_t *emit_prefetch_block(uint8_t *p, size_t count) {
    if (count % FMAS_PER_PREFETCH) return p;
    return emit_prefetch(p, NEXT_BLOCK, (int32_t)(count / FMAS_PER_PREFETCH) * 64);
}

/* Where the next number of the stream of weights is, of `size` bytes each, behind WEIGHT_POINTER, which moves on every 256
 * numbers. */
static uint8_t *emit_next_weight(uint8_t *p, size_t count, int size, int32_t *displacement) {
    const uint8_t add_weights[] = {0x48, 0x81, 0xc1, 0x00, (uint8_t)size, 0x00, 0x00}; /* add rcx, 256 * size */
    if (count && count % 256 == 0) {
        memcpy(p, add_weights, sizeof add_weights);
        p += sizeof add_weights;
    }
    *displacement = ((int32_t)(count % 256) - WEIGHT_BIAS) * size;
    return emit_prefetch_block(p, count);
}

static uint8_t *emit_load_x(uint8_t *p, int line) {
    return emit_load(p, X_REGISTER, X_POINTERS[line / 256], (line % 256 - X_BIAS) * 64);
}

/* to = sums of row `row` of one tile, plus `to`: what they start from, or what is in y. */
static uint8_t *emit_add_sums(uint8_t *p, int to, int tile, int row, int start, int is_begun) {
    if (is_begun) return emit_add(p, to, Y_POINTERS[tile], row * TILE * 4);
    if (start == START_BIAS) return emit_add_splat(p, to, START_POINTERS[0], row * 4);
    return emit_add(p, to, START_POINTERS[tile], row * TILE * 4);
}

/* The halves of an accumulator join the sums of its row in both tiles. The other tile's may lie where the first one's do:
 * both are read before either is stored, and the first one's are stored last. */
static uint8_t *emit_join(uint8_t *p, int acc, int row, int start, int is_begun) {
    p = emit_widen(p, FIRST_TILE, acc);
    p = emit_upper_half(p, acc);
    p = emit_widen(p, acc, acc);
    p = emit_add_sums(p, FIRST_TILE, 0, row, start, is_begun);
    p = emit_add_sums(p, acc, 1, row, start, is_begun);
    p = emit_store(p, acc, Y_POINTERS[1], row * TILE * 4);
    return emit_store(p, FIRST_TILE, Y_POINTERS[0], row * TILE * 4);
}

INLINE uint8_t *generate(const block_t *block, const float *columns, const int start, const int is_f16) {
    uint8_t *p = (uint8_t *)block->code;
    float *stream = (float *)block->values;
    const int size = is_f16 ? 2 : 4, rows = block->rows, k = block->k;
    const size_t numbers = block->num_values;
    const size_t lines = (size_t)(k + (is_f16 ? 2 : 1) * (start == START_INIT ? 2 : 1) * rows);
    size_t count = 0, line = 0;
    int32_t at;
    const uint8_t take_next_x[] = {0x4c, 0x89, 0xc8}; /* mov rax, r9 */
    memcpy(p, take_next_x, sizeof take_next_x);
    p += sizeof take_next_x;
    if (is_f16) {
        p = emit_argument(p, Y_POINTERS[1], 5);
        p = emit_argument(p, START_POINTERS[1], 6);
    }
    for (int i = 1; i * 256 < k; i++) { /* lea r9 + i - 1, [rdi + i * 256 * 64] */
        const uint8_t lea[] = {0x4c, 0x8d, (uint8_t)(0x8f + (i - 1) * 8), 0, (uint8_t)(i * 64), 0, 0};
        memcpy(p, lea, sizeof lea);
        p += sizeof lea;
    }
    for (int first = 0; first < rows; first += GROUP_ROWS) {
        const int group = rows - first < GROUP_ROWS ? rows - first : GROUP_ROWS;
        int terms[GROUP_ROWS] = {0}; /* in half precision, of each row so far */
        for (int r = 0; r < group; r++)
            if (is_f16) {
                p = emit_zero(p, r);
            } else {
                p = start == START_BIAS ? emit_splat(p, r, START_POINTERS[0], (first + r) * 4)
                                        : emit_load(p, r, START_POINTERS[0], (first + r) * TILE * 4);
            }
        for (int i = 0; i < k; i++) {
            const float *column = columns + (ptrdiff_t)i * rows + first;
            uint32_t left = nonzero_rows(column, group);
            if (left) p = emit_load_x(p, i);
            for (; left; left &= left - 1) {
                const int r = __builtin_ctz(left);
                p = emit_next_weight(p, count, size, &at);
                for (; line < lines && line * numbers <= count * lines; line++)
                    p = emit_prefetch_tile(p, (int)line, k, rows, start, 0);
                p = (is_f16 ? emit_fma_halves : emit_fma)(p, r, X_REGISTER, WEIGHT_POINTER, at);
                if (!is_f16) {
                    memcpy(stream + count++, column + r, sizeof *stream);
                    continue;
                }
                ((uint16_t *)stream)[count++] = half_of(column[r]);
                if (++terms[r] % F16_TERMS == 0) {
                    p = emit_join(p, r, first + r, start, terms[r] > F16_TERMS);
                    p = emit_zero(p, r);
                }
            }
        }
        for (int r = 0; r < group; r++) {
            if (is_f16) {
                if (terms[r] == 0 || terms[r] % F16_TERMS)
                    p = emit_join(p, r, first + r, start, terms[r] > F16_TERMS);
                continue;
            }
            p = emit_store(p, r, Y_POINTERS[0], (first + r) * TILE * 4);
        }
    }
    *p++ = 0xc3; /* ret */
    return p;
}

static uint8_t *f32_generate__avx512(const block_t *block, const float *columns, int start) {
    return generate(block, columns, start, 0);
}

static uint8_t *f16_generate__avx512(const block_t *block, const float *columns, int start) {
    return generate(block, columns, start, 1);
}

/* Number `number` of a group: behind which pointer, and how far. */
static int32_t in_window(size_t number, int *base) {
    const size_t window = number / 256 < NUM_WINDOWS ? number / 256 : NUM_WINDOWS - 1;
    *base = WINDOWS[window];
    return ((int32_t)(number - 256 * window) - WEIGHT_BIAS) * 4;
}

static uint8_t *s8_generate__avx512(const block_t *block, const float *columns, int start) {
    uint8_t *p = (uint8_t *)block->code;
    const int rows = block->rows, k = (block->k + 3) / 4;
    const size_t numbers = block->num_values;
    const size_t lines = (size_t)(QUAD_HEADER + k + (start == START_INIT ? 2 : 1) * rows);
    const run_t *run = block->runs;
    const uint8_t *offsets = (const uint8_t *)block->offsets;
    uint32_t bundles = run->bundles; /* left of its run */
    size_t count = 0, line = 0, begin = 0; /* of the group's numbers */
    int base;
    (void)columns;
    for (int i = 0; i < NUM_SAVED; i++) { /* push */
        if (SAVED[i] >= R8) *p++ = 0x41;
        *p++ = (uint8_t)(0x50 | (SAVED[i] & 7));
    }
    const uint8_t take_next_x[] = {0x4c, 0x89, 0xc8}; /* mov rax, r9 */
    memcpy(p, take_next_x, sizeof take_next_x);
    p += sizeof take_next_x;
    if (QUAD_HEADER + k > 256) {
        const uint8_t lea[] = {0x4c, 0x8d, 0x8f, 0, 256 * 64 >> 8, 0, 0}; /* lea r9, [rdi + 256 * 64] */
        memcpy(p, lea, sizeof lea);
        p += sizeof lea;
    }
    for (int first = 0; first < rows; first += GROUP_BUNDLES * BUNDLE) {
        const int group = rows - first < GROUP_BUNDLES * BUNDLE ? rows - first : GROUP_BUNDLES * BUNDLE;
        const uint16_t *row_numbers = block->row_numbers + first;
        uint32_t counts[GROUP_BUNDLES], next[GROUP_ROWS] = {0};
        size_t at[GROUP_BUNDLES], size = 0; /* where a bundle's numbers begin, of the group's */
        const uint8_t *offsets_of[GROUP_BUNDLES];
        for (int b = 0; b * BUNDLE < group; b++, bundles--) {
            if (bundles == 0) bundles = (++run)->bundles;
            counts[b] = run->count, at[b] = size, offsets_of[b] = offsets;
            size += (2 + (size_t)run->count) * BUNDLE;
            offsets += (size_t)run->count * BUNDLE;
        }
        for (int w = 0; w < NUM_WINDOWS && (size_t)w * 256 < size; w++) { /* lea window, [weights + …] */
            const int32_t from = (int32_t)(begin + 256 * (size_t)w) * 4;
            *p++ = (uint8_t)(0x48 | (WINDOWS[w] >> 3) << 2);
            *p++ = 0x8d;
            *p++ = (uint8_t)(0x80 | (WINDOWS[w] & 7) << 3 | WEIGHT_POINTER);
            memcpy(p, &from, 4);
            p += 4;
        }
        p = emit_load_x(p, 1);
        for (int r = 0; r < group; r++) {
            const int32_t from = in_window(at[r / BUNDLE] + r % BUNDLE, &base);
            p = emit_prefetch_block(p, count++);
            p = emit_multiply_int(p, r, X_REGISTER, base, from);
        }
        for (int i = 0; i < k; i++) {
            int is_loaded = 0;
            for (int r = 0; r < group; r++) {
                const int b = r / BUNDLE;
                const size_t entry = (size_t)next[r] * BUNDLE + r % BUNDLE, number = at[b] + 2 * BUNDLE + entry;
                const float zero = 0.0f;
                if (next[r] == counts[b] || offsets_of[b][entry] != i ||
                    !memcmp(block->values + begin + number, &zero, sizeof zero)) /* what fills up a bundle */
                    continue;
                if (!is_loaded) p = emit_load_x(p, QUAD_HEADER + i);
                is_loaded = 1, next[r]++;
                p = emit_prefetch_block(p, count);
                for (; line < lines && line * numbers <= count * lines; line++)
                    p = emit_prefetch_tile(p, (int)line, QUAD_HEADER + k, rows, start, NUM_SAVED);
                const int32_t from = in_window(number, &base);
                p = emit_dot(p, r, X_REGISTER, base, from);
                count++;
            }
        }
        p = emit_load_x(p, 0);
        for (int r = 0; r < group; r++) {
            const int32_t from = in_window(at[r / BUNDLE] + BUNDLE + r % BUNDLE, &base);
            p = emit_to_float(p, r);
            p = emit_multiply(p, r, X_REGISTER);
            p = emit_prefetch_block(p, count++);
            p = emit_scale(p, r, base, from);
            p = emit_add_sums(p, r, 0, row_numbers[r], start, 0);
            p = emit_store(p, r, Y_POINTERS[0], row_numbers[r] * TILE * 4);
        }
        begin += size;
    }
    for (int i = NUM_SAVED - 1; i >= 0; i--) { /* pop */
        if (SAVED[i] >= R8) *p++ = 0x41;
        *p++ = (uint8_t)(0x58 | (SAVED[i] & 7));
    }
    *p++ = 0xc3; /* ret */
    return p;
}

/* `width` tiles at a time, 1 or 2. The last of an odd number is a pair with itself. */
INLINE void run_generated(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                          activation_fn after, const int width) {
    const float *start = init.at ? init.at : bias, *weights = block->values + WEIGHT_BIAS / width;
    const ptrdiff_t start_stride = init.at ? init.stride : 0;
    const generated_fn code = (generated_fn)(uintptr_t)block->code;
    const size_t step = (block->num_values / FMAS_PER_PREFETCH + 1) * 64;
    const size_t end = block->next ? block->next->memory_bytes : 0;
    size_t at = 0;
    for (int tile = 0; tile < y.count; tile += width, at += step) {
        /* when the next block is there, touching one's own memory again costs nothing; likewise the last tile */
        const char *next_block = at < end ? (const char *)block->next->memory + at : (const char *)block->memory;
        const int next = tile + width < y.count ? tile + width : tile;
        const int other = tile + width <= y.count ? tile + width - 1 : tile;
        const int next_other = next + width <= y.count ? next + width - 1 : next;
        code(x.at + tile * x.stride + X_BIAS * TILE, y.at + tile * y.stride, start + tile * start_stride, weights,
             next_block, x.at + next * x.stride, y.at + next * y.stride, start + next * start_stride,
             y.at + next_other * y.stride, start + next_other * start_stride, y.at + other * y.stride,
             start + other * start_stride);
        for (int t = tile; after && t <= other; t++) after(y.at + t * y.stride, (size_t)block->rows * TILE);
    }
}

static void f32_generated__avx512(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                                  activation_fn after) {
    run_generated(block, x, init, bias, y, after, 1);
}

static void f16_generated__avx512(const block_t *block, tiles_t x, tiles_t init, const float *bias, tiles_t y,
                                  activation_fn after) {
    run_generated(block, x, init, bias, y, after, 2);
}
