/* AVX2 with AVX-VNNI, as client CPUs have it: what avx2.h has, and products of 8-bit integers. */

static int is_supported_avx_vnni(void) { /* CPUID leaf 7.1: AVX-VNNI */
    unsigned a, b, c, d;
    if (!is_supported_avx2()) return 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
    if (a < 7) return 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    if (a < 1) return 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
    return a >> 4 & 1;
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avxvnni")
#endif
#define ISA_NAME avx_vnni
#define LANES 8
#define S8_ROWS 6
#define S8_DOT(acc, x, w) _mm256_dpbusd_avx_epi32((__m256i)(acc), (__m256i)(x), (__m256i)(w))
#define VECTOR_MAX _mm256_max_ps
#define VECTOR_MIN _mm256_min_ps
#include "portable/vector.h"
#include "portable/s8.h"

static const kernels_t kernels_avx_vnni = {
    KERNELS_AVX2,
    .isa = "avx_vnni",
    .s8_dense_rows = S8_ROWS,
    .s8_dense_columns = 4,
    .s8_table = s8_table__avx_vnni,
    .s8_dense = s8_dense__avx_vnni,
    .s8_dot_operations = S8_OPERATIONS,
    .s8_dot_loop = s8_dot_loop__avx_vnni,
    .u8_convert = u8_convert__avx_vnni,
};
#include "portable/undefine.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
