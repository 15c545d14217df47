"""The verb: records in, four files and a sentence out."""

import csv
import io
from pathlib import Path

import pytest
from support.records import record, speed, sweep, write_all

from toolkit.config import ReportRoot
from toolkit.errors import GateError, InputError
from toolkit.present.results import Row
from toolkit.record import write_record
from toolkit.report import report


def make(tmp_path: Path, select: str | None = None) -> list[Row]:
    return report(root(tmp_path, "runs", select=select))


def root(tmp_path: Path, *paths: str, select: str | None = None) -> ReportRoot:
    return ReportRoot(
        paths=[str(tmp_path / path) for path in paths],
        select=select,
        within=0.01,
        output_dir=str(tmp_path / "out"),
    )


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
    for told in (text.replace("**", ""), printed.out):
        assert "The fastest run with accuracy>=95: demo 12 layers 90 % through sparse" in told
        assert "Fastest within 1 % of the dense model: demo 12 layers dense through sparse" in told
        assert "dense baseline, demo 12 layers dense through onnxruntime" in told
    assert "![quality against speed](pareto.png)" in text
    assert text.count("\n| demo") == 6
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
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
    assert "Speed was not measured (`toolkit bench onnx=DIR` does)" in printed.out
    assert "demo 12 layers 30 %." in printed.out
    assert "Accuracy was not measured: what-if 12 layers dense." in printed.out
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
    with pytest.raises(
        GateError,
        match=r"none of 6 measurements meets select=accuracy>=99: .* \(the best has 96\)",
    ):
        make(tmp_path, "accuracy>=99")
    assert (tmp_path / "out" / "report.html").exists()


def test_one_record_reached_by_two_paths_counts_once(tmp_path: Path) -> None:
    write_all(tmp_path / "runs", sweep()[:1])
    assert len(report(root(tmp_path, "runs", "runs/0/record.json"))) == 2


def test_two_paths_with_the_same_models_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if it is one model that was measured twice, of which one path would keep the newer."""
    faster = sweep()
    for one in faster:
        one["speed"] = [entry | {"items_per_s": 2 * entry["items_per_s"]} for entry in one["speed"]]
    write_all(tmp_path / "old", sweep())
    write_all(tmp_path / "new", faster[:3])
    rows = report(root(tmp_path, "old", "new"))
    printed = capsys.readouterr().out
    assert [row["set"].rpartition("/")[2] for row in rows].count("new") == 5
    assert "new against " in printed
    assert "5 in common: speed 5 better; score 5 within noise." in printed
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| demo 6 layers 90 % through sparse | 110.0 → 220.0 | 2.00 [" in text


def test_two_paths_with_nothing_in_common_are_one_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path / "teacher", sweep()[:1])
    write_all(tmp_path / "student", sweep()[1:])
    rows = report(root(tmp_path, "teacher", "student"))
    assert len(rows) == 6
    assert not any("set" in row for row in rows)
    assert "so nothing is compared" in capsys.readouterr().out
