/* AMX with bfloat16 and 8-bit integers: what avx512_fp16.h has - every such CPU has that - with dense products by tile
 * registers. */
#include <stdbool.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Linux gives a process the tile registers only on request; threads and forked children inherit them. */
static bool may_use_tiles(void) {
#if defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

/* CPUID leaf 7: AMX-BF16, AMX-TILE and AMX-INT8; XCR0: the system saves both kinds of tile state. */
static bool has_amx_bf16(void) {
    unsigned a, b, c, d, low, high;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
    if (a < 7) return false;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(1), "c"(0));
    if (!(c >> 27 & 1)) return false; /* no XGETBV */
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    if (!(d >> 22 & 1) || (d >> 24 & 3) != 3) return false;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> 17 & 3) == 3;
}

static int is_supported_amx_bf16(void) {
    return is_supported_avx512_fp16() && __builtin_cpu_supports("avx512vbmi2") && has_amx_bf16() && may_use_tiles();
}

static inline int is_amx_refused(void) { return has_amx_bf16() && !may_use_tiles(); }

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512vbmi2,avx512bf16,amx-tile,amx-bf16,amx-int8"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512vbmi2,avx512bf16,amx-tile,amx-bf16,amx-int8")
#endif
#define ISA_NAME amx_bf16
#define LANES 16
#define AMX_INSTRUCTIONS
#define EXPAND_WORDS(to, mask, from) _mm512_store_si512(to, _mm512_maskz_expandloadu_epi16(mask, from))
#include "portable/vector.h"
#include "portable/matrix_tiles.h"
#define BASE_ISA avx512
#define BF16_BASE avx512_bf16
#define QUERY_TILES 2
#include "portable/bf16_tiles.h"
#include "portable/bf16_attention_tiles.h"
#include "portable/s8_tiles.h"

static const kernels_t kernels_amx_bf16 = {
    KERNELS_AVX512,
    KERNELS_AVX512_VNNI_SPARSE,
    KERNELS_AVX512_FP16,
    .isa = "amx_bf16",
    .s8_dense_rows = TILE_ROWS,
    .s8_dense_columns = S8_COLUMNS,
    .s8_dense = s8_dense__amx_bf16,
    .s8_dot_operations = S8_OPERATIONS,
    .s8_dot_loop = s8_dot_loop__amx_bf16,
    .s8_block_rows = TILE_ROWS,
    .s8_block_columns = S8_COLUMNS,
    .s8_block = s8_block__amx_bf16,
    .bf16_dense_rows = TILE_ROWS,
    .bf16_dense_columns = TILE_COLUMNS,
    .bf16_dense = bf16_dense__amx_bf16,
    .bf16_block_rows = TILE_ROWS,
    .bf16_block_columns = TILE_COLUMNS,
    .bf16_block = bf16_block__amx_bf16,
    .bf16_compressed = bf16_compressed__amx_bf16,
    .bf16_convert = bf16_convert__avx512_bf16,
    .bf16_gelu = bf16_gelu__avx512_bf16,
    .bf16_attention = bf16_attention__amx_bf16,
    .bf16_dot_operations = DOT_OPERATIONS,
    .bf16_dot_loop = bf16_dot_loop__amx_bf16,
};
#include "portable/undefine.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
