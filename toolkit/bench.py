"""`toolkit bench`: measure engines side by side, after proving that they compute the same."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.artifact.exported import Exported, describe_onnx, find_checkpoint, size_bytes
from toolkit.config import BenchRoot
from toolkit.environment import decide_num_threads
from toolkit.errors import UsageError
from toolkit.files import size_of
from toolkit.measure.baseline import check_comparable, compare
from toolkit.measure.batches import feed, make_batches
from toolkit.measure.engines import ENGINES, check_engines, is_installed
from toolkit.measure.session import add_metrics, add_profile, check_outputs, load, start_worker
from toolkit.measure.timing import speed_entry, time_rounds, warn_if_busy
from toolkit.measure.what_if import find_model
from toolkit.measure.worker import save_batches
from toolkit.present.bench_table import print_results
from toolkit.record import new_record, read_record, root_id, speed_key, write_record
from toolkit.tasks import check_names


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
    engines = check_options(config)
    baseline = read_record(config.baseline) if config.baseline else None
    record = new_record("bench", config)
    num_threads, _ = decide_num_threads(config.engine.num_threads)
    config = replace(config, engine=replace(config.engine, num_threads=num_threads))
    warn_if_busy()
    with tempfile.TemporaryDirectory(prefix="toolkit-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        model = find_model(config, folder)
        facts = model_facts(config, model)
        if baseline is not None:
            check_comparable(config, baseline, record["environment"]["cpu"], facts)
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
        record = fill_record(config, record, model, facts, entries)
    write_record(Path(config.output_dir) / "record.json", record)
    if config.roofline:
        from toolkit.present.figures import save_png
        from toolkit.present.figures.roofline import draw_roofline

        picture = draw_roofline(record, entries[engines.index("sparse")])
        save_png(Path(config.output_dir) / "roofline.png", picture)
    print_results(config, record, entries)
    if baseline is not None:
        compare(config, baseline, entries[0])
    return record


def check_options(config: BenchRoot) -> list[str]:
    """Refuse what cannot be measured here, before anything is; return the engines.

    Raises:
        UsageError: A name is unknown, a package is missing, or options contradict each other.
    """
    engines = list(dict.fromkeys([config.engine.name, *config.against]))
    check_engines(engines)
    check_names(config.task)
    if config.onnx is None and not is_installed("torch"):
        raise UsageError(
            "measuring a model by its description builds it with torch, which is not installed: "
            f"name an ONNX file or export folder with onnx=…, or {ENGINES['torch'].remedy}"
        )
    for option in ("profile", "roofline"):
        if getattr(config, option) and "sparse" not in engines:
            raise UsageError(f"{option}=true shows the sparse engine: add engine=sparse")
    if config.roofline and not is_installed("matplotlib"):
        raise UsageError(
            "roofline=true draws with matplotlib, which is not installed: pip install matplotlib, "
            "or use profile=true for the numbers"
        )
    return engines


def model_facts(config: BenchRoot, model: Exported) -> dict[str, Any]:
    """Return the `model` of the record: from the one beside the ONNX file, or from its graph."""
    if config.onnx is None:
        known = (model.record or {}).get("model", {})
        return {**known, "name": config.model.name, "random_weights": True}
    return describe_onnx(model.onnx) if model.record is None else dict(model.record["model"])


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
    sizes["onnx"] = size_bytes(model.onnx)
    if "checkpoint" not in sizes and any(ENGINES[e["engine"]].reads_checkpoint for e in entries):
        sizes["checkpoint"] = size_of(find_checkpoint(model.onnx))
    for entry in entries:
        packed = entry.pop("packed_bytes")
        if packed is not None:
            sizes["packed"] = packed
    new = {speed_key(entry) for entry in entries}
    record["speed"] = [entry for entry in record["speed"] if speed_key(entry) not in new] + entries
    return record
