/* AVX2 + FMA: 16 registers of 256 bits. */
#include <immintrin.h>

/* Every feature that the region below names. The builtin is false, too, where the operating system does not save the
 * registers. */
static int is_supported_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA_NAME avx2
#define LANES 8
#define TABLE_ROWS 2
#define TABLE_TILES 2
#define DENSE_ROWS 6 /* 12 of 16 registers accumulate */
#define QUERY_TILES 1
#define KEYS 4
#define VECTOR_MAX _mm256_max_ps
#define VECTOR_MIN _mm256_min_ps
#define S8_ROWS 4
#define S8_MADD(a, b) _mm256_madd_epi16((__m256i)(a), (__m256i)(b))
#include "portable/portable.h"

/* What the table of AVX-VNNI has in common with this one. */
enum { DENSE_ROWS_AVX2 = DENSE_ROWS, FMA_COUNT_AVX2 = CHAINS * LANES, S8_ROWS_AVX2 = S8_ROWS };
#define KERNELS_AVX2 \
    .f32_dense_rows = DENSE_ROWS_AVX2, \
    .f32_table = f32_table__avx2, \
    .f32_dense = f32_dense__avx2, \
    .f32_gelu = f32_gelu__avx2, \
    .f32_gelu_tanh = f32_gelu_tanh__avx2, \
    .f32_relu = f32_relu__avx2, \
    .f32_layer_norm = f32_layer_norm__avx2, \
    .f32_attention = f32_attention__avx2, \
    .f32_embed = f32_embed__avx2, \
    .f32_scatter = f32_scatter__avx2, \
    .f32_gather = f32_gather__avx2, \
    .f32_fma_count = FMA_COUNT_AVX2, \
    .f32_fma_loop = f32_fma_loop__avx2, \
    .read_loop = read_loop__avx2

static const kernels_t kernels_avx2 = {
    KERNELS_AVX2,
    .isa = "avx2",
    .s8_dense_rows = S8_ROWS_AVX2,
    .s8_dense_columns = 4,
    .s8_table = s8_table__avx2,
    .s8_dense = s8_dense__avx2,
    .s8_dot_operations = S8_OPERATIONS,
    .s8_dot_loop = s8_dot_loop__avx2,
    .u8_convert = u8_convert__avx2,
};
#include "portable/undefine.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
