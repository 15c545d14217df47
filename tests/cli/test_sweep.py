"""The flagship: a sweep that trains, exports and measures, and the report of it."""

import csv
from pathlib import Path

from conftest import Run
from support.configs import TINY

from toolkit.record import read_record


def test_from_a_sweep_to_its_report(toolkit: Run, tmp_path: Path) -> None:
    done = toolkit(
        *("train", "-m", *TINY, "depth=full,layers1", "sparsity=dense,prune80"),
        *("sparsity.end_epoch=0.5",),
        *("then=[export,bench]", "bench.against=[onnxruntime]", "bench.accuracy=true"),
        *("bench.seconds=0", "bench.batch_size=2", "bench.seq_len=16", "output_dir=runs"),
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    cells = [(2, 0.0), (2, 0.8), (1, 0.0), (1, 0.8)]
    for number, (layers, zeros) in enumerate(cells):
        folder = tmp_path / "runs" / str(number)
        assert {"checkpoint", "export", "record.json", ".hydra"} <= {
            p.name for p in folder.iterdir()
        }
        record = read_record(folder)
        command = record["run"]["command"]
        assert command.startswith("toolkit train ")
        assert f"depth={'full' if layers == 2 else 'layers1'} " in command
        assert f"sparsity={'prune80' if zeros else 'dense'} " in command
        assert record["model"]["layers"] == layers
        assert abs(record["model"]["sparsity"]["encoder"] - zeros) < 1e-3
        assert [entry["engine"] for entry in record["speed"]] == ["sparse", "onnxruntime"]
        for entry in record["speed"]:  # the same answers as in torch, through either engine
            assert entry["metrics"]["accuracy"] == record["metrics"]["accuracy"]

    report = toolkit("report", "runs", "output_dir=report", "select=encoder_sparsity>=0.7")
    assert report.returncode == 0, report.stderr
    assert "The fastest run with encoder_sparsity>=0.7: demo" in report.stdout
    with (tmp_path / "report" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {(row["layers"], row["engine"]) for row in rows} == {
        (layers, engine) for layers in "12" for engine in ("sparse", "onnxruntime")
    }
    assert sum(row["pareto"] == "True" for row in rows) >= 1
    names = {"report.html", "report.md", "results.csv", "pareto.png"}
    assert names <= {path.name for path in (tmp_path / "report").iterdir()}
