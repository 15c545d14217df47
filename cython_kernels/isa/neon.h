/* AArch64: 32 registers of 128 bits. Every AArch64 CPU has it, so there is no target region to open. */
static int is_supported_neon(void) { return 1; }

#define ISA_NAME neon
#define LANES 4
#define TABLE_ROWS 2
#define TABLE_TILES 2
#define DENSE_ROWS 6 /* 24 of 32 registers accumulate */
#define QUERY_TILES 1
#define KEYS 4
#define S8_ROWS 6
#include "portable/portable.h"

/* What tables of later ISAs have in common with this one. */
enum { DENSE_ROWS_NEON = DENSE_ROWS, FMA_COUNT_NEON = CHAINS * LANES };
#define KERNELS_NEON \
    .f32_dense_rows = DENSE_ROWS_NEON, \
    .f32_table = f32_table__neon, \
    .f32_dense = f32_dense__neon, \
    .f32_gelu = f32_gelu__neon, \
    .f32_gelu_tanh = f32_gelu_tanh__neon, \
    .f32_relu = f32_relu__neon, \
    .f32_layer_norm = f32_layer_norm__neon, \
    .f32_attention = f32_attention__neon, \
    .f32_embed = f32_embed__neon, \
    .f32_scatter = f32_scatter__neon, \
    .f32_gather = f32_gather__neon, \
    .f32_fma_count = FMA_COUNT_NEON, \
    .f32_fma_loop = f32_fma_loop__neon, \
    .read_loop = read_loop__neon

static const kernels_t kernels_neon = {
    KERNELS_NEON,
    .isa = "neon",
    .s8_dense_rows = S8_ROWS,
    .s8_dense_columns = 4,
    .s8_table = s8_table__neon,
    .s8_dense = s8_dense__neon,
    .s8_dot_operations = S8_OPERATIONS,
    .s8_dot_loop = s8_dot_loop__neon,
    .u8_convert = u8_convert__neon,
};
#include "portable/undefine.h"
