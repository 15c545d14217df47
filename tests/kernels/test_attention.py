"""Attention on every ISA of this CPU: one head of one text."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.memory import guarded

from cython_kernels import _kernels, reference
from cython_kernels._kernels import TILE_TOKENS, attention, available_isas, from_tiles

Float32 = NDArray[np.float32]

EPSILON = float(np.finfo(np.float32).eps)
EXP2_ERROR = 3e-7  # relative, as elementwise.h states of its exp2

HALF = 2.0**-8  # what rounding to bfloat16 changes of a number, at most

with_isas = pytest.mark.parametrize("isa", [i for i in available_isas() if "bf16" not in i])
with_bf16_isas = pytest.mark.parametrize(
    "isa", [isa for isa in (*available_isas(), *_kernels.model_isas()) if "bf16" in isa]
)


def attend(
    q: Float32, k: Float32, v: Float32, isa: str, junk: float = 7.0, is_16_bit: bool = False
) -> Float32:
    """Run the kernel on token rows (tokens, d); lanes without a key hold `junk`."""
    d = q.shape[1]

    def tiled(rows: Float32) -> Float32:
        count = -(-len(rows) // TILE_TOKENS)
        padded = np.full((count * TILE_TOKENS, d), junk, np.float32)
        padded[: len(rows)] = rows
        tiles, _ = guarded(
            count, d, TILE_TOKENS, fill=padded.reshape(count, TILE_TOKENS, d).swapaxes(1, 2)
        )
        return tiles

    queries = tiled(q)
    out, check = guarded(*queries.shape)
    attention(queries, tiled(k), tiled(v), len(k), out, isa, is_16_bit)
    check()
    return from_tiles(out, len(q), isa)


def oracle(q: Float32, k: Float32, v: Float32) -> NDArray[np.float64]:
    mask = np.ones((1, len(k)))
    query, key, value = [
        np.concatenate([x, np.zeros((max(len(q), len(k)) - len(x), x.shape[1]))])[None]
        for x in (q, k, v)
    ]
    padded = np.zeros((1, query.shape[1]))
    padded[:, : len(k)] = mask
    # the kernel's weights are powers of two
    return reference.attention(query, key, value, padded, 1, math.log(2.0))[0, : len(q)]


def bound(q: Float32, k: Float32, v: Float32, is_16_bit: bool = False) -> NDArray[np.float64]:
    """Largest error, to first order, relative to the weighted sum of |v|.

    A score of d products errs by (d + 1)·eps·|q||k|, and so does the maximum; their difference is
    rounded once more. 2^x turns an absolute error into a relative one (times ln 2 < 1). Total and
    weighted sum add n terms each, then come a reciprocal and a product. In 16 bits both factors of
    every product are rounded; scores then err by so much that first order does not do.
    """
    n, d = k.shape
    scores = reference.linear(q, k)
    size = reference.linear(np.abs(q), np.abs(k)).max(1, keepdims=True)
    spread = scores.max(1, keepdims=True) - scores.min(1, keepdims=True)
    score_error = 2 * (d + 1) * EPSILON * size + EPSILON * spread
    relative = 2 * (EXP2_ERROR + score_error) + 2 * (n + 2) * EPSILON
    if is_16_bit:
        relative += np.expm1(2 * (2 * HALF + HALF**2) * size) + 2 * HALF + HALF**2
    lost = n * 2.0**-126 * np.abs(v).max()  # weights below 2^-126 become 2^-126
    return np.asarray(relative * oracle(q, k, np.abs(v)) + lost)


@pytest.mark.parametrize("head_size", [1, 3, 8, 16, 31, 32, 64, 100])
@with_isas
@given(
    queries=st.integers(1, 70),
    keys=st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 384])),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_attention_is_close_to_the_oracle(
    isa: str, head_size: int, queries: int, keys: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q = (scale * rng.standard_normal((queries, head_size))).astype(np.float32)
    k, v = rng.standard_normal((2, keys, head_size)).astype(np.float32)
    error = np.abs(attend(q, k, v, isa) - oracle(q, k, v))
    assert (error <= bound(q, k, v)).all()


@pytest.mark.parametrize("head_size", [1, 3, 31, 32, 64])
@with_bf16_isas
@given(
    queries=st.integers(1, 70),
    keys=st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129])),
    scale=st.sampled_from([0.01, 0.1]),
    seed=st.integers(0, 99),
)
def test_attention_in_16_bits_is_close_to_the_oracle(
    isa: str, head_size: int, queries: int, keys: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q = (scale * rng.standard_normal((queries, head_size))).astype(np.float32)
    k, v = rng.standard_normal((2, keys, head_size)).astype(np.float32)
    clean = attend(q, k, v, isa, is_16_bit=True)
    assert (np.abs(clean - oracle(q, k, v)) <= bound(q, k, v, True)).all()
    for junk in (1e30, 0.0):  # where there is no key
        np.testing.assert_array_equal(attend(q, k, v, isa, junk, True), clean)


def test_16_bits_are_refused_where_they_are_not() -> None:
    row = np.ones((1, 4), np.float32)
    with pytest.raises(ValueError, match="isa 'generic' has no attention in 16 bits"):
        attend(row, row, row, "generic", is_16_bit=True)


@with_isas
def test_exp2_is_close_over_its_range(isa: str) -> None:
    """Two keys, scores 0 and -x, values 0 and 1 give 2^-x / (1 + 2^-x): exp2 on its own."""
    x = np.linspace(0.0, 126.0, 1 << 12, dtype=np.float32)[:, None]
    k, v = np.array([[0.0], [-1.0]], np.float32), np.array([[0.0], [1.0]], np.float32)
    weight = np.exp2(-np.float64(x))
    expected = weight / (1.0 + weight)
    assert (np.abs(attend(x, k, v, isa) - expected) <= (EXP2_ERROR + 3 * EPSILON) * expected).all()


@with_isas
def test_keys_behind_the_last_are_not_read(isa: str) -> None:
    rng = np.random.default_rng(1)
    q = rng.standard_normal((5, 32)).astype(np.float32)
    k, v = rng.standard_normal((2, 19, 32)).astype(np.float32)
    clean = attend(q, k, v, isa)
    for junk in (1e30, -1e30, 0.0):
        np.testing.assert_array_equal(attend(q, k, v, isa, junk), clean)


@with_isas
def test_one_key_is_its_value(isa: str) -> None:
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((n, 64)).astype(np.float32) for n in (33, 1, 1))
    np.testing.assert_allclose(attend(q, k, v, isa), np.repeat(v, 33, 0), rtol=2 * EXP2_ERROR)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@with_isas
def test_what_is_not_finite_stays_in_its_query(isa: str, poison: float) -> None:
    rng = np.random.default_rng(3)
    q = rng.standard_normal((40, 16)).astype(np.float32)
    k, v = rng.standard_normal((2, 20, 16)).astype(np.float32)
    clean = attend(q, k, v, isa)
    q[7, 3] = poison
    y = attend(q, k, v, isa)
    np.testing.assert_array_equal(np.delete(y, 7, 0), np.delete(clean, 7, 0))
    # scores of both signs: +inf - inf as in the oracle
    assert np.isnan(y[7]).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@with_isas
def test_a_poisoned_value_reaches_its_feature_of_every_query(isa: str, poison: float) -> None:
    rng = np.random.default_rng(4)
    q = rng.standard_normal((20, 16)).astype(np.float32)
    k, v = rng.standard_normal((2, 20, 16)).astype(np.float32)
    clean = attend(q, k, v, isa)
    v[7, 3] = poison
    y = attend(q, k, v, isa)
    np.testing.assert_array_equal(y[:, 3], np.float32(poison))
    np.testing.assert_array_equal(np.delete(y, 3, 1), np.delete(clean, 3, 1))


@with_isas
def test_a_poisoned_key_reaches_every_query(isa: str) -> None:
    rng = np.random.default_rng(5)
    q = rng.standard_normal((20, 16)).astype(np.float32)
    k, v = rng.standard_normal((2, 20, 16)).astype(np.float32)
    k[19, 0] = np.nan
    assert np.isnan(attend(q, k, v, isa)).all()


def test_the_number_of_keys_is_checked() -> None:
    tile = guarded(1, 8, TILE_TOKENS, fill=0.0)[0]
    for num_keys in (0, 17):
        with pytest.raises(ValueError, match="num_keys must be in 1…16"):
            attention(tile, tile, tile, num_keys, tile.copy(), "generic")
