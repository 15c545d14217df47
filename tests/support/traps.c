/* Runs the instructions of AMX and AVX512-FP16 that the kernels have on a CPU without them: each traps (SIGILL), is decoded
 * and done in plain C, so that what the compiler made of the kernels is tested, tile configuration and order of stores
 * and loads included. Anything not expected here - a register that no thread has configured, another shape, another
 * instruction - ends the process with a sentence.
 *
 * Source: Intel SDM volume 2, VEX and EVEX encodings, LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TILERELEASE, TDPBF16PS,
 * TDPBSUD, VFMADD231PH; volume 1, chapter 13, for where a signal's frame holds vector registers. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

typedef union {
    uint8_t bytes[64];
    uint32_t numbers[16];
    float floats[16];
    uint16_t words[32];
    _Float16 halves[32];
} line_t;

static __thread struct {
    int is_configured;
    line_t tile[8][16];
} registers; /* of each thread its own, as in the CPU */

static unsigned place[8]; /* of a component in a signal's frame */

static void refuse(const char *why) {
    static const char start[] = "tests/support/traps.c: ";
    if (write(2, start, sizeof start - 1) < 0 || write(2, why, strlen(why)) < 0 || write(2, "\n", 1) < 0) _exit(98);
    _exit(99);
}

static uint64_t general(const mcontext_t *m, int number) {
    static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)m->gregs[places[number]];
}

/* An operand in memory: `base` and, of a SIB byte, `index`; `end` is where the instruction ends. */
typedef struct {
    uint64_t base, index;
    const uint8_t *end;
} memory_t;

static memory_t memory_operand(const mcontext_t *m, const uint8_t *modrm, int x, int b, int disp8_scale) {
    const int mod = *modrm >> 6, rm = *modrm & 7, has_sib = rm == 4;
    const uint8_t *p = modrm + 1;
    memory_t found = {0, 0, NULL};
    int base = rm, size = mod == 1 ? 1 : mod == 2 ? 4 : 0, has_base = 1;
    if (has_sib) {
        const int index = (*p >> 3 & 7) + 8 * x;
        if (index != 4) found.index = general(m, index) << (*p >> 6);
        base = *p++ & 7;
    }
    if (mod == 0 && base == 5) size = 4, has_base = 0; /* relative to the next instruction, or no base */
    if (size == 1) found.base = (uint64_t)(int64_t)(*(const int8_t *)p * disp8_scale);
    if (size == 4) {
        int32_t offset;
        memcpy(&offset, p, 4);
        found.base = (uint64_t)(int64_t)offset;
    }
    found.end = p + size;
    if (has_base) found.base += general(m, base + 8 * b);
    else if (!has_sib) found.base += (uint64_t)found.end;
    return found;
}

static float bf16_of(uint16_t word) {
    const uint32_t bits = (uint32_t)word << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void multiply_bf16(line_t *sum, const line_t *a, const line_t *b) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float part[2] = {0.0f, 0.0f};
            for (int k = 0; k < 16; k++)
                for (int odd = 0; odd < 2; odd++)
                    part[odd] += bf16_of(a[m].words[2 * k + odd]) * bf16_of(b[k].words[2 * n + odd]);
            sum[m].floats[n] += part[0] + part[1];
        }
}

static void multiply_s8_u8(line_t *sum, const line_t *a, const line_t *b) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++)
            for (int k = 0; k < 64; k++)
                sum[m].numbers[n] += (uint32_t)((int8_t)a[m].bytes[k] * (int)b[k / 4].bytes[4 * n + k % 4]);
}

static void configure(const uint8_t *config) {
    static const uint8_t palette[16] = {1};
    if (memcmp(config, palette, 16)) refuse("LDTILECFG: palette 1, row 0, zeros expected");
    for (int i = 0; i < 16; i++) {
        const int row_bytes = config[16 + 2 * i] | config[17 + 2 * i] << 8, rows = config[48 + i];
        if (row_bytes != (i < 8 ? 64 : 0) || rows != (i < 8 ? 16 : 0)) refuse("LDTILECFG: 8 registers of 16 x 64 expected");
    }
    registers.is_configured = 1;
    memset(registers.tile, 0, sizeof registers.tile);
}

/* VEX.128, map 0F38, W0: R, X and B are stored inverted, and so is vvvv. */
static const uint8_t *run_tile_instruction(const mcontext_t *m, const uint8_t *at) {
    const int x = !(at[1] & 0x40), b = !(at[1] & 0x20), pp = at[2] & 3, third = ~at[2] >> 3 & 15, opcode = at[3];
    const int mod = at[4] >> 6, reg = at[4] >> 3 & 7, rm = at[4] & 7;
    enum { NONE, P66, PF3, PF2 };
    if ((at[1] & 31) != 2 || at[2] & 0x84) refuse("another VEX instruction");
    if (opcode == 0x49 && pp == NONE && mod != 3 && reg == 0) {
        const memory_t from = memory_operand(m, at + 4, x, b, 1);
        configure((const uint8_t *)(from.base + from.index));
        return from.end;
    }
    if (!registers.is_configured) refuse("a tile register without a configuration");
    if (opcode == 0x49 && pp == NONE && at[4] == 0xc0) {
        registers.is_configured = 0;
        memset(registers.tile, 0xff, sizeof registers.tile); /* NaN */
        return at + 5;
    }
    line_t *tile = registers.tile[reg];
    if (opcode == 0x49 && pp == PF2 && mod == 3) {
        memset(tile, 0, sizeof registers.tile[reg]);
        return at + 5;
    }
    if (opcode == 0x4b && (pp == PF2 || pp == PF3) && mod != 3 && rm == 4) {
        const memory_t place = memory_operand(m, at + 4, x, b, 1);
        for (int i = 0; i < 16; i++) {
            void *line = (void *)(place.base + (uint64_t)i * place.index);
            if (pp == PF2) memcpy(&tile[i], line, sizeof *tile);
            else memcpy(line, &tile[i], sizeof *tile);
        }
        return place.end;
    }
    if (mod != 3 || third > 7 || reg == rm || reg == third || rm == third) refuse("another tile instruction");
    if (opcode == 0x5c && pp == PF3) multiply_bf16(tile, registers.tile[rm], registers.tile[third]);
    else if (opcode == 0x5e && pp == PF3) multiply_s8_u8(tile, registers.tile[rm], registers.tile[third]);
    else refuse("another tile instruction");
    return at + 5;
}

/* A vector register in the frame, which the kernel restores on return; 16 bytes, 16 and 32 lie apart, or 64 at once. */
static void move_register(uint8_t *state, int number, line_t *value, int is_write) {
    uint64_t *saved = (uint64_t *)(state + 512); /* which components are; what is not is zero */
    const struct {
        int component, at, size;
    } low[] = {{1, 160 + 16 * number, 16}, {2, (int)place[2] + 16 * number, 16}, {6, (int)place[6] + 32 * number, 32}},
      high[] = {{7, (int)place[7] + 64 * (number - 16), 64}};
    for (int i = 0, done = 0; done < 64; i++) {
        const int component = number < 16 ? low[i].component : high[i].component;
        const int at = number < 16 ? low[i].at : high[i].at, size = number < 16 ? low[i].size : high[i].size;
        const int is_saved = *saved >> component & 1;
        if (is_write && !is_saved) { /* now all 16 of this component are */
            memset(state + at - size * (number % 16), 0, 16 * (size_t)size);
            *saved |= 1u << component;
        }
        if (is_write) memcpy(state + at, value->bytes + done, (size_t)size);
        else if (is_saved) memcpy(value->bytes + done, state + at, (size_t)size);
        else memset(value->bytes + done, 0, (size_t)size);
        done += size;
    }
}

/* EVEX.512, map 6, 66, W0, without a mask: VFMADD231PH, its last operand a register, memory, or a half for all lanes. */
static const uint8_t *run_half_instruction(const mcontext_t *m, const uint8_t *at) {
    const int x = !(at[1] & 0x40), b = !(at[1] & 0x20), is_all = at[3] >> 4 & 1;
    const int reg = (at[5] >> 3 & 7) + 8 * !(at[1] & 0x80) + 16 * !(at[1] & 0x10);
    const int second = (~at[2] >> 3 & 15) + 16 * !(at[3] & 8);
    uint8_t *state = (uint8_t *)m->fpregs;
    line_t sum, factor, other;
    const uint8_t *end = at + 6;
    if ((at[1] & 15) != 6 || (at[2] & 0x87) != 5 || (at[3] & 0xe7) != 0x40 || at[4] != 0xb8)
        refuse("another EVEX instruction");
    move_register(state, reg, &sum, 0);
    move_register(state, second, &factor, 0);
    if (at[5] >> 6 == 3) {
        if (is_all) refuse("a rounding of its own");
        move_register(state, (at[5] & 7) + 8 * b + 16 * x, &other, 0);
    } else {
        const memory_t from = memory_operand(m, at + 5, x, b, is_all ? 2 : 64);
        end = from.end;
        for (int i = 0; i < 32; i++) memcpy(&other.words[i], (const void *)(from.base + from.index + (is_all ? 0 : 2 * i)), 2);
    }
    for (int i = 0; i < 32; i++) /* one rounding: of halves a double holds the product, and of ordinary ones the sum */
        sum.halves[i] = (_Float16)((double)sum.halves[i] + (double)factor.halves[i] * (double)other.halves[i]);
    move_register(state, reg, &sum, 1);
    return end;
}

static void on_trap(int number, siginfo_t *info, void *context) {
    mcontext_t *m = &((ucontext_t *)context)->uc_mcontext;
    const uint8_t *at = (const uint8_t *)m->gregs[REG_RIP], *end = at;
    (void)number, (void)info;
    if (*at == 0xc4) end = run_tile_instruction(m, at);
    else if (*at == 0x62) end = run_half_instruction(m, at);
    else refuse("another instruction");
    m->gregs[REG_RIP] = (greg_t)end;
}

int install_traps(void) {
    const struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    unsigned unused; /* of an instruction that a virtual machine takes long for */
    for (unsigned i = 2; i < 8; i++) __cpuid_count(13, i, unused, place[i], unused, unused);
    return sigaction(SIGILL, &action, NULL);
}
