/* AVX-512 with VNNI: what avx512.h has, and products of 8-bit integers. Included by dispatch.h after it. */

static int is_supported_avx512_vnni(void) {
    return is_supported_avx512() && __builtin_cpu_supports("avx512vnni");
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512vnni")
#endif
#define ISA_NAME avx512_vnni
#define LANES 16
#define S8_ROWS 24
#define S8_DOT(acc, x, w) _mm512_dpbusd_epi32((__m512i)(acc), (__m512i)(x), (__m512i)(w))
#define VECTOR_CLAMP(x, limit) _mm512_range_ps(x, limit, 2)
#define VECTOR_MAX _mm512_max_ps
#define VECTOR_MIN _mm512_min_ps
#define S8_ROUND(x) _mm512_cvtps_epi32(x)
#define S8_QUADS(x) quads__avx512((__m512i)(x)[0], (__m512i)(x)[1], (__m512i)(x)[2], (__m512i)(x)[3])
#include "portable/vector.h"
#include "portable/s8.h"

/* What tables of later ISAs have in common with this one. */
enum { S8_ROWS_AVX512_VNNI = S8_ROWS, S8_OPERATIONS_AVX512_VNNI = S8_OPERATIONS };
#define KERNELS_AVX512_VNNI_SPARSE \
    .s8_table = s8_table__avx512_vnni, \
    .s8_generated = {f32_generated__avx512, 4 * 256, s8_code_bound__avx512, \
                     s8_generate__avx512}, \
    .u8_convert = u8_convert__avx512_vnni
#define KERNELS_AVX512_VNNI \
    KERNELS_AVX512_VNNI_SPARSE, \
    .s8_dot_operations = S8_OPERATIONS_AVX512_VNNI, \
    .s8_dot_loop = s8_dot_loop__avx512_vnni, \
    .s8_dense_rows = S8_ROWS_AVX512_VNNI, \
    .s8_dense_columns = 4, \
    .s8_dense = s8_dense__avx512_vnni

static const kernels_t kernels_avx512_vnni = {KERNELS_AVX512, KERNELS_AVX512_VNNI, .isa = "avx512_vnni"};
#include "portable/undefine.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
