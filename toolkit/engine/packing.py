"""How a plan's weights are packed: form and block sizes by density, query scale folded in."""

import math
import mmap
from typing import Any

import numpy as np
from cython_kernels._kernels import PackedLinear
from numpy.typing import NDArray

from toolkit.engine.plan import Embeddings, Layer, Linear

# Above this density the table form's indirection costs more than the zeros it skips
# (measured: docs/engine.md).
DENSE_ABOVE = 0.75

# Rows and columns of a block: its activations, kblock × 2 tiles × 64 bytes, stay in the nearest
# cache while its weights, a few nonzeros per row, are read once per pair of tiles.
PANEL_ROWS = 192
KBLOCK = 384


def pack_linear(weight: NDArray[np.float32], bias: NDArray[np.float32], isa: str) -> PackedLinear:
    """Pack one weight.

    Args:
        weight: (N, K) float32, any strides.
        bias: (N,) float32.
        isa: One of `available_isas()`.
    """
    form = "dense" if density(weight) > DENSE_ABOVE else "table"
    return PackedLinear.pack(
        weight, bias, form, isa, PANEL_ROWS, KBLOCK, allocate=huge_array
    )


def pack_layer(layer: Layer, isa: str) -> dict[str, Any]:
    """Pack one encoder layer into the parts that `Encoder` takes."""
    return {
        "qkv": pack_qkv(layer, isa),
        "attention_output": _pack(layer.attention_output, isa),
        "intermediate": _pack(layer.intermediate, isa),
        "output": _pack(layer.output, isa),
        "attention_norm": layer.attention_norm,
        "output_norm": layer.output_norm,
        "num_heads": layer.num_heads,
        "activation": layer.activation,
    }


def pack_qkv(layer: Layer, isa: str) -> PackedLinear:
    """Stack query, key and value into one weight (3N, K).

    The query rows are multiplied by scale·log2(e): the attention kernel then needs one power of
    two per score and nothing else.
    """
    parts = (layer.query, layer.key, layer.value)
    weight = np.concatenate([part.weight for part in parts])
    bias = np.concatenate([part.bias for part in parts])
    rows = len(layer.query.bias)
    factor = np.float32(layer.scale * math.log2(math.e))
    weight[:rows] *= factor
    bias[:rows] *= factor
    return pack_linear(weight, bias, isa)


def pack_embeddings(embeddings: Embeddings, isa: str) -> dict[str, Any]:
    """Return the parts that `Encoder` takes; the tables are used as they are."""
    return {
        "word": embeddings.word,
        "position": embeddings.position,
        "token_type": embeddings.token_type,
        "norm": embeddings.norm,
        "projection": _pack(embeddings.projection, isa) if embeddings.projection else None,
    }


def density(weight: NDArray[np.float32]) -> float:
    """Return the fraction of nonzero elements, in [0, 1]."""
    return np.count_nonzero(weight) / weight.size


def huge_array(count: int, dtype: Any) -> NDArray[Any]:
    """Allocate `count` zeros on huge pages where the system grants them (3-4 % faster to read)."""
    size = count * np.dtype(dtype).itemsize
    if size < 1 << 21:
        return np.zeros(count, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype)


def _pack(linear: Linear, isa: str) -> PackedLinear:
    return pack_linear(linear.weight, linear.bias, isa)
