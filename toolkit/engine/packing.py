"""How a plan's weights are packed: form and block sizes by density, query scale folded in."""

import math
import mmap
import warnings
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from cython_kernels._kernels import CodeMemory, PackedLinear, count_nonzeros
from numpy.typing import NDArray

from toolkit.engine.plan import Embeddings, Layer, Linear
from toolkit.environment import affinity

# Above this density skipping costs more than it saves: an estimate from prototypes of the kernels,
# not yet measured on these (docs/engine.md, 'Not measured yet'); so are the next two limits.
DENSE_ABOVE_TABLE = 0.75
DENSE_ABOVE_GENERATED = 0.95

# Below this density generated code has too few FMAs per column it loads, and the table form wins.
TABLE_BELOW = 0.04

# A call of at most this many tiles reads every weight for few tokens: the table form's 6 bytes per
# nonzero then beat generated code's 11 to 14.
SMALL_TILES = 4

# Rows and columns of a block. A block's weights are read once per tile (or pair), so they should
# stay in the second-level cache, its activations (columns × 64 bytes) in the first.
KBLOCK = 384
PANEL_ROWS = 192
SPARSE_PANEL_ROWS = 384
SPARSE_BELOW = 0.15

Choice = tuple[PackedLinear, PackedLinear]


def pack_linear(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    isa: str,
    is_residual: bool = False,
    memory: CodeMemory | None = None,
    num_heads: int = 0,
) -> Choice:
    """Pack one weight for small and for large calls (one object where the same form serves both).

    Args:
        weight: (N, K) float32, any strides, at any address (a view of a file).
        bias: (N,) float32.
        isa: One of `available_isas()`.
        is_residual: Its sums start from a residual, not from the bias.
        memory: Where code for large calls is generated; None: no code is generated.
        num_heads: Of a weight whose panels must hold whole heads.
    """
    found = density(weight)
    can_generate = memory is not None and found >= TABLE_BELOW
    limit = DENSE_ABOVE_GENERATED if can_generate else DENSE_ABOVE_TABLE
    large = "dense" if found > limit else "generated" if can_generate else "table"
    small = "dense" if found > DENSE_ABOVE_TABLE else "table"
    panel_rows = SPARSE_PANEL_ROWS if found < SPARSE_BELOW else PANEL_ROWS

    def pack(form: str, rows: int) -> PackedLinear:
        if num_heads:
            rows = whole_heads(num_heads, len(bias) // num_heads, rows)
        return PackedLinear.pack(
            weight, bias, form, isa, rows, KBLOCK, is_residual, huge_array, memory
        )

    packed = pack(small, PANEL_ROWS)
    return packed, packed if large == small else pack(large, panel_rows)


def pack_layers(
    layers: list[Layer], isa: str, can_generate: bool, num_threads: int
) -> list[dict[str, Any]]:
    """Pack the encoder's layers on `num_threads` threads; what comes out does not depend on them.

    `layers` is emptied on the way: the dense weights are not needed again.
    """
    workers = max(1, min(num_threads, len(layers), affinity()))
    memories: SimpleQueue[CodeMemory | None] = SimpleQueue()  # of each worker, not for sharing
    kept = [CodeMemory() if can_generate else None for _ in range(workers)]
    for memory in kept:
        memories.put(memory)

    def pack(i: int) -> dict[str, Any]:
        memory = memories.get()
        packed = pack_layer(layers[i], isa, memory)
        layers[i] = None  # type: ignore[call-overload]
        memories.put(memory)
        return packed

    with ThreadPoolExecutor(workers, "packing") as pool:
        packed = list(pool.map(pack, range(len(layers))))
    for memory in kept:
        if memory is not None:
            memory.seal()
    return packed


def pack_layer(layer: Layer, isa: str, memory: CodeMemory | None) -> dict[str, Any]:
    """Pack one encoder layer into the parts that `Encoder` takes."""

    def pack(linear: Linear, is_residual: bool) -> Choice:
        return pack_linear(linear.weight, linear.bias, isa, is_residual, memory)

    return {
        "qkv": pack_linear(*stack_qkv(layer), isa, False, memory, layer.num_heads),
        "attention_output": pack(layer.attention_output, True),
        "intermediate": pack(layer.intermediate, False),
        "output": pack(layer.output, True),
        "attention_norm": layer.attention_norm,
        "output_norm": layer.output_norm,
        "num_heads": layer.num_heads,
        "activation": layer.activation,
    }


def stack_qkv(layer: Layer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Stack query, key and value, head by head, into one weight (3N, K) and bias (3N,).

    The query rows are multiplied by scale·log2(e): the attention kernel then needs one power of
    two per score and nothing else.
    """
    parts = (layer.query, layer.key, layer.value)
    rows, columns = layer.query.weight.shape
    if layer.num_heads < 1 or columns % layer.num_heads:
        raise ValueError(f"num_heads must divide {columns} features; got {layer.num_heads}")
    if any(part.weight.shape != (columns, columns) for part in parts):
        raise ValueError(f"the weights of a layer must take and give {columns} features")
    size = rows // layer.num_heads
    # in memory a column after the other, as ONNX stores the parts
    weight = np.stack([part.weight.T.reshape(columns, -1, size) for part in parts], axis=2)
    bias = np.stack([part.bias.reshape(-1, size) for part in parts], axis=1)
    factor = np.float32(layer.scale * math.log2(math.e))
    weight[:, :, 0] *= factor
    bias[:, 0] *= factor
    return weight.reshape(columns, 3 * rows).T, bias.reshape(3 * rows)


def whole_heads(num_heads: int, head_rows: int, most_rows: int) -> int:
    """Return the rows of a panel of equal whole heads: at most `most_rows`, at least one head."""
    heads = max(1, min(num_heads, most_rows // head_rows))
    while num_heads % heads:
        heads -= 1
    return heads * head_rows


def generates(isa: str) -> bool:
    """Tell whether code can be generated for `isa` here; warn where the system forbids it."""
    one = np.ones((1, 1), np.float32)
    try:
        PackedLinear.pack(one, one[0], "generated", isa, 1, 1)
    except ValueError:  # this ISA has no such form
        return False
    except OSError as error:
        warnings.warn(f"{error}: sparse layers run more slowly, in the table form", stacklevel=4)
        return False
    return True


def pack_embeddings(embeddings: Embeddings, isa: str) -> dict[str, Any]:
    """Return the parts that `Encoder` takes; the tables are used as they are."""
    projection = embeddings.projection
    return {
        "word": embeddings.word,
        "position": embeddings.position,
        "token_type": embeddings.token_type,
        "norm": embeddings.norm,
        "projection": projection and pack_linear(projection.weight, projection.bias, isa)[0],
    }


def density(weight: NDArray[np.float32]) -> float:
    """Return the fraction of nonzero elements, in [0, 1]."""
    return int(count_nonzeros(weight, weight.shape[1]).sum()) / weight.size


def huge_array(count: int, dtype: Any) -> NDArray[Any]:
    """Allocate `count` zeros on huge pages where the system grants them (3-4 % faster to read)."""
    size = count * np.dtype(dtype).itemsize
    if size < 1 << 21:
        return np.zeros(count, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype)
