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
    root = ReportRoot(
        paths=[str(tmp_path / "runs")], select=select, output_dir=str(tmp_path / "out")
    )
    return report(root)


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
