/* Every kernel, once, in the compilers' vector extension. An ISA header defines ISA_NAME, LANES and the
 * register tiles below, opens its target region and includes this file; what it does better by hand it then
 * replaces in its table.
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

#define PASTE_(a, b) a##_##b
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

#include "table.h"
#include "dense.h"
#include "elementwise.h"
#include "attention.h" /* uses exp2 of elementwise.h */
#include "tiles.h"
#include "peaks.h"

#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
static const kernels_t SYM(portable) = {
    .isa = STRINGIFY(ISA_NAME),
    .dense_rows = DENSE_ROWS,
    .table = SYM(table),
    .dense = SYM(dense),
    .generated = NULL,
    .gelu = SYM(gelu),
    .gelu_tanh = SYM(gelu_tanh),
    .relu = SYM(relu),
    .layer_norm = SYM(layer_norm),
    .attention = SYM(attention),
    .embed = SYM(embed),
    .scatter = SYM(scatter),
    .gather = SYM(gather),
    .fma_floats = CHAINS * LANES,
    .fma_loop = SYM(fma_loop),
    .read_loop = SYM(read_loop),
};

#undef VECTOR_MAX
#undef VECTOR_MIN
#undef STRINGIFY
#undef STRINGIFY_
#undef CHAINS
#undef ZIP
#undef SCRATCH_ROW
#undef PHASES
#undef INLINE
#undef UNROLL
#undef VI
#undef VF
#undef VECTORS
#undef SYM
#undef PASTE
#undef PASTE_
