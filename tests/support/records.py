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


def with_details(one: dict[str, Any]) -> dict[str, Any]:
    """Add what a profiled run of BERT-base's shape leaves: zeros by layer, profile, roofline."""
    layers, zeros = one["model"]["layers"], one["model"]["sparsity"]["encoder"]
    shapes = {
        "attention.self.query": [768, 768], "attention.self.key": [768, 768],
        "attention.self.value": [768, 768], "attention.output.dense": [768, 768],
        "intermediate.dense": [3072, 768], "output.dense": [768, 3072],
    }  # fmt: skip
    one["model"]["sparsity"]["tensors"] = [
        {"name": f"bert.encoder.layer.{i}.{name}.weight", "shape": shape, "sparsity": zeros}
        for i in range(layers)
        for name, shape in shapes.items()
    ]
    steps = {"query": 1.0, "key": 1.1, "attention": 2.0, "intermediate": 4.0, "output": 4.2}
    entry = one["speed"][0]
    entry["profile"] = [
        {
            "op": f"layer{i}.{step}",
            "time_ms": time_ms,
            "gflops": 90.0 + time_ms,
            "density": 1 - zeros,
            "kernel": "avx512" if step == "attention" else "generated_avx512",
            "note": "",
            "operations": 1e8 * time_ms,
            "bytes": 1e6,
            "peak_share": 0.5,
        }
        for i in range(layers)
        for step, time_ms in steps.items()
    ]
    entry["profile"].append(
        {"op": "embeddings", "time_ms": 0.4, "gflops": None, "density": None, "kernel": "avx512"}
    )
    points = [
        {
            "op": step,
            "kernel": "avx512" if step == "attention" else "generated_avx512",
            "time_ms": layers * time_ms,
            "operations": 1e8 * time_ms,
            "bytes": 1e6 * (i + 1),
            "gflops": 60.0 + 20 * i,
            "peak_share": 0.3 + i / 10,
            "intensity": 100.0 / (i + 1),
        }
        for i, (step, time_ms) in enumerate(steps.items())
    ]
    entry["roofline"] = {
        "fma_gflops": 230.0,
        "read_gb_per_s": {"l1": 600.0, "l2": 300.0, "l3": 120.0, "memory": 20.0},
        "read_bytes": {"l1": 1, "l2": 2, "l3": 3, "memory": 4},
        "points": points,
    }
    return one


def published_grid() -> list[dict[str, Any]]:
    """What-if records of BERT-base, without accuracy: speed of the cells that others published."""
    cells = [(12, 0.0, 8.8), (12, 0.8, 36.0), (12, 0.9, 54.0), (12, 0.95, 70.0), (6, 0.8, 72.0)]
    cells += [(6, 0.9, 113.0), (6, 0.95, 150.0), (3, 0.7, 86.0), (3, 0.8, 145.0), (3, 0.9, 226.0)]
    grid = [
        record("bert_base", layers, zeros, None, (speed("sparse", fast),), verb="bench")
        for layers, zeros, fast in cells
    ]
    grid[0]["speed"].append(speed("onnxruntime", 6.4))
    return grid


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
