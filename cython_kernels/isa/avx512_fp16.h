/* AVX-512 with FP16: what avx512_bf16.h has, since every such CPU has BF16, too, and products of halves. */

static int is_supported_avx512_fp16(void) {
    return is_supported_avx512_bf16() && __builtin_cpu_supports("avx512fp16");
}

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx512fp16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx512fp16")
#endif
#define ISA_NAME avx512_fp16
#define LANES 16
#include "portable/vector.h"

#define F16_INSTRUCTIONS
typedef __m512h halves__avx512_fp16;
INLINE __m512h f16_zero__avx512_fp16(void) { return _mm512_setzero_ph(); }
INLINE __m512h f16_load__avx512_fp16(const void *line) { return _mm512_load_ph(line); }
INLINE __m512h f16_fma__avx512_fp16(__m512h acc, __m512h x, uint16_t weight) {
    return _mm512_fmadd_ph(x, _mm512_castsi512_ph(_mm512_set1_epi16((short)weight)), acc);
}
INLINE void f16_add_to__avx512_fp16(__m512h acc, float *sums) {
    const __m512i bits = _mm512_castph_si512(acc);
    const __m512 first = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
    const __m512 second = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1));
    _mm512_store_ps(sums, _mm512_add_ps(_mm512_load_ps(sums), first));
    _mm512_store_ps(sums + TILE, _mm512_add_ps(_mm512_load_ps(sums + TILE), second));
}
INLINE __m256i half16__avx512_fp16(__m512 x) { /* cut to the largest half; infinity and NaN stay */
    const __m512 largest = _mm512_set1_ps(65504.0f), size = _mm512_abs_ps(x);
    const __mmask16 is_large = _mm512_cmp_ps_mask(size, largest, _CMP_GT_OQ) &
                               _mm512_cmp_ps_mask(size, _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
    const __m512 cut = _mm512_or_ps(largest, _mm512_and_ps(x, _mm512_set1_ps(-0.0f)));
    return _mm512_cvtps_ph(_mm512_mask_mov_ps(x, is_large, cut), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE void f16_line__avx512_fp16(const float *first, const float *second, void *line) {
    _mm256_store_si256((__m256i *)line, half16__avx512_fp16(_mm512_load_ps(first)));
    _mm256_store_si256((__m256i *)line + 1,
                       second ? half16__avx512_fp16(_mm512_load_ps(second)) : _mm256_setzero_si256());
}
#include "portable/f16.h"

/* What tables of later ISAs have in common with this one. */
enum { F16_OPERATIONS_AVX512_FP16 = F16_OPERATIONS };
#define GENERATED_F16 {f16_generated__avx512, GENERATED_MAX_K, f16_code_bound__avx512, f16_generate__avx512}
#define KERNELS_AVX512_FP16 \
    .f16_table = f16_table__avx512_fp16, \
    .f16_generated = GENERATED_F16, \
    .f16_fma_operations = F16_OPERATIONS_AVX512_FP16, \
    .f16_fma_loop = f16_fma_loop__avx512_fp16, \
    .f16_convert = f16_convert__avx512_fp16

static const kernels_t kernels_avx512_fp16 = {
    KERNELS_AVX512,
    KERNELS_AVX512_VNNI,
    KERNELS_AVX512_BF16,
    KERNELS_AVX512_FP16,
    .isa = "avx512_fp16",
};
#include "portable/undefine.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
