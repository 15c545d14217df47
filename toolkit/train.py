"""`toolkit train`: compose, train, evaluate, save.

A run directory holds `checkpoint/` (a plain Hugging Face folder), `record.json`, and while the run
is unfinished `trainer/`, from which `resume=true` continues.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from toolkit.compress.depth import drop_layers, encoder_layers, kept_layers
from toolkit.compress.interrupt import StopOnSignal
from toolkit.compress.model import input_names, load_model, load_tokenizer, save_checkpoint
from toolkit.compress.sparsity import MASKS_FILE, SparsificationCallback, measure_sparsity
from toolkit.compress.teacher import DistillationTrainer, load_teacher
from toolkit.config import BenchConfig, BenchRoot, ExportRoot, TaskKind, TrainRoot, Verb
from toolkit.errors import GateError, InputError, UsageError, nearest
from toolkit.record import new_record, plain, read_record, write_record, write_text
from toolkit.tasks import TARGETS, collate, encode, evaluate, load_examples, main_metric

__all__ = ["DistillationTrainer", "SparsificationCallback", "train"]

# What `resume=true` may change: nothing of it touches the weights.
NOT_COMPARED = ("bench", "engine", "export", "min_accuracy", "output_dir", "resume", "then")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What Rust (safetensors) and C++ (torch.save) make of these.
FULL_DISK_TEXTS = ("No space left", "quota exceeded", "File too large", "failed writing file")


@dataclass(frozen=True)
class Data:
    """Both splits of a task, as text and as model inputs."""

    train: list[dict[str, Any]]
    examples: list[dict[str, Any]]  # of evaluation
    features: list[dict[str, Any]]  # of evaluation


def train(config: TrainRoot) -> None:
    """Train, evaluate and save one model, then go on with the verbs of `then`.

    Raises:
        InputError: Data, checkpoint or teacher cannot be read, or the disk is full.
        UsageError: The options contradict each other or what the run directory holds.
        GateError: The main metric is below `min_accuracy`; everything has been saved.
    """
    output = Path(config.output_dir)
    if is_finished(config, output):
        if is_first_process():
            finish(config, output)
        return
    record = new_record("train", config)
    arguments = training_arguments(config, output)
    set_seed(config.seed)  # for new weights

    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model, config.task, tokenizer)
    teacher = load_teacher(config.teacher, model, tokenizer, config.task)
    drop_layers(model, kept_layers(len(encoder_layers(model)), config.depth))
    data = load_data(config, tokenizer)
    stop = StopOnSignal()
    trainer = make_trainer(config, arguments, model, teacher, tokenizer, data, [stop])
    with explain_full_disk(output):
        checkpoint = prepare(config, output)
        with stop:
            trainer.train(resume_from_checkpoint=checkpoint)
        metrics = predict(config, trainer, data)
        if trainer.is_world_process_zero():
            save_checkpoint(output / "checkpoint", model, tokenizer)

    if trainer.is_world_process_zero():
        record["model"] = describe(config, model)
        record["metrics"] = {
            "task": config.task.name,
            "num_examples": len(data.examples),
            **metrics,
        }
        record["size_bytes"] = {"checkpoint": folder_size(output / "checkpoint")}
        write_record(output / "record.json", record)
        shutil.rmtree(output / "trainer")  # the optimizer's state is twice the model's size
        finish(config, output)


def is_finished(config: TrainRoot, output: Path) -> bool:
    """Tell whether the run directory holds this run, finished; refuse to overwrite any other.

    Raises:
        UsageError: The directory holds a run, and `resume` is not set; or, with it, an unfinished
            run of another configuration.
    """
    # Every process of DDP finds the same: none writes before all have met in TrainingArguments.
    is_done, state = (output / "record.json").is_file(), output / "trainer" / "config.json"
    if not config.resume and (is_done or state.is_file()):
        raise UsageError(
            f"output_dir={output} already holds {'a finished' if is_done else 'an interrupted'} "
            "run: continue it with resume=true, or choose another output_dir"
        )
    if is_done:
        say(f"{output} holds the finished run; it is not trained again")
    elif state.is_file():
        before, now = json.loads(state.read_text(encoding="utf-8")), compared(config)
        changed = sorted(
            key for key in before.keys() | now.keys() if before.get(key) != now.get(key)
        )
        if changed:
            raise UsageError(
                f"resume=true continues the run in {output} only with its own configuration; "
                f"changed are {', '.join(changed)} ({changed[0]} was {before.get(changed[0])})"
            )
    return is_done


def prepare(config: TrainRoot, output: Path) -> str | None:
    """Note the configuration for a later `resume=true`; return the checkpoint to continue from."""
    folder = output / "trainer"
    if not config.resume:
        checkpoint = None
    else:
        checkpoint = last_checkpoint(folder, has_masks=config.sparsity.final_sparsity > 0)
    if is_first_process():
        write_text(folder / "config.json", json.dumps(compared(config), indent=1))
    if config.resume:
        say(f"continuing from {checkpoint}" if checkpoint else "nothing to resume: starting")
    return str(checkpoint) if checkpoint else None


def last_checkpoint(folder: Path, has_masks: bool) -> Path | None:
    """Find the latest complete checkpoint of the Trainer; what it writes last is there."""
    last_files = ["trainer_state.json"] + [MASKS_FILE] * has_masks
    complete = [
        path
        for path in folder.glob("checkpoint-*")
        if all((path / name).is_file() for name in last_files)
    ]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def training_arguments(config: TrainRoot, output: Path) -> TrainingArguments:
    """Turn `trainer` into TrainingArguments.

    Raises:
        UsageError: A key is unknown or decided elsewhere, or a value is refused.
    """
    valid = [field.name for field in fields(TrainingArguments) if field.init]
    for key in config.trainer:
        if key not in valid:
            raise UsageError(f"trainer has no key '{key}'; {nearest(key, valid)}")
        if key in ("output_dir", "seed", "remove_unused_columns"):
            raise UsageError(f"trainer.{key} cannot be set: the toolkit decides it")
    defaults = {"dataloader_pin_memory": torch.cuda.is_available()}  # without a GPU torch warns
    try:
        return TrainingArguments(
            **(defaults | config.trainer),
            output_dir=str(output / "trainer"),
            seed=config.seed,
            # A teacher may take inputs that the student does not.
            remove_unused_columns=False,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise UsageError(f"trainer: {error}") from None


def load_data(config: TrainRoot, tokenizer: PreTrainedTokenizerFast) -> Data:
    """Read and encode both splits."""
    task, backend = config.task, tokenizer.backend_tokenizer
    examples = load_examples(task, "eval", config.seed)
    return Data(
        train=encode(load_examples(task, "train", config.seed), backend, task, training=True),
        examples=examples,
        features=encode(examples, backend, task, training=False),
    )


def make_trainer(
    config: TrainRoot,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    callbacks: list[TrainerCallback],
) -> DistillationTrainer:
    """Put the Trainer together.

    Raises:
        UsageError: The Trainer refuses the arguments.
    """
    if config.sparsity.final_sparsity > 0:
        callbacks = [*callbacks, SparsificationCallback(config.sparsity)]
    names = {*input_names(model), *(input_names(teacher) if teacher else []), *TARGETS}
    is_classification = config.task.kind is TaskKind.text_classification

    def metrics_of(predictions: Any) -> dict[str, float]:
        return evaluate(config.task, data.examples, data.features, predictions.predictions)

    def to_tensors(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(features, tokenizer.pad_token_id)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    try:
        return DistillationTrainer(
            model=model,
            args=arguments,
            train_dataset=select_inputs(data.train, names),
            # Evaluation while training (trainer.eval_strategy) needs labels, which spans have not.
            eval_dataset=select_inputs(data.features, {*input_names(model), *TARGETS})
            if is_classification
            else None,
            compute_metrics=metrics_of if is_classification else None,
            data_collator=to_tensors,
            processing_class=tokenizer,
            callbacks=callbacks,
            teacher=teacher,
            hardness=config.teacher.hardness,
            temperature=config.teacher.temperature,
        )
    except ValueError as error:
        raise UsageError(f"trainer: {error}") from None


def predict(config: TrainRoot, trainer: DistillationTrainer, data: Data) -> dict[str, float]:
    """Run the model over the evaluation split and judge it by the task's metrics."""
    inputs: Any = select_inputs(data.features, {*trainer.student_inputs})
    logits: Any = trainer.predict(inputs).predictions  # (N, C), or starts and ends (N, T) each
    if config.task.kind is TaskKind.question_answering:
        logits = np.stack(logits, axis=1)  # (N, 2, T)
    return evaluate(config.task, data.examples, data.features, logits)


def describe(config: TrainRoot, model: PreTrainedModel) -> dict[str, Any]:
    """Describe the model, as `record.json` keeps it."""
    return {
        "name": config.model.name,
        "layers": len(encoder_layers(model)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sparsity": measure_sparsity(model),
    }


def finish(config: TrainRoot, output: Path) -> None:
    """Say what came out, run the verbs of `then` that have not run yet, check the floor.

    Raises:
        GateError: The main metric is below `min_accuracy`.
    """
    record = read_record(output)
    metrics = {
        name: value
        for name, value in record["metrics"].items()
        if name not in ("task", "num_examples")
    }
    scores = ", ".join(f"{name} {value:.2f} %" for name, value in metrics.items())
    zeros = record["model"]["sparsity"]["encoder"]
    print(
        f"{output / 'checkpoint'}: {record['model']['layers']} layers, {100 * zeros:.1f} % of the "
        f"encoder's weights are zero; {scores} on {record['metrics']['num_examples']} examples"
    )
    if Verb.export in config.then and not (output / "export" / "export.json").is_file():
        from toolkit.export import export

        export(export_root(config, output))
    if Verb.bench in config.then and not read_record(output)["speed"]:
        from toolkit.bench import bench

        bench(bench_root(config, output))
    metric = main_metric(config.task)
    if config.min_accuracy is not None and metrics[metric] < config.min_accuracy:
        raise GateError(
            f"{metric} is {metrics[metric]:.2f} %, below min_accuracy={config.min_accuracy:g} %; "
            f"the run is saved in {output}"
        )


def export_root(config: TrainRoot, output: Path) -> ExportRoot:
    """Configure the export of the fresh checkpoint."""
    return ExportRoot(
        checkpoint=str(output / "checkpoint"),
        model=config.model,
        depth=config.depth,
        sparsity=config.sparsity,
        task=config.task,
        engine=config.engine,
        export=config.export,
        seed=config.seed,
        output_dir=str(output / "export"),
    )


def bench_root(config: TrainRoot, output: Path) -> BenchRoot:
    """Configure the measurement of the fresh export, into the same record."""
    return BenchRoot(
        **{field.name: getattr(config.bench, field.name) for field in fields(BenchConfig)},
        onnx=str(output / "export"),
        model=config.model,
        depth=config.depth,
        sparsity=config.sparsity,
        task=config.task,
        engine=config.engine,
        export=config.export,
        seed=config.seed,
        output_dir=str(output),
    )


@contextmanager
def explain_full_disk(output: Path) -> Iterator[None]:
    """Turn the various errors of a full disk into one sentence.

    Raises:
        InputError: Writing failed for lack of space.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) in FULL_DISK
        if not is_full and not any(text in str(error) for text in FULL_DISK_TEXTS):
            raise
        raise InputError(
            f"cannot write to {output}, the disk is full ({error}): make room, then continue with "
            "resume=true and the same output_dir"
        ) from error


def select_inputs(features: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    """Keep the named entries of each feature."""
    return [{name: feature[name] for name in feature if name in names} for feature in features]


def compared(config: TrainRoot) -> dict[str, str]:
    """Flatten what makes the weights: dotted names and their values as text."""
    return dict(_flat(plain(asdict(config)), ""))


def folder_size(folder: Path) -> int:
    """Add up the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def is_first_process() -> bool:
    """Tell whether this process writes: the only one, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def say(sentence: str) -> None:
    """Print once, however many processes train."""
    if is_first_process():
        print(sentence, flush=True)


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if prefix == "" and key in NOT_COMPARED:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
