"""Steps of a benchmark over several engines: load, compare, score, profile. B texts, T tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.artifact.agreement import Batch, largest_difference
from toolkit.artifact.exported import Exported, find_checkpoint
from toolkit.config import BenchRoot
from toolkit.engine.reader.sparse_file import SUFFIX
from toolkit.engine.roofline import points
from toolkit.errors import GateError, UsageError
from toolkit.measure.batches import collate_batches, feed, random_batch
from toolkit.measure.contenders import Contender
from toolkit.measure.engines import ENGINES, interpreter_of, is_installed
from toolkit.measure.worker import Worker, load_batches, save_batches
from toolkit.progress import say
from toolkit.tasks import evaluate, kind_of
from toolkit.tasks.features import Example, Feature

# By how much of their largest value outputs computed in 16 bits may differ. It tells a broken
# kernel from a rounded one: what rounding costs is measured and shown.
SIXTEEN_BITS = 0.1
# The same of a graph in INT8, where a number between two integers becomes one or the other, and
# others follow from it: MiniLM on MRPC gave a quarter, with the same accuracy.
EIGHT_BITS = 0.5


def start_worker(config: BenchRoot, contender: Contender, folder: Path) -> Worker:
    """Start the process of one engine; its prints go to a file in `folder`."""
    label, python = contender.label, interpreter_of(contender.engine)
    log = folder / f"{label.replace('/', '_')[-100:]}.log"
    return Worker(f"engine {label}", log, config.engine.num_threads, python)


def load(
    config: BenchRoot, model: Exported, contender: Contender, worker: Worker, folder: Path
) -> dict[str, Any]:
    """Load the model in a worker; return `version`, `isa`, `load_s` and `packed_bytes`."""
    reads_checkpoint = ENGINES[contender.engine].reads_checkpoint
    return worker.ask(
        "load",
        engine=contender.engine,
        model=str(find_checkpoint(model.onnx) if reads_checkpoint else model.onnx),
        num_threads=config.engine.num_threads,
        isa=config.engine.isa,
        kernel=config.engine.kernel,
        precision=contender.precision,
        batches=str(folder / "batches.npz"),
        inputs=list(model.inputs),
    )


def check_outputs(
    config: BenchRoot,
    model: Exported,
    batches: Sequence[Batch],
    contenders: Sequence[Contender],
    workers: Mapping[str, Worker],
    folder: Path,
) -> dict[str, float]:
    """Compare outputs with ONNX Runtime's of the same file, on a padded batch and on a timed one.

    Where ONNX Runtime is not installed or cannot read the file, float64 arithmetic takes its place,
    on the padded batch.

    Args:
        contenders: All that run `model`.

    Returns:
        The largest absolute difference at any position that is not padding, by label.

    Raises:
        GateError: It exceeds `export.atol` - in another precision than float32 `SIXTEEN_BITS`, of a
            quantized graph `EIGHT_BITS` of the largest output.
    """
    lengths = np.random.default_rng(config.seed).integers(3, 33, size=4)
    padded = random_batch(model, np.minimum(lengths, config.seq_len).tolist(), config.seed)
    checked = [padded, batches[0]]
    judge = Contender("onnxruntime", onnx=contenders[0].onnx)
    reference, is_sparse = judge.engine, model.onnx.suffix == SUFFIX
    if judge.label in workers:
        expected = run(model, workers[judge.label], checked, folder)
    elif is_installed(reference) and not is_sparse:
        with start_worker(config, judge, folder) as worker:
            load(config, model, judge, worker, folder)
            expected = run(model, worker, checked, folder)
    else:
        reason = "reads no sparse file" if is_sparse else "is not installed"
        say(f"onnxruntime {reason}: outputs are checked against float64 arithmetic")
        reference, checked = "float64 arithmetic", [padded]
        expected = [_run_in_float64(model, padded)]
    largest = max(float(np.abs(value).max()) for batch in expected for value in batch.values())
    differences = {}
    for contender in contenders:
        label, is_exact = contender.label, contender.precision == "fp32"
        found = expected if label == judge.label else run(model, workers[label], checked, folder)
        differences[label] = max(
            largest_difference(ours, theirs, batch["attention_mask"])
            for ours, theirs, batch in zip(found, expected, checked, strict=True)
        )
        limit, what = config.export.atol, "export.atol="
        if model.is_quantized:
            limit, what = EIGHT_BITS * largest, "half of the largest output, "
        elif not is_exact:
            limit, what = SIXTEEN_BITS * largest, "a tenth of the largest output, "
        if differences[label] > limit:
            raise GateError(
                f"the outputs of {label} differ from those of {reference} by "
                f"{differences[label]:.2g}, more than {what}{limit:.3g}, so nothing was timed"
            )
    return differences


def run(model: Exported, worker: Worker, batches: Sequence[Batch], folder: Path) -> list[Batch]:
    """Run batches through a worker; return its outputs by name, one dict per batch."""
    save_batches(folder / "inputs.npz", [feed(model, batch) for batch in batches])
    worker.ask("run", inputs=str(folder / "inputs.npz"), outputs=str(folder / "outputs.npz"))
    return load_batches(folder / "outputs.npz")


def add_metrics(
    config: BenchRoot,
    examples: Sequence[Example],
    features: Sequence[Feature],
    models: Mapping[str, Exported],
    workers: Mapping[str, Worker],
    entries: Sequence[dict[str, Any]],
    folder: Path,
) -> None:
    """Compute the task's metrics through every engine and add them to its entry.

    Args:
        examples: As `read_task` returns them.
        features: Likewise.
        models: What each contender runs, by label, as `workers`.

    Raises:
        UsageError: A model has not the outputs of such a task.
    """
    model = models[entries[0]["engine"]]
    order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
    batches = collate_batches(model, [features[i] for i in order], config.batch_size)
    names = kind_of(config.task).OUTPUTS
    for entry in entries:
        outputs: list[NDArray[Any]] = [np.empty(0)] * len(features)
        position = iter(order)
        label = entry["engine"]
        for answer in run(models[label], workers[label], batches, folder):
            if missing := [name for name in names if name not in answer]:
                raise UsageError(
                    f"task={config.task.name} judges the output {missing[0]}, but the model has "
                    f"only {', '.join(answer)}: choose the task it was trained on"
                )
            for row in zip(*(answer[name] for name in names), strict=True):
                outputs[next(position)] = np.stack(row) if len(names) > 1 else row[0]
        entry["metrics"] = {
            **evaluate(config.task, examples, features, outputs),
            "task": config.task.name,
            "num_examples": len(examples),
        }


def add_profile(config: BenchRoot, worker: Worker, entry: dict[str, Any]) -> None:
    """Time every fused operation; for the roofline, also what the machine could do."""
    entry["profile"] = worker.ask("profile")["profile"]
    if config.roofline:
        peaks = worker.ask("peaks")
        entry["roofline"] = peaks | {"points": points(entry["profile"], peaks)}


def _run_in_float64(model: Exported, batch: Batch) -> Batch:
    from toolkit.engine import reference
    from toolkit.engine.reader.graph import read_graph

    return reference.run(read_graph(model.onnx), feed(model, batch))
