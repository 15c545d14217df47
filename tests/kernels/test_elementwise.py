"""Activations and LayerNorm on every ISA of this CPU."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.memory import guarded

from cython_kernels import reference
from cython_kernels._kernels import (
    TILE_TOKENS,
    activation,
    available_isas,
    layer_norm,
    model_isas,
    precisions_of,
)

Float32 = NDArray[np.float32]

EPSILON = float(np.finfo(np.float32).eps)
LARGEST = float(np.finfo(np.float32).max)

# |error| <= absolute + relative·|x|: what kernels.h promises.
ACTIVATIONS = {"gelu": (1e-6, 1.2e-7), "gelu_tanh": (1e-6, 1.2e-7), "relu": (0.0, 0.0)}
ACTIVATIONS_16 = {"bf16_gelu": (2e-4, 3e-7)}

ISAS = [isa for isa in available_isas() if "bf16" not in isa]  # those have the functions of others
with_isas = pytest.mark.parametrize("isa", ISAS)
with_activations = pytest.mark.parametrize(
    ("isa", "name"),
    [(isa, name) for isa in ISAS for name in ACTIVATIONS]
    + [
        (isa, name)
        for isa in (*available_isas(), *model_isas())
        if "bf16" in precisions_of(isa)
        for name in ACTIVATIONS_16
    ],
)


def activate(name: str, x: Float32, isa: str) -> Float32:
    """Run the kernel on any number of elements, and see that it keeps to its array."""
    padded, check = guarded(-(-x.size // TILE_TOKENS) * TILE_TOKENS, fill=0.0)
    padded[: x.size] = x
    activation(name, padded, isa)
    check()
    return padded[: x.size]


def is_within_bound(name: str, x: Float32, isa: str) -> bool:
    absolute, relative = (ACTIVATIONS | ACTIVATIONS_16)[name]
    expected = reference.ACTIVATIONS[name.removeprefix("bf16_")](x)
    error = np.abs(activate(name, x, isa) - expected)
    return bool((error <= absolute + relative * np.abs(x.astype(np.float64))).all())


@with_activations
def test_activation_is_close_to_the_oracle(isa: str, name: str) -> None:
    grid = np.linspace(-10.0, 10.0, 1 << 16, dtype=np.float32)  # all that is not constant or x
    magnitudes = np.geomspace(1e-45, LARGEST, 1 << 12).astype(np.float32)
    assert is_within_bound(name, np.concatenate([grid, magnitudes, -magnitudes]), isa)


@with_activations
@given(x=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_activation_is_close_at_any_number(isa: str, name: str, x: list[float]) -> None:
    assert is_within_bound(name, np.array(x, np.float32), isa)


@with_activations
def test_activation_hands_nan_and_infinity_on(isa: str, name: str) -> None:
    x = np.linspace(-3, 3, 32, dtype=np.float32)
    clean = activate(name, x, isa)
    for lane, poison in ((3, np.nan), (17, np.inf)):
        poisoned = x.copy()
        poisoned[lane] = poison
        y = activate(name, poisoned, isa)
        np.testing.assert_array_equal(y[lane], np.float32(poison))
        np.testing.assert_array_equal(np.delete(y, lane), np.delete(clean, lane))
    below = activate(name, np.array([-np.inf], np.float32), isa)[0]
    assert below == 0.0 if name == "relu" else not np.isfinite(below)  # the oracle says -inf·0


@with_isas
def test_relu_of_negative_zero_and_denormals(isa: str) -> None:
    tiny = np.float32(np.finfo(np.float32).smallest_subnormal)
    np.testing.assert_array_equal(
        activate("relu", np.array([-0.0, 0.0, tiny, -tiny], np.float32), isa), [0, 0, tiny, 0]
    )


def test_activation_wants_whole_tiles() -> None:
    with pytest.raises(ValueError, match="multiple of 16; got 17"):
        activation("gelu", np.zeros(17, np.float32), "generic")


def normalise(
    x: Float32, bias: Float32 | None, gamma: Float32, beta: Float32, isa: str, in_place: bool
) -> Float32:
    """Run the kernel on token rows (16, features), with guard zones around both tiles."""
    scratch, check_x = guarded(x.shape[1], TILE_TOKENS, fill=x.T)
    other, check_y = guarded(x.shape[1], TILE_TOKENS)
    y = scratch if in_place else other
    layer_norm(scratch, bias, gamma, beta, 1e-5, y, isa)
    check_x()
    check_y()
    return y.T


def layer_norm_bound(
    x: NDArray[np.float64], size: NDArray[np.float64], gamma: Float32, beta: Float32
) -> NDArray[np.float64]:
    """Largest error of LayerNorm in float32, to first order.

    Args:
        x: (tokens, features), bias added.
        size: |x| + |bias|.

    The mean of n numbers errs by (n + 1)·eps·mean(size), each deviation by that and its own
    rounding; the mean of their squares by twice that times the mean deviation and by (n + 3)·eps
    relatively; the inverse root halves a relative error; gamma and beta add three roundings.
    """
    n = x.shape[1]
    mean_error = (n + 2) * EPSILON * size.mean(1, keepdims=True)
    deviation = np.abs(x - x.mean(1, keepdims=True))
    variance = np.square(deviation).mean(1, keepdims=True)
    variance_error = (
        2 * mean_error * (deviation.mean(1, keepdims=True) + mean_error)
        + (n + 3) * EPSILON * variance
    )
    scale = 1.0 / np.sqrt(variance + 1e-5)
    relative = 0.5 * variance_error * scale**2 + 6 * EPSILON
    error = scale * (mean_error + EPSILON * size + deviation * relative)
    return np.asarray(np.abs(gamma) * error + EPSILON * np.abs(beta))


FEATURES = [1, 2, 15, 16, 17, 31, 96, 127, 384, 768, 1024]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@with_isas
@given(
    features=st.sampled_from(FEATURES),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    offset=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_layer_norm_is_close_to_the_oracle(
    isa: str,
    with_bias: bool,
    in_place: bool,
    features: int,
    scale: float,
    offset: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = (scale * rng.standard_normal((TILE_TOKENS, features)) + offset).astype(np.float32)
    bias, gamma, beta = rng.standard_normal((3, features)).astype(np.float32)
    added = np.float64(bias) if with_bias else np.zeros(features)
    y = normalise(x, bias if with_bias else None, gamma, beta, isa, in_place)
    expected = reference.layer_norm(x + added, gamma, beta, 1e-5)
    largest = layer_norm_bound(x + added, np.abs(x) + np.abs(added), gamma, beta)
    assert (np.abs(y - expected) <= largest).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@with_isas
def test_layer_norm_poisons_its_lane_only(isa: str, poison: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TILE_TOKENS, 100)).astype(np.float32)
    gamma, beta = rng.standard_normal((2, 100)).astype(np.float32)
    clean = normalise(x, None, gamma, beta, isa, True)
    x[5, 77] = poison
    y = normalise(x, None, gamma, beta, isa, True)
    assert np.isnan(y[5]).all()
    np.testing.assert_array_equal(np.delete(y, 5, 0), np.delete(clean, 5, 0))


@with_isas
def test_layer_norm_of_equal_features_is_beta(isa: str) -> None:
    beta = np.linspace(-1, 1, 33, dtype=np.float32)
    x = np.full((TILE_TOKENS, 33), 2.0, np.float32)  # 33 · 2 and its mean are exact
    y = normalise(x, None, np.ones(33, np.float32), beta, isa, False)
    np.testing.assert_array_equal(y, np.broadcast_to(beta, y.shape))
