"""Run a plan in float64 and plain NumPy, layer by layer: what the engine must compute.

Shapes: B texts, T tokens, H hidden, F intermediate, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_kernels.reference import ACTIVATIONS, attention, layer_norm, linear
from toolkit.engine.plan import Layer, LayerNorm, Linear, Plan
from toolkit.engine.tail import run_tail

Float64 = NDArray[np.float64]
Array = NDArray[Any]


def embeddings(plan: Plan, ids: Array, types: Array | None) -> Float64:
    """Look up, add and normalise the embeddings of every token.

    Args:
        plan: The model.
        ids: (B, T) token numbers in [0, V).
        types: (B, T) segment numbers; None means zeros.

    Returns:
        (B, T, H).
    """
    e = plan.embeddings
    x = e.word[ids].astype(np.float64) + e.position[positions(ids, e.padding_id)]
    if e.token_type is not None:
        x = x + e.token_type[np.zeros_like(ids) if types is None else types]
    x = _norm(x, e.norm)
    return x if e.projection is None else _linear(x, e.projection)


def positions(ids: Array, padding_id: int | None) -> NDArray[np.int64]:
    """Number the tokens of each row: (B, T), by the rule of `Embeddings.padding_id`."""
    if padding_id is None:
        return np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)
    valid = (ids != padding_id).astype(np.int64)
    return np.asarray(np.cumsum(valid, axis=1) * valid + padding_id)


def encoder_layer(layer: Layer, x: Array, mask: Array) -> Float64:
    """Run one encoder layer: (B, T, H) and mask (B, T) → (B, T, H)."""
    context = attention(
        _linear(x, layer.query),
        _linear(x, layer.key),
        _linear(x, layer.value),
        mask,
        layer.num_heads,
        layer.scale,
    )
    x = _norm(_linear(context, layer.attention_output) + x, layer.attention_norm)
    inner = ACTIVATIONS[layer.activation](_linear(x, layer.intermediate))  # (B, T, F)
    return _norm(_linear(inner, layer.output) + x, layer.output_norm)


def encoder(plan: Plan, inputs: Mapping[str, Array]) -> Float64:
    """Run embeddings and all layers.

    Args:
        plan: The model.
        inputs: `input_ids` (B, T), and if wanted `attention_mask` (B, T; default all valid) and
            `token_type_ids` (B, T; default zeros).

    Returns:
        The last hidden state (B, T, H).
    """
    ids = np.asarray(inputs["input_ids"])
    mask = np.asarray(inputs.get("attention_mask", np.ones_like(ids)))
    x = embeddings(plan, ids, inputs.get("token_type_ids"))
    for layer in plan.layers:
        x = encoder_layer(layer, x, mask)
    return x


def run(plan: Plan, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the whole model: the graph's outputs by name."""
    hidden = encoder(plan, inputs)
    values = {name: np.asarray(array) for name, array in inputs.items()}
    values[plan.hidden] = hidden[:, :1] if plan.first_token_only else hidden
    return run_tail(plan, values, lambda key, x: _linear(x, plan.linears[key]))


def _linear(x: Array, weights: Linear) -> Float64:
    return linear(x, weights.weight, weights.bias)


def _norm(x: Array, weights: LayerNorm) -> Float64:
    return layer_norm(x, weights.gamma, weights.beta, weights.epsilon)
