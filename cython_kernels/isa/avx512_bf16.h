/* AVX-512 with BF16: what avx512_vnni.h has - every such CPU has VNNI - and products of bfloat16 pairs. */

static int is_supported_avx512_bf16(void) {
    return is_supported_avx512_vnni() && __builtin_cpu_supports("avx512bf16");
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")
#endif
#define ISA_NAME avx512_bf16
#define LANES 16
#define BF16_ROWS 24
#define BF16_BLOCK_ROWS 16
#define BASE_ISA avx512
#define QUERY_TILES 2
#define KEYS 8
#define BF16_DOT(acc, x, w) _mm512_dpbf16_ps(acc, (__m512bh)(x), (__m512bh)(w))
#define BF16_HALVES(first, second) _mm512_cvtne2ps_pbh(second, first)
#define VECTOR_CLAMP(x, limit) _mm512_range_ps(x, limit, 2)
#define VECTOR_MAX _mm512_max_ps
#define VECTOR_MIN _mm512_min_ps
#define BF16_PAIRS(even, odd) interleave16__avx512_bf16(_mm512_cvtne2ps_pbh(odd, even))
#include "portable/vector.h"

/* 16 words and 16 words → 16 pairs. */
INLINE __m512i interleave16__avx512_bf16(__m512bh words) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)words);
}
#include "portable/bf16.h"
#include "portable/bf16_attention.h"

/* What tables of later ISAs have in common with this one. */
enum {
    ROWS_AVX512_BF16 = BF16_ROWS,
    BLOCK_ROWS_AVX512_BF16 = BF16_BLOCK_ROWS,
    OPERATIONS_AVX512_BF16 = DOT_OPERATIONS
};
#define KERNELS_AVX512_BF16 \
    .bf16_dense_rows = ROWS_AVX512_BF16, \
    .bf16_dense_columns = 2, \
    .bf16_dense = bf16_dense__avx512_bf16, \
    .bf16_block_rows = BLOCK_ROWS_AVX512_BF16, \
    .bf16_block_columns = 2, \
    .bf16_block = bf16_block__avx512_bf16, \
    .bf16_convert = bf16_convert__avx512_bf16, \
    .bf16_gelu = bf16_gelu__avx512_bf16, \
    .bf16_attention = bf16_attention__avx512_bf16, \
    .bf16_dot_operations = OPERATIONS_AVX512_BF16, \
    .bf16_dot_loop = bf16_dot_loop__avx512_bf16

static const kernels_t kernels_avx512_bf16 = {
    KERNELS_AVX512,
    KERNELS_AVX512_VNNI,
    KERNELS_AVX512_BF16,
    .isa = "avx512_bf16",
};
#include "portable/undefine.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
