/* AArch64 with half precision (Armv8.2 FP16): what neon_dot.h has - server CPUs have both - and products of halves. */

static int is_supported_neon_fp16(void) {
#if defined(__linux__)
    enum { FPHP = 1 << 9, ASIMDHP = 1 << 10 }; /* asm/hwcap.h */
    return is_supported_neon_dot() && (getauxval(AT_HWCAP) & (FPHP | ASIMDHP)) == (FPHP | ASIMDHP);
#else
    return 1; /* every Apple CPU */
#endif
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("fullfp16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+fp16")
#endif
#define ISA_NAME neon_fp16
#define LANES 4
#include "portable/vector.h"

#define F16_INSTRUCTIONS
typedef struct {
    float16x8_t part[4];
} halves__neon_fp16;
INLINE halves__neon_fp16 f16_zero__neon_fp16(void) {
    const float16x8_t zero = vdupq_n_f16(0);
    return (halves__neon_fp16){{zero, zero, zero, zero}};
}
INLINE halves__neon_fp16 f16_load__neon_fp16(const void *line) {
    const float16_t *x = line;
    return (halves__neon_fp16){{vld1q_f16(x), vld1q_f16(x + 8), vld1q_f16(x + 16), vld1q_f16(x + 24)}};
}
INLINE halves__neon_fp16 f16_fma__neon_fp16(halves__neon_fp16 acc, halves__neon_fp16 x, uint16_t weight) {
    const float16x8_t w = vreinterpretq_f16_u16(vdupq_n_u16(weight));
    for (int i = 0; i < 4; i++) acc.part[i] = vfmaq_f16(acc.part[i], x.part[i], w);
    return acc;
}
INLINE void f16_add_to__neon_fp16(halves__neon_fp16 acc, float *sums) {
    for (int i = 0; i < 4; i++) {
        float *at = sums + 8 * i;
        vst1q_f32(at, vaddq_f32(vld1q_f32(at), vcvt_f32_f16(vget_low_f16(acc.part[i]))));
        vst1q_f32(at + 4, vaddq_f32(vld1q_f32(at + 4), vcvt_f32_f16(vget_high_f16(acc.part[i]))));
    }
}
INLINE float16x4_t half4__neon_fp16(float32x4_t x) { /* cut to the largest half; infinity and NaN stay */
    const float32x4_t largest = vdupq_n_f32(65504.0f), cut = vmaxq_f32(vminq_f32(x, largest), vnegq_f32(largest));
    const uint32x4_t is_finite = vcltq_f32(vabsq_f32(x), vdupq_n_f32(__builtin_inff()));
    return vcvt_f16_f32(vbslq_f32(is_finite, cut, x));
}
INLINE void f16_line__neon_fp16(const float *first, const float *second, void *line) {
    float16_t *to = line;
    for (int i = 0; i < TILE; i += 4) {
        vst1_f16(to + i, half4__neon_fp16(vld1q_f32(first + i)));
        vst1_f16(to + TILE + i, half4__neon_fp16(second ? vld1q_f32(second + i) : vdupq_n_f32(0)));
    }
}
#include "portable/f16.h"

static const kernels_t kernels_neon_fp16 = {
    KERNELS_NEON,
    KERNELS_NEON_DOT,
    .isa = "neon_fp16",
    .f16_table = f16_table__neon_fp16,
    .f16_fma_operations = F16_OPERATIONS,
    .f16_fma_loop = f16_fma_loop__neon_fp16,
    .f16_convert = f16_convert__neon_fp16,
};
#include "portable/undefine.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
