"""Encoders of a given size with random weights, pruned and rounded, for timing without a file."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.engine.plan import Embeddings, Layer, LayerNorm, Linear, Node, Plan, Quantization
from toolkit.families import LINEARS, MODEL_INPUTS

INPUT_SCALE, INPUT_ZERO_POINT = 0.04, 117  # steps for activations mostly within ±4


class Sizes(NamedTuple):
    """What the speed of an encoder depends on; as of BERT-base where nothing else is said.

    Attributes:
        layers: Encoder layers.
        hidden: Features of a token.
        heads: Attention heads.
        inner: Neurons of a layer.
        vocabulary: Words.
        positions: Tokens of the longest text.
        types: Token types; below 2 there is no such input.
    """

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    inner: int = 3072
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2


BERT_BASE = Sizes()


def make_layer(rng: np.random.Generator, sizes: Sizes = BERT_BASE) -> Layer:
    """Draw one dense encoder layer."""
    hidden, inner = sizes.hidden, sizes.inner

    def linear(name: str, rows: int, columns: int) -> Linear:
        weight = rng.standard_normal((columns, rows), np.float32).T  # as ONNX stores it
        return Linear(name, weight / np.float32(columns**0.5), np.zeros(rows, np.float32))

    square = {
        name: linear(name, hidden, hidden) for name in ("query", "key", "value", "attention_output")
    }
    return Layer(
        **square,
        attention_norm=_norm(hidden),
        intermediate=linear("intermediate", inner, hidden),
        output=linear("output", hidden, inner),
        output_norm=_norm(hidden),
        num_heads=sizes.heads,
        scale=(hidden // sizes.heads) ** -0.5,
        activation="gelu",
    )


def make_embeddings(rng: np.random.Generator, sizes: Sizes = BERT_BASE) -> Embeddings:
    """Draw the tables."""

    def table(rows: int) -> NDArray[np.float32]:
        return rng.standard_normal((rows, sizes.hidden), np.float32)

    types = table(sizes.types) if sizes.types > 1 else None
    tables = table(sizes.vocabulary), table(sizes.positions), types
    return Embeddings(*tables, _norm(sizes.hidden), None, None)


def make_plan(embeddings: Embeddings, layer: Layer, layers: int) -> Plan:
    """Put a model together that answers questions: two logits per token. All layers are one."""
    hidden = len(embeddings.norm.gamma)
    head = np.random.default_rng(0).standard_normal((2, hidden), np.float32)
    return Plan(
        inputs=list(MODEL_INPUTS if embeddings.token_type is not None else MODEL_INPUTS[:2]),
        outputs=["logits"],
        embeddings=embeddings,
        layers=[layer] * layers,
        hidden="hidden",
        first_token_only=False,
        tail=[Node("head", "Linear", ["hidden"], ["logits"])],
        constants={},
        linears={"head": Linear("head", head, np.zeros(2, np.float32))},
    )


def prune(layer: Layer, zeros: float, block_shape: tuple[int, int] = (1, 1)) -> Layer:
    """Zero the blocks of every matrix whose magnitudes add up to least.

    Args:
        layer: With weights (N, K) in float32.
        zeros: Fraction of blocks, in [0, 1).
        block_shape: (n, k); rows and columns beyond the last whole block stay.
    """
    n, k = block_shape

    def pruned(linear: Linear) -> Linear:
        rows, columns = (
            size // step for size, step in zip(linear.weight.shape, (n, k), strict=True)
        )
        whole = np.abs(linear.weight[: rows * n, : columns * k])
        sums = whole.reshape(rows, n, columns, k).sum(axis=(1, 3))
        threshold = np.quantile(sums, zeros) if zeros else -1.0
        keep = np.ones(linear.weight.shape, bool)
        keep[: rows * n, : columns * k] = np.kron(sums > threshold, np.ones((n, k), bool))
        return replace(linear, weight=np.where(keep, linear.weight, np.float32(0)))

    changes: dict[str, Any] = {name: pruned(getattr(layer, name)) for name in LINEARS}
    return replace(layer, **changes)


def round_layer(layer: Layer) -> Layer:
    """Round the weights to 8 bits, with a scale per output."""

    def rounded(linear: Linear) -> Linear:
        scale = np.abs(linear.weight).max(axis=1) / np.float32(127) + np.float32(1e-12)
        integers = np.rint(linear.weight / scale[:, None]).astype(np.int8)
        quantization = Quantization(scale.astype(np.float32), INPUT_SCALE, INPUT_ZERO_POINT)
        return replace(linear, weight=integers, quantization=quantization)

    changes: dict[str, Any] = {name: rounded(getattr(layer, name)) for name in LINEARS}
    return replace(layer, **changes)


def _norm(size: int) -> LayerNorm:
    return LayerNorm(np.ones(size, np.float32), np.zeros(size, np.float32), 1e-12)
