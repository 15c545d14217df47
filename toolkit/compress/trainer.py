"""The Trainer of a run: its arguments, its data, and what it is judged by."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from toolkit.compress.class_weights import describe, find_weights, weighted_loss
from toolkit.compress.model import input_names
from toolkit.compress.quantization.callback import QuantizationCallback
from toolkit.compress.rates import RatesCallback
from toolkit.compress.sparsity.calibration import Batches, draw_batches
from toolkit.compress.sparsity.callback import KEEPS_ZEROS, SparsificationCallback
from toolkit.compress.sparsity.floor import check_floor, parse_floor
from toolkit.compress.teacher import DistillationTrainer, needs_states
from toolkit.compress.teacher_outputs import ROW, compute, find_outputs, pays
from toolkit.config import Attention, Schedule, TrainRoot
from toolkit.errors import GateError, UsageError, nearest
from toolkit.progress import is_quiet, say, shows_bars
from toolkit.record import plain
from toolkit.tasks import check_names, encode, evaluate, kind_of, load_examples, problem_type
from toolkit.tasks.embedding import TEACHER_VECTOR
from toolkit.tasks.features import Example, Feature, collate


@dataclass(frozen=True)
class Data:
    """Both splits of a task, as text and as model inputs."""

    train: Sequence[Feature]
    examples: Sequence[Example]  # of evaluation
    features: Sequence[Feature]  # of evaluation


def check_training(config: TrainRoot) -> None:
    """Refuse what cannot be trained, before anything is loaded.

    Raises:
        UsageError: The task's names are wrong, or a floor that is none is asked for, or pruning or
            INT8 while nothing is trained, or INT8 before pruning has ended.
    """
    check_names(config.task)
    if config.sparsity.is_on and not is_training(config) and not prunes_once(config):
        raise UsageError(
            "sparsity.final_sparsity is reached while training, but nothing is trained: set "
            "trainer.num_train_epochs, or prune at once with sparsity.schedule=once"
        )
    if config.sparsity.is_structured and config.teacher.attention is not Attention.none:
        raise UsageError(
            f"teacher.attention={config.teacher.attention.value} compares head by head, but "
            "sparsity=structured removes heads: choose teacher.attention=none"
        )
    if config.sparsity.floor is not None:
        parse_floor(config.sparsity.floor, config.task.metrics)
    if config.quantization.is_on:
        _check_quantization(config)
    if config.rates is not None:
        _check_rates(config)


def _check_rates(config: TrainRoot) -> None:
    rates = config.rates or []
    if not rates or any(
        one.end_epoch > other.start_epoch + 1e-9  # rounding of cycles
        for one, other in itertools.pairwise(rates)
    ):
        raise UsageError(
            "rates must list ranges in ascending order that do not overlap; got "
            f"{[(each.start_epoch, each.end_epoch) for each in rates]}"
        )
    for option, value in (
        ("sparsity.rewind", config.sparsity.rewind if config.sparsity.is_on else None),
        ("quantization.learning_rate", config.quantization.learning_rate),
    ):
        if value is not None:
            raise UsageError(f"rates and {option} both say the learning rate: set one of them")


def _check_quantization(config: TrainRoot) -> None:
    name, s = config.quantization.name, config.sparsity
    if not is_training(config):
        raise UsageError(
            f"quantization={name} is learnt while training, but nothing is trained: calibrate the "
            f"checkpoint instead, with `toolkit export checkpoint=DIR quantization={name}`"
        )
    if config.trainer.get("max_steps", -1) > 0:
        return  # how many epochs these are is known once the data are
    epochs = config.trainer.get("num_train_epochs", 3) / s.target_steps
    start = config.quantization.start_epoch
    start = 0.75 * epochs if start is None else start
    if start >= epochs:
        raise UsageError(
            f"quantization.start_epoch must be below {epochs:g}, the epochs that are trained; got "
            f"{start:g}"
        )
    if s.final_sparsity > 0 and s.schedule not in KEEPS_ZEROS and s.end_epoch > start:
        raise UsageError(
            f"pruning ends at sparsity.end_epoch={s.end_epoch:g}, but INT8 starts at epoch "
            f"{start:g}: end pruning earlier, train longer (trainer.num_train_epochs), or set "
            "quantization.start_epoch"
        )


def make_callbacks(
    config: TrainRoot, evaluate: Callable[[], Mapping[str, float]]
) -> list[TrainerCallback]:
    """Make what prunes and what rounds, in the order in which they act.

    Args:
        evaluate: Returns the metrics in percent.
    """
    callbacks: list[TrainerCallback] = []
    if config.sparsity.is_on:
        callbacks.append(
            SparsificationCallback(**plain(asdict(config.sparsity)), evaluate=evaluate)
        )
    if config.quantization.is_on:
        is_rewound = config.sparsity.rewind is not None and config.sparsity.is_on
        callbacks.append(QuantizationCallback(config.quantization, is_rewound))
    if config.rates is not None:
        callbacks.append(RatesCallback(config.rates))
    return callbacks


def check_gates(config: TrainRoot, metrics: dict[str, float], output: Path) -> None:
    """Judge a finished run, whose metrics are given in percent, the main one first.

    Raises:
        GateError: One is below `sparsity.floor`, or the main one below `min_accuracy`.
    """
    if config.sparsity.floor is not None:
        check_floor(config.sparsity.floor, metrics, output)
    metric, value = next(iter(metrics.items()))
    if config.min_accuracy is not None and value < config.min_accuracy:
        raise GateError(
            f"{metric} is {value:.2f} %, below min_accuracy={config.min_accuracy:g} %; "
            f"the run is saved in {output}"
        )


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
    if not shows_bars():
        transformers.logging.disable_progress_bar()
    has_gpu = torch.accelerator.is_available()
    defaults = {
        "dataloader_pin_memory": torch.cuda.is_available(),  # true without a GPU makes torch warn
        "disable_tqdm": not shows_bars(),
        "use_cpu": not has_gpu,  # unset, bf16 is refused on any CPU
        "bf16": not has_gpu
        and cpu_multiplies_bf16()
        and not config.trainer.get("fp16")
        and is_training(config),
    }
    if defaults["bf16"] and "bf16" not in config.trainer:
        say(
            "training in bfloat16 (autocast), which this CPU multiplies faster; evaluation and the "
            "saved weights are float32; trainer.bf16=false trains in float32"
        )
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


def is_training(config: TrainRoot) -> bool:
    """Tell whether anything is trained: `trainer.num_train_epochs=0` only prunes and evaluates."""
    steps, epochs = config.trainer.get("max_steps", -1), config.trainer.get("num_train_epochs", 1)
    return bool(steps > 0 or epochs > 0)


def prunes_once(config: TrainRoot) -> bool:
    """Tell whether weights are pruned before training, all at once."""
    return config.sparsity.schedule is Schedule.once and config.sparsity.is_on


def cpu_multiplies_bf16() -> bool:
    """Tell whether this CPU has instructions for bfloat16: AVX512-BF16 or AMX."""
    # torch before 2.13 does not tell; then training stays in float32
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def load_data(
    config: TrainRoot, tokenizer: PreTrainedTokenizerFast, teacher: PreTrainedModel | None
) -> Data:
    """Read and encode both splits; embeddings are judged by the teacher's, which they bring along.

    Raises:
        InputError: The data cannot be read.
    """
    task, backend = config.task, tokenizer.backend_tokenizer
    examples = load_examples(task, "eval", config.seed)
    train = encode(load_examples(task, "train", config.seed), backend, task, training=True)
    features = encode(examples, backend, task, training=False)
    if task.train_file is not None and task.eval_file is None:
        share = ", an equal share of each label" if task.kind == "text_classification" else ""
        say(
            f"no task.eval_file: judged on {len(examples)} examples held out of {task.train_file} "
            f"by seed={config.seed}{share}"
        )
    for name, some in (("training", train), ("evaluation", features)):
        if "is_cut" in some[0] and (cut := sum(feature["is_cut"] for feature in some)):
            say(
                f"{cut} of {len(some)} {name} texts are longer than task.max_length="
                f"{task.max_length} tokens and are cut there"
            )
    if task.pooling is not None and teacher is not None:
        vectors = compute(teacher, features, tokenizer.pad_token_id, None, task.pooling)
        pairs = zip(features, vectors.of_inputs["embedding"], strict=True)
        features = [feature | {TEACHER_VECTOR: vector} for feature, vector in pairs]
    return Data(train, examples, features)


def make_trainer(
    config: TrainRoot,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    layer_map: list[int] | None,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    callbacks: list[TrainerCallback],
) -> DistillationTrainer:
    """Put the Trainer together; run the teacher, or find what it said in an earlier run.

    Raises:
        UsageError: The Trainer refuses the arguments.
        InputError: `teacher.cache` cannot be written.
    """
    if config.model.freeze_embeddings:
        model.base_model.get_submodule("embeddings").requires_grad_(False)
    targets = kind_of(config.task).TARGETS
    names = {*input_names(model), *(input_names(teacher) if teacher else []), *targets}
    train, answers = Selected(data.train, names), None
    if teacher is not None and not needs_states(config.teacher) and pays(arguments, len(train)):
        cache = None if config.teacher.cache is None else Path(config.teacher.cache)
        pad_id, pooling = tokenizer.pad_token_id, config.task.pooling
        answers = find_outputs(teacher, data.train, pad_id, arguments, cache, pooling)
        teacher = None
        train = Selected(data.train, names, is_numbered=True)
    label_loss = None
    if config.task.class_weights is not None:
        weights = find_weights(config.task, data.train)
        say(describe(config.task, weights))
        label_loss = weighted_loss(weights, problem_type(config.task))
    # evaluation while training (trainer.eval_strategy) needs them; windows and embeddings have none
    has_targets = bool(targets) and all(name in data.features[0] for name in targets)

    def metrics_of(predictions: Any) -> dict[str, float]:
        return evaluate(config.task, data.examples, data.features, predictions.predictions)

    def to_tensors(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(features, tokenizer.pad_token_id, (*targets, ROW))
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    try:
        trainer = DistillationTrainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=Selected(data.features, {*input_names(model), *targets})
            if has_targets
            else None,
            compute_metrics=metrics_of if has_targets else None,
            data_collator=to_tensors,
            processing_class=tokenizer,
            callbacks=callbacks,
            teacher=teacher,
            teacher_outputs=answers,
            hardness=config.teacher.hardness,
            temperature=config.teacher.temperature,
            hidden_weight=config.teacher.hidden_weight,
            attention=config.teacher.attention,
            attention_weight=config.teacher.attention_weight,
            layer_map=layer_map,
            pooling=config.task.pooling,
            embedding_loss=config.teacher.embedding_loss,
            label_loss=label_loss,
        )
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "to be installed" not in str(error):
            raise
        raise UsageError(f"trainer: {error}") from None
    if is_quiet():
        trainer.remove_callback(PrinterCallback)
    # Ours come first, since what they add to the log is for those that show it.
    trainer.callback_handler.callbacks.sort(key=lambda callback: callback not in callbacks)
    return trainer


def calibration_batches(config: TrainRoot, trainer: DistillationTrainer) -> tuple[Batches, Batches]:
    """Return what `prune_before_training` looks at: texts, and batches for gradients."""
    fisher, data = config.sparsity.fisher, trainer.train_dataset

    def texts() -> Iterator[Any]:
        count, size = config.sparsity.num_calibration, trainer.args.per_device_eval_batch_size
        return draw_batches(data, trainer.data_collator, count, size, config.seed)

    def gradients() -> Iterator[Any]:
        count = fisher.num_gradients * fisher.batch_size
        return draw_batches(data, trainer.data_collator, count, fisher.batch_size, config.seed)

    return texts, gradients


def predict(config: TrainRoot, trainer: DistillationTrainer, data: Data) -> dict[str, float]:
    """Run the model over the evaluation split, in float32, and judge it by the task's metrics."""
    inputs: Any = Selected(data.features, {*trainer.student_inputs})
    # For training, accelerate puts a `forward` under autocast before the class's own.
    autocast = vars(trainer.model).pop("forward", None)
    # (N, …), or a tuple of several; the pooler's is not judged
    outputs: Any = trainer.predict(inputs, ignore_keys=["pooler_output"]).predictions
    if autocast is not None:
        vars(trainer.model)["forward"] = autocast
    if isinstance(outputs, tuple):
        outputs = np.stack(outputs, axis=1)  # (N, outputs, …)
    return evaluate(config.task, data.examples, data.features, outputs)


def describe_training(trainer: DistillationTrainer) -> dict[str, Any]:
    """Say how a model was trained, how fast, and what was logged: the `training` of a record."""
    log = trainer.state.log_history
    end: dict[str, Any] = next((entry for entry in log if "train_runtime" in entry), {})
    logged = ("step", "epoch", "loss", "learning_rate", "grad_norm", "sparsity")
    precision = trainer.args.mixed_precision
    return {
        "precision": "fp32" if precision == "no" else precision,
        "samples_per_s": end.get("train_samples_per_second"),
        "log": [
            {name: entry[name] for name in entry if name in logged or name.startswith("eval_")}
            for entry in log
            if "train_runtime" not in entry
        ],
    }


class Selected(Sequence[Feature]):
    """The named entries of each feature; numbered, also its place, as `ROW`."""

    def __init__(
        self, features: Sequence[Feature], names: set[str], is_numbered: bool = False
    ) -> None:
        self.features, self.names, self.is_numbered = features, names, is_numbered

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, place: Any) -> Any:
        feature = self.features[place]
        chosen = {name: feature[name] for name in feature if name in self.names}
        return chosen | ({ROW: place} if self.is_numbered else {})
