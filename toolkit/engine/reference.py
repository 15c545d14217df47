"""Run a plan in float64 and plain NumPy, layer by layer: what the engine must compute.

Shapes: B texts, T tokens, H hidden, F intermediate, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_kernels.reference import ACTIVATIONS, attention, layer_norm, linear
from toolkit.engine.plan import Layer, LayerNorm, Linear, Plan, Quantization
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
    x = e.word[ids].astype(np.float64)
    if e.word_scale is not None:
        x = x * e.word_scale[ids, None]
    x = x + e.position[positions(ids, e.padding_id)]
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


def encoder_layer(layer: Layer, x: Array, mask: Array, block: int = 0) -> Float64:
    """Run one encoder layer: (B, T, H) and mask (B, T) → (B, T, H), by `block` as in `encoder`."""
    context = attention(
        _linear(x, layer.query, block),
        _linear(x, layer.key, block),
        _linear(x, layer.value, block),
        mask,
        layer.num_heads,
        layer.scale,
    )
    x = _norm(_linear(context, layer.attention_output, block) + x, layer.attention_norm)
    inner = ACTIVATIONS[layer.activation](_linear(x, layer.intermediate, block))  # (B, T, F)
    return _norm(_linear(inner, layer.output, block) + x, layer.output_norm)


def encoder(plan: Plan, inputs: Mapping[str, Array], block: int = 0) -> Float64:
    """Run embeddings and all layers.

    Args:
        plan: The model.
        inputs: `input_ids` (B, T), and if wanted `attention_mask` (B, T; default all valid) and
            `token_type_ids` (B, T; default zeros).
        block: As in `quantized_linear`.

    Returns:
        The last hidden state (B, T, H).
    """
    ids = np.asarray(inputs["input_ids"])
    mask = np.asarray(inputs.get("attention_mask", np.ones_like(ids)))
    x = embeddings(plan, ids, inputs.get("token_type_ids"))
    for layer in plan.layers:
        x = encoder_layer(layer, x, mask, block)
    return x


def run(plan: Plan, inputs: Mapping[str, Array], block: int = 0) -> dict[str, Array]:
    """Run the whole model, by `block` as in `encoder`: the graph's outputs by name."""
    hidden = encoder(plan, inputs, block)
    values = {name: np.asarray(array) for name, array in inputs.items()}
    values[plan.hidden] = hidden[:, :1] if plan.first_token_only else hidden
    return run_tail(plan, values, lambda key, x: _linear(x, plan.linears[key], block))


def quantize(x: Array, quantization: Quantization) -> tuple[Float64, Float64]:
    """Round activations to integers in 0…255, in float32 as the kernels do.

    Args:
        x: (..., k).
        quantization: With its own scale, or with one for each of the rows (...).

    Returns:
        The integers minus their zero points (..., k), and the scales (..., 1) or ().
    """
    x = np.asarray(x, np.float32)
    if quantization.x_scale is None:
        low = np.minimum(x.min(-1, keepdims=True, initial=0.0), np.float32(0.0))
        high = np.maximum(x.max(-1, keepdims=True, initial=0.0), np.float32(0.0))
        scale = (high - low) / np.float32(255.0)
        with np.errstate(divide="ignore", over="ignore"):  # a row of zeros has no scale
            scale = np.where(np.isfinite(np.float32(1.0) / scale), scale, np.float32(1.0))
        zero_point = np.clip(np.rint(-low / scale), 0, 255)
    else:
        scale = np.asarray(quantization.x_scale, np.float32)
        zero_point = np.float32(quantization.x_zero_point)
    integers = np.clip(np.rint(x * (np.float32(1.0) / scale)) + zero_point, 0, 255)
    return (integers - zero_point).astype(np.float64), scale.astype(np.float64)


def quantized_linear(x: Array, weights: Linear, block: int = 0) -> Float64:
    """Compute a quantized dense layer (..., k) → (..., n): exact sums of integers, then scaled.

    Args:
        x: (..., k).
        weights: int8, with a quantization.
        block: Where scales are chosen while the model runs, features that share one; 0: all.
    """
    quantization, k = weights.quantization, x.shape[-1]
    assert quantization is not None
    if quantization.x_factor is not None:
        x = np.asarray(x, np.float32) * quantization.x_factor
    block = block if block and quantization.x_scale is None else max(k, 1)
    total: Array = np.zeros(())
    for start in range(0, max(k, 1), block):
        integers, scale = quantize(x[..., start : start + block], quantization)
        # |sum| < 2³⁸ for any k in use: float64 holds it exactly
        total = total + linear(integers, weights.weight[:, start : start + block]) * scale
    return np.asarray(total * quantization.scale + weights.bias)


def _linear(x: Array, weights: Linear, block: int = 0) -> Float64:
    if weights.quantization is not None:
        return quantized_linear(x, weights, block)
    return linear(x, weights.weight, weights.bias)


def _norm(x: Array, weights: LayerNorm) -> Float64:
    return layer_norm(x, weights.gamma, weights.beta, weights.epsilon)
