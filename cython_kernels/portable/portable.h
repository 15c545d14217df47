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
 *   S8_ROWS      see s8.h
 *   VECTOR_MAX, VECTOR_MIN  the instructions, where the vector extension has no spelling that compiles to them
 */
#include "vector.h"

#ifdef TABLE_ROWS
#include "table.h"
#endif
#include "dense.h"
#include "elementwise.h"
#include "attention.h" /* uses exp2 of elementwise.h */
#include "tiles.h"
#include "peaks.h"
#include "s8.h"
