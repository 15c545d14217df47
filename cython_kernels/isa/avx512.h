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
#define VECTOR_CLAMP(x, limit) _mm512_range_ps(x, limit, 2) /* the lesser magnitude with the sign of x */
#define VECTOR_MAX _mm512_max_ps
#define VECTOR_MIN _mm512_min_ps
#define S8_ROWS 24
#define S8_MADD(a, b) _mm512_madd_epi16((__m512i)(a), (__m512i)(b))
#define S8_ROUND(x) _mm512_cvtps_epi32(x)
#define S8_QUADS(x) quads__avx512((__m512i)(x)[0], (__m512i)(x)[1], (__m512i)(x)[2], (__m512i)(x)[3])

static inline __attribute__((always_inline)) __m512i quads__avx512(__m512i a, __m512i b, __m512i c, __m512i d) {
    /* packing leaves four numbers of a, of b, of c, of d in each 128 bits */
    const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    return _mm512_shuffle_epi8(bytes, _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
}
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
