"""Records as runs leave them, made by hand."""

from pathlib import Path
from typing import Any

from toolkit.present import results
from toolkit.record import SCHEMA_VERSION, write_record

BATCH = 32


def speed(engine: str, items_per_s: float, **changes: Any) -> dict[str, Any]:
    call_ms = BATCH / items_per_s * 1e3
    entry = {
        "engine": engine,
        "batch_size": BATCH,
        "seq_len": 128,
        "lengths": "fixed",
        "items_per_s": items_per_s,
        "tokens_per_s": items_per_s * 128,
        "latency_ms": {"p50": call_ms, "p90": call_ms, "p99": call_ms, "mean": call_ms, "std": 0.0},
        "iterations": 5,
        "ratio_to": {"engine": engine, "ratio": 1.0, "low": 1.0, "high": 1.0},
        "num_threads": 2,
        "isa": None,
    }
    return entry | changes


def record(
    name: str = "demo",
    layers: int = 12,
    zeros: float = 0.0,
    accuracy: float | None = None,
    speeds: tuple[dict[str, Any], ...] = (),
    **run: Any,
) -> dict[str, Any]:
    known = {} if accuracy is None else {"accuracy": accuracy, "task": "demo", "num_examples": 9}
    run_id = f"{name}-{layers}-{zeros}"
    defaults = {"verb": "train", "id": run_id, "parent": None, "seed": 1}
    defaults |= {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:01:00Z"}
    return {
        "schema_version": SCHEMA_VERSION,
        "run": defaults | run,
        "config": {"teacher": {"name": "dense"}},
        "model": {
            "name": name,
            "layers": layers,
            "sparsity": {"encoder": zeros, "whole_model": zeros / 2},
        },
        "metrics": known,
        "speed": list(speeds),
        "size_bytes": {"onnx": 2_000_000},
        "environment": {"cpu": "a CPU"},
    }


def sweep() -> list[dict[str, Any]]:
    return [
        record(accuracy=96.0, speeds=(speed("sparse", 11.0), speed("onnxruntime", 10.0))),
        record(zeros=0.9, accuracy=95.0, speeds=(speed("sparse", 60), speed("onnxruntime", 10.0))),
        record(layers=6, zeros=0.9, accuracy=93.0, speeds=(speed("sparse", 110.0),)),
        record(layers=6, zeros=0.5, accuracy=92.0, speeds=(speed("sparse", 50.0),)),
    ]


def write_all(folder: Path, records: list[dict[str, Any]]) -> None:
    for number, one in enumerate(records):
        write_record(folder / str(number) / "record.json", one)


def rows_of(records: list[dict[str, Any]]) -> list[results.Row]:
    runs = results.merge_runs([(Path(f"runs/{i}/record.json"), r) for i, r in enumerate(records)])
    rows = [row for run in runs for row in results.make_rows(run)]
    for group in results.groups(rows, lambda row: row["group"]):
        results.add_ratios(group)
    for panel in results.groups(filter(results.is_plotted, rows), results.panel_of):
        results.mark_pareto_front(panel)
    return rows
