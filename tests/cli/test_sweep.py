"""Sweeps as a user runs them: the flagship, killed ones, ones on several processes and machines."""

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import COMMAND, Run
from safetensors.torch import load_file
from support.configs import TINY

from toolkit.compress.sparsity.callback import MASKS_FILE
from toolkit.record import read_record

# Each cell prunes while it trains 16 steps, and could go on from every fourth.
CELLS = (
    *(*TINY, "sparsity=prune80", "sparsity.start_epoch=0", "sparsity.end_epoch=1.5"),
    *("sparsity.update_frequency=0.25", "trainer.num_train_epochs=2"),
    *("trainer.save_strategy=steps", "trainer.save_steps=4", "output_dir=runs"),
)


@contextmanager
def started(args: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start the command as the leader of its own group of processes; none outlives the test."""
    with subprocess.Popen(
        [COMMAND, "train", "-m", *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def rows(folder: Path) -> list[dict[str, str]]:
    """Read the table, which must be whole at any moment."""
    table = folder / "runs" / "sweep.csv"
    with table.open() as file:
        return list(csv.DictReader(file))


def states(folder: Path) -> list[str]:
    return [row["state"] for row in rows(folder)] if (folder / "runs/sweep.csv").exists() else []


def wait_until(holds: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    while not holds():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def weights(folder: Path, number: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / str(number) / "checkpoint" / "model.safetensors")


def test_from_a_sweep_to_its_report(toolkit: Run, tmp_path: Path) -> None:
    done = toolkit(
        *("train", "-m", *TINY, "depth=full,layers1", "sparsity=dense,prune80"),
        *("sparsity.end_epoch=0.5",),
        *("then=[export,bench]", "bench.against=[onnxruntime]", "bench.accuracy=true"),
        *("bench.seconds=0", "bench.batch_size=2", "bench.seq_len=16", "output_dir=runs"),
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    for row in rows(tmp_path):  # the table says what the records say
        record = read_record(tmp_path / "runs" / row["folder"])
        assert float(row["score"]) == record["metrics"]["accuracy"]
        assert float(row["items_per_s"]) == record["speed"][0]["items_per_s"]
        assert float(row["zeros"]) == record["model"]["sparsity"]["encoder"]
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
        found = list(csv.DictReader(file))
    assert len(found) == 8
    assert {(row["layers"], row["engine"]) for row in found} == {
        (layers, engine) for layers in "12" for engine in ("sparse", "onnxruntime")
    }
    assert sum(row["pareto"] == "True" for row in found) >= 1
    names = {"report.html", "report.md", "results.csv", "pareto.png"}
    assert names <= {path.name for path in (tmp_path / "report").iterdir()}


def test_killed_and_resumed_it_ends_in_the_same_weights(toolkit: Run, tmp_path: Path) -> None:
    six = [*CELLS, "depth=full,layers1", "seed=0,1,2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    done = toolkit("train", "-m", *six, cwd=whole, timeout=400)
    assert done.returncode == 0, done.stderr
    with started(six, killed) as process:
        in_third = f"runs/2/trainer/checkpoint-*/{MASKS_FILE}"
        wait_until(lambda: list(killed.glob(in_third)), process)
        os.killpg(process.pid, signal.SIGKILL)
    assert states(killed) == ["done", "done", "running", *["waiting"] * 3]
    kept = (killed / "runs/0/record.json").stat().st_mtime_ns

    resumed = toolkit("train", "-m", *six, "resume=true", cwd=killed, timeout=400)
    assert resumed.returncode == 0, resumed.stderr
    assert "2 of 6 cells are finished" in resumed.stdout
    assert "continuing from" in resumed.stdout
    assert "6 done of 6 cells" in resumed.stdout
    assert states(killed) == ["done"] * 6
    assert (killed / "runs/0/record.json").stat().st_mtime_ns == kept
    for number in range(6):
        expected, found = weights(whole, number), weights(killed, number)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], value) for name, value in found.items())


def test_a_process_that_dies_takes_no_sweep_with_it(toolkit: Run, tmp_path: Path) -> None:
    """A worker of joblib's is killed, as for want of memory; Slurm's stand-in goes on later."""
    three = [*CELLS, "seed=0,1,2"]
    with started([*three, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], tmp_path) as process:
        wait_until(lambda: list(tmp_path.glob("runs/0/trainer/checkpoint-*")), process)
        os.kill(int(rows(tmp_path)[0]["process"].rpartition(":")[2]), signal.SIGKILL)
        _, stderr = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "cell 0 (seed=0) failed, exit code 1: its process ended" in stderr
    assert (states(tmp_path)[0], states(tmp_path)[2]) == ("failed", "done")

    slurm = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
    resumed = toolkit("train", "-m", *three, *slurm, "resume=true", cwd=tmp_path, timeout=400)
    assert resumed.returncode == 0, resumed.stderr
    assert states(tmp_path) == ["done"] * 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_on_two_nodes_with_two_processes_in_each_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of two raylets with one CPU each, so that cells beside each other are on both."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # tests share the machine
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs Ray")
    cluster = cluster_utils.Cluster()
    args = [*CELLS, "depth=full,layers1,layers9", "num_processes=2", "trainer.ddp_backend=gloo"]
    args += ["trainer.logging_steps=1", "hydra/launcher=ray_cluster"]
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80_000_000, include_dashboard=False)
        cluster.wait_for_nodes()
        args += [f"hydra.launcher.ray.init.address={cluster.address}"]
        with started([*args, "+hydra.launcher.ray.remote.num_cpus=1"], tmp_path) as process:
            wait_until(lambda: states(tmp_path).count("running") == 2, process)
            _, stderr = process.communicate(timeout=400)
    finally:
        cluster.shutdown()
    assert states(tmp_path) == ["done", "done", "failed"], stderr
    assert process.returncode == 2
    assert "cell 2 (depth=layers9) failed, exit code 2: depth keeps 9 layers, but" in stderr
    assert weights(tmp_path, 0).keys() > weights(tmp_path, 1).keys()
    # two processes halve the steps
    assert read_record(tmp_path / "runs" / "0")["training"]["log"][-1]["step"] == 8
