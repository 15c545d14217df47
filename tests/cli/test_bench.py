"""`toolkit bench`, the real command on real models: measured, checked, gated, interrupted."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.record import read_record

COMMAND = Path(sys.executable).with_name("toolkit")
TINY = "model.config={hidden_size: 32, num_attention_heads: 2, intermediate_size: 64}"
QUICK = ["batch_size=4", "seq_len=16", "seconds=0.05", "min_iterations=1", "engine.num_threads=1"]
# Makes the packages named in BLOCK look as if they were not installed.
SITECUSTOMIZE = """
import os, sys
class Block:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in os.environ["BLOCK"].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block)
"""

# What DeepSparse's package offers, with its fixed shapes, on ONNX Runtime's arithmetic.
DEEPSPARSE = """
import contextlib, json
import onnxruntime
__version__ = "0.0"

@contextlib.contextmanager
def override_onnx_input_shapes(path, shapes, inplace):
    assert not inplace  # it would rewrite the user's file
    yield json.dumps([path, shapes])

def compile_model(fixed, batch_size, num_cores):
    path, shapes = json.loads(fixed)
    session = onnxruntime.InferenceSession(path)
    class Compiled:
        input_names = [value.name for value in session.get_inputs()]
        output_names = [value.name for value in session.get_outputs()]
        def run(self, arrays):
            assert [list(array.shape) for array in arrays] == shapes
            return session.run(None, dict(zip(self.input_names, arrays)))
    return Compiled()
"""

Toolkit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A what-if model of 3 layers, 80 % zeros, that classifies: an export folder."""
    folder = tmp_path_factory.mktemp("exported")
    command = [
        *(
            str(COMMAND),
            "export",
            TINY,
            "depth=layers3",
            "sparsity=prune80",
            "engine.num_threads=1",
        ),
        *("task.name=sst2", f"task.data_dir={folder}", f"output_dir={folder}"),
    ]
    (folder / "dev.tsv").write_text("sentence\tlabel\na b\t1\n")
    subprocess.run(command, check=True, timeout=120, cwd=folder, capture_output=True)
    return folder


@pytest.fixture
def blocked(tmp_path: Path) -> dict[str, str]:
    """The environment in which `BLOCK=a,b` hides packages."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def test_all_engines_in_one_run(toolkit: Toolkit, exported: Path, tmp_path: Path) -> None:
    against = "against=[onnxruntime,torch,openvino]"
    run = toolkit("bench", f"onnx={exported}", against, *QUICK, "profile=true", "output_dir=out")
    assert run.returncode == 0, run.stderr
    record = read_record(tmp_path / "out")
    engines = [entry["engine"] for entry in record["speed"]]
    assert engines == ["sparse", "onnxruntime", "torch", "openvino"]
    for entry in record["speed"]:
        assert entry["ratio_to"]["engine"] == "sparse"
        assert entry["ratio_to"]["low"] <= entry["ratio_to"]["ratio"] <= entry["ratio_to"]["high"]
        assert entry["max_difference"] <= 1e-4
        assert entry["iterations"] >= 5
        assert entry["load_s"] > 0
        assert entry["peak_rss_bytes"] > 10e6
        assert entry["num_threads"] == 1
    sparse = record["speed"][0]
    assert sparse["isa"] in record["environment"]["isas"]
    columns = {"op", "time_ms", "gflops", "density", "kernel", "note", "peak_share"}
    assert columns <= sparse["profile"][0].keys()
    assert "% of peak" in run.stdout
    assert record["model"]["layers"] == 3
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.8, abs=1e-3)
    assert record["size_bytes"]["onnx"] == (exported / "model.onnx").stat().st_size
    assert record["size_bytes"]["packed"] > 0
    lines = run.stdout.splitlines()
    assert "3 layers, 80.0 % of the encoder's weights are zero" in lines[0]
    assert [line.split()[0] for line in lines[1:6]] == ["engine", *engines]
    assert "layer0" in run.stdout
    assert lines[-1].endswith(f"out{os.sep}record.json")


def test_precisions_and_files_of_ones_own(toolkit: Toolkit, exported: Path, tmp_path: Path) -> None:
    """The first engine decides what everything else is compared with, also in 16 bits."""
    other = tmp_path / "other.onnx"
    other.write_bytes((exported / "model.onnx").read_bytes())
    labels = ["openvino", "torch:bf16", "sparse:auto", f"onnxruntime@{other}"]
    run = toolkit(
        "bench", f"onnx={exported}", "engine=openvino", f"against=[{','.join(labels[1:])}]", *QUICK,
        "output_dir=out",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    entries = read_record(tmp_path / "out")["speed"]
    assert [entry["engine"] for entry in entries] == labels
    assert [entry["precision"] for entry in entries] == ["fp32", "bf16", "auto", "fp32"]
    assert [entry.get("onnx") for entry in entries] == [None, None, None, str(other)]
    assert 1e-5 < entries[1]["max_difference"] < 0.1
    assert f"torch:bf16 is within {entries[1]['max_difference']:.2g} of float32" in run.stdout
    report = toolkit("report", "out", "output_dir=report")
    assert report.returncode == 0, report.stderr
    with (tmp_path / "report" / "results.csv").open() as file:
        engines = [row["engine"] for row in csv.DictReader(file)]
    assert "torch:bf16" in engines
    # of another model, as far as the record knows
    assert not [engine for engine in engines if "other.onnx" in engine]


def test_a_precision_that_the_cpu_lacks_is_refused(
    toolkit: Toolkit, exported: Path, tmp_path: Path
) -> None:
    run = toolkit(
        "bench", f"onnx={exported}", "engine.isa=generic", "engine.precision=bf16", *QUICK
    )
    assert run.returncode == 2, run.stderr
    assert (
        "precision must be one that this CPU computes in with isa generic: fp32, or auto; got "
        in run.stderr
    )


def test_roofline(toolkit: Toolkit, exported: Path, tmp_path: Path) -> None:
    run = toolkit("bench", f"onnx={exported}", *QUICK, "roofline=true", "output_dir=out")
    assert run.returncode == 0, run.stderr
    roofline = read_record(tmp_path / "out")["speed"][0]["roofline"]
    steps = {point["op"] for point in roofline["points"]}
    assert {"embeddings", "qkv", "attention", "intermediate", "output", "output_norm"} <= steps
    assert roofline["read_gb_per_s"]["memory"] > 0
    picture = (tmp_path / "out" / "roofline.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture[16:20] == (800).to_bytes(4)
    assert f"out{os.sep}roofline.png\n" in run.stdout


@pytest.mark.parametrize(
    ("change", "block", "sentence"),
    [
        (["engine=onnxruntime"], "none", "roofline=true shows the sparse engine: add engine=spar"),
        ([], "matplotlib", "matplotlib, which is not installed: pip install matplotlib"),
    ],
)
def test_no_roofline_without_what_it_needs(
    toolkit: Toolkit,
    exported: Path,
    blocked: dict[str, str],
    tmp_path: Path,
    change: list[str],
    block: str,
    sentence: str,
) -> None:
    what = [f"onnx={exported}", *QUICK, "output_dir=out", "roofline=true", *change]
    run = toolkit("bench", *what, **blocked, BLOCK=block)
    assert run.returncode == 2
    assert sentence in run.stderr
    assert run.stderr.count("error: ") == 1
    assert not (tmp_path / "out" / "record.json").exists()


def test_what_if(toolkit: Toolkit, tmp_path: Path) -> None:
    run = toolkit("bench", TINY, "depth=layers3", "sparsity=prune90", *QUICK, "output_dir=out")
    assert run.returncode == 0, run.stderr
    record = read_record(tmp_path / "out")
    assert record["model"]["random_weights"] is True
    assert record["model"]["layers"] == 3
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.9, abs=1e-3)
    assert record["run"]["parent"] is None
    assert record["speed"][0]["lengths"] == "fixed"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".hydra",
        "bench.log",
        "record.json",
    ]


def test_what_if_in_int8(toolkit: Toolkit, tmp_path: Path) -> None:
    """Engines round alike, but where a number lies between two integers: no hundred-thousandths."""
    run = toolkit(
        *("bench", TINY, "sparsity=prune80_block4", "quantization=int8", *QUICK),
        *("engine=onnxruntime", "against=[openvino]", "output_dir=out"),
    )
    assert run.returncode == 0, run.stderr
    record = read_record(tmp_path / "out")
    found = record["model"]["quantization"]
    assert (found["precision"], found["kept_float"]) == ("int8", [])
    assert ", INT8, random weights, " in run.stdout


def test_accuracy_and_real_lengths_through_two_engines(
    toolkit: Toolkit, exported: Path, tmp_path: Path
) -> None:
    rows = [f"{'very ' * (i % 7)}good film\t{i % 2}" for i in range(23)]
    (tmp_path / "dev.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    run = toolkit(
        *("bench", f"onnx={exported}", "against=[onnxruntime]", "task=sst2", *QUICK),
        *(f"task.data_dir={tmp_path}", "lengths=task", "accuracy=true", "output_dir=out"),
    )
    assert run.returncode == 0, run.stderr
    record = read_record(tmp_path / "out")
    sparse, onnxruntime = record["speed"]
    assert sparse["metrics"] == onnxruntime["metrics"] == record["metrics"]
    assert record["metrics"]["num_examples"] == 23
    assert 0 <= record["metrics"]["accuracy"] <= 100
    assert sparse["lengths"] == "task"
    assert 2 < sparse["tokens_per_s"] / sparse["items_per_s"] < 16
    assert "accuracy %" in run.stdout


def test_more_texts_than_the_task_has(toolkit: Toolkit, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood\t1\n")
    where = ["task=sst2", f"task.data_dir={tmp_path}", "lengths=task"]
    run = toolkit("bench", f"onnx={exported}", *where, *QUICK)
    assert run.returncode == 2
    assert "batch_size must be at most 1" in run.stderr


@pytest.mark.parametrize(
    ("engine", "block", "sentence"),
    [
        ("openvino", "openvino", "pip install 'toolkit[bench]'"),
        ("torch", "torch", "pip install torch"),
        (None, "torch", "name an ONNX file or export folder"),
    ],
)
def test_a_missing_package_is_named(
    toolkit: Toolkit,
    exported: Path,
    blocked: dict[str, str],
    engine: str | None,
    block: str,
    sentence: str,
) -> None:
    what = [f"onnx={exported}", f"engine={engine}"] if engine else []
    run = toolkit("bench", *what, **blocked, BLOCK=block)
    assert run.returncode == 2
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


def test_deepsparse_runs_under_an_interpreter_of_its_own(
    toolkit: Toolkit, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "site" / "deepsparse").mkdir(parents=True)
    (tmp_path / "site" / "deepsparse" / "__init__.py").write_text(DEEPSPARSE)
    again = "from deepsparse import override_onnx_input_shapes\n"
    (tmp_path / "site" / "deepsparse" / "utils.py").write_text(again)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\n" + "a b\t1\na b a b a b\t0\n" * 4)
    real = ["task=sst2", f"task.data_dir={tmp_path}", "lengths=task"]
    run = toolkit(
        *("bench", f"onnx={exported}", "against=[deepsparse]", *QUICK, *real, "output_dir=out"),
        TOOLKIT_DEEPSPARSE_PYTHON=str(python),
    )
    assert run.returncode == 0, run.stderr
    deepsparse = read_record(tmp_path / "out")["speed"][1]
    assert (deepsparse["engine"], deepsparse["version"]) == ("deepsparse", "0.0")
    assert deepsparse["max_difference"] < 1e-5
    run = toolkit("bench", f"onnx={exported}", "engine=deepsparse", *QUICK)
    assert run.returncode == 2
    assert "set TOOLKIT_DEEPSPARSE_PYTHON to the Python of an environment" in run.stderr


def test_without_onnxruntime_float64_is_the_judge(
    toolkit: Toolkit, exported: Path, blocked: dict[str, str], tmp_path: Path
) -> None:
    run = toolkit(
        *("bench", f"onnx={exported}", *QUICK, "output_dir=out"),
        **(blocked | {"BLOCK": "onnxruntime,torch,transformers"}),
    )
    assert run.returncode == 0, run.stderr
    assert "checked against float64" in run.stdout
    assert 0 < read_record(tmp_path / "out")["speed"][0]["max_difference"] < 1e-5


def test_engines_that_disagree_are_not_timed(
    toolkit: Toolkit, exported: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(exported, tmp_path / "copy")
    weights_file = tmp_path / "copy" / "checkpoint" / "model.safetensors"
    weights = load_file(weights_file)
    name = next(name for name in weights if name.endswith("output.dense.weight"))
    save_file(weights | {name: -weights[name]}, weights_file, metadata={"format": "pt"})
    run = toolkit("bench", "onnx=copy", "engine=torch", *QUICK, "output_dir=out")
    assert run.returncode == 3
    assert "the outputs of torch differ from those of onnxruntime" in run.stderr
    assert not (tmp_path / "out" / "record.json").exists()


def test_speed_regression_gate(toolkit: Toolkit, exported: Path, tmp_path: Path) -> None:
    args = ["bench", f"onnx={exported}", "engine=onnxruntime", *QUICK, "output_dir=out"]
    assert toolkit(*args).returncode == 0
    record = read_record(tmp_path / "out")
    for factor, code, sentence in ((0.01, 0, "times the baseline's"), (100, 3, "max_regression")):
        speed = [e | {"items_per_s": e["items_per_s"] * factor} for e in record["speed"]]
        (tmp_path / "old.json").write_text(json.dumps(record | {"speed": speed}))
        run = toolkit(*args, "baseline=old.json")
        assert run.returncode == code, run.stderr
        assert sentence in run.stdout + run.stderr


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_damaged_input(toolkit: Toolkit, exported: Path, tmp_path: Path, damage: str) -> None:
    whole = (exported / "model.onnx").read_bytes()
    content = {"empty": b"", "truncated": whole[:-1000], "text": b"hello, world\n"}
    if damage in content:
        (tmp_path / "model.onnx").write_bytes(content[damage])
    run = toolkit("bench", f"onnx={tmp_path / 'model.onnx'}", "engine=onnxruntime", *QUICK)
    assert run.returncode == 1
    assert run.stderr.count("error: ") == 1
    assert "model.onnx" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_ends_the_workers(
    exported: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    args = [f"onnx={exported}", "against=[onnxruntime]", *QUICK, "seconds=100"]
    process: subprocess.Popen[Any] = subprocess.Popen(
        [COMMAND, "bench", *args],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        start_new_session=True,  # so that the signal reaches the whole group, as Ctrl-C does
    )
    deadline = time.monotonic() + 60
    while len(children(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children(process.pid)
    assert len(workers) == 2
    time.sleep(0.5)  # into the rounds
    os.killpg(process.pid, sent)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert not list(tmp_path.glob("toolkit-bench-*"))


def children(pid: int) -> list[int]:
    """List the processes that a process has started."""
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
