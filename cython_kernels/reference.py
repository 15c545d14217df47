"""The oracle: what every kernel must compute, in float64 and plain NumPy, written to be read.

Shapes: B texts, T tokens, H hidden, N heads, D head size (H = N·D).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Array = NDArray[Any]

_erf = np.frompyfunc(math.erf, 1, 1)


def linear(x: Array, weight: Array, bias: Array | None = None) -> Float64:
    """Compute `x @ weight.T + bias`.

    Args:
        x: (..., k).
        weight: (n, k).
        bias: (n,), or None for zeros.

    Returns:
        (..., n).
    """
    y = _double(x) @ _double(weight).T
    return y if bias is None else y + _double(bias)


def gelu(x: Array) -> Float64:
    """Compute x·Φ(x) with the exact Gaussian distribution Φ; any shape.

    Source: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415, section 2.
    """
    x = _double(x)
    return 0.5 * x * (1.0 + np.asarray(_erf(x / math.sqrt(2.0)), dtype=np.float64))


def gelu_tanh(x: Array) -> Float64:
    """Compute the tanh approximation of `gelu`; any shape.

    Source: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415, section 2.
    """
    x = _double(x)
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: Array) -> Float64:
    """Compute max(x, 0); any shape."""
    return np.maximum(_double(x), 0.0)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Float64:
    """Normalise over the last axis with the biased variance, then scale and shift.

    Args:
        x: (..., H).
        gamma: (H,).
        beta: (H,).
        epsilon: Added to the variance, > 0.

    Returns:
        (..., H).

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450, equation 4.
    """
    x = _double(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return _double(centred / np.sqrt(variance + epsilon) * _double(gamma) + _double(beta))


def attention(
    query: Array, key: Array, value: Array, mask: Array, num_heads: int, scale: float
) -> Float64:
    """Compute softmax(scale · query·keyᵀ) · value per head over the valid keys.

    Args:
        query: (B, T, H).
        key: (B, T, H).
        value: (B, T, H).
        mask: (B, T), nonzero marks a valid key.
        num_heads: Divides H.
        scale: Multiplies every score.

    Returns:
        (B, T, H); zeros for a text without any valid key.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 1.
    """
    B, T, H = query.shape

    def heads(x: Array) -> Float64:
        return _double(x).reshape(B, T, num_heads, H // num_heads).transpose(0, 2, 1, 3)

    valid = (np.asarray(mask) != 0)[:, None, None, :]  # (B, 1, 1, T)
    scores = scale * (heads(query) @ heads(key).swapaxes(2, 3))  # (B, N, T, T)
    highest = np.max(scores, axis=-1, keepdims=True, where=valid, initial=-np.finfo(np.float64).max)
    weights = np.exp(scores - highest, where=valid, out=np.zeros_like(scores))
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total == 0.0, 1.0, total)
    context = weights @ heads(value)  # (B, N, T, D)
    return _double(context.transpose(0, 2, 1, 3).reshape(B, T, H))


def _double(x: Array) -> Float64:
    return np.asarray(x, dtype=np.float64)
