/* Instructions that few machines have, in plain C: what is written with them is tested everywhere. Nobody is given these
 * tables who does not name them. */

#define ISA_NAME bf16_model
#define LANES 4
#define BF16_ROWS 2
#define BF16_BLOCK_ROWS 16
#define BASE_ISA generic
#define QUERY_TILES 1
#define KEYS 2
#include "portable/vector.h"
#include "portable/bf16.h"
#include "portable/bf16_attention.h"

static const kernels_t kernels_bf16_model = {
    KERNELS_GENERIC,
    KERNELS_GENERIC_S8,
    .isa = "bf16_model",
    .bf16_dense_rows = BF16_ROWS,
    .bf16_dense_columns = 2,
    .bf16_dense = bf16_dense__bf16_model,
    .bf16_block_rows = BF16_BLOCK_ROWS,
    .bf16_block_columns = 2,
    .bf16_block = bf16_block__bf16_model,
    .bf16_convert = bf16_convert__bf16_model,
    .bf16_gelu = bf16_gelu__bf16_model,
    .bf16_attention = bf16_attention__bf16_model,
    .bf16_dot_operations = DOT_OPERATIONS,
    .bf16_dot_loop = bf16_dot_loop__bf16_model,
};
#include "portable/undefine.h"

#define ISA_NAME amx_bf16_model
#define LANES 4
#include "portable/vector.h"
#include "portable/matrix_tiles.h"
#define BASE_ISA generic
#define BF16_BASE bf16_model
#define QUERY_TILES 1
#include "portable/bf16_tiles.h"
#include "portable/bf16_attention_tiles.h"
#include "portable/s8_tiles.h"

static const kernels_t kernels_amx_bf16_model = {
    KERNELS_GENERIC,
    .isa = "amx_bf16_model",
    .s8_dense_rows = TILE_ROWS,
    .s8_dense_columns = S8_COLUMNS,
    .s8_dense = s8_dense__amx_bf16_model,
    .s8_dot_operations = S8_OPERATIONS,
    .s8_dot_loop = s8_dot_loop__amx_bf16_model,
    .s8_block_rows = TILE_ROWS,
    .s8_block_columns = S8_COLUMNS,
    .s8_block = s8_block__amx_bf16_model,
    .bf16_dense_rows = TILE_ROWS,
    .bf16_dense_columns = TILE_COLUMNS,
    .bf16_dense = bf16_dense__amx_bf16_model,
    .bf16_block_rows = TILE_ROWS,
    .bf16_block_columns = TILE_COLUMNS,
    .bf16_block = bf16_block__amx_bf16_model,
    .bf16_compressed = bf16_compressed__amx_bf16_model,
    .bf16_convert = bf16_convert__bf16_model,
    .bf16_gelu = bf16_gelu__bf16_model,
    .bf16_attention = bf16_attention__amx_bf16_model,
    .bf16_dot_operations = DOT_OPERATIONS,
    .bf16_dot_loop = bf16_dot_loop__amx_bf16_model,
};
#include "portable/undefine.h"

#define ISA_NAME f16_model
#define LANES 4
#include "portable/vector.h"
#include "portable/f16.h"

static const kernels_t kernels_f16_model = {
    KERNELS_GENERIC,
    KERNELS_GENERIC_S8,
    .isa = "f16_model",
    .f16_table = f16_table__f16_model,
    .f16_fma_operations = F16_OPERATIONS,
    .f16_fma_loop = f16_fma_loop__f16_model,
    .f16_convert = f16_convert__f16_model,
};
#include "portable/undefine.h"
