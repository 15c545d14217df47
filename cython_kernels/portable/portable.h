/* Every kernel, once, in the compilers' vector extension. An ISA header defines ISA_NAME, LANES and the register
 * tiles below, opens its target region and includes this file; a kernel f comes out as f__<isa>. What the ISA does
 * better by hand it writes under that name, and leaves out the kernel here by not defining its tile (TABLE_ROWS).
 * After its table it includes undefine.h.
 *
 *   LANES        floats per vector register: 16, 8 or 4
 *   TABLE_ROWS   rows of a bundle that the table kernel computes at once, on TABLE_TILES tiles:
 *                TABLE_ROWS * TABLE_TILES * TILE / LANES accumulators
 *   DENSE_ROWS   rows of the dense kernel: DENSE_ROWS * TILE / LANES accumulators
 *   QUERY_TILES  query tiles that attention keeps in registers
 *   KEYS         keys per step of attention: KEYS * QUERY_TILES * TILE / LANES accumulators
 *   VECTOR_MAX, VECTOR_MIN  the instructions, where the vector extension has no spelling that compiles to them
 */
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

#ifdef TABLE_ROWS
#include "table.h"
#endif
#include "dense.h"
#include "elementwise.h"
#include "attention.h" /* uses exp2 of elementwise.h */
#include "tiles.h"
#include "peaks.h"
