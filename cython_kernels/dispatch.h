/* Which ISAs this binary has and which of them this CPU runs. Nothing else asks the CPU. */
#ifndef TOOLKIT_DISPATCH_H
#define TOOLKIT_DISPATCH_H

#include "kernels.h" /* outside of every target region */

#include "isa/generic.h"
#if defined(__x86_64__)
#include "isa/avx2.h"
#include "isa/avx512.h"
#elif defined(__aarch64__)
#include "isa/neon.h"
#endif

/* Best first. */
static const struct {
    int (*is_supported)(void);
    const kernels_t *kernels;
} ISAS[] = {
#if defined(__x86_64__)
    {is_supported_avx512, &kernels_avx512},
    {is_supported_avx2, &kernels_avx2},
#elif defined(__aarch64__)
    {is_supported_neon, &kernels_neon},
#endif
    {is_supported_generic, &kernels_generic},
};
enum { NUM_ISAS = sizeof ISAS / sizeof *ISAS };

/* Fill `tables` with what this CPU runs, best first; return how many, at least 1. */
static int available_kernels(const kernels_t *tables[NUM_ISAS]) {
    int n = 0;
    for (int i = 0; i < NUM_ISAS; i++)
        if (ISAS[i].is_supported()) tables[n++] = ISAS[i].kernels;
    return n;
}

#endif
