/* The platform's baseline: SSE2 on x86-64, whatever 128-bit vectors the compiler finds elsewhere. */
static int is_supported_generic(void) { return 1; }

#define ISA_NAME generic
#define LANES 4
#define TABLE_ROWS 2
#define TABLE_TILES 1
#define DENSE_ROWS 2 /* 8 of 16 registers accumulate */
#define QUERY_TILES 1
#define KEYS 2
#define S8_ROWS 2
#if defined(__SSE2__)
#include <emmintrin.h>
#define S8_MADD(a, b) _mm_madd_epi16((__m128i)(a), (__m128i)(b))
#endif
#include "portable/portable.h"

enum {
    DENSE_ROWS_GENERIC = DENSE_ROWS,
    S8_ROWS_GENERIC = S8_ROWS,
    S8_OPERATIONS_GENERIC = S8_OPERATIONS,
    FMA_COUNT_GENERIC = CHAINS * LANES
};
#define KERNELS_GENERIC \
    .f32_dense_rows = DENSE_ROWS_GENERIC, \
    .f32_table = f32_table__generic, \
    .f32_dense = f32_dense__generic, \
    .s8_table = s8_table__generic, \
    .u8_convert = u8_convert__generic, \
    .f32_gelu = f32_gelu__generic, \
    .f32_gelu_tanh = f32_gelu_tanh__generic, \
    .f32_relu = f32_relu__generic, \
    .f32_layer_norm = f32_layer_norm__generic, \
    .f32_attention = f32_attention__generic, \
    .f32_embed = f32_embed__generic, \
    .f32_scatter = f32_scatter__generic, \
    .f32_gather = f32_gather__generic, \
    .f32_fma_count = FMA_COUNT_GENERIC, \
    .f32_fma_loop = f32_fma_loop__generic, \
    .read_loop = read_loop__generic

#define KERNELS_GENERIC_S8 \
    .s8_dot_operations = S8_OPERATIONS_GENERIC, \
    .s8_dot_loop = s8_dot_loop__generic, \
    .s8_dense_rows = S8_ROWS_GENERIC, \
    .s8_dense_columns = 4, \
    .s8_dense = s8_dense__generic

static const kernels_t kernels_generic = {KERNELS_GENERIC, KERNELS_GENERIC_S8, .isa = "generic"};
#include "portable/undefine.h"
