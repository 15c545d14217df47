"""Records to rows: merging, ratios, the Pareto front."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import record, rows_of, speed, sweep

from toolkit.present import results


def test_training_export_and_bench_of_one_model_are_one_run() -> None:
    train = record(accuracy=90.0)
    train["size_bytes"] = {"checkpoint": 5_000_000}
    root = train["run"]["id"]
    late: dict[str, Any] = {"started": "2026-01-02T00:00:00Z"}
    export = record(verb="export", id="e", parent=root, **late)
    bench = record(verb="bench", id="b", parent=root, speeds=(speed("sparse", 5.0),), **late)
    again = record(
        verb="bench", id="c", parent=root, speeds=(speed("sparse", 6.0),), started="2026-01-03"
    )
    bench["config"] = again["config"] = {"teacher": None}
    found = {"c": again, "b": bench, "e": export, "t": train}
    (run,) = results.merge_runs([(Path(name) / "record.json", r) for name, r in found.items()])
    (row,) = results.make_rows(run)
    assert row["score"] == 90.0
    assert row["items_per_s"] == 6.0  # the newer measurement
    assert (row["checkpoint_mb"], row["onnx_mb"]) == (5.0, 2.0)
    assert (row["teacher"], row["folder"]) == ("dense", "t")


def test_measurements_on_other_machines_or_threads_stay_apart() -> None:
    here = record(speeds=(speed("sparse", 5.0), speed("sparse", 3.0, num_threads=1)))
    there = record(verb="bench", id="b", parent=here["run"]["id"], speeds=(speed("sparse", 9.0),))
    there["environment"] = {"cpu": "another CPU"}
    rows = rows_of([here, there])
    assert [(row["cpu"], row["items_per_s"]) for row in rows] == [
        ("a CPU", 5.0),
        ("a CPU", 3.0),
        ("another CPU", 9.0),
    ]
    assert len(results.groups(rows, results.panel_of)) == 3


def test_ratios_compare_with_the_dense_model_through_its_usual_engine() -> None:
    rows = {(row["run"], row["engine"]): row for row in rows_of(sweep())}
    fast = rows["demo 6 layers 90 %", "sparse"]
    assert fast["speedup"] == pytest.approx(11.0)
    assert fast["speedup_same_engine"] == pytest.approx(10.0)
    assert fast["recovery"] == pytest.approx(93 / 96)
    baseline = rows["demo 12 layers dense", "onnxruntime"]
    assert [row["baseline"] for row in rows.values()].count(True) == 1
    labels = results.labelled(list(rows.values()))
    assert [(row["run"], row["engine"]) for row in labels] == [
        ("demo 12 layers dense", "sparse"),
        ("demo 12 layers 90 %", "sparse"),
        ("demo 6 layers 90 %", "sparse"),
        ("demo 6 layers 50 %", "sparse"),
        ("demo 12 layers dense", "onnxruntime"),
    ]
    assert baseline["baseline"]
    assert baseline["speedup"] == baseline["recovery"] == 1.0


def test_a_setting_without_the_usual_engine_compares_through_what_it_has() -> None:
    longer = {"seq_len": 384}
    dense = record(speeds=(speed("onnxruntime", 10.0), speed("sparse", 4.0, **longer)))
    small = record(zeros=0.9, speeds=(speed("new", 50.0), speed("sparse", 20.0, **longer)))
    rows = rows_of([dense, small])
    (note,) = results.add_ratios(rows)
    assert [row["speedup"] for row in rows] == [1.0, 1.0, 5.0, 5.0]
    assert [row["speedup_same_engine"] for row in rows] == [1.0, 1.0, None, 5.0]
    assert note.endswith("demo 12 layers dense through onnxruntime or else sparse.")


def test_the_baseline_is_named_and_a_sparse_one_is_not_called_dense() -> None:
    rows = [row for row in rows_of(sweep()) if row["encoder_sparsity"] > 0]
    (note,) = results.add_ratios(rows)
    assert "none is dense" in note
    assert "demo 12 layers 90 % through onnxruntime" in note
    assert results.add_ratios(rows_of([record(accuracy=90.0)])) == []


def test_metrics_through_the_engine_come_before_the_training_ones() -> None:
    measured = speed("sparse", 5.0, metrics={"accuracy": 80.0, "num_examples": 3})
    (row,) = rows_of([record(accuracy=90.0, speeds=(measured,))])
    assert (row["score"], row["num_examples"]) == (80.0, 3)


def test_f1_is_the_score_of_question_answering_only() -> None:
    squad, mrpc = record(), record(zeros=0.5)
    squad["metrics"] = {"exact_match": 80.0, "f1": 88.0, "task": "squad", "num_examples": 9}
    mrpc["metrics"] = {"accuracy": 86.0, "f1": 90.0, "task": "mrpc", "num_examples": 9}
    assert [(row["metric"], row["score"]) for row in rows_of([squad, mrpc])] == [
        ("f1", 88.0),
        ("accuracy", 86.0),
    ]


def test_runs_that_look_alike_get_their_folder() -> None:
    rows = rows_of([record(id="a"), record(id="b"), record(zeros=0.5)])
    results.distinguish(rows)
    assert [row["run"] for row in rows] == [
        "demo 12 layers dense [0]",
        "demo 12 layers dense [1]",
        "demo 12 layers 50 %",
    ]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_front_holds_exactly_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    rows: list[results.Row] = [{"items_per_s": x, "score": y} for x, y in points]
    results.mark_pareto_front(rows)
    marked = {(row["items_per_s"], row["score"]) for row in rows if row["pareto"]}
    assert marked == {
        (x, y)
        for x, y in points
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    }
