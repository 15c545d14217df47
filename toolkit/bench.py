"""`toolkit bench`: measure engines side by side, after proving that they compute the same.

Shapes: B texts, T tokens.
"""

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import tasks
from toolkit.artifact.agreement import Batch, largest_difference
from toolkit.artifact.exported import Exported, describe, find_checkpoint, read_exported, size_bytes
from toolkit.config import BenchRoot, ExportRoot, TaskKind, Weights
from toolkit.engine.roofline import points
from toolkit.environment import decide_num_threads
from toolkit.errors import GateError, UsageError
from toolkit.measure.batches import collate, feed, make_batches, random_batch, read_task
from toolkit.measure.timing import speed_ratio, summarise, time_rounds
from toolkit.measure.worker import DEEPSPARSE_PYTHON, Worker, load_batches, save_batches
from toolkit.present.bench_table import print_results
from toolkit.record import (
    SPEED_KEY,
    new_record,
    now,
    plain,
    read_record,
    root_id,
    speed_key,
    write_bytes,
    write_record,
)

BUSY = 0.2  # share of the CPUs that others use, above which a measurement is doubtful
BUSY_SECONDS = 0.3  # to find that out
PACKAGES = {  # engine → the module it needs, and how to get it
    "sparse": ("cython_kernels._kernels", "its kernels are missing, so install toolkit again"),
    "onnxruntime": ("onnxruntime", "pip install 'toolkit[bench]'"),
    "openvino": ("openvino", "pip install 'toolkit[bench]'"),
    "torch": ("torch", "pip install torch transformers"),
    "deepsparse": (
        "deepsparse",
        f"set {DEEPSPARSE_PYTHON} to the Python of an environment that has deepsparse==1.8.0, "
        "onnx==1.14.1 and numpy==1.26.4",
    ),
}


def bench(config: BenchRoot) -> dict[str, Any]:
    """Measure what the configuration describes, print the table and write `record.json`.

    Returns:
        The record that was written.

    Raises:
        InputError: The model cannot be read, or an engine failed on it.
        UsageError: A package is missing, or the options contradict the model.
        GateError: The engines disagree, or speed fell too far below `baseline`; in the latter case
            the record has been written.
    """
    engines = [name.value for name in dict.fromkeys([config.engine.name, *config.against])]
    check_installed(config, engines)
    baseline = read_record(config.baseline) if config.baseline else None
    record = new_record("bench", config)
    num_threads, _ = decide_num_threads(config.engine.num_threads)
    config = replace(config, engine=replace(config.engine, num_threads=num_threads))
    warn_if_busy()
    with tempfile.TemporaryDirectory(prefix="toolkit-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        model = find_model(config, folder)
        batches = make_batches(config, model)
        save_batches(folder / "batches.npz", [feed(model, batch) for batch in batches])
        workers, loaded = {}, {}
        for engine in engines:
            workers[engine] = stack.enter_context(start_worker(config, engine, folder))
            loaded[engine] = load(config, model, engine, workers[engine], folder)
        differences = check_outputs(config, model, batches, workers, folder)
        asks = {engine: worker.ask for engine, worker in workers.items()}
        rounds, peaks = time_rounds(asks, config.seconds, config.min_iterations)
        entries = [
            speed_entry(config, batches, rounds, engine)
            | loaded[engine]
            | {"peak_rss_bytes": peaks[engine], "max_difference": differences[engine]}
            for engine in engines
        ]
        if config.accuracy:
            add_metrics(config, model, workers, entries, folder)
        if config.profile or config.roofline:
            add_profile(config, workers["sparse"], entries[engines.index("sparse")])
        record = fill_record(config, record, model, entries)
    write_record(Path(config.output_dir) / "record.json", record)
    if config.roofline:
        from toolkit.present.figures.roofline import (
            draw_entry,  # here: matplotlib takes a second to import
        )

        picture = draw_entry(record, entries[engines.index("sparse")])
        write_bytes(Path(config.output_dir) / "roofline.png", picture)
    print_results(config, record, entries)
    if baseline is not None:
        compare(config, baseline, entries[0])
    return record


def check_installed(config: BenchRoot, engines: Sequence[str]) -> None:
    """Raise a UsageError for the first package that the run needs and that is not installed."""
    for engine in engines:
        module, remedy = PACKAGES[engine]
        if not (
            _is_installed(module) or (engine == "deepsparse" and DEEPSPARSE_PYTHON in os.environ)
        ):
            raise UsageError(f"engine {engine} needs {module}, which is not installed: {remedy}")
    if config.onnx is None and not _is_installed("torch"):
        raise UsageError(
            "measuring a model by its description builds it with torch, which is not installed: "
            f"name an ONNX file or export folder with onnx=…, or {PACKAGES['torch'][1]}"
        )
    for option in ("profile", "roofline"):
        if getattr(config, option) and "sparse" not in engines:
            raise UsageError(f"{option}=true shows the sparse engine: add engine=sparse")
    if config.roofline and not _is_installed("matplotlib"):
        raise UsageError(
            "roofline=true draws with matplotlib, which is not installed: pip install matplotlib, "
            "or use profile=true for the numbers"
        )


def warn_if_busy(stat: Path = Path("/proc/stat")) -> None:
    """Say so when other programs are using the CPUs right now.

    Not by the load average: that still remembers the training which ended a moment ago.

    Args:
        stat: Times that all CPUs have spent since the start, by kind; absent except on Linux.
    """
    if not stat.exists():
        return
    spent = []
    for _ in range(2):
        # user nice system idle iowait irq softirq steal; what follows is counted in these already
        spent.append([int(ticks) for ticks in stat.read_text().split("\n")[0].split()[1:9]])
        time.sleep(BUSY_SECONDS * (len(spent) == 1))
    ticks = [after - before for before, after in zip(*spent, strict=True)]
    busy = 1 - (ticks[3] + ticks[4]) / max(1, sum(ticks))
    if busy > BUSY:
        print(
            f"warning: other programs are using {busy:.0%} of the CPUs, which makes these figures "
            "worse",
            file=sys.stderr,
        )


def find_model(config: BenchRoot, folder: Path) -> Exported:
    """Find the model, or make the one that the configuration describes (what-if).

    Args:
        config: The resolved configuration.
        folder: Where to make it.

    Raises:
        InputError: There is no ONNX file of a BERT.
        UsageError: `seq_len` exceeds the model's positions.
    """
    model = read_exported(make_model(config, folder) if config.onnx is None else Path(config.onnx))
    if config.seq_len > model.max_tokens:
        raise UsageError(
            f"seq_len must be at most {model.max_tokens}, the model's positions; "
            f"got {config.seq_len}"
        )
    return model


def make_model(config: BenchRoot, folder: Path) -> Path:
    """Export the described model with random, pruned weights, in a process of its own: this one
    stays free of torch. Returns the export folder."""
    print(f"making {config.model.name} with random weights …", flush=True)
    root = ExportRoot(
        checkpoint=None,
        model=replace(config.model, weights=Weights.random),
        depth=config.depth,
        sparsity=config.sparsity,
        task=config.task,
        engine=config.engine,
        export=config.export,
        seed=config.seed,
        output_dir=str(folder / "export"),
    )
    log, threads = folder / "export.log", config.engine.num_threads
    with Worker("toolkit export", log, threads, module="toolkit.export") as worker:
        worker.ask("export", config=plain(asdict(root)))
    return folder / "export"


def start_worker(config: BenchRoot, engine: str, folder: Path) -> Worker:
    """Start the process of one engine; its prints go to a file in `folder`."""
    python = os.environ.get(DEEPSPARSE_PYTHON) if engine == "deepsparse" else None
    log = folder / f"{engine}.log"
    return Worker(f"engine {engine}", log, config.engine.num_threads, python)


def load(
    config: BenchRoot, model: Exported, engine: str, worker: Worker, folder: Path
) -> dict[str, Any]:
    """Load the model in a worker; return `version`, `isa`, `load_s` and `packed_bytes`."""
    return worker.ask(
        "load",
        engine=engine,
        model=str(find_checkpoint(model.onnx) if engine == "torch" else model.onnx),
        num_threads=config.engine.num_threads,
        isa=config.engine.isa,
        kernel=config.engine.kernel,
        batches=str(folder / "batches.npz"),
    )


def check_outputs(
    config: BenchRoot,
    model: Exported,
    batches: Sequence[Batch],
    workers: Mapping[str, Worker],
    folder: Path,
) -> dict[str, float]:
    """Compare every engine's outputs with ONNX Runtime's, on a padded batch and on a timed one.

    Where ONNX Runtime is not installed, float64 arithmetic takes its place, on the padded batch.

    Returns:
        The largest absolute difference at any position that is not padding, per engine.

    Raises:
        GateError: It exceeds `export.atol`.
    """
    lengths = np.random.default_rng(config.seed).integers(3, 33, size=4)
    padded = random_batch(model, np.minimum(lengths, config.seq_len).tolist(), config.seed)
    checked = [padded, batches[0]]
    reference = "onnxruntime"
    if reference in workers:
        expected = run(model, workers[reference], checked, folder)
    elif _is_installed(reference):
        with start_worker(config, reference, folder) as worker:
            load(config, model, reference, worker, folder)
            expected = run(model, worker, checked, folder)
    else:
        print("onnxruntime is not installed: outputs are checked against float64 arithmetic")
        reference, checked = "float64 arithmetic", [padded]
        expected = [_run_in_float64(model, padded)]
    differences = {}
    for engine, worker in workers.items():
        found = expected if engine == reference else run(model, worker, checked, folder)
        differences[engine] = max(
            largest_difference(ours, theirs, batch["attention_mask"])
            for ours, theirs, batch in zip(found, expected, checked, strict=True)
        )
        if differences[engine] > config.export.atol:
            raise GateError(
                f"the outputs of {engine} differ from those of {reference} by "
                f"{differences[engine]:.2g}, more than export.atol={config.export.atol:g}, so "
                "nothing was timed"
            )
    return differences


def run(model: Exported, worker: Worker, batches: Sequence[Batch], folder: Path) -> list[Batch]:
    """Run batches through a worker; return its outputs by name, one dict per batch."""
    save_batches(folder / "inputs.npz", [feed(model, batch) for batch in batches])
    worker.ask("run", inputs=str(folder / "inputs.npz"), outputs=str(folder / "outputs.npz"))
    return load_batches(folder / "outputs.npz")


def speed_entry(
    config: BenchRoot,
    batches: Sequence[Batch],
    rounds: Mapping[str, list[list[float]]],
    engine: str,
) -> dict[str, Any]:
    """Make one entry of the record's `speed` from the times of all engines' calls."""
    reference = config.engine.name.value
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return {
        "engine": engine,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "lengths": config.lengths.value,
        **summarise(rounds[engine], config.batch_size, tokens / len(batches)),
        "ratio_to": {
            "engine": reference,
            **speed_ratio(rounds[engine], rounds[reference], config.seed),
        },
        "num_threads": config.engine.num_threads,
        "measured": now(),
    }


def add_profile(config: BenchRoot, worker: Worker, entry: dict[str, Any]) -> None:
    """Time every fused operation; for the roofline, also what the machine could do."""
    entry["profile"] = worker.ask("profile")["profile"]
    if config.roofline:
        peaks = worker.ask("peaks")
        entry["roofline"] = peaks | {"points": points(entry["profile"], peaks["fma_gflops"])}


def add_metrics(
    config: BenchRoot,
    model: Exported,
    workers: Mapping[str, Worker],
    entries: Sequence[dict[str, Any]],
    folder: Path,
) -> None:
    """Compute the task's metrics through every engine and add them to its entry.

    Raises:
        UsageError: The model has not the outputs of such a task.
    """
    examples, features = read_task(config.task, model, config.seed)
    order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
    batches = collate(model, [features[i] for i in order], config.batch_size)
    if config.task.kind is TaskKind.question_answering:
        names = ["start_logits", "end_logits"]
    else:
        names = ["logits"]
    for entry in entries:
        outputs: list[NDArray[Any]] = [np.empty(0)] * len(features)
        position = iter(order)
        for answer in run(model, workers[entry["engine"]], batches, folder):
            if missing := [name for name in names if name not in answer]:
                raise UsageError(
                    f"task={config.task.name} judges the output {missing[0]}, but the model has "
                    f"only {', '.join(answer)}: choose the task it was trained on"
                )
            for row in zip(*(answer[name] for name in names), strict=True):
                outputs[next(position)] = np.stack(row) if len(names) > 1 else row[0]
        entry["metrics"] = {
            **tasks.evaluate(config.task, examples, features, outputs),
            "task": config.task.name,
            "num_examples": len(examples),
        }


def fill_record(
    config: BenchRoot, record: dict[str, Any], model: Exported, entries: list[dict[str, Any]]
) -> dict[str, Any]:
    """Put the measurements into the right record.

    That is the record already in `output_dir` if it is of the same run (`train then=[…,bench]`),
    otherwise the new one, with model, metrics and sizes from the record beside the ONNX file.
    """
    source = model.record
    there = Path(config.output_dir) / "record.json"
    if config.onnx is None:
        record["model"] = {**(source or {}).get("model", {}), "name": config.model.name}
        record["model"]["random_weights"] = True
    elif source is not None and there.exists() and root_id(read_record(there)) == root_id(source):
        record = read_record(there)
    elif source is not None:
        record |= {key: source[key] for key in ("model", "metrics", "size_bytes")}
        record["run"]["parent"] = root_id(source)
    else:
        record["model"] = describe(model.onnx)
    if config.accuracy and not record["metrics"]:
        record["metrics"] = entries[0]["metrics"]
    record["size_bytes"]["onnx"] = size_bytes(model.onnx)
    if "checkpoint" not in record["size_bytes"] and any(e["engine"] == "torch" for e in entries):
        files = find_checkpoint(model.onnx).rglob("*")
        record["size_bytes"]["checkpoint"] = sum(f.stat().st_size for f in files if f.is_file())
    for entry in entries:
        packed = entry.pop("packed_bytes")
        if packed is not None:
            record["size_bytes"]["packed"] = packed
    new = {speed_key(entry) for entry in entries}
    record["speed"] = [entry for entry in record["speed"] if speed_key(entry) not in new] + entries
    return record


def compare(config: BenchRoot, baseline: dict[str, Any], entry: dict[str, Any]) -> None:
    """Compare the first engine's speed with an earlier record's.

    Raises:
        UsageError: The baseline has no entry of that engine, batch size and length.
        GateError: Items/s fell by more than `max_regression`.
    """
    earlier = [old for old in baseline["speed"] if speed_key(old) == speed_key(entry)]
    what = ", ".join(f"{name}={entry[name]}" for name in SPEED_KEY if entry[name] is not None)
    if not earlier:
        raise UsageError(f"baseline={config.baseline} has no measurement of {what}")
    ratio = entry["items_per_s"] / earlier[0]["items_per_s"]
    sentence = (
        f"{what}: {entry['items_per_s']:.1f} items/s is {ratio:.2f} times the baseline's "
        f"{earlier[0]['items_per_s']:.1f}"
    )
    if ratio < 1 - config.max_regression:
        raise GateError(f"{sentence}, below {1 - config.max_regression:g} (max_regression)")
    print(sentence)


def _run_in_float64(model: Exported, batch: Batch) -> Batch:
    from toolkit.engine import reference
    from toolkit.engine.reader.graph import read_graph

    return reference.run(read_graph(model.onnx), feed(model, batch))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False
