/* Vectors of LANES floats in the compilers' vector extension, and names that end in __<isa>. ISA_NAME and LANES are
 * defined before, VECTOR_MAX, VECTOR_MIN and VECTOR_CLAMP where there are such instructions. */
#include <float.h>
#include <string.h>

#include "kernels.h"

#define PASTE_(a, b) a##__##b
#define PASTE(a, b) PASTE_(a, b)
#define SYM(name) PASTE(name, ISA_NAME)
#define VECTORS (TILE / LANES) /* vectors per tile row */

typedef float SYM(vf) __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t SYM(vi) __attribute__((vector_size(LANES * 4), may_alias));
typedef float SYM(row16) __attribute__((vector_size(64), may_alias));
typedef float SYM(row16u) __attribute__((vector_size(64), may_alias, aligned(4)));
typedef int8_t SYM(bytes16u) __attribute__((vector_size(16), may_alias, aligned(1)));
#define VF SYM(vf)
#define VI SYM(vi)

/* Accumulators stay in registers only where their loop is unrolled whole; by themselves compilers stop at 16. */
#define UNROLL _Pragma("GCC unroll 32")
#define INLINE static inline __attribute__((always_inline))

INLINE VF SYM(load)(const float *p) { return *(const VF *)p; }
INLINE void SYM(store)(float *p, VF x) { *(VF *)p = x; }
INLINE VF SYM(splat)(float x) { return x - (VF){0}; } /* unlike x + 0 a plain copy, whatever the sign of x */
INLINE VF SYM(select)(VI mask, VF yes, VF no) { return (VF)(((VI)yes & mask) | ((VI)no & ~mask)); }
/* As the SSE instructions: the second operand where either is NaN. Callers put the data second. */
#ifdef VECTOR_MAX
INLINE VF SYM(max)(VF a, VF b) { return (VF)VECTOR_MAX(a, b); }
INLINE VF SYM(min)(VF a, VF b) { return (VF)VECTOR_MIN(a, b); }
#else
INLINE VF SYM(max)(VF a, VF b) { return SYM(select)(a > b, a, b); }
INLINE VF SYM(min)(VF a, VF b) { return SYM(select)(a < b, a, b); }
#endif
INLINE VF SYM(clamp)(VF x, float limit) { /* to -limit … limit, limit > 0; not for NaN */
#ifdef VECTOR_CLAMP
    return (VF)VECTOR_CLAMP(x, SYM(splat)(limit));
#else
    return SYM(max)(SYM(splat)(-limit), SYM(min)(SYM(splat)(limit), x));
#endif
}
