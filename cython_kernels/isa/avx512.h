/* AVX-512 (F, VL, DQ, BW): 32 registers of 512 bits; a tile row is one register. */
#include <immintrin.h>

/* Every feature that the region below names. The builtin is false, too, where the operating system does not save the
 * registers. */
static int is_supported_avx512(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw");
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")
#endif
#define ISA_NAME avx512
#define LANES 16
#define DENSE_ROWS 24 /* divides 384, 768, 1024, 3072; 24 of 32 registers accumulate */
#define QUERY_TILES 2
#define KEYS 8
#define VECTOR_MAX _mm512_max_ps
#define VECTOR_MIN _mm512_min_ps
#define S8_ROWS 24
#define S8_MADD(a, b) _mm512_madd_epi16((__m512i)(a), (__m512i)(b))
#include "portable/portable.h"
#include "table_avx512.h"
#include "generate_avx512.h"

/* What tables of later ISAs have in common with this one. */
enum {
    DENSE_ROWS_AVX512 = DENSE_ROWS,
    S8_ROWS_AVX512 = S8_ROWS,
    S8_OPERATIONS_AVX512 = S8_OPERATIONS,
    FMA_COUNT_AVX512 = CHAINS * LANES
};
#define KERNELS_AVX512 \
    .f32_dense_rows = DENSE_ROWS_AVX512, \
    .f32_table = f32_table__avx512, \
    .f32_dense = f32_dense__avx512, \
    .f32_generated = {f32_generated__avx512, GENERATED_MAX_K, f32_code_bound__avx512, f32_generate__avx512}, \
    .f32_gelu = f32_gelu__avx512, \
    .f32_gelu_tanh = f32_gelu_tanh__avx512, \
    .f32_relu = f32_relu__avx512, \
    .f32_layer_norm = f32_layer_norm__avx512, \
    .f32_attention = f32_attention__avx512, \
    .f32_embed = f32_embed__avx512, \
    .f32_scatter = f32_scatter__avx512, \
    .f32_gather = f32_gather__avx512, \
    .f32_fma_count = FMA_COUNT_AVX512, \
    .f32_fma_loop = f32_fma_loop__avx512, \
    .read_loop = read_loop__avx512

#define KERNELS_AVX512_S8 \
    .s8_dot_operations = S8_OPERATIONS_AVX512, \
    .s8_dot_loop = s8_dot_loop__avx512, \
    .s8_table = s8_table__avx512, \
    .s8_dense_rows = S8_ROWS_AVX512, \
    .s8_dense_columns = 4, \
    .s8_dense = s8_dense__avx512, \
    .u8_convert = u8_convert__avx512

static const kernels_t kernels_avx512 = {KERNELS_AVX512, KERNELS_AVX512_S8, .isa = "avx512"};
#include "portable/undefine.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
