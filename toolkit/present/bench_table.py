"""What `bench` prints: a table of engines, and one of the sparse engine's operations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.config import BenchRoot, Lengths, Scenario
from toolkit.engine.reader.sparse_file import SUFFIX
from toolkit.measure.contenders import engine_of
from toolkit.measure.engines import ENGINES
from toolkit.present.tables import text_table
from toolkit.progress import say, tell
from toolkit.record import metrics_of


def print_results(
    config: BenchRoot, record: dict[str, Any], entries: Sequence[dict[str, Any]]
) -> None:
    """Print what was measured, the table, the profile if there is one, and where the record is."""
    model = record["model"]
    zeros = model.get("sparsity", {}).get("encoder")
    of_task = "" if config.lengths is Lengths.fixed else f"of {config.task.name} "
    limit = "" if config.lengths is Lengths.fixed else "at most "
    facts = [
        str(model["name"]),
        *([f"{model['layers']} layers"] if "layers" in model else []),
        *([f"{100 * zeros:.1f} % of the encoder's weights are zero"] if zeros is not None else []),
        *(["INT8"] if "quantization" in model else []),
        *(["random weights"] if model.get("random_weights") else []),
        f"{config.engine.num_threads} threads",
        f"{config.batch_size} texts {of_task}per call",
        f"{limit}{config.seq_len} tokens each",
        *_agreement(entries),
    ]
    say(", ".join(facts))
    rows = [_cells(config, record["size_bytes"], entry) for entry in entries]
    say(text_table(list(rows[0]), [list(row.values()) for row in rows]))
    for entry in entries:
        if "profile" in entry:
            say(f"{entry['engine']}, one call by operation:")
            rows = [_operation_cells(row) for row in entry["profile"]]
            say(text_table(list(rows[0]), [list(row.values()) for row in rows]))
    if config.roofline:
        say(f"roofline: {Path(config.output_dir) / 'roofline.png'}")
    tell(f"record: {Path(config.output_dir) / 'record.json'}")


def _cells(config: BenchRoot, sizes: dict[str, int], entry: dict[str, Any]) -> dict[str, str]:
    """Make one row of the table; `scenario` decides what comes first."""
    latency = {f"{p} ms": f"{entry['latency_ms'][p]:.2f}" for p in ("p50", "p90", "p99")}
    speed = {
        "items/s": f"{entry['items_per_s']:.1f}",
        "tokens/s": f"{entry['tokens_per_s']:.0f}",
    }
    ratio = entry["ratio_to"]
    first = ratio["engine"]
    file = "sparse" if (config.onnx or "").endswith(SUFFIX) else "onnx"
    reads_checkpoint = ENGINES[engine_of(entry["engine"])].reads_checkpoint
    size = sizes.get("checkpoint" if reads_checkpoint else file, 0)
    metrics = {
        f"{name} %": f"{value:.2f}" for name, value in metrics_of(entry.get("metrics", {})).items()
    }
    return {
        "engine": entry["engine"],
        **(speed | latency if config.scenario is Scenario.throughput else latency | speed),
        "load s": f"{entry['load_s']:.2f}",
        "peak MB": f"{entry['peak_rss_bytes'] / 1e6:.0f}",
        "file MB": "" if "onnx" in entry else f"{size / 1e6:.1f}",
        **metrics,
        f"ratio to {first} [95 %]": (
            "1"
            if entry["engine"] == first
            else f"{ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        ),
    }


def _agreement(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Say how far outputs were from those of the same file in float32."""
    exact = [e["max_difference"] for e in entries if e["precision"] == "fp32"]
    rounded = [e for e in entries if e["precision"] != "fp32"]
    return [
        *([f"outputs agree within {max(exact):.1g}"] if exact else []),
        *(f"{e['engine']} is within {e['max_difference']:.2g} of float32" for e in rounded),
    ]


def _operation_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Make one row of the profile's table."""
    share = row["peak_share"]
    shown = {name: _text(row[name]) for name in ("op", "time_ms", "gflops")}
    shown["% of peak"] = "" if share is None else f"{100 * share:.0f}"
    return shown | {name: _text(row[name]) for name in ("density", "kernel", "note")}


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
