"""Profiles: a row for every operation, with its useful work and rates."""

import pytest
from support.plans import ISAS, make_engine, make_inputs, make_plan, mask_of

from toolkit.engine.plan import Plan
from toolkit.engine.profile import rates_of
from toolkit.engine.roofline import Call


def test_profile_times_every_operation() -> None:
    plan, engine = make_plan(), make_engine()
    rows = engine.profile(make_inputs(plan, mask_of("full", 8, 64, seed=0)))
    ops = {row["op"]: row for row in rows}
    assert "embeddings" in ops
    for i in range(len(plan.layers)):
        for step in ("attention", "attention_norm", "output_norm"):
            assert ops[f"layer{i}.{step}"]["density"] is None
        for step in ("qkv", "attention_output", "intermediate", "output"):
            row = ops[f"layer{i}.{step}"]
            assert row["kernel"].endswith(f"_{ISAS[0]}")
            assert "zeros" in row["note"]
            # 2 per nonzero and token
            work = 2e-9 * row["density"] * _size(plan, i, step) * 8 * 64
            assert row["gflops"] == pytest.approx(work / (row["time_ms"] * 1e-3))
    assert all(row["time_ms"] > 0 for row in rows)


def _size(plan: Plan, i: int, step: str) -> int:
    layer = plan.layers[i]
    return 3 * layer.query.weight.size if step == "qkv" else int(getattr(layer, step).weight.size)


def test_rates() -> None:
    call = Call(10, tokens=100, queries=100, pairs=0)
    assert rates_of("output_norm", None, call, seconds=1e-6, peak=18.0) == {
        "gflops": pytest.approx(9.0),
        "operations": 9000.0,
        "bytes": 8000.0,
        "peak_share": pytest.approx(0.5),
    }
    nothing = rates_of("scatter", None, call, 1e-6, 18.0)
    assert nothing["gflops"] is None
    assert nothing["peak_share"] is None
