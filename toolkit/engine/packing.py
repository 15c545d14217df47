"""How a plan's weights are packed: block sizes, query scale folded in, all threads at work."""

import math
import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_kernels._kernels import CodeMemory, PackedLinear
from toolkit.engine.plan import Embeddings, Layer, LayerNorm, Linear
from toolkit.environment import affinity

# Rows and columns of a block. A block's weights are read once per tile (or pair), so they should
# stay in the second-level cache, its activations (columns × 64 bytes) in the first.
KBLOCK = 384
PANEL_ROWS = 192
SPARSE_PANEL_ROWS = 384
SPARSE_BELOW = 0.15

# Generated code in blocks of 192 × 192: on CPUs that are bound by fetching code they are the faster
# ones (docs/engine.md). Timed as if they were a form.
SMALL_BLOCKS = "generated_small"
SMALL_KBLOCK = 192

INTEGERS = ("s8_block", "s8_generated", "s8_table", "s8_dense")  # the forms of weights of 8 bits
S8_KBLOCK = 768  # a column of such has a quarter of the bytes

STEPS = ("qkv", "attention_output", "intermediate", "output")  # the weights of a layer

Pair = tuple[PackedLinear, PackedLinear]  # for small and for large calls
Forms = Mapping[str, tuple[str, str]]  # by name of a weight, for small and for large calls


@dataclass(frozen=True)
class PackedLayer:
    """One encoder layer as `Encoder` takes it; each weight for small and for large calls."""

    qkv: Pair
    attention_output: Pair
    intermediate: Pair
    output: Pair
    attention_norm: LayerNorm
    output_norm: LayerNorm
    num_heads: int
    activation: str


@dataclass(frozen=True)
class PackedEmbeddings:
    """The embedding layer as `Encoder` takes it; the tables are the plan's."""

    word: NDArray[Any]
    word_scale: NDArray[np.float32] | None
    position: NDArray[np.float32]
    token_type: NDArray[np.float32] | None
    norm: LayerNorm
    projection: PackedLinear | None


def pack_linear(
    linear: Linear,
    isa: str,
    forms: tuple[str, str],
    is_residual: bool = False,
    memory: CodeMemory | None = None,
    num_heads: int = 0,
) -> Pair:
    """Pack one weight for small and for large calls (one object where they are packed the same).

    Args:
        linear: Its weight may lie at any address (a view of a file).
        isa: One of `available_isas()`.
        forms: Of the weight, for small and for large calls.
        is_residual: Its sums start from a residual, not from the bias.
        memory: Where code is generated, for the caller to seal; None: in memory of its own.
        num_heads: Of a weight whose panels must hold whole heads.
    """

    def whole(rows: int) -> int:
        if not num_heads:
            return rows
        return whole_heads(num_heads, len(linear.bias) // num_heads, rows)

    small, large = forms
    rows = whole(PANEL_ROWS)
    if {small, large} == {"s8_table", "s8_generated"}:
        found = density(linear.weight)
        if rows == whole(panel_rows(large, True, found)):  # the same blocks: one array of numbers
            code = pack_form(linear, isa, "s8_generated", rows, is_residual, memory, True)
            assert code.table is not None
            return (code.table, code) if large == "s8_generated" else (code, code.table)
    packed = pack_form(linear, isa, small, rows, is_residual, memory)
    large_rows = whole(panel_rows(large, True, packed.density))
    if (large, large_rows) == (small, rows):
        return packed, packed
    return packed, pack_form(linear, isa, large, large_rows, is_residual, memory)


def pack_form(
    linear: Linear,
    isa: str,
    form: str,
    rows: int,
    is_residual: bool,
    memory: CodeMemory | None,
    with_table: bool = False,
) -> PackedLinear:
    """Pack one weight in one form, in panels of `rows` rows; the rest as in `pack_linear`."""
    kblock = SMALL_KBLOCK if form == SMALL_BLOCKS else S8_KBLOCK if form in INTEGERS else KBLOCK
    return PackedLinear.pack(
        linear.weight,
        linear.bias,
        "generated" if form == SMALL_BLOCKS else form,
        isa,
        rows,
        kblock,
        is_residual,
        huge_array,
        memory,
        linear.quantization,
        with_table,
    )


def panel_rows(form: str, is_large: bool, found: float) -> int:
    """Return the rows of a block, for a weight of density `found`."""
    is_wide = form.endswith("generated") and is_large and found < SPARSE_BELOW
    return SPARSE_PANEL_ROWS if is_wide else PANEL_ROWS


def pack_layers(layers: list[Layer], isa: str, forms: Forms, num_threads: int) -> list[PackedLayer]:
    """Pack the encoder's layers on `num_threads` threads; what comes out does not depend on them.

    `layers` is emptied on the way: the dense weights are not needed again.
    """
    workers = max(1, min(num_threads, len(layers), affinity()))
    memories: SimpleQueue[CodeMemory | None] = SimpleQueue()  # one a worker: they are not shared
    is_generated = any("generated" in form for pair in forms.values() for form in pair)
    kept = [CodeMemory() if is_generated else None for _ in range(workers)]
    for memory in kept:
        memories.put(memory)

    def pack(i: int) -> PackedLayer:
        memory = memories.get()
        packed = pack_layer(f"layer{i}.", layers[i], isa, forms, memory)
        layers[i] = None  # type: ignore[call-overload]
        memories.put(memory)
        return packed

    with ThreadPoolExecutor(workers, "packing") as pool:
        packed = list(pool.map(pack, range(len(layers))))
    for memory in kept:
        if memory is not None:
            memory.seal()
    return packed


def pack_layer(
    prefix: str, layer: Layer, isa: str, forms: Forms, memory: CodeMemory | None
) -> PackedLayer:
    """Pack one encoder layer; `forms` has `prefix` + step."""

    forms = {step: forms[prefix + step] for step in STEPS}
    if SMALL_BLOCKS in forms["output"]:  # whose k-blocks are whole panels of intermediate
        small = [SMALL_BLOCKS if form == "generated" else form for form in forms["intermediate"]]
        forms["intermediate"] = (small[0], small[1])

    def pack(step: str, linear: Linear, is_residual: bool) -> Pair:
        form = forms[step]
        return pack_linear(linear, isa, form, is_residual, memory)

    return PackedLayer(
        qkv=pack_linear(stack_qkv(layer), isa, forms["qkv"], False, memory, layer.num_heads),
        attention_output=pack("attention_output", layer.attention_output, True),
        intermediate=pack("intermediate", layer.intermediate, False),
        output=pack("output", layer.output, True),
        attention_norm=layer.attention_norm,
        output_norm=layer.output_norm,
        num_heads=layer.num_heads,
        activation=layer.activation,
    )


def stack_qkv(layer: Layer) -> Linear:
    """Stack query, key and value, head by head, into one weight (3N, K) and bias (3N,).

    The query rows - of integers their scales - are multiplied by scale·log2(e): the attention
    kernel then needs one power of two per score and nothing else.
    """
    check_qkv(layer)
    parts = (layer.query, layer.key, layer.value)
    rows, columns = layer.query.weight.shape  # rows of all heads together
    size = rows // layer.num_heads
    factor = np.float32(layer.scale * math.log2(math.e))

    def stack(vectors: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        stacked = np.stack([vector.reshape(-1, size) for vector in vectors], axis=1)
        stacked[:, 0] *= factor
        return stacked.reshape(3 * rows)

    # in memory a column after the other, as ONNX stores the parts
    weight = huge_array(3 * rows * columns, layer.query.weight.dtype)
    weight = weight.reshape(columns, -1, 3, size)
    np.stack([part.weight.T.reshape(columns, -1, size) for part in parts], axis=2, out=weight)
    scales = [part.quantization.scale for part in parts if part.quantization is not None]
    quantization = None
    if layer.query.quantization is not None:
        quantization = replace(layer.query.quantization, scale=stack(scales))
    else:
        weight[:, :, 0] *= factor
    bias = stack([part.bias for part in parts])
    return Linear("qkv", weight.reshape(columns, 3 * rows).T, bias, quantization)


def check_qkv(layer: Layer) -> None:
    """Check the sizes of query, key and value.

    Raises:
        ValueError: They contradict each other.
    """
    rows, columns = layer.query.weight.shape
    if layer.num_heads < 1 or rows % layer.num_heads:
        raise ValueError(f"num_heads must divide {rows} features; got {layer.num_heads}")
    parts = (layer.query, layer.key, layer.value)
    if any(part.weight.shape != (rows, columns) for part in parts):
        raise ValueError(f"query, key and value must all give {rows} of {columns} features")
    if len({q and q.of_input for q in (part.quantization for part in parts)}) > 1:
        raise ValueError("query, key and value must take the same integers, or none of them any")


def whole_heads(num_heads: int, head_rows: int, most_rows: int) -> int:
    """Return the rows of a panel of equal whole heads: at most `most_rows`, at least one head."""
    heads = max(1, min(num_heads, most_rows // head_rows))
    while num_heads % heads:
        heads -= 1
    return heads * head_rows


def why_not_generate(isa: str) -> str:
    """Return an empty string where code can be generated for `isa`, otherwise the reason."""
    one = np.ones((1, 1), np.float32)
    try:
        PackedLinear.pack(one, one[0], "generated", isa, 1, 1)
    except ValueError:  # this ISA has no such form
        return f"no code is generated for {isa}"
    except OSError as error:
        return str(error)
    return ""


def pack_embeddings(embeddings: Embeddings, isa: str, forms: Forms) -> PackedEmbeddings:
    """Pack the projection, if there is one; the tables are used as they are."""
    linear, projection = embeddings.projection, None
    if linear is not None:
        projection, _ = pack_linear(linear, isa, forms["projection"])
    return PackedEmbeddings(
        word=embeddings.word,
        word_scale=embeddings.word_scale,
        position=embeddings.position,
        token_type=embeddings.token_type,
        norm=embeddings.norm,
        projection=projection,
    )


def density(weight: NDArray[Any]) -> float:
    """Return the fraction of nonzero elements, in [0, 1]."""
    return np.count_nonzero(weight) / weight.size


def huge_array(count: int, dtype: Any) -> NDArray[Any]:
    """Allocate `count` zeros on huge pages where the system grants them (3-4 % faster to read)."""
    size = count * np.dtype(dtype).itemsize
    if size < 1 << 16:
        return np.zeros(count, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype)
