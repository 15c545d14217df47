/* The platform's baseline: SSE2 on x86-64, whatever 128-bit vectors the compiler finds elsewhere. */
#define ISA_NAME generic
#define LANES 4
#define TABLE_ROWS 2
#define TABLE_TILES 1
#define DENSE_ROWS 2 /* 8 of 16 registers accumulate */
#define QUERY_TILES 1
#define KEYS 2
#include "portable/portable.h"
#undef ISA_NAME
#undef LANES
#undef TABLE_ROWS
#undef TABLE_TILES
#undef DENSE_ROWS
#undef QUERY_TILES
#undef KEYS
