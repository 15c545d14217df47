"""`toolkit train`: compose, train, evaluate, save.

A run directory holds `checkpoint/` (a plain Hugging Face folder), `record.json`, in `steps/` the
runs that lead to it, if any, and while it is unfinished `trainer/`, where `resume=true` goes on.
"""

from dataclasses import replace
from pathlib import Path

from transformers import set_seed

from toolkit.bench import bench, bench_of
from toolkit.compress.depth import drop_layers, encoder_layers, kept_layers
from toolkit.compress.interrupt import StopOnSignal
from toolkit.compress.model import known_labels, load_model, load_tokenizer, save_checkpoint
from toolkit.compress.processes import in_processes, is_started
from toolkit.compress.quantization.layers import describe_quantization
from toolkit.compress.resume import (
    clean_up,
    explain_full_disk,
    is_finished,
    note,
    prepare,
)
from toolkit.compress.sparsity.calibration import prune_before_training
from toolkit.compress.sparsity.callback import SparsificationCallback
from toolkit.compress.sparsity.weights import describe_checkpoint
from toolkit.compress.structured.steps import steps_of
from toolkit.compress.teacher import DistillationTrainer, load_teacher, map_layers
from toolkit.compress.trainer import (
    calibration_batches,
    check_gates,
    check_training,
    describe_training,
    is_training,
    load_data,
    make_callbacks,
    make_trainer,
    predict,
    prunes_once,
    training_arguments,
)
from toolkit.config import ExportRoot, TrainRoot, Verb, narrow
from toolkit.errors import UsageError
from toolkit.files import size_of
from toolkit.measure.contenders import check_options
from toolkit.measure.structured import describe, shrink_or_resume
from toolkit.progress import is_first_process, say, tell
from toolkit.record import metrics_of, new_record, read_record, write_record
from toolkit.tasks import find_labels

__all__ = ["DistillationTrainer", "SparsificationCallback", "train"]


def train(config: TrainRoot, steps_left: int = 1) -> None:
    """Train, evaluate and save one model, then go on with the verbs of `then`.

    Args:
        steps_left: Steps to the target of speed of a run that takes several, this one among them.

    Raises:
        InputError: Data, checkpoint or teacher cannot be read, or the disk is full.
        UsageError: The options contradict each other or what the run directory holds.
        GateError: A metric is below its floor; everything has been saved.
    """
    if config.num_processes > 1 and not is_started():
        in_processes(config.num_processes, train, config)
        return
    output = Path(config.output_dir)
    check_training(config)
    if Verb.bench in config.then:
        check_options(bench_of(config, output))
        if Verb.export not in config.then and not (output / "export").exists():
            raise UsageError("then=[bench] measures an export: write then=[export,bench]")
    whole = config
    *earlier, config = steps_of(whole)  # the last step is made here
    if is_finished(whole, output):
        if is_first_process():
            finish(whole, output)
        return
    record = new_record("train", whole)
    for number, step in enumerate(earlier):
        train(step, steps_left=len(earlier) + 1 - number)
        note(whole, output)
    arguments = training_arguments(config, output)
    set_seed(config.seed)  # for new weights
    tokenizer = load_tokenizer(config.model)
    config = replace(config, task=find_labels(config.task, known_labels(config.model)))
    model = load_model(config.model, config.task, tokenizer, is_fine_tuned=not is_training(config))
    teacher = load_teacher(config.teacher, model, tokenizer, config.task)
    num_layers = len(encoder_layers(model))
    keep = kept_layers(num_layers, config.depth)
    layer_map = None
    if teacher is not None:
        layer_map = map_layers(config.teacher, num_layers, keep, len(encoder_layers(teacher)))
    drop_layers(model, keep)
    data = load_data(config, tokenizer, teacher)
    if config.sparsity.is_structured:
        model, record["structured"] = shrink_or_resume(
            config, model, tokenizer, data.train, earlier, steps_left
        )
    stop = StopOnSignal()
    callbacks = [stop, *make_callbacks(config, lambda: predict(config, trainer, data))]
    trainer = make_trainer(config, arguments, model, teacher, layer_map, tokenizer, data, callbacks)
    del teacher  # which is mostly done: the Trainer holds it if it runs beside the student
    with explain_full_disk(output):
        checkpoint = prepare(whole, output)
        if prunes_once(config) and checkpoint is None:
            prune_before_training(model, config.sparsity, *calibration_batches(config, trainer))
        if is_training(config):
            with stop:
                trainer.train(resume_from_checkpoint=checkpoint)
        metrics = predict(config, trainer, data)
        if trainer.is_world_process_zero():
            origin, pooling = config.model.path, config.task.pooling
            save_checkpoint(output / "checkpoint", model, tokenizer, origin, pooling)

    if trainer.is_world_process_zero():
        record["model"] = describe_checkpoint(config.model.name, model)
        record["model"] |= describe_quantization(model, "qat")
        record["metrics"] = {"task": config.task.name, "num_examples": len(data.examples)} | metrics
        record["training"] = describe_training(trainer)
        record["size_bytes"] = {"checkpoint": size_of(output / "checkpoint")}
        write_record(output / "record.json", record)
        clean_up(output)
        finish(whole, output)


def finish(config: TrainRoot, output: Path) -> None:
    """Say what came out, run the verbs of `then` that have not run yet, check the floors."""
    record = read_record(output)
    metrics = metrics_of(record["metrics"])
    scores = ", ".join(f"{name} {value:.2f} %" for name, value in metrics.items())
    zeros = record["model"]["sparsity"]["encoder"]
    tell(
        f"{output / 'checkpoint'}: {record['model']['layers']} layers, {100 * zeros:.1f} % of the "
        f"encoder's weights are zero; {scores} on {record['metrics']['num_examples']} examples"
    )
    if "structured" in record:
        say(describe(record["structured"]))
    if Verb.export in config.then and not (output / "export" / "export.json").is_file():
        from toolkit.export import export

        checkpoint, folder = str(output / "checkpoint"), str(output / "export")
        export(narrow(config, ExportRoot, checkpoint=checkpoint, output_dir=folder))
    if Verb.bench in config.then and not read_record(output)["speed"]:
        bench(bench_of(config, output))
    check_gates(config, metrics, output)
