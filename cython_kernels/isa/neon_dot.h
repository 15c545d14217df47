/* AArch64 with dot products of 8-bit integers (Armv8.2 DotProd): what neon.h has, and those. Both factors have a sign, so
 * features are kept 128 lower. */
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

static int is_supported_neon_dot(void) {
#if defined(__linux__)
    enum { ASIMDDP = 1 << 20 }; /* asm/hwcap.h */
    return (getauxval(AT_HWCAP) & ASIMDDP) != 0;
#else
    return 1; /* every Apple CPU that runs macOS */
#endif
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define ISA_NAME neon_dot
#define LANES 4
#define S8_ROWS 6
#define S8_FLIP
#define S8_DOT(acc, x, w) vdotq_s32((int32x4_t)(acc), (int8x16_t)(x), (int8x16_t)(w))
#include "portable/vector.h"
#include "portable/s8.h"

/* What tables of later ISAs have in common with this one. */
enum { S8_ROWS_NEON_DOT = S8_ROWS, S8_OPERATIONS_NEON_DOT = S8_OPERATIONS };
#define KERNELS_NEON_DOT \
    .s8_dot_operations = S8_OPERATIONS_NEON_DOT, \
    .s8_dot_loop = s8_dot_loop__neon_dot, \
    .s8_dense_rows = S8_ROWS_NEON_DOT, \
    .s8_dense_columns = 4, \
    .s8_table = s8_table__neon_dot, \
    .s8_dense = s8_dense__neon_dot, \
    .u8_convert = u8_convert__neon_dot

static const kernels_t kernels_neon_dot = {KERNELS_NEON, KERNELS_NEON_DOT, .isa = "neon_dot"};
#include "portable/undefine.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
