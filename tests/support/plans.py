"""Hand-made plans: small encoders of every kind the engine runs, without an ONNX file."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_kernels import _kernels
from toolkit.engine import Engine
from toolkit.engine.plan import Embeddings, Layer, LayerNorm, Linear, Node, Plan, Quantization
from toolkit.families import LINEARS

NUM_LABELS = 3
ISAS = _kernels.available_isas()
REASON = "the test says so"

Array = NDArray[Any]
Inputs = dict[str, Array]

PLANS: dict[str, dict[str, Any]] = {
    "bert": {},
    "bert_dense": {"sparsity": 0.0},
    "bert_empty": {"sparsity": 1.0},
    "odd_sizes": {"hidden": 35, "heads": 5, "inner": 61, "num_layers": 1},
    "one_head": {"hidden": 16, "heads": 1, "inner": 16, "activation": "relu"},
    "minilm": {"hidden": 384, "heads": 12, "inner": 1536, "num_layers": 1, "sparsity": 0.9},
    "electra": {"embedding_size": 40, "activation": "gelu_tanh"},
    "roberta": {"padding_id": 1, "num_types": 1, "inputs": ("input_ids", "attention_mask")},
    "distilbert": {"num_types": 0, "inputs": ("input_ids", "attention_mask")},
    "no_mask": {"inputs": ("input_ids",), "num_types": 0},
    "classifier": {"first_token_only": True},
    "shrunk": {"widths": ((2, 30), (1, 208)), "sparsity": 0.0},
    "shrunk_classifier": {"widths": ((1, 16), (3, 200), (2, 7)), "first_token_only": True},
}  # fmt: skip


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
    widths: tuple[tuple[int, int], ...] | None = None,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids"),
    seed: int = 0,
) -> Plan:
    """Draw a plan with random weights.

    Args:
        num_types: Rows of the token type table; 0 leaves it out.
        embedding_size: Width of the embeddings where a projection follows (ELECTRA).
        first_token_only: A classifier on token 0 (output `logits`); otherwise the outputs are
            `hidden` and a head of every token, `scores`.
        widths: Heads and inner features of every layer, where some of `heads` are removed.
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

    widths = widths or ((heads, inner),) * num_layers

    def layer(i: int) -> Layer:
        num_heads, inner = widths[i]
        context = hidden // heads * num_heads
        return Layer(
            query=linear(f"layers.{i}.query", context, hidden),
            key=linear(f"layers.{i}.key", context, hidden),
            value=linear(f"layers.{i}.value", context, hidden),
            attention_output=linear(f"layers.{i}.attention_output", hidden, context),
            attention_norm=norm(hidden),
            intermediate=linear(f"layers.{i}.intermediate", inner, hidden),
            output=linear(f"layers.{i}.output", hidden, inner),
            output_norm=norm(hidden),
            num_heads=num_heads,
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
        layers=[layer(i) for i in range(len(widths))],
        hidden="hidden",
        first_token_only=first_token_only,
        tail=tail,
        constants=constants,
        linears={"head": head},
    )


def quantize(plan: Plan, is_dynamic: bool = False) -> Plan:
    """Round the weights of a plan's layers to 8 bits, a scale per row, and the words likewise.

    Activations, mostly within ±4, have 255 steps of 0.04, or a scale per token. What outputs read
    is multiplied by a power of two per feature before.
    """

    def rounded(array: Array) -> tuple[Array, NDArray[np.float32]]:
        scale = np.maximum(np.abs(array).max(1), 1e-3) / np.float32(127)
        return np.rint(array / scale[:, None]).astype(np.int8), scale.astype(np.float32)

    def integers(linear: Linear) -> Linear:
        weight, scale = rounded(np.asarray(linear.weight))
        factor = None
        if linear.name.endswith("output"):
            powers = np.random.default_rng(len(scale)).integers(-1, 2, weight.shape[1])
            factor = np.exp2(powers).astype(np.float32)
        quantization = Quantization(scale, None if is_dynamic else 0.04, 117, factor)
        return replace(linear, weight=weight, quantization=quantization)

    layers = []
    for layer in plan.layers:
        changes: dict[str, Any] = {name: integers(getattr(layer, name)) for name in LINEARS}
        layers.append(replace(layer, **changes))
    word, word_scale = rounded(plan.embeddings.word)
    embeddings = replace(plan.embeddings, word=word, word_scale=word_scale)
    return replace(plan, layers=layers, embeddings=embeddings)


def _tail(first_token_only: bool) -> tuple[list[Node], dict[str, NDArray[Any]], list[str]]:
    if not first_token_only:
        return [Node("head", "Linear", ["hidden"], ["scores"])], {}, ["hidden", "scores"]
    first = Node("first", "Gather", ["hidden", "zero"], ["pooled"], {"axis": 1})
    head = Node("head", "Linear", ["pooled"], ["logits"])
    return [first, head], {"zero": np.array(0)}, ["logits"]


def make_tail_plan(
    tail: list[Node],
    outputs: list[str],
    constants: dict[str, Array] | None = None,
    linears: dict[str, Linear] | None = None,
) -> Plan:
    """Put these nodes behind an encoder."""
    return replace(
        make_plan(inputs=("input_ids", "attention_mask")),
        outputs=outputs,
        tail=tail,
        constants=constants or {},
        linears=linears or {},
    )


def no_linear(key: str, x: Array) -> Array:
    """Stand in for the engine's dense layers in a tail that has none."""
    raise AssertionError(f"no dense layer was expected, but {key} was asked for")


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def make_engine(num_threads: int = 2, isa: str = ISAS[0], **sizes: Any) -> Engine:
    return Engine(make_plan(**sizes), num_threads, REASON, isa)


def mask_of(kind: str, batch: int, length: int, seed: int) -> Array:
    """(B, T) of 0 and 1, no row without a 1."""
    rng = np.random.default_rng(seed)
    if kind == "full":
        return np.ones((batch, length), np.int64)
    counts = rng.integers(1, length + 1, batch)
    counts[0] = length
    right = (np.arange(length) < counts[:, None]).astype(np.int64)
    if kind == "right":
        return right
    if kind == "left":
        return right[:, ::-1].copy()
    holes = (rng.random((batch, length)) < 0.6).astype(np.int64)
    holes[np.arange(batch), rng.integers(0, length, batch)] = 1
    return holes


def make_inputs(plan: Plan, mask: Array, dtype: type = np.int64, seed: int = 0) -> Inputs:
    """Token ids of any value; where RoBERTa's mask is 0 the id is the padding id."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, len(plan.embeddings.word), mask.shape)
    if plan.embeddings.padding_id is not None:
        ids = np.where(mask == 0, plan.embeddings.padding_id, ids)
    types = plan.embeddings.token_type
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 1 if types is None else len(types), mask.shape),
    }
    return {name: inputs[name].astype(dtype) for name in plan.inputs}


def assert_is_close(
    outputs: Mapping[str, Array], expected: Mapping[str, Array], inputs: Inputs
) -> None:
    """Compare where there is a token. After a LayerNorm all values are near 1.

    A product of some hundred terms errs by some hundred eps, 1e-5; so does each LayerNorm.
    """
    assert list(outputs) == list(expected)
    mask = inputs.get("attention_mask", np.ones_like(inputs["input_ids"])) != 0
    for name, value in outputs.items():
        assert value.dtype == np.float32
        assert value.shape == expected[name].shape
        if value.ndim == 3:  # of every token
            mask = mask.copy()
            mask[:, 0] = True  # poolers read position 0 even where it is masked
            if name == "hidden":
                assert not value[~mask].any()
            np.testing.assert_allclose(value[mask], expected[name][mask], rtol=0, atol=2e-5)
        else:
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=2e-5)
