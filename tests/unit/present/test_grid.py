"""A grid beside published figures: points, table, answers, picture, report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import Browser, find_browser
from support.configs import compose
from support.figures import points_of as points_on

from toolkit.config import ReportRoot
from toolkit.present.figures.grid import draw_grids
from toolkit.present.grid import answers, grid_cells, merge_grids, points_of, title_of_grid
from toolkit.record import new_record, write_record
from toolkit.report import report

DENSE = {"recipe": "bert12_dense", "metric": "f1", "score": 80.0}


def cell(
    layers: int, zeros: float, precision: str, speed: float, **published: float
) -> dict[str, Any]:
    return {
        "layers": layers,
        "zeros": zeros,
        "precision": precision,
        "block_shape": [1, 1],
        "items_per_s": speed,
        "latency_ms": {"p50": 1.0, "low": 1.0, "high": 1.0},
        "published": [{"recipe": name, "score": score} for name, score in published.items()],
    }


CELLS = [
    cell(12, 0.0, "fp32", 10.0, bert12_dense=80.0),
    cell(12, 0.9, "fp32", 50.0, first=79.3, second=78.0),  # 99.1 %, 97.5 %
    cell(12, 0.9, "int8", 90.0, third=78.8),  # 98.5 %
    cell(6, 0.9, "fp32", 95.0),
    cell(6, 0.9, "int8", 180.0, fourth=60.0),  # 75 %
]


def record_of(cells: list[dict[str, Any]], dense: Any = DENSE, cpu: str = "a <CPU>") -> Any:
    record = new_record("grid", compose("grid"))
    record["environment"]["cpu"] = cpu
    record["model"] = {"name": "bert_base", "layers": 12, "random_weights": True}
    setting = {"batch_size": 32, "seq_len": 128, "num_threads": 2, "isa": "avx2", "rounds": 3}
    record["grid"] = {**setting, "dense": dense, "cells": cells}
    return record


def grid_of(*records: Any) -> dict[str, Any]:
    (merged,) = merge_grids(records)
    return merged


def test_answers_name_the_fastest_that_keeps_enough() -> None:
    first, second = answers(grid_of(record_of(CELLS)))
    assert first == (
        "Fastest by published share of the dense model's f1 (80.00 %): at least 99%: 12 layers "
        "90 % fp32 with 50.0 texts/s (first, 99.12%); at least 98%: 12 layers 90 % int8 with 90.0 "
        "texts/s (third, 98.50%); at least 95%: 12 layers 90 % int8 with 90.0 texts/s (third, "
        "98.50%)."
    )
    assert second == "1 of 5 cells have no published figure."
    (none,) = answers(grid_of(record_of(CELLS, dense=None)))
    assert none.startswith("No figure was published")
    assert "at least 99%: none" in answers(grid_of(record_of(CELLS[4:])))[0]


def test_the_table_has_a_row_per_model() -> None:
    header, rows = grid_cells(grid_of(record_of(CELLS)))
    assert header == ["layers, zeros", "fp32, texts/s", "int8, texts/s", "recovery",
                      "recovery in int8"]  # fmt: skip
    assert rows == [
        ["12, dense", "10.0", "", "100.0% bert12_dense", ""],
        ["12, 90 %", "50.0", "90.0", "99.1% first", "98.5% third"],
        ["6, 90 %", "95.0", "180.0", "", "75.0% fourth"],
    ]


def test_precisions_measured_apart_are_one_grid() -> None:
    floats = record_of([c for c in CELLS if c["precision"] == "fp32"])
    integers = record_of([c for c in CELLS if c["precision"] == "int8"])
    merged = grid_of(floats, integers)
    assert len(merged["cells"]) == 5
    newer = record_of([cell(12, 0.0, "fp32", 11.0)])
    newer["run"]["started"] = "2999-01-01T00:00:00Z"
    assert grid_of(newer, floats)["cells"][0]["items_per_s"] == 11.0
    assert len(merge_grids([floats, record_of(CELLS, cpu="another")])) == 2


def test_the_picture_has_a_point_per_recipe_and_marks_the_rest() -> None:
    grid = grid_of(record_of(CELLS))
    (axes,) = draw_grids([grid]).axes
    drawn = [
        tuple(points_on(line)[0]) for line in axes.get_lines() if np.size(line.get_xdata()) == 1
    ]
    points = points_of(grid)
    assert len(points) == 5
    for point in points:
        assert (point.cell["items_per_s"], point.recovery) in drawn
    marks = [(x, y) for x, y in drawn if y < min(point.recovery for point in points)]
    assert [x for x, _ in marks] == [95.0]
    assert axes.get_title() == title_of_grid(grid)
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["12 layers", "6 layers", "fp32", "int8"]
    assert len(draw_grids([grid, grid_of(record_of(CELLS, dense=None))]).axes) == 2


@pytest.mark.slow
def test_a_report_of_grids_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "grid" / "record.json", record_of(CELLS))
    out = tmp_path / "report"
    config = ReportRoot(
        paths=[str(tmp_path / "grid")], select=None, within=0.01, output_dir=str(out)
    )
    assert report(config) == []
    assert (out / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "pareto.png").exists()
    text = (out / "report.md").read_text()
    assert "| 12, 90 % | 50.0 | 90.0 |" in text
    assert "at least 98%: 12 layers 90 % int8" in capsys.readouterr().out
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here to open the page with")
    with Browser(program, tmp_path / "profile") as browser:
        browser.open(out / "report.html")
        browser.wait("document.querySelector('#grid').complete")
        assert browser.evaluate("document.querySelector('#grid').naturalWidth") > 500
        assert "a <CPU>" in browser.evaluate("document.querySelector('#grids h2').textContent")
        assert browser.problems == []
