"""Attention: scores, masks, the weighted values; spelled in steps or as one operator."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.engine.plan import Node
from toolkit.engine.reader.symbols import (
    GRID,
    Affine,
    Array,
    Context,
    Groups,
    Heads,
    Known,
    MismatchError,
    Pointwise,
    Probe,
    Scores,
    Shapes,
    Value,
    shapes_of,
)


def attention(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    """ONNX's own Attention operator, opset 23, of (B, N, T, D) or of (B, T, N·D)."""
    query, key, value, mask, *rest = [*inputs, None]
    if any(x is not None for x in rest):
        raise MismatchError("attention without a cache")
    if node.attributes.get("is_causal", 0) or node.attributes.get("softcap", 0.0):
        raise MismatchError("neither a causal mask nor a soft cap")
    num_heads = node.attributes.get("q_num_heads", 0)
    if num_heads != node.attributes.get("kv_num_heads", 0):
        raise MismatchError("as many heads for key and value as for the query")
    parts = [query, key, value]
    if num_heads:
        parts = [_headed(x, num_heads) for x in parts]
    scores, heads = _attend(parts, node.attributes.get("scale"))
    if mask is not None:
        if not isinstance(mask, Known):
            raise MismatchError("a mask that depends on the inputs only")
        is_bool = mask.arrays[0].dtype == np.bool_
        arrays = tuple(additive(a) for a in mask.arrays) if is_bool else mask.arrays
        scores = replace(scores, masks=(arrays,))
    context = weigh(scores, heads)
    return replace(context, groups=JOINED) if num_heads else context


JOINED: Groups = ("B", "T", "ND")


def multi_head_attention(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    """ONNX Runtime's fused attention of (B, T, N·D); its inputs are what `unfuse.py` leaves."""
    query, key, value, padding, added = inputs
    num_heads = node.attributes["num_heads"]
    scores, heads = _attend(
        [_headed(x, num_heads) for x in (query, key, value)], node.attributes.get("scale")
    )
    masks = []
    if padding is not None:
        fill = node.attributes.get("mask_filter_value", -10000.0)
        masks.append(_padding_mask(padding, fill, probes))
    if added is not None:
        if not isinstance(added, Known):
            raise MismatchError("an attention bias that depends on the inputs only")
        masks.append(added.arrays)
    return replace(weigh(replace(scores, masks=tuple(masks)), heads), groups=JOINED)


def _headed(x: Any, num_heads: int) -> Heads:
    """(B, T, N·D) → (B, N, T, D)."""
    shapes = shapes_of(x) if isinstance(x, (Affine, Pointwise)) else None
    if shapes is None or num_heads < 1 or shapes[0][-1] % num_heads:
        raise MismatchError(f"query, key and value (B, T, H) of {num_heads} heads")
    heads = split_heads(x, tuple((b, t, num_heads, h // num_heads) for b, t, h in shapes))
    if heads is None:
        raise MismatchError("query, key and value straight from dense layers")
    return replace(heads, groups=("B", "N", "T", "D"))


def _attend(parts: Sequence[Any], scale: float | None) -> tuple[Scores, Heads]:
    """Score query against key, both (B, N, T, D), and hand on the value's heads."""
    if not all(isinstance(x, Heads) for x in parts):
        raise MismatchError("query, key and value (B, N, T, D)")
    query, key, value = parts
    if not is_laid_out(key.groups, "B N T D", key.num_heads):
        raise MismatchError("key (B, N, T, D)")
    scores = score(query, replace(key, groups=("B", "N", "D", "T")))
    default = 1.0 / math.sqrt(query.source.shapes[0][-1] // query.num_heads)
    # A scale of 0 stands for the default, as in torch's exporter and in ONNX Runtime.
    return replace(scores, scale=scores.scale * (scale or default)), value


def _padding_mask(padding: Any, fill: float, probes: Sequence[Probe]) -> tuple[Array, ...]:
    """Hide keys by a mask (B, T) or (B, T, T), or by the length (B,) of each text.

    The optimiser replaces the mask by its sum, which is the same only where all padding is on the
    right. Here such a sum is replaced by the mask again, which holds wherever the padding is.
    """
    if not isinstance(padding, Known):
        raise MismatchError("a padding mask that depends on the inputs only")
    masks = []
    for array, probe in zip(padding.arrays, probes, strict=True):
        batch, length = probe.mask.shape
        if array.shape == (batch,) and (array == probe.mask.sum(axis=1)).all():
            keep = probe.mask[:, None, None, :] != 0
        elif array.shape == (batch, length):
            keep = array[:, None, None, :] > 0
        elif array.shape == (batch, length, length):
            keep = array[:, None] > 0
        else:
            raise MismatchError(
                "a padding mask (B, T) or (B, T, T), or each text's number of tokens (B,); "
                f"got the shape {array.shape} or other numbers"
            )
        masks.append(np.where(keep, 0.0, fill))
    return tuple(masks)


def is_laid_out(groups: Groups, wanted: str, num_heads: int) -> bool:
    """Compare axes; a single head's axis has one element and may lie anywhere."""
    found = " ".join(groups)
    if num_heads == 1:
        found, wanted = found.replace("N", ""), wanted.replace("N", "")
    return found == wanted


def score(query: Heads, key: Heads) -> Scores:
    laid_out = is_laid_out(query.groups, "B N T D", query.num_heads) and is_laid_out(
        key.groups, "B N D T", key.num_heads
    )
    if not laid_out:
        raise MismatchError("query (B, N, T, D) times key (B, N, D, T)")
    if query.num_heads != key.num_heads or query.source.shapes != key.source.shapes:
        raise MismatchError("query and key of the same shape")
    shapes = tuple((b, query.num_heads, t, t) for b, t, _ in query.source.shapes)
    scale = query.scale * key.scale
    return Scores(query.source, key.source, query.num_heads, scale, (), shapes)


def weigh(scores: Scores, value: Heads) -> Context:
    same = (
        is_laid_out(value.groups, "B N T D", value.num_heads)
        and value.num_heads == scores.num_heads
        and value.source.shapes == scores.query.shapes
        and value.scale == 1.0
    )
    if not same:
        raise MismatchError("probabilities (B, N, T, T) times value (B, N, T, D)")
    return Context(scores, value.source, value.groups)


def split_heads(x: Affine | Pointwise, after: Shapes) -> Heads | None:
    """(B, T, H) → (B, T, N, D), of a linear function of a dense layer's result."""
    scale = 1.0
    if isinstance(x, Pointwise):
        scale = float(x.samples[-1] / GRID[-1])
        if not np.allclose(x.samples, scale * GRID, rtol=1e-6, atol=0.0):
            return None
        x = x.source
    num_heads = after[0][2] if len(after[0]) == 4 else 0
    expected = tuple((b, t, num_heads, h // max(num_heads, 1)) for b, t, h in x.shapes)
    return Heads(x, num_heads, ("B", "T", "N", "D"), scale) if after == expected else None


def additive(keep: Array) -> Array:
    return np.where(keep, 0.0, -np.inf)
