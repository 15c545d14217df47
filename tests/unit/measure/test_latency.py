"""The cost table of layers of any width, and the target that it is held against."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.configs import compose
from support.plans import ISAS, REASON, make_inputs, make_plan, mask_of

from toolkit.engine import Engine, reference
from toolkit.errors import UsageError
from toolkit.measure import latency
from toolkit.measure.latency import CostTable, cut, grid_of
from toolkit.measure.structured import budget_ms, describe

TABLE = CostTable(
    fixed_ms=2.0,
    heads=[1, 4],
    heads_ms=[1.0, 4.0],
    neurons=[16, 32, 64],
    neurons_ms=[2.0, 3.0, 8.0],
    last_heads=0.5,
    last_neurons=0.1,
)
WHOLE = [[4, 64], [4, 64]]  # 2 + 4 + 8 + 2 + 0.8 ms; of one head and 16 neurons 2 + 1 + 2 + 0.7


def test_time_of_a_model_is_the_sum_of_its_parts() -> None:
    assert TABLE.model_ms([[2, 48], [4, 16]]) == pytest.approx(2 + (2 + 5.5) + (0.5 * 4 + 0.1 * 2))
    assert TABLE.attention_ms([1, 2, 3, 4], False) == pytest.approx([1, 2, 3, 4])


def test_grid_has_both_ends() -> None:
    assert grid_of(12, 1, 16) == list(range(1, 13))
    assert grid_of(1536, 16, 8) == [16, 206, 396, 586, 776, 966, 1156, 1346, 1536]
    assert grid_of(16, 16, 8) == [16]


def test_a_layer_that_was_interrupted_does_not_count() -> None:
    """Of three layers of full width two were, and one of the narrower ones."""
    times = [1.0, 9.0, 3.0, 50.0, 4.0, 60.0]
    assert latency.rising([1, 2, 3, 4], [1, 2, 3, 4, 4, 4], times) == [1.0, 3.0, 3.0, 4.0]


def test_fastest_run_of_every_operation_counts() -> None:
    def profile(*times: float) -> list[dict[str, Any]]:
        names = ("embeddings", "layer0.qkv", "layer0.attention_norm", "layer0.output", "scatter")
        return [{"op": name, "time_ms": ms} for name, ms in zip(names, times, strict=True)]

    found = latency.parts_of([profile(1, 2, 30, 4, 5), profile(10, 20, 3, 40, 5)], 1)
    assert found == [[0.0, 6.0], [5.0, 4.0]]


def test_a_cut_layer_computes_with_its_first_heads_and_neurons() -> None:
    plan = make_plan(num_layers=2)
    layers = [cut(plan.layers[0], 2, 48), cut(plan.layers[1], 1, 200)]
    small = replace(plan, layers=layers, linears=dict(plan.linears))
    zeroed = []
    for layer, rows, neurons in zip(plan.layers, (64, 32), (48, 200), strict=True):
        attention_output, output = layer.attention_output.weight.copy(), layer.output.weight.copy()
        attention_output[:, rows:] = output[:, neurons:] = 0.0
        zeroed.append(
            replace(
                layer,
                attention_output=replace(layer.attention_output, weight=attention_output),
                output=replace(layer.output, weight=output),
            )
        )
    inputs = make_inputs(plan, mask_of("right", 3, 33, seed=0))
    expected = reference.run(replace(plan, layers=zeroed), inputs)["scores"]
    found = Engine(small, 1, REASON, ISAS[0]).run(inputs)["scores"]
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)


def test_table_of_a_real_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """It grows with heads and neurons, and so do the times of whole models."""
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    plan = make_plan(hidden=96, heads=3, inner=384, sparsity=0.0, first_token_only=True)
    monkeypatch.setattr(latency, "read_graph", lambda _: plan)
    state: dict[str, Any] = {}
    asked: dict[str, Any] = {"num_threads": 1, "isa": "auto", "kernel": "auto"}
    asked |= {"precision": "fp32", "shape": [8, 64]}
    latency._load(state, onnx="x", **asked)
    table = CostTable(**latency._table(state, multiple=16))
    assert table.heads == [1, 2, 3]
    assert (table.neurons[0], table.neurons[-1]) == (16, 384)
    assert 0 < table.heads_ms[0] < table.heads_ms[-1]
    assert 0 < table.neurons_ms[0] < table.neurons_ms[-1]
    assert 0 < table.last_neurons < 0.5  # of 8 texts only the first tokens are computed
    times = latency._compare(state, models=[[[3, 384]] * 2, [[1, 16]] * 2])["ms"]
    assert times[0] > times[1] > 0


def configured(override: str) -> Any:
    return compose("train", "sparsity=structured", f"sparsity.{override}").sparsity


def test_target() -> None:
    assert budget_ms(configured("target_speedup=1.4"), TABLE, WHOLE) == 16.8 / 1.4
    assert budget_ms(configured("target_latency_ms=7.5"), TABLE, WHOLE) == 7.5
    assert budget_ms(configured("target_speedup=1.4"), TABLE, WHOLE, steps_left=3) == 16.8 / 1.4
    with pytest.raises(UsageError, match=r"sparsity\.target_speedup=3\.8416 cannot be reached"):
        budget_ms(configured("target_speedup=1.4"), TABLE, WHOLE, steps_left=4)


@pytest.mark.parametrize(
    ("target", "asked", "easier"),
    [
        ("target_speedup=50", "sparsity.target_speedup=50", "ask for a smaller factor"),
        ("target_latency_ms=5", "=5", "ask for more time"),
    ],
)
def test_a_target_out_of_reach_names_the_fastest(target: str, asked: str, easier: str) -> None:
    sparsity = configured(target)
    with pytest.raises(UsageError, match=r"cannot be reached: .* takes 5\.7 ms, 2\.95 times") as e:
        budget_ms(sparsity, TABLE, WHOLE)
    assert asked in str(e.value)
    assert easier in str(e.value)


@pytest.mark.parametrize(
    ("speedup", "latency_ms", "missed"),
    [
        (None, 60.0, "; by what was measured the target of 60 ms is missed: repeat on an idle mac"),
        (9.0, None, "; by what was measured the target of 9x is missed: repeat on an idle machine"),
        (None, 200.0, ""),
        (8.0, None, ""),
    ],
)
def test_a_target_that_was_missed_is_told(
    speedup: float | None, latency_ms: float | None, missed: str
) -> None:
    facts = {
        "target_speedup": speedup,
        "target_latency_ms": latency_ms,
        "batch_size": 32,
        "seq_len": 128,
        "layer_widths": {"after": [[2, 192], [1, 16]]},
        "predicted": {"dense_latency_ms": 1706.7, "latency_ms": 59.966, "speedup": 28.46},
        "measured": {"dense_latency_ms": 1616.0, "latency_ms": 208.02, "speedup": 7.7686},
    }
    line = describe(facts)
    assert line.startswith(
        "heads/neurons left per layer: 2/192 1/16; 32 x 128 tokens: predicted 60 ms, 28.46x; "
        f"measured 208 ms, 7.77x of 1616 ms{missed}"
    )
    assert ("missed" in line) is bool(missed)
