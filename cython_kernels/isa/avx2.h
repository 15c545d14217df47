/* AVX2 + FMA: 16 registers of 256 bits. */
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA_NAME avx2
#define LANES 8
#define TABLE_ROWS 2
#define TABLE_TILES 2
#define DENSE_ROWS 6 /* 12 of 16 registers accumulate */
#define QUERY_TILES 1
#define KEYS 4
#define VECTOR_MAX _mm256_max_ps
#define VECTOR_MIN _mm256_min_ps
#include "portable/portable.h"
#undef ISA_NAME
#undef LANES
#undef TABLE_ROWS
#undef TABLE_TILES
#undef DENSE_ROWS
#undef QUERY_TILES
#undef KEYS
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
