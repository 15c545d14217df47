"""Records to rows: merging, ratios, the Pareto front, conditions, page and picture."""

import base64
import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from toolkit.config import ReportRoot
from toolkit.errors import GateError, InputError, UsageError
from toolkit.present import results
from toolkit.present.figures.pareto import draw
from toolkit.present.page import page
from toolkit.present.select import parse_select, select
from toolkit.present.tables import markdown_table, text_table
from toolkit.record import SCHEMA_VERSION, write_record
from toolkit.report import report

BATCH = 32


def speed(engine: str, items_per_s: float, **changes: Any) -> dict[str, Any]:
    call_ms = BATCH / items_per_s * 1e3
    entry = {
        "engine": engine,
        "batch_size": BATCH,
        "seq_len": 128,
        "lengths": "fixed",
        "items_per_s": items_per_s,
        "tokens_per_s": items_per_s * 128,
        "latency_ms": {"p50": call_ms, "p90": call_ms, "p99": call_ms, "mean": call_ms, "std": 0.0},
        "iterations": 5,
        "ratio_to": {"engine": engine, "ratio": 1.0, "low": 1.0, "high": 1.0},
        "num_threads": 2,
        "isa": None,
    }
    return entry | changes


def record(
    name: str = "demo",
    layers: int = 12,
    zeros: float = 0.0,
    accuracy: float | None = None,
    speeds: tuple[dict[str, Any], ...] = (),
    **run: Any,
) -> dict[str, Any]:
    known = {} if accuracy is None else {"accuracy": accuracy, "task": "demo", "num_examples": 9}
    run_id = f"{name}-{layers}-{zeros}"
    defaults = {"verb": "train", "id": run_id, "parent": None, "seed": 1}
    defaults |= {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:01:00Z"}
    return {
        "schema_version": SCHEMA_VERSION,
        "run": defaults | run,
        "config": {"teacher": {"name": "dense"}},
        "model": {
            "name": name,
            "layers": layers,
            "sparsity": {"encoder": zeros, "whole_model": zeros / 2},
        },
        "metrics": known,
        "speed": list(speeds),
        "size_bytes": {"onnx": 2_000_000},
        "environment": {"cpu": "a CPU"},
    }


def sweep() -> list[dict[str, Any]]:
    return [
        record(accuracy=96.0, speeds=(speed("sparse", 11.0), speed("onnxruntime", 10.0))),
        record(zeros=0.9, accuracy=95.0, speeds=(speed("sparse", 60), speed("onnxruntime", 10.0))),
        record(layers=6, zeros=0.9, accuracy=93.0, speeds=(speed("sparse", 110.0),)),
        record(layers=6, zeros=0.5, accuracy=92.0, speeds=(speed("sparse", 50.0),)),
    ]


def write_all(folder: Path, records: list[dict[str, Any]]) -> None:
    for number, one in enumerate(records):
        write_record(folder / str(number) / "record.json", one)


def rows_of(records: list[dict[str, Any]]) -> list[results.Row]:
    runs = results.merge_runs([(Path(f"runs/{i}/record.json"), r) for i, r in enumerate(records)])
    rows = [row for run in runs for row in results.make_rows(run)]
    for group in results.groups(rows, lambda row: row["group"]):
        results.add_ratios(group)
    return rows


def make(tmp_path: Path, select: str | None = None) -> list[results.Row]:
    root = ReportRoot(
        paths=[str(tmp_path / "runs")], select=select, output_dir=str(tmp_path / "out")
    )
    return report(root)


# ---- rows


def test_training_export_and_bench_of_one_model_are_one_run() -> None:
    train = record(accuracy=90.0)
    train["size_bytes"] = {"checkpoint": 5_000_000}
    root = train["run"]["id"]
    late = {"started": "2026-01-02T00:00:00Z"}
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


# ---- select


@pytest.mark.parametrize(
    ("wish", "fastest"),
    [
        ("accuracy>=95", "demo 12 layers 90 %"),
        ("accuracy>95", "demo 12 layers dense"),
        (" accuracy >= 90 , encoder_sparsity<0.6", "demo 6 layers 50 %"),
        ("engine=onnxruntime,layers==12", "demo 12 layers dense"),
        ("latency_p99_ms<=300", "demo 6 layers 90 %"),
        ("engine!=onnxruntime,speedup>=2,speedup<=6", "demo 12 layers 90 %"),
    ],
)
def test_select_names_the_fastest_that_qualifies(wish: str, fastest: str) -> None:
    rows = rows_of(sweep())
    chosen = select(parse_select(wish, rows), rows)
    assert chosen is not None
    assert chosen["run"] == fastest


@pytest.mark.parametrize("wish", ["", "f1", "accuracy=>3", "accuracy>=", ">=3", "a b>3", ","])
def test_what_is_no_condition_is_a_usage_error(wish: str) -> None:
    with pytest.raises(UsageError, match="select must be conditions such as"):
        parse_select(wish, rows_of(sweep()))


def test_an_unknown_column_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match=r"'latency_99_ms'.*did you mean 'latency_p99_ms'"):
        parse_select("latency_99_ms<=1", rows_of(sweep()))


def test_a_row_without_the_value_does_not_qualify() -> None:
    rows = rows_of([record(speeds=(speed("sparse", 9.0),))])
    assert select([("score", "<", 100.0)], rows) is None


# ---- the files


def test_the_report_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(tmp_path / "runs", sweep())
    make(tmp_path, "accuracy>=95")
    printed = capsys.readouterr()
    out = tmp_path / "out"
    names = {"report.html", "report.md", "results.csv", "pareto.png"}
    assert {file.name for file in out.iterdir()} == names
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    assert len(rows) == 6
    assert {row["run"] for row in rows if row["pareto"] == "True"} == {
        "demo 12 layers dense",
        "demo 12 layers 90 %",
        "demo 6 layers 90 %",
    }
    assert float(rows[0]["speedup"]) == pytest.approx(11.0)
    text = (out / "report.md").read_text()
    sentence = "The fastest run with accuracy>=95: demo 12 layers 90 % through sparse, accuracy 95"
    for told in (text, printed.out):
        assert sentence in told
        assert "dense baseline, demo 12 layers dense through onnxruntime" in told
    assert "![quality against speed](pareto.png)" in text
    assert text.count("\n| demo") == 6
    with Image.open(out / "pareto.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50
    assert printed.err == ""


def test_what_cannot_be_plotted_is_listed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path / "runs", [*sweep(), record(zeros=0.3, accuracy=91.0)])
    write_record(
        tmp_path / "runs" / "w" / "record.json", record("what-if", speeds=(speed("sparse", 3.0),))
    )
    (tmp_path / "runs" / "0" / "record.json").write_text("{")
    rows = make(tmp_path)
    printed = capsys.readouterr()
    assert "runs/0/record.json is not valid JSON" in printed.err
    assert "because speed was not measured" in printed.out
    assert "demo 12 layers 30 %." in printed.out
    assert "because accuracy was not measured: what-if 12 layers dense." in printed.out
    assert {row["run"] for row in rows} >= {"demo 12 layers 30 %", "what-if 12 layers dense"}


def test_without_accuracy_there_is_no_picture(tmp_path: Path) -> None:
    write_all(tmp_path / "runs", [record(speeds=(speed("sparse", 3.0),))])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pareto.png").write_bytes(b"of an earlier report")
    make(tmp_path)
    assert not (tmp_path / "out" / "pareto.png").exists()
    assert "pareto.png" not in (tmp_path / "out" / "report.md").read_text()


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder or file"):
        make(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="found none"):
        make(tmp_path)
    (tmp_path / "runs" / "record.json").write_text("{")
    with pytest.raises(InputError, match="found 1 unreadable"):
        make(tmp_path)


def test_nothing_that_qualifies_still_leaves_the_report(tmp_path: Path) -> None:
    write_all(tmp_path / "runs", sweep())
    with pytest.raises(GateError, match="none of 6 measurements meets select=accuracy>=99"):
        make(tmp_path, "accuracy>=99")
    assert (tmp_path / "out" / "report.html").exists()


def test_one_record_reached_by_two_paths_counts_once(tmp_path: Path) -> None:
    write_all(tmp_path / "runs", sweep()[:1])
    paths = [str(tmp_path / "runs"), str(tmp_path / "runs" / "0" / "record.json")]
    rows = report(ReportRoot(paths=paths, select=None, output_dir=str(tmp_path / "out")))
    assert len(rows) == 2


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><!-- | $x_ \\"
    rows = [row | {"panel": None} for row in rows_of([record(hostile)])]
    text = page(rows, [hostile])
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<!--" not in text
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["rows"][0]["model"] == hostile
    table = markdown_table(["run", "x"], [[hostile, "1"]])
    assert "<script" not in table
    assert "\\|" in table


def test_the_page_allows_its_own_script_only() -> None:
    text = page([{"run": "a", "panel": None}], [])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy[1]
    assert policy[1].startswith("default-src 'none';")
    assert "unsafe" not in policy[1]
    outside = [link for link in re.findall(r"https?://[^\"' ]*", text) if "w3.org" not in link]
    assert outside == []


def test_the_picture_takes_any_number_of_panels_and_odd_names() -> None:
    def panel(name: str, count: int) -> list[results.Row]:
        rows = rows_of(
            [
                record(name, 3, i / 100, 90.0 - i, (speed("openvino", 10.0 + 30 * i),))
                for i in range(count)
            ]
        )
        results.mark_pareto_front(rows)
        return rows

    widths = []
    for panels in ([panel("$x_{", 1)], [panel("a", 3), panel("b", 1), panel("c", 2)]):
        with Image.open(io.BytesIO(draw(panels, ["100 $ and _{"] * len(panels)))) as image:
            widths.append(image.width)
    assert widths[1] == 2 * widths[0]


def test_tables_align() -> None:
    assert text_table(["a", "bb"], [["long", "1"], ["x", "22"]]) == "a     bb\nlong   1\nx     22"
