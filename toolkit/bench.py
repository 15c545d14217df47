"""`toolkit bench`: measure engines side by side, after proving that they compute the same."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.artifact.exported import Exported, find_checkpoint, size_bytes
from toolkit.artifact.model_card import refresh_card
from toolkit.config import BenchRoot, Lengths, TrainRoot, narrow
from toolkit.engine.reader.sparse_file import SUFFIX
from toolkit.environment import decide_num_threads
from toolkit.files import size_of
from toolkit.measure.baseline import check_comparable, compare
from toolkit.measure.batches import make_batches, read_task
from toolkit.measure.contenders import check_options, engine_of, read_other
from toolkit.measure.engines import ENGINES
from toolkit.measure.session import add_metrics, add_profile, check_outputs, load, start_worker
from toolkit.measure.timing import speed_entry, time_rounds, warn_if_busy
from toolkit.measure.what_if import find_model, model_facts
from toolkit.measure.worker import save_batches
from toolkit.present.bench_table import print_results
from toolkit.progress import bar
from toolkit.record import check_output, new_record, read_record, root_id, speed_key, write_record
from toolkit.tasks.labels import learnt


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
    contenders = check_options(config)
    labels = [contender.label for contender in contenders]
    baseline = read_record(config.baseline) if config.baseline else None
    record = new_record("bench", config)
    num_threads, _ = decide_num_threads(config.engine.num_threads)
    config = replace(config, engine=replace(config.engine, num_threads=num_threads))
    warn_if_busy()
    with tempfile.TemporaryDirectory(prefix="toolkit-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        model = find_model(config, folder)
        check_output(Path(config.output_dir), model.record)
        facts = model_facts(config, model)
        if baseline is not None:
            check_comparable(config, baseline, record["environment"]["cpu"], facts)
        if config.accuracy or config.lengths is Lengths.task:
            config = replace(config, task=learnt(config.task, model.id2label))
        batches = make_batches(config, model)
        save_batches(folder / "batches.npz", batches)
        judged = read_task(config.task, model, config.seed) if config.accuracy else None
        models = {c.label: read_other(config, model, c) for c in contenders}
        workers, loaded = {}, {}
        for c in bar(contenders, "packing"):
            workers[c.label] = stack.enter_context(start_worker(config, c, folder))
            loaded[c.label] = load(config, models[c.label], c, workers[c.label], folder)
        differences: dict[str, float] = {}
        for onnx in dict.fromkeys(c.onnx for c in contenders):
            same = [c for c in contenders if c.onnx == onnx]
            other = models[same[0].label]
            differences |= check_outputs(config, other, batches, same, workers, folder)
        asks = {label: worker.ask for label, worker in workers.items()}
        rounds, peaks = time_rounds(asks, config.seconds, config.min_iterations)
        entries = [
            speed_entry(config, batches, rounds, c.label, labels[0])
            | {"precision": c.precision}
            | ({} if c.onnx is None else {"onnx": c.onnx})
            | loaded[c.label]
            | {"peak_rss_bytes": peaks[c.label], "max_difference": differences[c.label]}
            for c in contenders
        ]
        if judged is not None:
            add_metrics(config, *judged, models, workers, entries, folder)
        profiled = next((e for e in entries if engine_of(e["engine"]) == "sparse"), entries[0])
        if config.profile or config.roofline:
            add_profile(config, workers[profiled["engine"]], profiled)
        environment = record["environment"]
        record = fill_record(config, record, model, facts, entries)
    write_record(Path(config.output_dir) / "record.json", record)
    if record["environment"] is not environment:  # the export's own run was measured
        refresh_card(model.onnx.parent, record["metrics"], entries, environment)
    if config.roofline:
        from toolkit.present.figures import save_png
        from toolkit.present.figures.roofline import draw_roofline

        picture = draw_roofline(record, profiled)
        save_png(Path(config.output_dir) / "roofline.png", picture)
    print_results(config, record, entries)
    if baseline is not None:
        compare(config, baseline, entries[0])
    return record


def fill_record(
    config: BenchRoot,
    record: dict[str, Any],
    model: Exported,
    facts: dict[str, Any],
    entries: list[dict[str, Any]],
) -> dict[str, Any]:
    """Put the measurements into the right record.

    That is the record already in `output_dir` if it is of the same run (`train then=[…,bench]`),
    otherwise the new one, with model, metrics and sizes from the record beside the ONNX file.
    """
    source = None if config.onnx is None else model.record
    there = Path(config.output_dir) / "record.json"
    if source is not None and there.exists() and root_id(read_record(there)) == root_id(source):
        record = read_record(there)
    elif source is not None:
        record |= {key: source[key] for key in ("model", "metrics", "size_bytes")}
        record["run"]["parent"] = root_id(source)
    else:
        record["model"] = facts
    if config.accuracy and not record["metrics"]:
        record["metrics"] = entries[0]["metrics"]
    sizes = record["size_bytes"]
    sizes["sparse" if model.onnx.suffix == SUFFIX else "onnx"] = size_bytes(model.onnx)
    used = [ENGINES[engine_of(entry["engine"])] for entry in entries]
    if "checkpoint" not in sizes and any(engine.reads_checkpoint for engine in used):
        sizes["checkpoint"] = size_of(find_checkpoint(model.onnx))
    for entry in entries:
        packed = entry.pop("packed_bytes")
        if packed is not None:
            sizes["packed"] = packed
    new = {speed_key(entry) for entry in entries}
    record["speed"] = [entry for entry in record["speed"] if speed_key(entry) not in new] + entries
    return record


def bench_of(config: TrainRoot, output: Path) -> BenchRoot:
    """Make the configuration of `then=[…,bench]`: the fresh export, into the same record."""
    onnx, folder = str(output / "export"), str(output)
    return narrow(config, BenchRoot, **vars(config.bench), onnx=onnx, output_dir=folder)
