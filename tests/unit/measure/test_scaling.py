"""Scaling: what is measured, in which order, and what counts as a cliff."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit import scaling as command
from toolkit.measure import scaling
from toolkit.measure.random_plan import Sizes, make_layer, prune, round_layer
from toolkit.measure.scaling import (
    Case,
    Sweep,
    cliffs,
    measure_cases,
    summarise_sweep,
    sweeps,
)

pytestmark = pytest.mark.slow


def test_every_line_varies_one_thing() -> None:
    for is_quick in (False, True):
        planned = sweeps(2, is_quick)
        for sweep in planned:
            others = {case._replace(**{sweep.field: 0}) for case in sweep.cases}
            assert len(others) == 1
            values = [getattr(case, sweep.field) for case in sweep.cases]
            assert values == sorted(set(values))
            assert len(values) >= 2
        assert {sweep.field for sweep in planned} == set(Case._fields)
        assert len({sweep.panel for sweep in planned}) == 6
    threads = [sweep for sweep in sweeps(12, False) if sweep.field == "threads"]
    assert [case.threads for case in threads[0].cases] == [1, 2, 4, 8, 12]


def test_rounds_take_turns_and_the_first_does_not_count() -> None:
    seconds = {Case(batch=1): 0.02, Case(batch=2): 1.0}
    log: list[int] = []

    def run(case: Case) -> float:
        log.append(case.batch)
        return seconds[case] if len(log) > 2 else 99.0

    found = measure_cases(list(seconds), run, rounds=2)
    assert log == [1, 2, 1, 1, 2, 1, 1, 2]  # 0.02 s is not long enough for one call
    assert found == {Case(batch=1): [20.0, 20.0], Case(batch=2): [1000.0, 1000.0]}


def test_a_line_keeps_median_and_band() -> None:
    case = Case(batch=2, length=50)
    line = summarise_sweep(Sweep("p", "l", "batch", [case]), {case: [3.0, 1.0, 4.0]})
    assert line["points"] == [
        {"x": 2, "ms": 3.0, "low_ms": 1.0, "high_ms": 4.0, "us_per_token": pytest.approx(30.0)}
    ]
    assert line["cases"][0]["length"] == 50


def line_of(field: str, times: dict[int, float]) -> dict[str, Any]:
    points = [{"x": x, "ms": ms, "us_per_token": 1e3 * ms / x} for x, ms in times.items()]
    return {"panel": "a panel", "label": "a label", "field": field, "points": points}


def test_cliffs_are_named() -> None:
    assert cliffs([line_of("length", {8: 1.0, 16: 1.0, 32: 0.7, 64: 2.0})]) == []
    falls = cliffs([line_of("length", {8: 1.0, 16: 3.0, 32: 2.0})])
    assert falls == [
        "a panel (a label): length 8 → 16 costs 188 instead of 125 µs per token",
        "a panel (a label): length 16 → 32 falls from 3 to 2 ms",
    ]
    assert cliffs([line_of("zeros", {1: 3.0, 2: 1.0})]) == []  # that is what zeros are for


def test_pruning_keeps_the_largest() -> None:
    layer = make_layer(np.random.default_rng(0))
    pruned = prune(layer, 0.9)
    before, after = layer.output.weight, pruned.output.weight
    assert np.count_nonzero(after) / after.size == pytest.approx(0.1, abs=1e-4)
    assert np.abs(before[after == 0]).max() <= np.abs(after[after != 0]).min()
    assert np.array_equal(after[after != 0], before[after != 0])
    assert np.array_equal(prune(layer, 0.0).query.weight, layer.query.weight)


def test_pruning_in_blocks_and_rounding_keep_the_zeros() -> None:
    layer = make_layer(np.random.default_rng(0), Sizes(hidden=48, heads=3, inner=64))
    pruned = prune(layer, 0.75, (1, 4))
    weight = pruned.intermediate.weight  # (64, 48)
    blocks = (weight != 0).reshape(64, 12, 4)
    assert np.array_equal(blocks.any(2), blocks.all(2))
    assert blocks.any(2).mean() == pytest.approx(0.25, abs=0.01)
    rounded = round_layer(pruned).intermediate
    assert rounded.weight.dtype == np.int8
    assert not rounded.weight[weight == 0].any()
    assert rounded.quantization is not None
    found = rounded.weight * rounded.quantization.scale[:, None]
    assert np.abs(found - weight).max() <= rounded.quantization.scale.max() / 2 * 1.001


def test_the_whole_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Sizes(hidden=48, heads=3, inner=64, vocabulary=30)
    monkeypatch.setattr(scaling, "BERT_BASE", small)
    monkeypatch.setattr(scaling, "CALLS_S", 0.0)
    command.main([str(tmp_path / "out"), "--quick", "--rounds", "1"])
    result = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert result["machine"]["cpu"]
    assert {line["field"] for line in result["lines"]} == set(Case._fields)
    assert all(point["ms"] > 0 for line in result["lines"] for point in line["points"])
    picture = (tmp_path / "out" / "scaling.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) == (1254, 726)  # three panels by two
    assert capsys.readouterr().out.strip().split("\n")[-1] == (
        result["cliffs"][-1]
        if result["cliffs"]
        else "no cliffs: no neighbours differ by 1.5 or more"
    )
