"""What the values of a BERT graph can mean.

Every value either is `Known` - ids, masks, positions, shapes: computed for real on two small probe
batches - or stands for a piece of an encoder. What fits nowhere is `Opaque`: the values of heads,
and of encoders that are not BERT's.

Shapes: B texts, T tokens, H hidden, N heads, D head size, E embedding size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engine.plan import Embeddings, Layer

Array = NDArray[Any]
Shapes = tuple[tuple[int, ...], ...]  # one per probe
Groups = tuple[str, ...]  # axes of an array, each a product of the axes named by its letters

GRID = np.linspace(-12.0, 12.0, 481)  # where activations are compared


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
class Dequantized:
    """The constant `(integers - zero_point) · scale`, made float32 only where it has to be.

    All three have as many axes; those of `scale` and `zero_point` have one element where they are
    the same for all.
    """

    integers: Array
    scale: Array
    zero_point: Array

    def floats(self) -> Array:
        """Compute it, as ONNX does: the difference is exact, its product in float32."""
        result = self.integers.astype(np.float32)
        result -= self.zero_point.astype(np.float32)
        result *= self.scale
        return result

    def map(self, function: Callable[[Array], Array]) -> "Dequantized":
        """Apply a change of axes."""
        return Dequantized(*map(function, (self.integers, self.scale, self.zero_point)))


@dataclass(frozen=True, eq=False)
class Dynamic:
    """The scale or the zero point that a DynamicQuantizeLinear finds while the model runs."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """`source` rounded to multiples of a scale: what only a dense layer looks at.

    Attributes:
        source: The value before.
        scale: Constant float32, of one element or of one per feature.
        zero_point: Constant integer of the type that is rounded to.
        is_integer: These are the integers themselves, before their DequantizeLinear.
    """

    source: "Value"
    scale: Known | Dynamic
    zero_point: Known | Dynamic
    is_integer: bool


@dataclass(frozen=True, eq=False)
class Lookups:
    """A sum of table rows (B, T, E): pairs of table and, per probe, row numbers."""

    terms: tuple[tuple[Array | Dequantized, tuple[Array, ...]], ...]
    shapes: Shapes


@dataclass(frozen=True, eq=False)
class Scaled:
    """`factor` (K,) times `source`: what stands in front of a dense layer's rounding."""

    source: "Symbol"
    factor: Array


@dataclass(frozen=True, eq=False)
class Affine:
    """`source @ weight + bias`; weight (k, n) as ONNX stores it, bias (n,) or still None.

    `rounded` is the operand itself where the graph quantizes `source`; `factor` (k,) is what
    `source` is multiplied by before, or None.
    """

    source: "Symbol"
    weight: Array | Dequantized
    bias: Array | None
    shapes: Shapes
    rounded: Rounded | None = None
    factor: Array | None = None


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
    """Anything else.

    Attributes:
        reason: Which node broke the pattern and how, if it was one that should not.
        node: The first node on the way here that is no part of an encoder.
    """

    reason: str | None
    node: str | None = None


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
    | Scaled
)
Value = Known | Symbol | Opaque | Dequantized | Dynamic | Rounded


class MismatchError(Exception):
    """A node is part of an encoder but for a detail: says what was expected."""


def shapes_of(value: Value) -> Shapes | None:
    """Return a value's shape on every probe, or None if it is not followed."""
    match value:
        case Known():
            return tuple(array.shape for array in value.arrays)
        case Rounded():
            return shapes_of(value.source)
        case Pointwise():
            return value.source.shapes
        case Scaled():
            return shapes_of(value.source)
        case Heads():
            return group_shapes(value.groups, value.source.shapes, value.num_heads)
        case Context():
            return group_shapes(value.groups, value.value.shapes, value.scores.num_heads)
        case Probabilities():
            return value.scores.shapes
        case Norming() | Opaque() | Dequantized() | Dynamic():
            return None
    return value.shapes


def group_shapes(groups: Groups, shapes: Shapes, num_heads: int) -> Shapes:
    return tuple(
        tuple(math.prod(_sizes(shape, num_heads)[letter] for letter in group) for group in groups)
        for shape in shapes
    )


def _sizes(shape: tuple[int, ...], num_heads: int) -> dict[str, int]:
    batch, length, width = shape
    return {"B": batch, "T": length, "N": num_heads, "D": width // num_heads}


def scalar(value: Any) -> float | None:
    """The one number that a value is on every probe."""
    if not isinstance(value, Known) or any(array.size != 1 for array in value.arrays):
        return None
    numbers = {float(array.reshape(())) for array in value.arrays}
    return numbers.pop() if len(numbers) == 1 else None


def vector(value: Any, size: int | None = None) -> Array | None:
    """A constant float32 vector (leading axes of 1 allowed), copied out of the file."""
    if not isinstance(value, Known) or not value.is_constant:
        return None
    array = value.arrays[0]
    if array.dtype != np.float32 or array.ndim == 0 or array.size != array.shape[-1]:
        return None
    return owned(array.reshape(-1)) if size in (None, array.size) else None


def weight_of(array: Array) -> Array:
    """(k, n) → (n, k): the transposed view, but copied if it would be contiguous and unaligned."""
    weight = array.T
    return owned(weight) if weight.flags.c_contiguous and not weight.flags.aligned else weight


def owned(array: Array) -> Array:
    """Copy out of the file: aligned, contiguous, and still valid when the file is replaced."""
    return np.array(array, dtype=np.float32, order="C")


def float32(array: Array, what: str) -> Array:
    if array.dtype != np.float32:
        raise MismatchError(f"a float32 {what}, got {array.dtype}: export the model as float32")
    return array
