"""What the engine runs: a BERT encoder as plain arrays, with nothing of ONNX left.

Shapes: H hidden, F intermediate, V vocabulary, P positions. Every array of the encoder is float32
and read-only; they are views of the file's bytes where that saves a copy, so those named `weight`
need not be C-contiguous (ONNX stores a MatMul's weight as (k, n), and packing copies it anyway).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Quantization:
    """What the integers of a linear layer stand for: `y = (scale · weight) @ q(x) + bias`.

    There `q(x) = x_scale · (clip(round(x_factor · x / x_scale) + x_zero_point, 0, 255) −
    x_zero_point)`, with ties rounded to even.

    Attributes:
        scale: (n,) float32, positive, one per output: `weight[i]` counts in it.
        x_scale: Positive; None where it is chosen for each token while the model runs, such that
            0…255 reach from the token's smallest feature to its largest, 0 among them.
        x_zero_point: The integer that stands for 0.0, in 0…255; without meaning if `x_scale` is
            None.
        x_factor: (k,) float32, what features are multiplied by before they are rounded; None: 1.
    """

    scale: Float32
    x_scale: float | None
    x_zero_point: int
    x_factor: Float32 | None = None

    @property
    def of_input(self) -> tuple[float | None, int, bytes]:
        """What it does to the input: equal where that is."""
        return (
            self.x_scale,
            self.x_zero_point,
            b"" if self.x_factor is None else bytes(self.x_factor),
        )


@dataclass(frozen=True)
class Linear:
    """`y = weight @ x + bias`; weight (n, k) as in torch, bias (n,) float32.

    `weight` is float32, or int8 if there is a `quantization`. It may be the transposed view of a
    (k, n) array in the mapped file, and then need not be aligned to 4 bytes;
    `np.ascontiguousarray` gives an aligned copy. `bias` is zeros where the graph has none. `note`
    says why a layer that the graph quantizes runs in float32 all the same.
    """

    name: str
    weight: NDArray[Any]
    bias: Float32
    quantization: Quantization | None = None
    note: str = ""


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation over the features; gamma and beta (H,)."""

    gamma: Float32
    beta: Float32
    epsilon: float


@dataclass(frozen=True)
class Embeddings:
    """Sum of table rows, then LayerNorm, then (ELECTRA) a projection.

    Attributes:
        word: (V, E) indexed by `input_ids`; int8 if there is a `word_scale`.
        position: (P, E), already rotated so that row 0 belongs to position 0 of the text when
            `padding_id` is None.
        token_type: (types, E), or None where the model has none. Where the graph has no
            `token_type_ids` input its constant row is already added to `position`.
        norm: Over E.
        padding_id: None: token i of a row has position i. Otherwise RoBERTa's rule:
            `position = padding_id + (number of non-padding ids up to here)` for ids that differ
            from `padding_id`, and `padding_id` for those that equal it.
        projection: E → H, or None.
        word_scale: (V,) positive: row i of the table is `word_scale[i] · word[i]`. Or None.
    """

    word: NDArray[Any]
    position: Float32
    token_type: Float32 | None
    norm: LayerNorm
    padding_id: int | None
    projection: Linear | None
    word_scale: Float32 | None = None


@dataclass(frozen=True)
class Layer:
    """One post-norm encoder layer.

    `scale` multiplies query·key (1/√head size, whatever way the graph spells it).
    `activation` is one of `gelu` (erf), `gelu_tanh`, `relu`.
    """

    query: Linear
    key: Linear
    value: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    intermediate: Linear
    output: Linear
    output_norm: LayerNorm
    num_heads: int
    scale: float
    activation: str


@dataclass(frozen=True)
class Node:
    """One ONNX node; behind the encoder it is run by its operator's function (`operators.py`).

    `operator` is the ONNX operator, or in `Plan.tail` also `Linear`: a MatMul or Gemm with constant
    weights, found in `Plan.linears` under the node's name. An empty string in `inputs` is an
    optional input left out.
    """

    name: str
    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Name the node, as error messages do."""
        return f"node {self.name!r} ({self.operator})"


@dataclass(frozen=True)
class Plan:
    """A whole model.

    Attributes:
        inputs: Names of the graph's inputs, in its order, among `input_ids`, `attention_mask`,
            `token_type_ids`.
        outputs: Names of the graph's outputs, in its order.
        embeddings: The embedding layer.
        layers: The encoder.
        hidden: Value name under which the tail finds the last hidden state (B, T, H).
        first_token_only: The tail uses only `hidden[:, 0]`; it is then given (B, 1, H).
        tail: Nodes from `hidden` to the outputs, in topological order (empty if `hidden` is
            the only output).
        constants: Arrays the tail's nodes refer to by name.
        linears: The tail's dense layers (heads, pooler), by the name of their node.
    """

    inputs: list[str]
    outputs: list[str]
    embeddings: Embeddings
    layers: list[Layer]
    hidden: str
    first_token_only: bool
    tail: list[Node]
    constants: dict[str, NDArray[Any]]
    linears: dict[str, Linear] = field(default_factory=dict)
