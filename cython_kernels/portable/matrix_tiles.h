/* The tile registers of AMX as a few macros with two bodies: the instructions, or the same in plain C, by which machines
 * without them test what is written with them. A register holds 16 rows of 64 bytes here, always.
 *
 * An ISA header that has the instructions defines AMX_INSTRUCTIONS. TILES_BEGIN opens what uses registers, TILES_END
 * closes it; TILES_REGISTERS stands among the declarations of a function that names registers 0 … 7, whose contents
 * end with it. `stride` is in bytes.
 *
 * Source: Intel SDM volume 2, TILELOADD, TILESTORED, TILEZERO, TDPBF16PS, TDPBSUD; volume 1, chapter 18. */

#ifdef AMX_INSTRUCTIONS

/* The compiler is told of 8 bytes by the intrinsic, so that it drops the other stores: the asm names the whole. */
INLINE void SYM(configure_tiles)(void) {
    const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
#define TILES_BEGIN SYM(configure_tiles)();
#define TILES_REGISTERS
#define TILES_END _tile_release();
/* gcc's intrinsic does not say that it reads memory, so that what was written there may come too late, or never. */
#define TILE_LOAD(number, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #number : : "r"(from), "r"((ptrdiff_t)(stride)) : "memory")
#define TILE_STORE(number, to, stride) _tile_stored(number, to, stride)
#define TILE_ZERO(number) _tile_zero(number)
#define TILE_BF16_DOT(sum, a, b) _tile_dpbf16ps(sum, a, b)
#define TILE_S8_DOT(sum, a, b) _tile_dpbsud(sum, a, b)

#else

typedef struct {
    uint32_t row[16][16];
} SYM(tile_register);

static void SYM(load_tile)(SYM(tile_register) *tile, const void *from, size_t stride) {
    for (int i = 0; i < 16; i++) memcpy(tile->row[i], (const char *)from + i * stride, 64);
}
static void SYM(store_tile)(const SYM(tile_register) *tile, void *to, size_t stride) {
    for (int i = 0; i < 16; i++) memcpy((char *)to + i * stride, tile->row[i], 64);
}
static float SYM(bf16_of)(uint32_t pair, int is_odd) {
    const uint32_t bits = is_odd ? pair & 0xffff0000u : pair << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
/* sum[m][n] += over pairs of a[m][k] · b[k][n]: even and odd elements are summed apart, then together. */
static void SYM(bf16_dot_tiles)(SYM(tile_register) *sum, const SYM(tile_register) *a, const SYM(tile_register) *b) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float part[2] = {0.0f, 0.0f}, total;
            for (int k = 0; k < 16; k++)
                for (int odd = 0; odd < 2; odd++)
                    part[odd] += SYM(bf16_of)(a->row[m][k], odd) * SYM(bf16_of)(b->row[k][n], odd);
            memcpy(&total, &sum->row[m][n], sizeof total);
            total += part[0] + part[1];
            memcpy(&sum->row[m][n], &total, sizeof total);
        }
}
/* sum[m][n] += over quads of a[m][k] · b[k][n], bytes with a sign times bytes without one. */
static void SYM(s8_dot_tiles)(SYM(tile_register) *sum, const SYM(tile_register) *a, const SYM(tile_register) *b) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++)
            for (int k = 0; k < 16; k++)
                for (int i = 0; i < 32; i += 8)
                    sum->row[m][n] += (uint32_t)((int8_t)(a->row[m][k] >> i & 0xff) * (int)(b->row[k][n] >> i & 0xff));
}
#define TILES_BEGIN
#define TILES_REGISTERS SYM(tile_register) tile_registers[8];
#define TILES_END
#define TILE_LOAD(number, from, stride) SYM(load_tile)(&tile_registers[number], from, stride)
#define TILE_STORE(number, to, stride) SYM(store_tile)(&tile_registers[number], to, stride)
#define TILE_ZERO(number) memset(&tile_registers[number], 0, sizeof *tile_registers)
#define TILE_S8_DOT(sum, a, b) SYM(s8_dot_tiles)(&tile_registers[sum], &tile_registers[a], &tile_registers[b])
#define TILE_BF16_DOT(sum, a, b) \
    SYM(bf16_dot_tiles)(&tile_registers[sum], &tile_registers[a], &tile_registers[b])

#endif
