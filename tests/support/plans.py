"""Hand-made plans: small encoders of every kind the engine runs, without an ONNX file."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engine.plan import Embeddings, Layer, LayerNorm, Linear, Plan, TailNode

NUM_LABELS = 3


def make_plan(
    hidden: int = 96,
    heads: int = 3,
    inner: int = 200,
    num_layers: int = 2,
    sparsity: float = 0.8,
    activation: str = "gelu",
    vocabulary: int = 50,
    num_positions: int = 130,
    num_types: int = 2,
    padding_id: int | None = None,
    embedding_size: int | None = None,
    first_token_only: bool = False,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids"),
    seed: int = 0,
) -> Plan:
    """Draw a plan with random weights.

    Args:
        num_types: Rows of the token type table; 0 leaves it out.
        embedding_size: Width of the embeddings where a projection follows (ELECTRA).
        first_token_only: A classifier on token 0 (output `logits`); otherwise the outputs are
            `hidden` and a head of every token, `scores`.
    """
    rng = np.random.default_rng(seed)

    def array(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def linear(name: str, rows: int, columns: int, zeros: float = sparsity) -> Linear:
        weight = array(columns, rows, scale=2.0 / math.sqrt(columns)).T  # as ONNX stores it
        weight[rng.random(weight.shape) < zeros] = 0.0
        return Linear(name, weight, array(rows, scale=0.1))

    def norm(size: int) -> LayerNorm:
        return LayerNorm(1.0 + array(size, scale=0.1), array(size, scale=0.1), 1e-5)

    def layer(i: int) -> Layer:
        return Layer(
            query=linear(f"layers.{i}.query", hidden, hidden),
            key=linear(f"layers.{i}.key", hidden, hidden),
            value=linear(f"layers.{i}.value", hidden, hidden),
            attention_output=linear(f"layers.{i}.attention_output", hidden, hidden),
            attention_norm=norm(hidden),
            intermediate=linear(f"layers.{i}.intermediate", inner, hidden),
            output=linear(f"layers.{i}.output", hidden, inner),
            output_norm=norm(hidden),
            num_heads=heads,
            scale=1.0 / math.sqrt(hidden // heads),
            activation=activation,
        )

    width = embedding_size or hidden
    embeddings = Embeddings(
        word=array(vocabulary, width),
        position=array(num_positions, width),
        token_type=array(num_types, width) if num_types else None,
        norm=norm(width),
        padding_id=padding_id,
        projection=linear("projection", hidden, width, 0.0) if embedding_size else None,
    )
    head = linear("head", NUM_LABELS, hidden, 0.0)
    tail, constants, outputs = _tail(first_token_only)
    return Plan(
        inputs=list(inputs),
        outputs=outputs,
        embeddings=embeddings,
        layers=[layer(i) for i in range(num_layers)],
        hidden="hidden",
        first_token_only=first_token_only,
        tail=tail,
        constants=constants,
        linears={"head": head},
    )


def _tail(first_token_only: bool) -> tuple[list[TailNode], dict[str, NDArray[Any]], list[str]]:
    if not first_token_only:
        return [TailNode("head", "Linear", ["hidden"], ["scores"])], {}, ["hidden", "scores"]
    first = TailNode("first", "Gather", ["hidden", "zero"], ["pooled"], {"axis": 1})
    head = TailNode("head", "Linear", ["pooled"], ["logits"])
    return [first, head], {"zero": np.array(0)}, ["logits"]
