"""Recognise a BERT encoder by running its graph on symbols instead of numbers.

Exporters spell the same encoder in dozens of ways, so no sequence of nodes is compared. Every value
either is `Known` - ids, masks, positions, shapes: computed for real, on two small probe batches - or
stands for a piece of an encoder, and each node makes a new piece from the pieces it reads. What fits
nowhere becomes `Opaque`; a head is made of it, and an encoder that is not BERT's.

Probes decide what no pattern could: that the mask hides exactly the padded keys, that positions
count as the plan says, that an elementwise function is GELU. Their batch and length differ, so a
size that the graph has fixed shows.

Shapes: B texts, T tokens, H hidden, N heads, D head size, E embedding size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engine.onnx_file import Graph, Node
from toolkit.engine.plan import Embeddings, Layer, LayerNorm, Linear
from toolkit.engine.tail import OPERATORS, describe

Array = NDArray[Any]
Shapes = tuple[tuple[int, ...], ...]  # one per probe
Groups = tuple[str, ...]  # axes of an array, each a product of the axes named by its letters

PROBE_SHAPES = ((2, 5), (3, 7))  # (B, T), all different
HIDDEN_SCORE = -1e4  # exp of it is 0 in float32: a mask this low hides a key
MAX_KNOWN = 2**20  # elements of a value computed at load; position buffers have some thousand
GRID = np.linspace(-12.0, 12.0, 481)  # where activations are compared
ACTIVATION_ERROR = 1e-5  # the exact and the tanh GELU differ by 5e-4


@dataclass(frozen=True)
class Probe:
    """One small batch; ids, mask and types are (B, T)."""

    ids: Array
    mask: Array
    types: Array


@dataclass(frozen=True, eq=False)
class Known:
    """A value computed on every probe; `is_constant` if it depends on no input."""

    arrays: tuple[Array, ...]
    is_constant: bool


@dataclass(frozen=True, eq=False)
class Lookups:
    """A sum of table rows (B, T, E): pairs of table and, per probe, row numbers."""

    terms: tuple[tuple[Array, tuple[Array, ...]], ...]
    shapes: Shapes


@dataclass(frozen=True, eq=False)
class Affine:
    """`source @ weight + bias`; weight (k, n) as ONNX stores it, bias (n,) or still None."""

    source: "Symbol"
    weight: Array
    bias: Array | None
    shapes: Shapes


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A function of each element of `source`, by its values on `GRID`."""

    source: Affine
    samples: Array


@dataclass(frozen=True, eq=False)
class Heads:
    """`source` (B, T, N·D) cut into heads, its axes regrouped, multiplied by `scale`."""

    source: Affine
    num_heads: int
    groups: Groups
    scale: float


@dataclass(frozen=True, eq=False)
class Scores:
    """scale · query·keyᵀ + masks, (B, N, T, T); each mask is one additive array per probe."""

    query: Affine
    key: Affine
    num_heads: int
    scale: float
    masks: tuple[tuple[Array, ...], ...]
    shapes: Shapes


@dataclass(frozen=True, eq=False)
class Probabilities:
    """Softmax of scores over the keys, or where it is NaN."""

    scores: Scores
    is_nan_test: bool


@dataclass(frozen=True, eq=False)
class Context:
    """Probabilities · value, its axes regrouped."""

    scores: Scores
    value: Affine
    groups: Groups


@dataclass(frozen=True, eq=False)
class Residual:
    """branch + base, (B, T, H)."""

    branch: Affine
    base: "Symbol"
    shapes: Shapes


@dataclass(frozen=True, eq=False)
class Norming:
    """A LayerNorm spelled as single operators, up to `stage`."""

    source: "Symbol"
    stage: str
    epsilon: float | None = None
    gamma: Array | None = None


@dataclass(frozen=True, eq=False)
class Hidden:
    """A normalised hidden state (B, T, H) behind `layers`.

    `attention` is the attention half of the next layer, if the state lies behind it.
    """

    embeddings: Embeddings
    layers: tuple[Layer, ...]
    attention: dict[str, Any] | None
    shapes: Shapes


@dataclass(frozen=True, eq=False)
class Opaque:
    """Anything else; `reason` says which node broke the pattern, if it was one that should not."""

    reason: str | None


Symbol = (
    Lookups
    | Affine
    | Pointwise
    | Heads
    | Scores
    | Probabilities
    | Context
    | Residual
    | Norming
    | Hidden
)
Value = Known | Symbol | Opaque


class _MismatchError(Exception):
    """A node that is nearly right: says what was expected."""


def make_probes(graph: Graph) -> list[Probe]:
    """Make small batches that tell the roles of values apart.

    Among the ids is every integer constant of the graph, so that one which compares them with a
    padding id meets it, at several places. Masks have holes; the first text is complete.
    """
    arrays = [*graph.constants.values()]
    arrays += [a for node in graph.nodes for a in node.attributes.values() if hasattr(a, "dtype")]
    special = {int(a.reshape(())) for a in arrays if a.size == 1 and a.dtype.kind == "i"}
    special |= {
        number
        for node in graph.nodes
        if node.operator == "Constant"
        and isinstance(number := node.attributes.get("value_int"), int)
    }
    ids = sorted(number for number in special if 0 <= number < 2**31) or [0]
    probes = []
    for batch, length in PROBE_SHAPES:
        batch = max(batch, -(-2 * len(ids) // length))  # every id at least twice
        text, token = np.indices((batch, length))
        row = np.arange(batch * length).reshape(batch, length)
        # The multiplier keeps ids from ascending like positions; odd places hold ordinary ids.
        picked = (
            np.array(ids)[row * 7 % len(ids)] if len(ids) % 7 else np.array(ids)[row % len(ids)]
        )
        probes.append(
            Probe(
                ids=np.where((row % 11 == 5), 1000003 + row, picked).astype(np.int64),
                mask=((text == 0) | ((text + 2 * token) % 5 < 3)).astype(np.int64),
                types=((text + token // 2) % 2).astype(np.int64),
            )
        )
    return probes


def interpret(graph: Graph, probes: Sequence[Probe]) -> dict[str, Value]:
    """Find out what every value of a graph is.

    Args:
        graph: The graph.
        probes: Small batches, from `make_probes`.

    Returns:
        The meaning of each value by name. One object under two names is one value.
    """
    values: dict[str, Value] = {
        name: Known((array,) * len(probes), True) for name, array in graph.constants.items()
    }
    fields = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types"}
    for name in graph.inputs:
        values[name] = Known(tuple(getattr(probe, fields[name]) for probe in probes), False)
    for node in graph.nodes:
        inputs = [values.get(name, Opaque(None)) if name else None for name in node.inputs]
        results = _apply(node, inputs, probes)
        for name, value in zip(node.outputs, results, strict=False):
            values[name] = value
        for name in node.outputs[len(results) :]:
            values[name] = Opaque(None)
    return values


def shapes_of(value: Value) -> Shapes | None:
    """Return a value's shape on every probe, or None if it is not followed."""
    match value:
        case Known():
            return tuple(array.shape for array in value.arrays)
        case Pointwise():
            return value.source.shapes
        case Heads():
            return _group_shapes(value.groups, value.source.shapes, value.num_heads)
        case Context():
            return _group_shapes(value.groups, value.value.shapes, value.scores.num_heads)
        case Probabilities():
            return value.scores.shapes
        case Norming() | Opaque():
            return None
    return value.shapes


def _apply(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> list[Value]:
    """Run one node."""
    if node.operator in ("Identity", "Dropout") and inputs:
        return [inputs[0]]
    for value in inputs:
        if isinstance(value, Opaque):
            return [value]
    try:
        if all(value is None or isinstance(value, Known) for value in inputs):
            lookup = _lookup(node, inputs)
            return _evaluate(node, inputs) if lookup is None else [lookup]
        rule = RULES.get(node.operator)
        result = rule(node, inputs, probes) if rule else None
        return [_pointwise(node, inputs) if result is None else result]
    except _MismatchError as error:
        return [Opaque(f"{describe(node)}: expected {error}")]


def _lookup(node: Node, inputs: list[Any]) -> Lookups | None:
    """Gather rows of a constant table by numbers that depend on the input."""
    if node.operator != "Gather" or node.attributes.get("axis", 0) != 0:
        return None
    table, rows = inputs
    if not table.is_constant or table.arrays[0].ndim != 2 or table.arrays[0].dtype.kind != "f":
        return None
    size = table.arrays[0].shape[1]
    shapes = tuple((*array.shape, size) for array in rows.arrays)
    return Lookups(((_float32(table.arrays[0], "embedding table"), rows.arrays),), shapes)


def _evaluate(node: Node, inputs: list[Any]) -> list[Value]:
    """Compute a node on every probe (once if all is constant)."""
    known = [value for value in inputs if value is not None]
    is_constant = all(value.is_constant for value in known)
    count = 1 if is_constant else len(PROBE_SHAPES)
    if node.operator not in OPERATORS:
        raise _MismatchError("an operator that the engine knows")
    runs = []
    for probe in range(count):
        arrays = [None if value is None else value.arrays[probe] for value in inputs]
        sizes = [array.size for array in arrays if array is not None]
        if (
            node.operator not in VIEWS
            and math.prod(max(size, 1) for size in sizes) > 64 * MAX_KNOWN
        ):
            raise _MismatchError(f"small operands; their sizes are {sizes}")
        try:
            with np.errstate(all="ignore"):
                result = OPERATORS[node.operator](arrays, node.attributes)
        except (ValueError, IndexError, TypeError, KeyError, AttributeError, MemoryError) as error:
            raise _MismatchError(f"operands that fit together: {error}") from error
        results = result if isinstance(result, list) else [result]
        if node.operator not in VIEWS and any(array.size > MAX_KNOWN for array in results):
            raise _MismatchError("a small result")
        runs.append(results)
    if is_constant:
        runs *= len(PROBE_SHAPES)
    return [Known(arrays, is_constant) for arrays in zip(*runs, strict=True)]


# Operators whose result shares the operand's memory, so that any size is fine.
VIEWS = {"Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Constant"}


def _add(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    for a, b in (inputs, inputs[::-1]):
        match a, b:
            case Affine(bias=None), Known():
                bias = _vector(b, a.shapes[0][-1])
                if bias is not None:
                    return replace(a, bias=bias)
            case Scores(), Known():
                return replace(a, masks=(*a.masks, b.arrays))
            case Norming(stage="variance"), Known():
                return replace(a, stage="shifted", epsilon=_scalar(b))
            case Norming(stage="scaled"), Known():
                return _normalise(a.source, a.gamma, _vector(b), a.epsilon, probes)
            case Affine(source=Context() | Pointwise()), (Hidden() | Affine()) if (
                a.shapes == b.shapes
            ):
                return Residual(a, b, a.shapes)
            case Lookups(), Lookups():
                return _sum_lookups(a, b)
    return None


def _multiply(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    if inputs[0] is inputs[1] and isinstance(inputs[0], Norming):
        return _square(inputs[0])
    for a, b in (inputs, inputs[::-1]):
        factor = _scalar(b)
        match a:
            case Heads() | Scores(masks=()) if factor is not None:
                return replace(a, scale=a.scale * factor)
            case Norming(stage="normed") if isinstance(b, Known):
                return replace(a, stage="scaled", gamma=_vector(b))
    return None


def _divide(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    a, b = inputs
    divisor = _scalar(b)
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
    if isinstance(inputs[0], Norming) and _scalar(inputs[1]) == 2.0:
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
    shift = np.zeros(size, np.float32) if beta is None else _vector(beta)
    return _normalise(x, _vector(gamma), shift, node.attributes.get("epsilon", 1e-5), probes)


def _matmul(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    match inputs:
        case [Heads() as query, Heads() as key]:
            return _scores(query, key)
        case [Probabilities(is_nan_test=False) as weights, Heads() as value]:
            return _context(weights.scores, value)
        case [(Hidden() | Affine() | Pointwise() | Context()) as x, Known(is_constant=True) as w]:
            return _affine(x, w.arrays[0])
    return None


def _affine(x: Symbol, weight: Array) -> Affine | None:
    shapes = shapes_of(x)
    if shapes is None or weight.ndim != 2 or weight.shape[0] != shapes[0][-1]:
        return None
    if isinstance(x, Context) and x.groups != ("B", "T", "ND"):
        raise _MismatchError("attention's heads joined in their order before the next dense layer")
    if isinstance(x, Pointwise) and activation_of(x.samples) is None:
        raise _MismatchError("GELU, its tanh form or ReLU before this dense layer")
    shapes = tuple((*shape[:-1], weight.shape[1]) for shape in shapes)
    return Affine(x, _float32(weight, "weight"), None, shapes)


def _scores(query: Heads, key: Heads) -> Scores:
    if (query.groups, key.groups) != (("B", "N", "T", "D"), ("B", "N", "D", "T")):
        raise _MismatchError("query (B, N, T, D) times key (B, N, D, T)")
    if query.num_heads != key.num_heads or query.source.shapes != key.source.shapes:
        raise _MismatchError("query and key of the same shape")
    shapes = tuple((b, query.num_heads, t, t) for b, t, _ in query.source.shapes)
    scale = query.scale * key.scale
    return Scores(query.source, key.source, query.num_heads, scale, (), shapes)


def _context(scores: Scores, value: Heads) -> Context:
    same = (
        value.groups == ("B", "N", "T", "D")
        and value.num_heads == scores.num_heads
        and value.source.shapes == scores.query.shapes
        and value.scale == 1.0
    )
    if not same:
        raise _MismatchError("probabilities (B, N, T, T) times value (B, N, T, D)")
    return Context(scores, value.source, value.groups)


def _attention(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    """ONNX's own Attention operator, opset 23."""
    query, key, value, mask, *rest = [*inputs, None, None][:6]
    parts = (query, key, value)
    if any(x is not None for x in rest) or not all(isinstance(x, Heads) for x in parts):
        raise _MismatchError("query, key and value (B, N, T, D) without a cache")
    if node.attributes.get("is_causal", 0) or node.attributes.get("softcap", 0.0):
        raise _MismatchError("neither a causal mask nor a soft cap")
    if key.groups != ("B", "N", "T", "D"):
        raise _MismatchError("key (B, N, T, D)")
    scores = _scores(query, replace(key, groups=("B", "N", "D", "T")))
    default = 1.0 / math.sqrt(query.source.shapes[0][-1] // query.num_heads)
    # A scale of 0 stands for the default, as in torch's exporter.
    scores = replace(scores, scale=scores.scale * (node.attributes.get("scale") or default))
    if mask is not None:
        if not isinstance(mask, Known):
            raise _MismatchError("a mask that depends on the inputs only")
        is_bool = mask.arrays[0].dtype == np.bool_
        arrays = tuple(_additive(a) for a in mask.arrays) if is_bool else mask.arrays
        scores = replace(scores, masks=(arrays,))
    return _context(scores, value)


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
            condition.scores is b.scores and _scalar(a) == 0.0
        ):
            return b
        case Known(), Scores(), Known() if _hides(b):
            return replace(a, masks=(*a.masks, tuple(_additive(c) for c in condition.arrays)))
        case Known(), Known(), Scores() if _hides(a):
            return replace(b, masks=(*b.masks, tuple(_additive(~c) for c in condition.arrays)))
    return None


def _hides(fill: Known) -> bool:
    number = _scalar(fill)
    return number is not None and number <= HIDDEN_SCORE


def _additive(keep: Array) -> Array:
    return np.where(keep, 0.0, -np.inf)


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
        return x  # type: ignore[no-any-return]
    match x:
        case Affine() | Pointwise():
            return _split_heads(x, after)
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
        raise _MismatchError(f"a reshape that any batch and length can pass; {shape} → {wanted}")
    return tuple(wanted)


def _split_heads(x: Affine | Pointwise, after: Shapes) -> Heads | None:
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


def _transpose(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    x, order = inputs[0], node.attributes.get("perm")
    if not isinstance(x, (Heads, Context)) or order is None or len(order) != len(x.groups):
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


def _group_shapes(groups: Groups, shapes: Shapes, num_heads: int) -> Shapes:
    return tuple(
        tuple(math.prod(_sizes(shape, num_heads)[letter] for letter in group) for group in groups)
        for shape in shapes
    )


def _sizes(shape: tuple[int, ...], num_heads: int) -> dict[str, int]:
    batch, length, width = shape
    return {"B": batch, "T": length, "N": num_heads, "D": width // num_heads}


def _pointwise(node: Node, inputs: list[Any]) -> Value:
    """Apply an elementwise operator to functions of one dense layer's result and to scalars."""
    sources = {x if isinstance(x, Affine) else x.source for x in inputs if _is_function(x)}
    scalars = [_scalar(x) for x in inputs if not _is_function(x)]
    if len(sources) != 1 or None in scalars or node.operator not in ELEMENTWISE:
        return Opaque(None)
    numbers = iter(scalars)
    arguments = [
        next(numbers) if not _is_function(x) else x.samples if isinstance(x, Pointwise) else GRID
        for x in inputs
    ]
    with np.errstate(all="ignore"):
        samples = OPERATORS[node.operator]([np.asarray(a) for a in arguments], node.attributes)
    return Pointwise(sources.pop(), np.asarray(samples))


ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Max", "Min", "Abs", "Clip", "Exp", "Sqrt"),
    *("Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "Reciprocal"),
}


def _is_function(x: Any) -> bool:
    return isinstance(x, (Affine, Pointwise))


def activation_of(samples: Array) -> str | None:
    """Name the activation with these values on `GRID`."""
    erf = OPERATORS["Gelu"]([GRID], {})
    tanh = OPERATORS["Gelu"]([GRID], {"approximate": b"tanh"})
    known = {"gelu": erf, "gelu_tanh": tanh, "relu": np.maximum(GRID, 0.0)}
    for name, expected in known.items():
        if samples.shape == GRID.shape and np.abs(samples - expected).max() <= ACTIVATION_ERROR:
            return name
    return None


def _normalise(
    source: Any, gamma: Any, beta: Any, epsilon: Any, probes: Sequence[Probe]
) -> Value | None:
    """A complete LayerNorm: of the embeddings, or of one of the two residual sums of a layer."""
    if gamma is None or beta is None or epsilon is None:
        return None
    size = source.shapes[0][-1]
    if gamma.shape != (size,) or beta.shape != (size,) or not 0.0 < epsilon < 1.0:
        raise _MismatchError(f"gamma and beta of {size} elements and a small positive epsilon")
    norm = LayerNorm(gamma, beta, float(epsilon))
    if isinstance(source, Lookups):
        return Hidden(_embeddings(source, norm, probes), (), None, source.shapes)
    base, branch = source.base, source.branch
    if isinstance(branch.source, Context):
        return _attention_half(base, branch, norm, source.shapes, probes)
    return _feed_forward_half(base, branch, norm, source.shapes)


def _attention_half(
    base: Any, branch: Affine, norm: LayerNorm, shapes: Shapes, probes: Sequence[Probe]
) -> Hidden:
    context = branch.source
    assert isinstance(context, Context)
    scores = context.scores
    state = base
    if isinstance(base, Affine) and isinstance(base.source, Hidden):  # ELECTRA's projection
        state = base.source
        projected = replace(state.embeddings, projection=_linear("embeddings.projection", base))
        state = replace(state, embeddings=projected) if not state.layers else base
    if not isinstance(state, Hidden) or state.attention is not None:
        raise _MismatchError("an encoder layer to start from the layer before it")
    if not (scores.query.source is scores.key.source is context.value.source is base):
        raise _MismatchError("query, key and value of the hidden state that is added back here")
    if scores.query.shapes != shapes:
        raise _MismatchError("heads that are together as wide as the hidden state")
    _check_mask(scores, probes)
    name = f"layers.{len(state.layers)}"
    attention = {
        "query": _linear(f"{name}.query", scores.query),
        "key": _linear(f"{name}.key", scores.key),
        "value": _linear(f"{name}.value", context.value),
        "attention_output": _linear(f"{name}.attention_output", branch),
        "attention_norm": norm,
        "num_heads": scores.num_heads,
        "scale": scores.scale,
    }
    return Hidden(state.embeddings, state.layers, attention, shapes)


def _feed_forward_half(base: Any, branch: Affine, norm: LayerNorm, shapes: Shapes) -> Hidden:
    assert isinstance(branch.source, Pointwise)
    inner = branch.source.source
    if not isinstance(base, Hidden) or base.attention is None or inner.source is not base:
        raise _MismatchError("a feed-forward block that starts behind attention's LayerNorm")
    name = f"layers.{len(base.layers)}"
    layer = Layer(
        **base.attention,
        intermediate=_linear(f"{name}.intermediate", inner),
        output=_linear(f"{name}.output", branch),
        output_norm=norm,
        activation=activation_of(branch.source.samples) or "",
    )
    return Hidden(base.embeddings, (*base.layers, layer), None, shapes)


def _check_mask(scores: Scores, probes: Sequence[Probe]) -> None:
    """Prove on the probes that every real query sees all real keys and no padded one."""
    for index, probe in enumerate(probes):
        total = np.zeros(scores.shapes[index])
        try:
            with np.errstate(over="ignore"):
                for mask in scores.masks:
                    total = total + np.broadcast_to(mask[index], total.shape)
        except ValueError as error:
            raise _MismatchError("an attention mask that fits (B, N, T, T)") from error
        real = probe.mask != 0
        for text in range(len(real)):
            rows = total[text][:, real[text]]  # (N, real queries, T)
            seen, hidden = rows[..., real[text]], rows[..., ~real[text]]
            if not (np.abs(seen) <= 1e-6).all() or not (hidden <= HIDDEN_SCORE).all():
                raise _MismatchError(
                    "attention that sees all tokens with attention_mask 1 and no other; "
                    "on a small probe batch its mask does not"
                )


def _embeddings(lookups: Lookups, norm: LayerNorm, probes: Sequence[Probe]) -> Embeddings:
    """Tell the tables apart by the row numbers they were asked for."""
    tables: dict[str, tuple[Array, int | None]] = {}
    constant_rows: list[Array] = []
    for table, rows in lookups.terms:
        role, number = _role(rows, probes)
        if role == "constant":
            if number is None or number >= len(table):
                raise _MismatchError("a row that the embedding table has")
            constant_rows.append(table[number])
        elif role in tables:
            raise _MismatchError(f"one table of {role} embeddings; it has several")
        else:
            tables[role] = (table, number)
    if "word" not in tables or not tables.keys() & {"position", "padded position"}:
        raise _MismatchError("embeddings of input_ids and of positions")
    position, number = tables.get("position") or tables["padded position"]
    padding_id = None if "position" in tables else number
    if padding_id is None:
        position = position[number:]
    for row in constant_rows:
        position = position + row
    return Embeddings(
        word=_owned(tables["word"][0]),
        position=_owned(position),
        token_type=_owned(tables["token type"][0]) if "token type" in tables else None,
        norm=norm,
        padding_id=padding_id,
        projection=None,
    )


def _role(rows: tuple[Array, ...], probes: Sequence[Probe]) -> tuple[str, int | None]:
    """Name what a table is indexed by, and the constant that belongs to it.

    That is for `position` the row of position 0, for `padded position` RoBERTa's padding id, for
    `constant` the row.
    """
    pairs = [(np.broadcast_to(r, p.ids.shape), p) for r, p in zip(rows, probes, strict=True)]
    if all(np.array_equal(row, probe.ids) for row, probe in pairs):
        return "word", None
    if all(np.array_equal(row, probe.types) for row, probe in pairs):
        return "token type", None
    first = int(pairs[0][0].flat[0])
    if first >= 0 and all((row == first).all() for row, _ in pairs):
        return "constant", first
    if first >= 0 and all((row == first + np.arange(row.shape[1])).all() for row, _ in pairs):
        return "position", first
    for padding_id in np.unique(np.concatenate([row.ravel() for row, _ in pairs])).tolist():
        if all((row == _padded_positions(p.ids, padding_id)).all() for row, p in pairs):
            return "padded position", padding_id
    raise _MismatchError(
        "rows chosen by input_ids, by token_type_ids or by position, counted as BERT or RoBERTa do"
    )


def _padded_positions(ids: Array, padding_id: int) -> Array:
    real = ids != padding_id
    return np.asarray(np.cumsum(real, axis=1) * real + padding_id)


def _sum_lookups(a: Lookups, b: Lookups) -> Lookups:
    try:
        shapes = tuple(np.broadcast_shapes(x, y) for x, y in zip(a.shapes, b.shapes, strict=True))
    except ValueError as error:
        raise _MismatchError("embeddings of one size") from error
    if a.shapes[0][-1] != b.shapes[0][-1]:
        raise _MismatchError("embeddings of one size")
    return Lookups((*a.terms, *b.terms), shapes)


def _cast(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    """To float32, which every followed value already is."""
    if node.operator == "CastLike":
        x, like = inputs
        if isinstance(x, Known):
            return Known(tuple(array.astype(np.float32) for array in x.arrays), x.is_constant)
        is_float = not isinstance(like, Known) or like.arrays[0].dtype == np.float32
        return x if is_float else None  # type: ignore[no-any-return]
    return inputs[0] if node.attributes.get("to") == 1 else None


def _shape(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> Value | None:
    shapes = shapes_of(inputs[0])
    if shapes is None:
        return None
    arrays = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
    results = [OPERATORS["Shape"]([array], node.attributes) for array in arrays]
    return Known(tuple(np.asarray(result) for result in results), False)


RULES: dict[str, Callable[[Node, list[Any], Sequence[Probe]], Value | None]] = {
    "Add": _add,
    "Attention": _attention,
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
}


def _scalar(value: Any) -> float | None:
    """The one number that a value is on every probe."""
    if not isinstance(value, Known) or any(array.size != 1 for array in value.arrays):
        return None
    numbers = {float(array.reshape(())) for array in value.arrays}
    return numbers.pop() if len(numbers) == 1 else None


def _vector(value: Any, size: int | None = None) -> Array | None:
    """A constant float32 vector (leading axes of 1 allowed), copied out of the file."""
    if not isinstance(value, Known) or not value.is_constant:
        return None
    array = value.arrays[0]
    if array.dtype != np.float32 or array.ndim == 0 or array.size != array.shape[-1]:
        return None
    return _owned(array.reshape(-1)) if size in (None, array.size) else None


def _linear(name: str, affine: Affine) -> Linear:
    bias = affine.bias
    if bias is None:
        bias = np.zeros(affine.weight.shape[1], np.float32)
    return Linear(name, weight_of(affine.weight), bias)


def weight_of(array: Array) -> Array:
    """(k, n) → (n, k): the transposed view, but copied if it would be contiguous and unaligned."""
    weight = array.T
    return _owned(weight) if weight.flags.c_contiguous and not weight.flags.aligned else weight


def _owned(array: Array) -> Array:
    """Copy out of the file: aligned, contiguous, and still valid when the file is replaced."""
    return np.array(array, dtype=np.float32, order="C")


def _float32(array: Array, what: str) -> Array:
    if array.dtype != np.float32:
        raise _MismatchError(f"a float32 {what}, got {array.dtype}: export the model as float32")
    return array
