"""The oracle against torch in float64, and against itself where torch has no word."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.plans import make_plan

from cython_kernels import reference
from toolkit.engine import reference as plans
from toolkit.engine.plan import Linear, Quantization

RNG = np.random.default_rng(0)


def test_activations_equal_torch() -> None:
    x = np.linspace(-9, 9, 1001)
    t = torch.from_numpy(x)
    np.testing.assert_allclose(reference.gelu(x), torch.nn.functional.gelu(t), atol=1e-15)
    expected = torch.nn.functional.gelu(t, approximate="tanh")
    np.testing.assert_allclose(reference.gelu_tanh(x), expected, atol=1e-14)
    np.testing.assert_array_equal(reference.relu(x), torch.relu(t))


def test_linear_and_layer_norm_equal_torch() -> None:
    x, w = RNG.standard_normal((2, 3, 8)), RNG.standard_normal((5, 8))
    b, gamma, beta = RNG.standard_normal(5), RNG.standard_normal(8), RNG.standard_normal(8)
    expected = torch.nn.functional.linear(*map(torch.from_numpy, (x, w, b)))
    np.testing.assert_allclose(reference.linear(x, w, b), expected, rtol=1e-12)
    np.testing.assert_allclose(reference.linear(x, w), x @ w.T, rtol=1e-12)
    expected = torch.nn.functional.layer_norm(
        torch.from_numpy(x), (8,), torch.from_numpy(gamma), torch.from_numpy(beta), 1e-3
    )
    np.testing.assert_allclose(reference.layer_norm(x, gamma, beta, 1e-3), expected, rtol=1e-12)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_equals_torch(num_heads: int) -> None:
    q, k, v = (RNG.standard_normal((3, 7, 8)) for _ in range(3))
    mask = np.ones((3, 7), np.int64)
    mask[1, 4:] = 0
    mask[2, ::2] = 0
    query, key, value = (
        torch.from_numpy(x).view(3, 7, num_heads, -1).transpose(1, 2) for x in (q, k, v)
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=torch.from_numpy(mask != 0)[:, None, None, :],
        scale=0.3,
    )
    found = reference.attention(q, k, v, mask, num_heads, 0.3)
    np.testing.assert_allclose(found, expected.transpose(1, 2).reshape(3, 7, 8), atol=1e-14)


def test_attention_of_a_text_without_tokens_is_zero() -> None:
    x = RNG.standard_normal((2, 3, 4))
    found = reference.attention(x, x, x, np.array([[1, 1, 1], [0, 0, 0]]), 2, 1.0)
    assert np.abs(found[0]).min() > 0
    np.testing.assert_array_equal(found[1], 0.0)


def test_attention_of_huge_scores_does_not_overflow() -> None:
    x = np.array([[[1e3], [-1e3]]])
    found = reference.attention(x, x, x, np.ones((1, 2)), 1, 1.0)
    np.testing.assert_allclose(found, x)


def test_positions_by_both_rules() -> None:
    ids = np.array([[7, 8, 1, 1], [1, 7, 1, 8]])
    np.testing.assert_array_equal(plans.positions(ids, None), [[0, 1, 2, 3]] * 2)
    # RoBERTa: padding has the padding id's row, tokens count from the row after it
    np.testing.assert_array_equal(plans.positions(ids, 1), [[2, 3, 1, 1], [1, 2, 1, 3]])


@pytest.mark.parametrize("num_types", [0, 2])
def test_embeddings_sum_normalise_and_project(num_types: int) -> None:
    plan = make_plan(num_types=num_types, embedding_size=32)
    e = plan.embeddings
    assert e.projection is not None
    ids, types = RNG.integers(0, 50, (2, 5)), RNG.integers(0, 2, (2, 5))
    expected = e.word[ids].astype(np.float64) + e.position[:5]
    if num_types:
        assert e.token_type is not None
        expected = expected + e.token_type[types]
    expected -= expected.mean(-1, keepdims=True)
    expected /= np.sqrt((expected**2).mean(-1, keepdims=True) + e.norm.epsilon)
    expected = expected * e.norm.gamma + e.norm.beta
    expected = expected @ e.projection.weight.T + e.projection.bias
    np.testing.assert_allclose(plans.embeddings(plan, ids, types), expected, atol=1e-6)


def test_padding_changes_nothing_for_real_tokens() -> None:
    plan = make_plan()
    ids = RNG.integers(0, 50, (2, 9))
    mask = np.ones((2, 9), np.int64)
    mask[0, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    whole = plans.encoder(plan, inputs)
    assert whole.dtype == np.float64
    alone = plans.encoder(plan, {"input_ids": ids[:1, :6]})
    np.testing.assert_allclose(whole[:1, :6], alone, atol=1e-12)
    ids[0, 6:] = 3
    np.testing.assert_allclose(plans.encoder(plan, inputs)[:1, :6], alone, atol=1e-12)


def test_run_gives_the_tail_the_first_token_only_where_that_is_enough() -> None:
    ids = RNG.integers(0, 50, (2, 9))
    first = make_plan(first_token_only=True)
    logits = plans.run(first, {"input_ids": ids})["logits"]
    head = next(iter(first.linears.values()))
    hidden = plans.encoder(first, {"input_ids": ids})[:, 0]
    np.testing.assert_allclose(
        logits.reshape(2, -1), reference.linear(hidden, head.weight, head.bias), atol=1e-9
    )
    every = plans.run(make_plan(), {"input_ids": ids})
    assert every["hidden"].shape[:2] == every["scores"].shape[:2] == (2, 9)


def quantized(x_scale: float | None, x_zero_point: int) -> Linear:
    weight = RNG.integers(-128, 128, (5, 12)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.02, 5).astype(np.float32)
    bias = RNG.standard_normal(5).astype(np.float32)
    return Linear("", weight, bias, Quantization(scale, x_scale, x_zero_point))


def by_hand(x: Any, scale: Any, zero_point: int, layer: Linear) -> Any:
    """Multiply integers one by one; `x` is one row."""
    assert layer.quantization is not None
    inverse = np.float32(1) / np.float32(scale)
    q = [round(float(np.float32(number) * inverse)) + zero_point for number in x]
    rows = layer.weight.astype(int).tolist()
    sums = [
        sum(w * (min(max(i, 0), 255) - zero_point) for w, i in zip(row, q, strict=True))
        for row in rows
    ]
    return np.array(sums) * float(scale) * layer.quantization.scale.astype(float)


def test_quantized_layer_with_a_scale_of_its_own() -> None:
    layer = quantized(0.03125, 100)  # a power of two: halves are exact, and go to even numbers
    x = (RNG.integers(-300, 400, (2, 3, 12)) / 64).astype(np.float32)  # some are cut off
    found = plans.quantized_linear(x, layer)
    assert found.shape == (2, 3, 5)
    for row, expected in zip(found.reshape(6, 5), x.reshape(6, 12), strict=True):
        np.testing.assert_allclose(row, by_hand(expected, 0.03125, 100, layer) + layer.bias)


@pytest.mark.parametrize("block", [0, 4, 5, 12, 99])
def test_quantized_layer_with_scales_of_tokens(block: int) -> None:
    layer = quantized(None, 0)
    x = RNG.standard_normal((6, 12)).astype(np.float32)
    x[0], x[1], x[2] = 0.0, np.abs(x[1]), -np.abs(x[2])  # 0 belongs to every range
    x[3, :4] = 1e-42  # no float32 is 1 / scale
    found = plans.quantized_linear(x, layer, block)
    for y, row in zip(found, x, strict=True):
        expected = layer.bias.astype(float)
        for start in range(0, 12, block or 12):
            part = row[start : start + (block or 12)]
            low, high = min(part.min(), np.float32(0)), max(part.max(), np.float32(0))
            scale = np.float32(high - low) / np.float32(255)
            if high - low < 1e-30:
                continue
            weight = layer.weight[:, start : start + (block or 12)]
            zero_point = round(float(-low / scale))
            expected += by_hand(part, scale, zero_point, replace(layer, weight=weight))
        np.testing.assert_allclose(y, expected, atol=1e-12)
    exact = x @ (layer.weight.T * layer.quantization.scale) + layer.bias  # type: ignore[union-attr]
    assert np.abs(found - exact).max() < 0.2


def test_gelu_at_points_known_by_hand() -> None:
    assert reference.gelu(np.array(0.0)) == 0.0
    assert reference.gelu(np.array(1.0)) == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))))
    assert reference.gelu(np.array(-40.0)) == 0.0
