/* The only place that asks the CPU. __builtin_cpu_supports also checks that the operating system saves the
 * registers, so a listed ISA never dies of an illegal instruction. */
#ifndef TOOLKIT_DISPATCH_H
#define TOOLKIT_DISPATCH_H

#include "isa/generic.h"
#if defined(__x86_64__)
#include "isa/avx2.h"
#include "isa/avx512.h"
#elif defined(__aarch64__)
#include "isa/neon.h"
#endif

/* Fill `tables` with what this CPU runs, best first; return how many (at least 1, at most 3). */
static int available_kernels(kernels_t tables[3]) {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
        tables[n] = portable_avx512;
        tables[n].generated = generated_avx512;
        tables[n++].table = table_pairs_avx512;
    }
    if (avx2) tables[n++] = portable_avx2;
#elif defined(__aarch64__)
    tables[n++] = portable_neon;
#endif
    tables[n++] = portable_generic;
    return n;
}

#if !defined(__x86_64__)
#define GENERATED_MAX_K 0
enum { START_BIAS, START_INIT, START_Y };
static inline size_t generated_bound(int rows, int k, size_t nonzeros) { return 0 * (rows + k + nonzeros); }
static inline uint8_t *generate(uint8_t *p, float *stream, const float *weight, ptrdiff_t stride, int rows, int k,
                                size_t nonzeros, int start) {
    (void)stream, (void)weight, (void)stride, (void)rows, (void)k, (void)nonzeros, (void)start;
    return p;
}
#endif

#endif
