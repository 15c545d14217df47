/* Which ISAs this binary has and which of them this CPU runs. Nothing else asks the CPU. */
#ifndef TOOLKIT_DISPATCH_H
#define TOOLKIT_DISPATCH_H

#include "kernels.h" /* outside of every target region, as what follows */
#include "portable/half.h"

#include "isa/generic.h"
#include "isa/models.h"
#if defined(__x86_64__)
#include "isa/avx2.h"
#include "isa/avx512.h"
#include "isa/avx512_vnni.h"
#include "isa/avx512_bf16.h"
/* Older compilers have none of them. */
#if defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 12
#define HAS_AMX
#include "isa/avx_vnni.h"
#include "isa/avx512_fp16.h"
#include "isa/amx_bf16.h"
#endif
#elif defined(__aarch64__)
#include "isa/neon.h"
#include "isa/neon_dot.h"
#include "isa/neon_fp16.h"
#endif
#if !defined(HAS_AMX)
static inline int is_amx_refused(void) { return 0; }
#endif

/* Best first. */
static const struct {
    int (*is_supported)(void);
    const kernels_t *kernels;
} ISAS[] = {
#if defined(__x86_64__)
#ifdef HAS_AMX
    {is_supported_amx_bf16, &kernels_amx_bf16},
    {is_supported_avx512_fp16, &kernels_avx512_fp16},
#endif
    {is_supported_avx512_bf16, &kernels_avx512_bf16},
    {is_supported_avx512_vnni, &kernels_avx512_vnni},
    {is_supported_avx512, &kernels_avx512},
#ifdef HAS_AMX
    {is_supported_avx_vnni, &kernels_avx_vnni},
#endif
    {is_supported_avx2, &kernels_avx2},
#elif defined(__aarch64__)
    {is_supported_neon_fp16, &kernels_neon_fp16},
    {is_supported_neon_dot, &kernels_neon_dot},
    {is_supported_neon, &kernels_neon},
#endif
    {is_supported_generic, &kernels_generic},
};
enum { NUM_ISAS = sizeof ISAS / sizeof *ISAS };

/* For tests. */
static const kernels_t *const MODELS[] = {&kernels_bf16_model, &kernels_amx_bf16_model, &kernels_f16_model};
enum { NUM_MODELS = sizeof MODELS / sizeof *MODELS };

/* Packs code for instructions that this CPU may lack, so that a test reads it: whoever runs such a weight replaces its code
 * first, see interpret_code. NULL: no code is generated here. */
static inline const kernels_t *code_model(void) {
#ifdef HAS_AMX
    static const kernels_t kernels_f16_code = {
        .isa = "f16_code",
        .f32_gather = f32_gather__generic,
        .f32_scatter = f32_scatter__generic,
        .f16_table = f16_table__f16_model,
        .f16_generated = GENERATED_F16,
        .f16_convert = f16_convert__f16_model,
    };
    if (is_supported_avx512()) return &kernels_f16_code;
#endif
    return NULL;
}

/* The kernels of AMX by another name, where the CPU lacks no instruction of theirs but AMX and FP16: a test runs these on
 * their traps, tests/support/traps.c. NULL: it lacks more. */
static inline const kernels_t *trapped_kernels(void) {
#ifdef HAS_AMX
    static kernels_t kernels_amx_code;
    kernels_amx_code = kernels_amx_bf16;
    kernels_amx_code.isa = "amx_bf16_code";
    if (is_supported_avx512_bf16() && __builtin_cpu_supports("avx512vbmi2")) return &kernels_amx_code;
#endif
    return NULL;
}

/* Fill `tables` with what this CPU runs, best first; return how many, at least 1. */
static int available_kernels(const kernels_t *tables[NUM_ISAS]) {
    int n = 0;
    for (int i = 0; i < NUM_ISAS; i++)
        if (ISAS[i].is_supported()) tables[n++] = ISAS[i].kernels;
    return n;
}

#endif
