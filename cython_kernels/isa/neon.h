/* AArch64: 32 registers of 128 bits. Every AArch64 CPU has it, so there is no target region to open. */
#define ISA_NAME neon
#define LANES 4
#define TABLE_ROWS 2
#define TABLE_TILES 2
#define DENSE_ROWS 6 /* 24 of 32 registers accumulate */
#define QUERY_TILES 1
#define KEYS 4
#include "portable/portable.h"
#undef ISA_NAME
#undef LANES
#undef TABLE_ROWS
#undef TABLE_TILES
#undef DENSE_ROWS
#undef QUERY_TILES
#undef KEYS
