"""One rule per operator: the piece of an encoder that it makes of the pieces it reads.

A rule returns None where its node is no part of an encoder, and raises `MismatchError` where it is
one but for a detail.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.engine.operators import OPERATORS
from toolkit.engine.plan import Node
from toolkit.engine.reader.assembly import (
    HIDDEN_SCORE,
    activation_of,
    normalise,
    sum_lookups,
)
from toolkit.engine.reader.attention import (
    additive,
    attention,
    is_laid_out,
    multi_head_attention,
    score,
    split_heads,
    weigh,
)
from toolkit.engine.reader.quantized import (
    dense_weight,
    float_weight,
    is_relu,
    plain,
    unrounded,
)
from toolkit.engine.reader.symbols import (
    GRID,
    Affine,
    Array,
    Context,
    Dequantized,
    Groups,
    Heads,
    Hidden,
    Known,
    Lookups,
    MismatchError,
    Norming,
    Pointwise,
    Probabilities,
    Probe,
    Residual,
    Rounded,
    Scaled,
    Scores,
    Shapes,
    Value,
    _sizes,
    float32,
    scalar,
    shapes_of,
    vector,
)
from toolkit.engine.reader.unfuse import DOMAIN


def _add(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    for a, b in (inputs, inputs[::-1]):
        match a, b:
            case Affine(bias=None), Known():
                bias = vector(b, a.shapes[0][-1])
                if bias is not None:
                    return replace(a, bias=bias)
            case Scores(), Known():
                return replace(a, masks=(*a.masks, b.arrays))
            case Norming(stage="variance"), Known():
                return replace(a, stage="shifted", epsilon=scalar(b))
            case Norming(stage="scaled"), Known():
                return normalise(a.source, a.gamma, vector(b), a.epsilon, probes)
            case Affine(source=Context() | Pointwise()), (Hidden() | Affine()) if (
                a.shapes == b.shapes
            ):
                return Residual(a, b, a.shapes)
            case Residual(branch=Affine(bias=None)), Known():
                bias = vector(b, a.shapes[0][-1])
                if bias is not None:
                    return replace(a, branch=replace(a.branch, bias=bias))
            case Lookups(), Lookups():
                return sum_lookups(a, b)
    return None


def _multiply(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    if inputs[0] is inputs[1] and isinstance(inputs[0], Norming):
        return _square(inputs[0])
    for a, b in (inputs, inputs[::-1]):
        factor = scalar(b)
        match a:
            case Heads() | Scores(masks=()) if factor is not None:
                return replace(a, scale=a.scale * factor)
            case Norming(stage="normed") if isinstance(b, Known):
                return replace(a, stage="scaled", gamma=vector(b))
            case Hidden() | Pointwise() | Context() if isinstance(b, Known):
                shapes = shapes_of(a)
                number = vector(b, shapes[0][-1]) if shapes else None
                if number is not None and factor is None:
                    return Scaled(a, number)
            case Lookups() if isinstance(b, Lookups):
                scaled = _scaled_lookups(a, b)
                if scaled is not None:
                    return scaled
    return None


def _divide(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    a, b = inputs
    divisor = scalar(b)
    match a, b:
        case ((Heads() | Scores(masks=())), Known()) if divisor:
            return replace(a, scale=a.scale / divisor)
        case Norming(stage="centred"), Norming(stage="deviation") if a.source is b.source:
            return replace(b, stage="normed")
    return None


def _subtract(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    x, mean = inputs
    if isinstance(mean, Norming) and mean.stage == "mean" and mean.source is x:
        return Norming(x, "centred")
    return None


def _power(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    if isinstance(inputs[0], Norming) and scalar(inputs[1]) == 2.0:
        return _square(inputs[0])
    return None


def _square(x: Norming) -> Value | None:
    return replace(x, stage="square") if x.stage == "centred" else None


def _square_root(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    x = inputs[0]
    if isinstance(x, Norming) and x.stage == "shifted":
        return replace(x, stage="deviation")
    return None


def _reduce_mean(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    x = inputs[0]
    axes = node.attributes.get("axes")
    if len(inputs) > 1 and isinstance(inputs[1], Known):
        axes = inputs[1].arrays[0].reshape(-1).tolist()
    if axes not in ([-1], [2]) or not node.attributes.get("keepdims", 1):
        return None
    if isinstance(x, Norming) and x.stage == "square":
        return replace(x, stage="variance")
    return Norming(x, "mean") if isinstance(x, (Lookups, Residual)) else None


def _layer_normalization(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    x, gamma, beta = [*inputs, None][:3]
    if not isinstance(x, (Lookups, Residual)) or node.attributes.get("axis", -1) not in (-1, 2):
        return None
    size = x.shapes[0][-1]
    shift = np.zeros(size, np.float32) if beta is None else vector(beta)
    return normalise(x, vector(gamma), shift, node.attributes.get("epsilon", 1e-5), probes)


def _matmul(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    match inputs:
        case [Heads() as query, Heads() as key]:
            return score(query, key)
        case [Probabilities(is_nan_test=False) as weights, Heads() as value]:
            return weigh(weights.scores, value)
    weight, source = dense_weight(inputs[1]), unrounded(inputs[0])
    if weight is not None and isinstance(source, (Hidden, Affine, Pointwise, Context, Scaled)):
        return _affine(inputs[0], weight)
    return None


def _fused_matmul(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    """alpha · a @ b, or alpha · a @ bᵀ with `transB`, as ONNX Runtime fuses it."""
    a, b = inputs
    alpha = node.attributes.get("alpha", 1.0)
    if node.attributes.get("transB", 0):
        match b:
            case Heads(groups=(*batch, rows, columns)):
                b = replace(b, groups=(*batch, columns, rows))
            case Known(is_constant=True):
                b = Known(tuple(np.swapaxes(array, -1, -2) for array in b.arrays), True)
            case Dequantized():
                b = b.map(lambda array: np.swapaxes(array, -1, -2))
    result = _matmul(node, [a, b], probes)
    match result:
        case Scores():
            return replace(result, scale=result.scale * alpha)
        case Affine():
            if isinstance(result.weight, Dequantized) and alpha > 0.0:
                scale = result.weight.scale * np.float32(alpha)
                return replace(result, weight=replace(result.weight, scale=scale))
            return replace(result, weight=float_weight(result.weight) * np.float32(alpha))
    return result if alpha == 1.0 else None


def _affine(operand: Any, weight: Array | Dequantized) -> Affine | None:
    x: Any = plain(operand)
    factor = None
    if isinstance(x, Scaled):
        x, factor = x.source, x.factor
    if isinstance(operand, Rounded) and isinstance(x, Affine) and is_relu(operand.zero_point):
        x = Pointwise(x, np.maximum(GRID, 0.0))
    shapes = shapes_of(x)
    k, n = weight.integers.shape if isinstance(weight, Dequantized) else weight.shape
    if shapes is None or k != shapes[0][-1]:
        return None
    if isinstance(x, Context) and not is_laid_out(x.groups, "B T ND", x.scores.num_heads):
        raise MismatchError("attention's heads joined in their order before the next dense layer")
    if isinstance(x, Pointwise) and activation_of(x.samples) is None:
        raise MismatchError("GELU, its tanh form or ReLU before this dense layer")
    if not isinstance(weight, Dequantized):
        float32(weight, "weight")
    shapes = tuple((*shape[:-1], n) for shape in shapes)
    rounded = operand if isinstance(operand, Rounded) else None
    return Affine(x, weight, None, shapes, rounded, factor)


def _softmax(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    if isinstance(inputs[0], Scores) and node.attributes.get("axis", -1) in (-1, 3):
        return Probabilities(inputs[0], is_nan_test=False)
    return None


def _is_nan(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    return replace(inputs[0], is_nan_test=True) if isinstance(inputs[0], Probabilities) else None


def _where(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    condition, a, b = inputs
    match condition, a, b:
        case Probabilities(is_nan_test=True), Known(), Probabilities() if (
            condition.scores is b.scores and scalar(a) == 0.0
        ):
            return b
        case Known(), Scores(), Known() if _hides(b):
            return replace(a, masks=(*a.masks, tuple(additive(c) for c in condition.arrays)))
        case Known(), Known(), Scores() if _hides(a):
            return replace(b, masks=(*b.masks, tuple(additive(~c) for c in condition.arrays)))
    return None


def _hides(fill: Known) -> bool:
    number = scalar(fill)
    return number is not None and number <= HIDDEN_SCORE


def _reshape(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    x, target = inputs
    before = shapes_of(x)
    if before is None or not isinstance(target, Known):
        return None
    after = tuple(
        _target_shape(shape, wanted.reshape(-1).tolist(), node.attributes.get("allowzero", 0))
        for shape, wanted in zip(before, target.arrays, strict=True)
    )
    if after == before:
        same: Value = x
        return same
    match x:
        case Affine() | Pointwise():
            return split_heads(x, after)
        case Heads():
            groups = _regroup(x.groups, before, after, x.source.shapes, x.num_heads)
            return None if groups is None else replace(x, groups=groups)
        case Context():
            groups = _regroup(x.groups, before, after, x.value.shapes, x.scores.num_heads)
            return None if groups is None else replace(x, groups=groups)
    return None


def _target_shape(shape: tuple[int, ...], wanted: list[int], allow_zero: int) -> tuple[int, ...]:
    if not allow_zero:
        wanted = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(wanted)]
    rest = math.prod(n for n in wanted if n != -1)
    if rest > 0 and wanted.count(-1) == 1 and math.prod(shape) % rest == 0:
        wanted = [math.prod(shape) // rest if n == -1 else n for n in wanted]
    if math.prod(wanted) != math.prod(shape) or any(n < 0 for n in wanted):
        raise MismatchError(f"a reshape that any batch and length can pass; {shape} → {wanted}")
    return tuple(wanted)


def _transpose(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    x, order = inputs[0], node.attributes.get("perm", ())
    if not isinstance(x, (Heads, Context)) or sorted(order) != list(range(len(x.groups))):
        return None
    return replace(x, groups=tuple(x.groups[axis] for axis in order))


def _regroup(
    groups: Groups, before: Shapes, after: Shapes, shapes: Shapes, num_heads: int
) -> Groups | None:
    """Follow a reshape that joins or splits neighbouring axes; None if it does anything else."""
    letters = "".join(groups)
    candidates = set()
    for shape, target in zip(shapes, after, strict=True):
        sizes = _sizes(shape, num_heads)
        result, position = [], 0
        for i, wanted in enumerate(target):
            start, size = position, 1
            while position < len(letters) and (size < wanted or position == start):
                size *= sizes[letters[position]]
                position += 1
            if size != wanted:
                return None
            # An axis of one element belongs to the left, unless the target asks for it.
            following = target[i + 1] if i + 1 < len(target) else 0
            while position < len(letters) and sizes[letters[position]] == 1 != following:
                position += 1
            result.append(letters[start:position])
        if position != len(letters):
            return None
        candidates.add(tuple(result))
    return candidates.pop() if len(candidates) == 1 else None


def _cast(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    """To float32, which every followed value already is."""
    if node.operator == "CastLike":
        x, like = inputs
        if isinstance(x, Known):
            return Known(tuple(array.astype(np.float32) for array in x.arrays), x.is_constant)
        is_float = not isinstance(like, Known) or like.arrays[0].dtype == np.float32
        return x if is_float else None
    x = inputs[0]
    if node.attributes.get("to") != 1:
        return None
    match x:
        case Lookups(terms=((np.ndarray() as table, rows),)) if table.dtype.kind in "iu":
            one, zero = np.ones((1, 1), np.float32), np.zeros((1, 1), table.dtype)
            return replace(x, terms=((Dequantized(table, one, zero), rows),))
    same: Value = x
    return same


def _scaled_lookups(a: Lookups, b: Lookups) -> Lookups | None:
    """Rows of integers, each times its number of a table (V, 1)."""
    match a.terms, b.terms:
        case ((Dequantized() as table, rows),), ((np.ndarray() as scale, others),) if (
            scale.shape == (len(table.integers), 1)
            and scale.dtype == np.float32
            and all(np.array_equal(x, y) for x, y in zip(rows, others, strict=True))
        ):
            return replace(a, terms=((replace(table, scale=table.scale * scale), rows),))
    return None


def _shape(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    shapes = shapes_of(inputs[0])
    if shapes is None:
        return None
    arrays = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
    results = [OPERATORS["Shape"]([array], node.attributes) for array in arrays]
    return Known(tuple(np.asarray(result) for result in results), False)


DENSE = {"MatMul", f"{DOMAIN}FusedMatMul"}  # what `_affine` may be made of

RULES: dict[str, Callable[[Node, list[Any], Sequence[Probe]], Value | None]] = {
    "Add": _add,
    "Attention": attention,
    "Cast": _cast,
    "CastLike": _cast,
    "Div": _divide,
    "IsNaN": _is_nan,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
    "Mul": _multiply,
    "Pow": _power,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Shape": _shape,
    "Softmax": _softmax,
    "Sqrt": _square_root,
    "Sub": _subtract,
    "Transpose": _transpose,
    "Where": _where,
    f"{DOMAIN}FusedMatMul": _fused_matmul,
    f"{DOMAIN}MultiHeadAttention": multi_head_attention,
}


def pointwise(node: Node, inputs: list[Any]) -> Pointwise | None:
    """Apply an elementwise operator to functions of one dense layer's result and to scalars."""
    sources = {x if isinstance(x, Affine) else x.source for x in inputs if _is_function(x)}
    scalars = [scalar(x) for x in inputs if not _is_function(x) and x is not None]
    if len(sources) != 1 or None in scalars or node.operator not in ELEMENTWISE:
        return None
    numbers = iter(scalars)
    arguments = [
        None
        if x is None
        else np.asarray(x.samples if isinstance(x, Pointwise) else GRID)
        if _is_function(x)
        else np.asarray(next(numbers))
        for x in inputs
    ]
    with np.errstate(all="ignore"):
        samples = OPERATORS[node.operator](arguments, node.attributes)
    return Pointwise(sources.pop(), np.asarray(samples))


ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Max", "Min", "Abs", "Clip", "Exp", "Sqrt"),
    *("Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "Reciprocal"),
}


def _is_function(x: Any) -> bool:
    return isinstance(x, (Affine, Pointwise))
