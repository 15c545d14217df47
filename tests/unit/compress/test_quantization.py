"""INT8: the arithmetic against values found another way, ranges, outliers, sensitive layers."""

from typing import Any

import numpy as np
import pytest
import torch
from support.configs import compose
from support.tiny import examples_of, make_model

from toolkit.compress.quantization.calibration import (
    find_ranges,
    keep_most_sensitive,
    sensitivities,
    smoothing_factor,
    text_batches,
)
from toolkit.compress.quantization.grids import (
    Grid,
    grid_of,
    round_input,
    round_weight,
    weight_integers,
    weight_scales,
)
from toolkit.compress.quantization.layers import (
    QuantizedLinear,
    as_float,
    chosen_layers,
    encoder_linears,
    integers_of,
    quantize,
    quantized_linears,
    round_weights,
    unquantize,
)
from toolkit.compress.quantization.ranges import (
    BINS,
    choose_range,
    entropy_range,
    percentile_range,
    squared_error_range,
)
from toolkit.config import QuantizationConfig
from toolkit.errors import UsageError


def options(*overrides: str) -> QuantizationConfig:
    found = compose("export", "quantization=int8", *(f"quantization.{o}" for o in overrides))
    assert isinstance(found.quantization, QuantizationConfig)
    return found.quantization


def histogram(numbers: Any) -> tuple[Any, Any]:
    counts, edges = np.histogram(numbers, BINS)
    return counts.astype(float), edges


def test_weights_by_hand() -> None:
    weight = torch.tensor(
        [[1.27, -0.004, 0.006, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, -2.54, 0.0, 0.03]]
    )
    scales = weight_scales(weight)
    assert scales.tolist() == pytest.approx([0.01, 1.0, 0.02])
    integers = weight_integers(weight, scales)
    assert integers.tolist() == [[127, 0, 1, 0], [0, 0, 0, 0], [25, -127, 0, 2]]
    assert integers.dtype == torch.int8
    torch.testing.assert_close(round_weight(weight), integers * scales[:, None])


def test_weights_reach_127_keep_their_zeros_and_are_rounded_once() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 70) * torch.logspace(-6, 3, 50)[:, None]
    weight[torch.rand(50, 70) < 0.8] = 0.0
    weight[7] = 0.0
    integers = weight_integers(weight, weight_scales(weight))
    largest = integers.int().abs().amax(dim=1)
    assert largest.tolist() == [0 if row == 7 else 127 for row in range(50)]
    rounded = round_weight(weight)
    assert (rounded[weight == 0] == 0).all()
    error = (rounded - weight).abs().amax(dim=1)
    assert (error <= weight_scales(weight) * 0.5001).all()
    again = weight_integers(rounded, weight_scales(rounded))
    assert torch.equal(again, integers)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (-1.0, 1.55, 0.01, 100),
        (0.5, 5.1, 0.02, 0),  # widened down to 0
        (-5.1, -0.5, 0.02, 255),  # and up
        (0.0, 0.0, 1.0, 0),
        (-0.17, 25.33, 0.1, 2),
    ],
)
def test_grids_by_hand(low: float, high: float, scale: float, zero_point: int) -> None:
    grid = grid_of(torch.tensor(low), torch.tensor(high))
    assert float(grid.scale) == pytest.approx(scale)
    assert int(grid.zero_point) == zero_point


def test_inputs_are_rounded_as_onnx_says() -> None:
    grid = Grid(torch.tensor(0.25), torch.tensor(100, dtype=torch.int32))
    x = np.linspace(-40, 60, 4001, dtype=np.float32)  # ties among them, and both ends are passed
    integers = np.clip(np.rint(x / 0.25) + 100, 0, 255)
    rounded = round_input(torch.from_numpy(x), grid)
    np.testing.assert_array_equal(rounded.numpy(), (integers - 100) * np.float32(0.25))
    assert float(round_input(torch.tensor(0.0), grid)) == 0.0


def test_gradients_pass_but_for_what_is_clipped() -> None:
    grid = grid_of(torch.tensor(-1.0), torch.tensor(1.0))
    x = torch.tensor([-3.0, -0.5, 0.0, 0.7, 3.0], requires_grad=True)
    round_input(x, grid).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    weight = torch.randn(3, 5, requires_grad=True)
    round_weight(weight).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 1).all()


def test_percentiles() -> None:
    counts, edges = histogram(np.arange(100_001) / 1000.0)  # evenly from 0 to 100
    low, high = percentile_range(counts, edges, 99.0)
    assert (low, high) == pytest.approx((1.0, 99.0), abs=0.05)
    low, high = choose_range(counts, edges, options("calibration=percentile", "percentile=99"))
    assert low == 0.0  # which is always inside
    assert high == pytest.approx(99.0, abs=0.05)
    assert choose_range(counts, edges, options("calibration=min_max")) == (0.0, 100.0)


def test_the_least_squared_error_is_found() -> None:
    """Against rounding the numbers themselves, for every range that comes into question."""
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.normal(0, 1, 20_000), [-30.0, 50.0]])
    low, high = squared_error_range(*histogram(numbers))

    def error(low: float, high: float) -> float:
        grid = grid_of(torch.tensor(low), torch.tensor(high))
        x = torch.from_numpy(numbers)
        return float((round_input(x, grid) - x).square().mean())

    best = min(error(a, b) for a in -np.geomspace(1, 30, 40) for b in np.geomspace(1, 50, 40))
    assert error(low, high) <= 1.02 * best


def test_entropy_cuts_off_what_is_rare_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    even = rng.uniform(-2, 3, 100_000)
    low, high = entropy_range(*histogram(even))
    assert (low, high) == pytest.approx((-2.0, 3.0), abs=0.3)
    low, high = entropy_range(*histogram(np.concatenate([even, [40.0]])))
    assert low == pytest.approx(-2.0, abs=0.3)
    assert 2.9 <= high <= 8.0


def test_smoothing_by_hand() -> None:
    largest = torch.tensor([16.0, 1.0, 0.0, 4.0])
    weights = [torch.tensor([[1.0, -0.25, 1.0, 0.0]]), torch.tensor([[-0.5, 0.2, 3.0, 0.0]])]
    factor = smoothing_factor(largest, weights, 0.5)
    # √(1 / 16), √(0.25 / 1), and 1 where there is nothing to compare
    assert factor.tolist() == [0.25, 0.5, 1.0, 1.0]


def outputs(model: Any, batches: list[Any]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(**batch).logits for batch in batches])


@pytest.fixture
def model() -> Any:
    made = make_model()
    made.train(False)
    with torch.no_grad():  # outliers, as trained models have them
        for linear in encoder_linears(made).values():
            linear.weight[:, 3] *= 20
    return made


@pytest.fixture
def batches(model: Any) -> list[Any]:
    return list(text_batches(model, examples_of(24)))


def test_smoothing_changes_nothing_in_float(model: Any, batches: list[Any]) -> None:
    expected = outputs(model, batches)
    before = {name: linear.weight.clone() for name, linear in encoder_linears(model).items()}
    quantize(model, before)
    modules = quantized_linears(model)
    find_ranges(model, modules, batches, options("smooth=0.5"))
    assert not torch.equal(modules["layers.0.query"].weight, before["layers.0.query"])
    assert modules["layers.0.query"].input is modules["layers.0.value"].input
    for module in modules.values():
        module.is_rounding = False
    torch.testing.assert_close(outputs(model, batches), expected, rtol=1e-6, atol=1e-6)
    for name, module in modules.items():
        unquantize(module)
        assert torch.equal(encoder_linears(model)[name].weight, before[name])
    assert torch.equal(outputs(model, batches), expected)


def test_ranges_leave_padding_out(model: Any) -> None:
    texts = examples_of(8)
    longer = [
        {**text, "input_ids": [*text["input_ids"], 0, 0], "attention_mask": [1] * 8 + [0] * 2}
        for text in texts
    ]
    for text in longer:
        text["token_type_ids"] = [0] * 10
    quantize(model, ["layers.1.output"])
    modules = quantized_linears(model)
    ranges = []
    for features in (texts, longer):
        find_ranges(
            model, modules, list(text_batches(model, features)), options("calibration=min_max")
        )
        at = modules["layers.1.output"].input
        ranges.append([float(end) for end in (at.low, at.high) if end is not None])
    assert ranges[0] == pytest.approx(ranges[1], rel=1e-5)


def test_the_most_sensitive_layers_go_back_to_float(model: Any, batches: list[Any]) -> None:
    quantize(model, encoder_linears(model))
    modules = quantized_linears(model)
    find_ranges(model, modules, batches, options("calibration=min_max"))
    changes = sensitivities(model, modules, batches)
    assert list(changes) == list(modules)
    assert all(0 < change < 1 for change in changes.values())
    assert all(module.is_rounding for module in modules.values())
    by_change = sorted(changes, key=lambda name: -changes[name])

    def judge() -> float:  # one point per layer that rounds
        return 90.0 - sum(m.is_rounding for m in modules.values())

    found = keep_most_sensitive(modules, changes, judge, max_loss=9.0)
    assert found == {"float32": 90.0, "int8": 81.0}
    assert set(quantized_linears(model)) == set(by_change[3:])


def test_a_layer_is_chosen_by_name_and_pattern() -> None:
    names = [f"layers.{i}.{kind}" for i in range(2) for kind in ("query", "output")]
    assert chosen_layers(names, ["layers.0.*", "layers.1.query"]) == ["layers.1.output"]
    with pytest.raises(UsageError, match=r"names 'layers\.2\.\*', but no layer is called so; did"):
        chosen_layers(names, ["layers.2.*"])


def test_only_the_class_changes(model: Any, batches: list[Any]) -> None:
    keys, expected = list(model.state_dict()), outputs(model, batches)
    quantize(model, encoder_linears(model))
    modules = quantized_linears(model)
    find_ranges(model, modules, batches, options())
    assert list(model.state_dict()) == keys
    assert isinstance(modules["layers.0.query"], QuantizedLinear)
    rounded = outputs(model, batches)
    assert 0 < float((rounded - expected).abs().max()) < 0.1
    with as_float(model):
        assert torch.equal(outputs(model, batches), expected)
    round_weights(model)
    torch.testing.assert_close(outputs(model, batches), rounded)
    integers = integers_of(model)["layers.1.intermediate"]
    x = torch.randn(5, 16)
    q = np.clip(np.rint(x.numpy() / integers.x_scale) + integers.x_zero_point, 0, 255)
    sums = (q - integers.x_zero_point) @ integers.weight.T.astype(np.float64)
    module = modules["layers.1.intermediate"]
    y = sums * integers.x_scale * integers.scale + module.bias.detach().numpy()
    np.testing.assert_allclose(module(x).detach().numpy(), y, atol=1e-5)
