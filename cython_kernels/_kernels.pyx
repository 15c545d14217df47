"""The kernels as Python sees them; _kernels.pyi says what each takes and returns.

Shapes: B texts, T positions, H hidden, F intermediate, N rows and K columns of a weight.
"""

cimport cython
cimport openmp
from cython.parallel cimport parallel, prange, threadid
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign

import numpy as np

# each file uses what stands above it
include "structs.pxi"

TILE_TOKENS = TILE
MAX_K = MAX_KBLOCK

cdef const kernels_t *TABLES[NUM_ISAS]
cdef int NUM_TABLES = available_kernels(TABLES)


def available_isas() -> list[str]:
    """Name the instruction sets this CPU runs, best first; the last is always `generic`."""
    return [TABLES[i].isa.decode() for i in range(NUM_TABLES)]


def precisions_of(str isa) -> list[str]:
    """Name what an instruction set multiplies in: `fp32`, `bf16` and `fp16` if it has them."""
    cdef const kernels_t *kernels = find_kernels(isa)
    return ["fp32"] + ["bf16"] * (kernels.bf16_dense != NULL) + ["fp16"] * (kernels.f16_table != NULL)


def refused_features() -> str:
    """Say what the CPU has but the system does not give this process; empty: nothing."""
    return "AMX: the system refused this process its tile registers (arch_prctl)" if is_amx_refused() else ""


def model_isas() -> list[str]:
    """Name the instruction sets that plain C stands for, for tests: any function takes them, no engine offers them."""
    return [MODELS[i].isa.decode() for i in range(NUM_MODELS)]


cdef const kernels_t *find_kernels(str isa) except NULL:
    cdef int i
    for i in range(NUM_TABLES):
        if TABLES[i].isa.decode() == isa:
            return TABLES[i]
    for i in range(NUM_MODELS):
        if MODELS[i].isa.decode() == isa:
            return MODELS[i]
    if code_model() != NULL and code_model().isa.decode() == isa:
        return code_model()
    if trapped_kernels() != NULL and trapped_kernels().isa.decode() == isa:
        return trapped_kernels()
    raise ValueError(f"isa {isa!r} is not supported on this CPU (available: {', '.join(available_isas())})")


include "memory.pxi"
include "expand.pxi"
include "packing.pxi"
include "gemm.pxi"
include "layers.pxi"
include "encoder.pxi"
include "linear.pxi"
include "timing.pxi"
include "peaks.pxi"
include "testing.pxi"
