"""`train` in this process: results, repeating, resuming, going on, and what is refused."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.configs import TINY, compose
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from toolkit.bench import bench
from toolkit.compress.model import load_checkpoint, load_model, load_tokenizer
from toolkit.compress.resume import explain_full_disk, last_checkpoint
from toolkit.compress.sparsity.callback import MASKS_FILE
from toolkit.compress.sparsity.weights import prunable_weights
from toolkit.compress.structured.widths import widths_of
from toolkit.compress.trainer import load_data, make_trainer, predict, training_arguments
from toolkit.config import BenchRoot, ExportRoot, ReportRoot, TrainRoot, narrow
from toolkit.errors import GateError, InputError, UsageError
from toolkit.export import export
from toolkit.measure.latency import CostTable
from toolkit.record import read_record
from toolkit.report import report
from toolkit.tasks.demo import generate_examples
from toolkit.train import train

pytestmark = pytest.mark.slow

PRUNED = (
    "sparsity=prune80",
    "sparsity.start_epoch=0",
    "sparsity.end_epoch=0.5",
    "sparsity.update_frequency=0.25",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configure(output: Path, *overrides: str) -> TrainRoot:
    config = compose("train", *TINY, *overrides)
    assert isinstance(config, TrainRoot)
    config.output_dir = str(output)
    return config


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train(configure(folder))
    return folder


def test_compound_student(tmp_path: Path, teacher: Path) -> None:
    """Shallower, pruned, distilled; twice the same weights; then in plain transformers."""
    compound = (*PRUNED, "depth.num_layers=1", "teacher=dense")
    for name in ("one", "two"):
        train(configure(tmp_path / name, *compound, f"teacher.path={teacher / 'checkpoint'}"))
    assert same(tmp_path / "one", tmp_path / "two")

    record = read_record(tmp_path / "one")
    assert record["model"]["layers"] == 1
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.8, abs=1e-3)
    assert {tensor["sparsity"] for tensor in record["model"]["sparsity"]["tensors"]} == {
        round(0.8 * 1024) / 1024,
        round(0.8 * 2048) / 2048,
    }
    assert record["metrics"]["num_examples"] == 16
    assert 0 <= record["metrics"]["accuracy"] <= 100
    checkpoint = tmp_path / "one" / "checkpoint"
    assert {path.name for path in checkpoint.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert record["size_bytes"] == {"checkpoint": size}
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"checkpoint", "record.json"}

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    inputs = AutoTokenizer.from_pretrained(checkpoint)("the soup was good", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 2)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra"])
def test_frozen_embeddings_stay_to_the_last_bit(tmp_path: Path, kind: str) -> None:
    """All else learns."""
    sizes: dict[str, dict[str, int]] = {
        "bert": {},
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
        "electra": {"embedding_size": 16},
    }
    make = [f"+model.config.{key}={value}" for key, value in sizes[kind].items()]
    frozen = (f"model.config.model_type={kind}", *make, "model.freeze_embeddings=true")
    train(configure(tmp_path / "before", *frozen, "trainer.learning_rate=0"))
    train(configure(tmp_path / "after", *frozen, *PRUNED))
    before, after = weights(tmp_path / "before"), weights(tmp_path / "after")
    is_frozen = {name: ".embeddings." in name for name in before}
    assert 4 <= sum(is_frozen.values()) <= 5
    # a key's bias shifts all scores of a row alike, which softmax does not see
    for name in (name for name in before if not name.endswith(("key.bias", "k_lin.bias"))):
        assert torch.equal(before[name], after[name]) is is_frozen[name], name


def test_another_seed_gives_other_weights(tmp_path: Path, teacher: Path) -> None:
    train(configure(tmp_path, "seed=1"))
    assert not same(tmp_path, teacher)


def test_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, or with `resume` only what is left of `then` is done."""
    train(configure(tmp_path, "resume=true"))
    assert "nothing to resume" in capsys.readouterr().out
    before = weights(tmp_path)
    with pytest.raises(UsageError, match="already holds a finished run"):
        train(configure(tmp_path))
    train(configure(tmp_path, "resume=true", "seed=7"))
    assert "not trained again" in capsys.readouterr().out
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path).items())

    called: list[str] = []
    monkeypatch.setattr("toolkit.export.export", lambda root: called.append(root.checkpoint))
    monkeypatch.setattr("toolkit.train.bench", lambda root: called.append(root.onnx))
    train(configure(tmp_path, "resume=true", "then=[export,bench]"))
    assert called == [str(tmp_path / "checkpoint"), str(tmp_path / "export")]
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text("{}")
    train(configure(tmp_path, "resume=true", "then=[export,bench]"))
    assert len(called) == 3


def test_unfinished_run_is_neither_overwritten_nor_mixed(tmp_path: Path) -> None:
    state = tmp_path / "trainer" / "config.json"
    state.parent.mkdir()
    state.write_text('{"seed": "1"}')
    with pytest.raises(UsageError, match="an interrupted run: continue it with resume=true"):
        train(configure(tmp_path))
    with pytest.raises(UsageError, match="only with its own configuration; changed are depth"):
        train(configure(tmp_path, "resume=true"))
    assert json.loads(state.read_text()) == {"seed": "1"}


def test_last_checkpoint_is_the_latest_complete_one(tmp_path: Path) -> None:
    for step, names in ((9, ("trainer_state.json", MASKS_FILE)), (10, ("trainer_state.json",))):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in names:
            (tmp_path / f"checkpoint-{step}" / name).touch()
    (tmp_path / "checkpoint-11").mkdir()
    assert last_checkpoint(tmp_path, [MASKS_FILE]) == tmp_path / "checkpoint-9"
    assert last_checkpoint(tmp_path, []) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path / "none", []) is None


def test_question_answering(tmp_path: Path) -> None:
    """A SQuAD file of our own: windows, both logits, EM over every question, then the engines."""
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
    config = configure(
        tmp_path / "run",
        "task=squad",
        f"task.data_dir={tmp_path}",
        "task.max_length=28",  # three windows
        "task.doc_stride=8",
        "task.max_train_samples=null",
        "task.max_eval_samples=null",
        "model.config.hidden_size=64",  # learns by heart whatever the seed
        "model.config.hidden_dropout_prob=0",
        "model.config.attention_probs_dropout_prob=0",
        "trainer.num_train_epochs=40",
        "trainer.learning_rate=1e-3",
        "trainer.train_sampling_strategy=random",  # grouped, a batch is one window
        "teacher=self",
        "teacher.hardness=0.1",
        "bench.batch_size=4",
        "bench.seq_len=28",
    )
    train(config)
    checkpoint = str(tmp_path / "run" / "checkpoint")
    metrics = read_record(tmp_path / "run")["metrics"]
    assert metrics["num_examples"] == 24
    assert metrics["f1"] >= metrics["exact_match"]
    assert metrics["exact_match"] >= 90  # easily learned by heart, if labels and offsets are right

    measured = bench(
        narrow(
            config,
            BenchRoot,
            **vars(config.bench) | {"accuracy": True, "against": ["onnxruntime"], "seconds": 0.0},
            onnx=str(export(narrow(config, ExportRoot, checkpoint=checkpoint, output_dir=None))),
            output_dir=str(tmp_path / "bench"),
        )
    )
    for entry in measured["speed"]:  # the same through both engines as through torch
        assert entry["metrics"] == metrics


STRUCTURED = (
    "sparsity=structured",
    "sparsity.target_speedup=1.3",
    "sparsity.num_calibration=32",
    "bench.batch_size=4",
    "bench.seq_len=16",
)


@pytest.fixture
def _fixed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that do not depend on the machine: of so small a model they are noise."""

    class Meter:
        def table(self, multiple: int) -> CostTable:
            return CostTable(1.0, [1, 2], [2.0, 4.0], [multiple, 64], [2.0, 8.0], 1.0, 1.0)

        def compare(self, *models: Any) -> list[float]:
            return [self.table(16).model_ms(widths) for widths in models]

    monkeypatch.setattr("toolkit.measure.structured.latency_meter", lambda *_: nullcontext(Meter()))


@pytest.mark.usefixtures("_fixed_costs")
def test_structured(tmp_path: Path, teacher: Path) -> None:
    """Without training; exported, where all engines agree; then trained, pruned, depth dropped."""
    start = ("model.weights=pretrained", f"model.path={teacher / 'checkpoint'}", *STRUCTURED)
    untrained = ("trainer.num_train_epochs=0", "then=[export]")
    train(configure(tmp_path / "once", *start, *untrained))
    record = read_record(tmp_path / "once")
    facts = record["structured"]
    assert facts["predicted"]["speedup"] >= 1.3
    assert facts["layer_widths"]["before"] == [[2, 64], [2, 64]]
    widths = facts["layer_widths"]["after"]
    assert widths != facts["layer_widths"]["before"]
    assert all(1 <= heads <= 2 and 16 <= neurons <= 64 for heads, neurons in widths)
    assert json.loads((tmp_path / "once/export/config.json").read_text())["layer_widths"] == widths
    parity = json.loads((tmp_path / "once/export/export.json").read_text())["parity"]
    assert max(parity["max_difference"].values()) < 1e-4

    shrunk = ("model.weights=pretrained", f"model.path={tmp_path / 'once' / 'checkpoint'}")
    again = ("teacher=self", "depth.keep=[1]", *PRUNED)
    train(configure(tmp_path / "again", *shrunk, *again))
    model = load_checkpoint(tmp_path / "again" / "checkpoint")
    assert widths_of(model) == [widths[1]]
    sparsity = read_record(tmp_path / "again")["model"]["sparsity"]["encoder"]
    assert sparsity == pytest.approx(0.8, abs=1e-3)


@pytest.mark.usefixtures("_fixed_costs")
def test_structured_then_interrupted(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen is kept, since times measured again would choose otherwise."""
    path = f"model.path={teacher / 'checkpoint'}"
    overrides = (
        "model.weights=pretrained",
        path,
        *STRUCTURED,
        *PRUNED[1:],
        "sparsity.final_sparsity=0.5",
    )
    with monkeypatch.context() as broken:
        broken.setattr("toolkit.train.predict", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(configure(tmp_path, *overrides))
    widths = widths_of(load_checkpoint(tmp_path / "trainer" / "shrunk"))
    monkeypatch.setattr("toolkit.measure.structured.shrink_to_target", lambda *_: 1 / 0)
    train(configure(tmp_path, *overrides, "resume=true"))
    record = read_record(tmp_path)
    assert record["structured"]["layer_widths"]["after"] == widths
    assert widths_of(load_checkpoint(tmp_path / "checkpoint")) == widths
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.5, abs=1e-2)


@pytest.mark.usefixtures("_fixed_costs")
def test_structured_in_steps(
    tmp_path: Path,
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each is a run with a record; wherever it ends early, resuming gives the same model."""
    overrides = (
        "model.weights=pretrained", f"model.path={teacher / 'checkpoint'}", "teacher=self",
        *STRUCTURED, "sparsity.target_speedup=2", "sparsity.target_steps=2",
        *PRUNED[1:], "sparsity.final_sparsity=0.5", "trainer.num_train_epochs=2",
    )  # fmt: skip
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(configure(whole, *overrides))
    said = capsys.readouterr().out.splitlines()[-1]

    first, last = (read_record(folder) for folder in (whole / "steps" / "1", whole))
    facts = [first["structured"], last["structured"]]
    assert facts[0]["layer_widths"]["after"] == facts[1]["layer_widths"]["before"]
    assert "total" not in facts[0]
    total = facts[1]["total"]
    assert total["steps"] == 2
    for how in ("predicted", "measured"):  # the fixed costs know no difference
        assert all(each[how]["speedup"] >= 2**0.5 for each in facts)
        speedup = facts[0][how]["dense_latency_ms"] / facts[1][how]["latency_ms"]
        assert total[f"{how}_speedup"] == pytest.approx(speedup)
    told = f"predicted {speedup:.2f}x, measured {speedup:.2f}x"
    assert said.endswith(f"before all 2 steps, their ratios multiplied: {told}")
    assert [record["model"]["sparsity"]["encoder"] > 0.4 for record in (first, last)] == [0, 1]
    assert [record["config"]["sparsity"]["target_steps"] for record in (first, last)] == [1, 2]
    assert {path.name for path in whole.iterdir()} == {"checkpoint", "record.json", "steps"}
    rows = report(
        ReportRoot(
            paths=[str(whole)], select=None, within=0.01, output_dir=str(tmp_path / "report")
        )
    )
    assert {row["folder"] for row in rows} == {str(whole), str(whole / "steps" / "1")}

    def end_in(function: str, *more: str) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(function, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train(configure(resumed, *overrides, *more))

    end_in("toolkit.train.predict")  # of the first step, which has been trained
    with pytest.raises(UsageError, match=r"steps/1 already holds an interrupted run"):
        train(configure(resumed, *overrides))
    end_in("toolkit.train.note", "resume=true")  # right after it
    assert not (resumed / "trainer").exists()
    end_in("toolkit.measure.structured.shrink_to_target", "resume=true")  # the last has begun
    assert "steps/1 holds the finished run" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"changed are sparsity\.target_speedup \(.* was 2"):
        train(configure(resumed, *overrides, "sparsity.target_speedup=3", "resume=true"))
    end_in("toolkit.train.predict", "resume=true")  # of the last
    train(configure(resumed, *overrides, "resume=true"))
    assert same(whole / "steps" / "1", resumed / "steps" / "1")
    assert same(whole, resumed)


@pytest.mark.usefixtures("_fixed_costs")
def test_structured_steps_out_of_reach(tmp_path: Path, teacher: Path) -> None:
    """Refused before the first is trained, though that one could be reached."""
    path = f"model.path={teacher / 'checkpoint'}"
    steps = ("sparsity.target_speedup=9", "sparsity.target_steps=4")
    with pytest.raises(UsageError, match="target_speedup=9 cannot be reached"):
        train(configure(tmp_path, "model.weights=pretrained", path, *STRUCTURED, *steps))
    assert not (tmp_path / "steps" / "1" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("sparsity.target_speedup=50",), "target_speedup=50 cannot be reached: with one head and"),
        (("bench.seq_len=4096",), "bench.seq_len must be at most"),
        (("trainer.num_train_epochs=0", "sparsity.final_sparsity=0.5"), "nothing is trained"),
    ],
)
@pytest.mark.usefixtures("_fixed_costs")
def test_structured_that_cannot_be(
    tmp_path: Path, overrides: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        train(configure(tmp_path, *STRUCTURED, *overrides))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has a GPU, which takes bf16 anyway")
def test_bf16_on_a_cpu(tmp_path: Path) -> None:
    overrides = [word for word in TINY if not word.startswith("trainer.use_cpu")]
    config = compose("train", *overrides, "trainer.bf16=true")
    config.output_dir = str(tmp_path)
    train(config)
    record = read_record(tmp_path)
    assert record["config"]["trainer"]["bf16"] is True
    assert record["training"]["precision"] == "bf16"


@pytest.mark.parametrize("can", [True, False])
def test_bf16_is_on_where_the_cpu_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], can: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": can}, raising=False)
    arguments = training_arguments(compose("train", *TINY), tmp_path)
    assert arguments.bf16 is (can and not torch.accelerator.is_available())
    assert ("training in bfloat16" in capsys.readouterr().out) is arguments.bf16
    for override in ("trainer.bf16=false", "trainer.fp16=true", "trainer.num_train_epochs=0"):
        assert not training_arguments(compose("train", *TINY, override), tmp_path).bf16
    assert "training in bfloat16" not in capsys.readouterr().out


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has a GPU, which takes bf16 anyway")
def test_evaluation_is_float32(tmp_path: Path) -> None:
    """What a record says is what the saved float32 weights do, to the last bit of its metric."""
    config = configure(tmp_path, "trainer.bf16=true", "trainer.learning_rate=1e-2")
    tokenizer = load_tokenizer(config.model)
    data = load_data(config, tokenizer, None)
    model = load_model(config.model, config.task, tokenizer)
    arguments = training_arguments(config, tmp_path)
    trainer = make_trainer(config, arguments, model, None, None, tokenizer, data, [])
    trainer.train()
    seen: list[torch.dtype] = []
    hook = prunable_weights(model)  # any linear layer's output tells
    layer = model.get_submodule(next(iter(hook)).removesuffix(".weight"))
    layer.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    predict(config, trainer, data)
    assert set(seen) == {torch.float32}
    seen.clear()
    two_tokens: Any = [{"input_ids": [1, 2], "attention_mask": [1, 1]}]
    trainer.predict(two_tokens)  # autocast is back
    assert set(seen) == {torch.bfloat16}


def test_training_is_recorded(tmp_path: Path) -> None:
    train(
        configure(
            tmp_path,
            *PRUNED,
            "trainer.logging_steps=1",
            "trainer.report_to=tensorboard",
            "trainer.eval_strategy=epoch",
        )
    )
    training = read_record(tmp_path)["training"]
    assert training["samples_per_s"] > 0
    steps = [entry for entry in training["log"] if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 9))
    zeros = [entry["sparsity"] for entry in steps]
    assert zeros == sorted(zeros)
    assert zeros[0] < 0.5
    assert zeros[-1] == pytest.approx(0.8, abs=1e-3)
    assert "eval_accuracy" in training["log"][-1]
    events = b"".join(path.read_bytes() for path in tmp_path.rglob("events.out.tfevents*"))
    assert b"train/sparsity" in events


# transformers' MLflowCallback fails in __del__ where its own check has refused it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_log_whose_package_is_missing_is_named(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(UsageError, match=rf"trainer: .*requires {name} to be installed"):
        train(configure(tmp_path, f"trainer.report_to={name}"))


def test_quiet_training_says_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOOLKIT_VERBOSITY", "quiet")
    train(configure(tmp_path, "trainer.logging_steps=1"))
    out, err = capfd.readouterr()
    assert out.startswith(f"{tmp_path}/checkpoint: 2 layers")
    assert out.count("\n") == 1
    assert err == ""


def test_pruning_without_training(tmp_path: Path) -> None:
    train(configure(tmp_path / "dense"))
    checkpoint = tmp_path / "dense" / "checkpoint"
    local = ["model=local", f"model.path={checkpoint}", "trainer=none", "sparsity=once"]
    no_config = [word for word in TINY if not word.startswith(("model.", "trainer."))]
    config = compose("train", *local, *no_config, "sparsity.num_calibration=16")
    config.output_dir = str(tmp_path / "once")
    train(config)
    record = read_record(tmp_path / "once")
    assert record["model"]["sparsity"]["encoder"] == 0.5
    assert record["metrics"]["num_examples"] == 16
    assert record["training"] == {"precision": "fp32", "samples_per_s": None, "log": []}
    train(replace(config, resume=True))  # a finished run like any other


def test_a_floor_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing passes 101 %, so the last model is saved, and the gate says so."""
    with pytest.raises(GateError, match=r"no model met sparsity.floor=accuracy>=101"):
        train(configure(tmp_path, *PRUNED, "sparsity.floor='accuracy>=101'"))
    assert "accuracy" in capsys.readouterr().out
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()


def test_accuracy_floor(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"below min_accuracy=100 %; the run is saved in"):
        train(configure(tmp_path, "min_accuracy=100"))
    assert read_record(tmp_path)["metrics"]["accuracy"] < 100
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()
    train(configure(tmp_path, "min_accuracy=1", "resume=true"))


def test_best_model_has_its_final_sparsity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(
        configure(
            tmp_path,
            *PRUNED,
            "trainer.num_train_epochs=4",
            "sparsity.end_epoch=2",
            "trainer.eval_strategy=epoch",
            "trainer.load_best_model_at_end=true",
            "trainer.metric_for_best_model=accuracy",
        )
    )
    assert capsys.readouterr().out.count("eval_accuracy") == 4
    sparsity = read_record(tmp_path)["model"]["sparsity"]["encoder"]
    assert sparsity == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.learning_rat=1"], "trainer has no key 'learning_rat'; did you mean 'learning_"),
        (["trainer.output_dir=x"], r"trainer\.output_dir cannot be set"),
        (["trainer.num_train_epochs=0"], r"=0 trains nothing, but model=demo has new weights"),
        (["sparsity.floor='f1>=3'"], "must name one of the task's metrics, accuracy; got 'f1'"),
        (
            ["quantization=int8", *PRUNED, "sparsity.end_epoch=1"],
            r"pruning ends at sparsity\.end_epoch=1, but INT8 starts at epoch 0\.75: end pruning",
        ),
        (
            ["quantization=int8", "quantization.start_epoch=2"],
            r"quantization\.start_epoch must be below 1, the epochs that are trained; got 2",
        ),
        (
            ["quantization=int8", "trainer.max_steps=3", "quantization.start_epoch=2"],
            r"INT8 training starts at epoch 2 \(quantization\.start_epoch\), but training ends",
        ),
        (
            ["quantization=int8", "trainer.num_train_epochs=0"],
            "but nothing is trained: calibrate the checkpoint instead, with `toolkit export",
        ),
        (
            ["quantization=int8", "quantization.keep_float=[layers.0.quiry]"],
            r"names 'layers\.0\.quiry', but no layer is called so; did you mean 'layers\.0\.query'",
        ),
        (
            [
                "quantization=int8",
                "trainer.lr_scheduler_type=reduce_lr_on_plateau",
                "trainer.eval_strategy=epoch",
            ],
            "quantization=int8 replaces schedules such as trainer.lr_scheduler_type=linear",
        ),
        (["trainer.eval_strategy=often"], "trainer: often is not a valid IntervalStrategy"),
        (
            ["sparsity=prune80"],
            r"ends at sparsity\.end_epoch=1\.5, but training ends after 1 epoch",
        ),
        (
            [
                "rates=[{start_epoch:0,end_epoch:1,first:1,last:0,shape:linear}]",
                *PRUNED,
                "sparsity.rewind=0.1",
            ],
            r"rates and sparsity\.rewind both say the learning rate",
        ),
        (
            [
                "rates=[{start_epoch:0,end_epoch:1,first:1,last:0,shape:linear},"
                "{start_epoch:0.5,end_epoch:1,first:1,last:0,shape:linear}]"
            ],
            r"ascending order that do not overlap; got \[\(0\.0, 1\.0\), \(0\.5, 1\.0\)\]",
        ),
        (["depth=layers9"], "keeps 9 layers, but the model has only 2"),
        (["task.max_length=500"], r"task\.max_length must be at most 128"),
        ([*PRUNED, "sparsity.block_shape=[1,5]"], "must divide every pruned weight"),
        (
            ["task=squad", "task.data_dir=.", "trainer.eval_strategy=epoch"],
            "trainer: You have set `args.eval_strategy`",
        ),
    ],
)
def test_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    squad: dict[str, Any] = {"data": [{"paragraphs": [{"context": "so", "qas": []}]}]}
    answer = {"text": "so", "answer_start": 0}
    squad["data"][0]["paragraphs"][0]["qas"] = [{"id": "1", "question": "?", "answers": [answer]}]
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / name).write_text(json.dumps(squad))
    config = configure(tmp_path / "run", "task.max_length=32", "task.doc_stride=8", *overrides)
    config.task.data_dir = config.task.data_dir and str(tmp_path)
    with pytest.raises(UsageError, match=message):
        train(config)


def test_full_disk_is_told_from_other_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the disk is full"), explain_full_disk(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="denied"), explain_full_disk(tmp_path):
        raise PermissionError(13, "denied")


def test_a_sweep_shares_the_teachers_outputs(
    tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Computed once; the same weights as without the folder; short runs do without a pass."""
    distilled = ("teacher=dense", f"teacher.path={teacher / 'checkpoint'}")
    cache = f"teacher.cache={tmp_path / 'cache'}"
    for name, more in {"none": (), "first": (cache,), "second": (cache,)}.items():
        train(configure(tmp_path / name, *distilled, *more))
    said = capsys.readouterr().out
    assert said.count("teacher: one pass over 64 inputs") == 2
    assert said.count("teacher: its outputs for 64 inputs are in") == 1
    assert same(tmp_path / "none", tmp_path / "first")
    assert same(tmp_path / "none", tmp_path / "second")
    train(configure(tmp_path / "short", *distilled, "trainer.max_steps=2"))
    assert "one pass" not in capsys.readouterr().out


def test_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From own texts, judged by the teacher and by scored pairs; exported, measured by these."""
    texts = [example["text"] for example in generate_examples("train", 0, 60)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    rows = [f"{a}\t{b}\t{len(a)}" for a, b in pairwise(texts)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    own = ("task=embedding", f"task.train_file={tmp_path / 'texts.txt'}", "task.max_length=16")
    with pytest.raises(UsageError, match="nothing to learn: add teacher=self"):
        train(configure(tmp_path / "none", *own))

    train(configure(tmp_path / "held", *own, "teacher=self", *PRUNED))
    said = capsys.readouterr().out
    assert "no task.eval_file: judged on 6 examples held out of" in said
    metrics = read_record(tmp_path / "held")["metrics"]
    assert list(metrics) == ["task", "num_examples", "similarity"]
    assert 20 < metrics["similarity"] <= 100

    judged = (*own, f"task.eval_file={tmp_path / 'pairs.tsv'}")
    config = configure(tmp_path / "both", *judged, "teacher=self", "teacher.embedding_loss=mse",
                       "trainer.train_sampling_strategy=group_by_length", "trainer.learning_rate=0",
                       "then=[export,bench]", "bench.accuracy=true", "bench.seconds=0")  # fmt: skip
    train(config)
    record = read_record(tmp_path / "both")
    # untrained, it is its own teacher, though batches are not in the order of the examples
    assert record["metrics"]["similarity"] == pytest.approx(100)
    (entry,) = record["speed"]
    assert entry["metrics"]["spearman"] == pytest.approx(record["metrics"]["spearman"], abs=0.5)
    assert "similarity" not in entry["metrics"]
    card = ModelCard.load(tmp_path / "both" / "export" / "README.md").data
    assert {result.metric_type for result in card.eval_results} == {"spearmanr", "similarity"}
    assert [speed["engine"] for speed in card.toolkit["speed"]] == ["sparse"]
    assert record["environment"]["cpu"] in card.toolkit["speed"][0]["machine"]
    for name in ("checkpoint", "export"):  # both are folders of sentence-transformers
        modules = json.loads((tmp_path / "both" / name / "modules.json").read_text())
        assert modules[1]["type"].endswith("Pooling")


@pytest.mark.parametrize(
    "more", ["teacher.hidden_weight=1", "teacher.attention=maps", "teacher.attention=values"]
)
def test_states_of_a_student_with_fewer_layers(
    tmp_path: Path, more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure(tmp_path, *PRUNED, "depth.num_layers=1", "teacher=self", more))
    assert "one pass" not in capsys.readouterr().out
    assert read_record(tmp_path)["model"]["layers"] == 1
    config = (tmp_path / "checkpoint" / "config.json").read_text()
    assert "output_hidden_states" not in config


def test_a_foreign_map_of_layers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"for each of the student's 2 layers, one .* got \[3\]"):
        train(configure(tmp_path, "teacher=self", "teacher.layer_map=[3]"))
