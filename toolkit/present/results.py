"""What records say together: runs, rows, ratios, the Pareto front.

A run is all records of one model (train, export, bench); a row is a run in one measurement: engine
× batch size × length. Rows compare within a group (same task) and a panel (same setting, too).
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from toolkit.measure.contenders import engine_of, precision_of
from toolkit.measure.engines import ENGINES
from toolkit.present.published import published_f1
from toolkit.record import root_id, speed_key

Row = dict[str, Any]

DENSE = 0.01  # below this fraction of zeros a model counts as dense: training leaves some by chance
SETTING = ("batch_size", "seq_len", "lengths", "num_threads", "cpu")
SIZES = ("checkpoint", "onnx", "sparse", "packed")


def merge_runs(records: Iterable[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Put the records of one model together, oldest first.

    Returns:
        One record per run, with `folder` (of its first record). What a later record knows replaces
        what an earlier one said; `run` and `config` are those of the command that made the model.
    """
    runs: dict[str, dict[str, Any]] = {}
    ordered = sorted(
        records, key=lambda item: (item[1]["run"]["started"], item[1]["run"]["finished"])
    )
    for file, record in ordered:
        run = runs.setdefault(root_id(record), record | {"folder": str(file.parent), "speed": []})
        cpu = record["environment"].get("cpu")  # a bench may run on another machine than training
        measured = (entry for entry in record["speed"] if "onnx" not in entry)  # of another model
        speeds = [*run["speed"], *(entry | {"cpu": cpu} for entry in measured)]
        run["speed"] = list({(*speed_key(entry), entry["cpu"]): entry for entry in speeds}.values())
        for part in ("model", "metrics", "size_bytes"):
            run[part] = {**run[part], **record[part]}
        if record["run"]["verb"] == "train":
            run["config"], run["folder"] = record["config"], str(file.parent)
            run["run"] = record["run"]
    return list(runs.values())


def make_rows(run: dict[str, Any]) -> list[Row]:
    """Flatten a run: one row per entry of its `speed`, in that order, or one without speed."""
    model, config, sizes = run["model"], run["config"], run["size_bytes"]
    sparsity = model.get("sparsity", {})
    of_run = {
        "run": _label(model),
        "model": model.get("name"),
        "layers": model.get("layers"),
        "encoder_sparsity": sparsity.get("encoder"),
        "model_sparsity": sparsity.get("whole_model"),
        "quantization": model.get("quantization", {}).get("precision"),
        "parameters": model.get("parameters"),
        "teacher": (config.get("teacher") or {}).get("name"),
        "teacher_path": (config.get("teacher") or {}).get("path"),
        "seed": run["run"]["seed"],
        "command": run["run"].get("command"),
        "folder": run["folder"],
        "id": root_id(run),
        **{f"{name}_mb": sizes[name] / 1e6 if name in sizes else None for name in SIZES},
    }
    rows = [of_run | _metrics(run, entry) | _speed(entry) for entry in run["speed"] or [{}]]
    for row in rows:
        if row["engine"]:
            row["precision"] = row["quantization"] or precision_of(row["engine"])
        if row["published"] is None:
            row["published"] = published_f1(row)
    return rows


def add_ratios(rows: Sequence[Row]) -> list[str]:
    """Add `speedup`, `speedup_same_engine`, `recovery` and others to the rows of one group.

    All compare with the group's baseline: the run with the most layers, among those the fewest
    zeros, and rather one in float. `speedup` takes its speed through the most usual engine it was
    measured with in the row's setting, `speedup_same_engine` through the row's own.

    Returns:
        Sentences that say what the baseline is.
    """
    measured = [row for row in rows if row["items_per_s"] is not None and row["layers"] is not None]
    for row in rows:
        row |= {"speedup": None, "speedup_same_engine": None, "recovery": None, "baseline": False}
        row["compared_with"] = None
    if not measured:
        return []
    best = min(measured, key=density_order)
    engines = set()
    for panel in groups(measured, panel_of):
        by_engine = {row["engine"]: row for row in panel if row["id"] == best["id"]}
        if not by_engine:
            continue
        usual = by_engine[min(by_engine, key=_usual)]
        usual["baseline"] = True
        engines.add(usual["engine"])
        for row in panel:
            row["speedup"] = row["items_per_s"] / usual["items_per_s"]
            row["compared_with"] = f"{usual['run']} through {usual['engine']}"
            same = by_engine.get(row["engine"])
            row["speedup_same_engine"] = same and row["items_per_s"] / same["items_per_s"]
    for row in rows:
        if best["score"] and row["score"] is not None and row["metric"] == best["metric"]:
            row["recovery"] = row["score"] / best["score"]
    is_dense = (best["encoder_sparsity"] or 0.0) < DENSE
    kind = "the dense baseline" if is_dense else "the densest run (none is dense)"
    through = " or else ".join(sorted(engines, key=_usual))
    return [
        f"{best['group']}: speedup compares with {kind}, {best['run']} through {through}"
        + ("; recovery with its score." if best["score"] else ".")
    ]


def density_order(row: Row) -> tuple[Any, ...]:
    """Order runs from the densest: the most layers, among those the fewest zeros, and float."""
    return -(row["layers"] or 0), row["encoder_sparsity"] or 0.0, row["quantization"] or ""


def is_plotted(row: Row) -> bool:
    """Tell whether a row has both coordinates."""
    return row["score"] is not None and row["items_per_s"] is not None


def mark_pareto_front(rows: Sequence[Row]) -> None:
    """Mark the rows that no other row beats in speed without being worse in quality."""
    best = float("-inf")
    for row in sorted(rows, key=lambda row: (-row["items_per_s"], -row["score"])):
        row["pareto"] = row["score"] > best
        best = max(best, row["score"])


def groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[list[Row]]:
    """Gather the rows with equal keys, in the order of their first."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def panel_of(row: Row) -> tuple[Any, ...]:
    """Name what rows must share to be compared: task, setting, machine."""
    return (row["group"], *(row[name] for name in SETTING))


def title_of(row: Row) -> str:
    """Say under which conditions the rows of a panel were measured."""
    texts = "texts of at most" if row["lengths"] == "task" else "texts of"
    return (
        f"{row['group']}: {row['batch_size']} {texts} {row['seq_len']} tokens, "
        f"{row['num_threads']} threads, {row['cpu']}"
    )


def left_out(rows: Sequence[Row]) -> list[str]:
    """Say of which runs speed or accuracy is missing, which keeps them from the front."""
    notes = []
    for column, what in (
        ("items_per_s", "Speed was not measured (`toolkit bench onnx=DIR` does)"),
        ("score", "Accuracy was not measured"),
    ):
        missing = dict.fromkeys(row["run"] for row in rows if row[column] is None)
        if missing and any(row[column] is not None for row in rows):
            notes.append(f"{what}: {', '.join(missing)}.")
        elif missing:
            notes.append(f"{what} of any run.")
    return notes


def labelled(rows: Sequence[Row]) -> list[Row]:
    """Choose the rows of a panel that carry a label: each run once, at its fastest engine.

    Its other engines lie at the same height, so that labels there would only hide each other.
    """
    runs = groups(rows, lambda row: (row.get("set"), row["id"]))
    fastest = [max(run, key=lambda row: row["items_per_s"]) for run in runs]
    return fastest + [row for row in rows if row["baseline"] and row not in fastest]


def zeros_label(row: Row) -> str:
    """Say how sparse a row's model is: `dense`, `90 %`, or nothing if that is unknown."""
    zeros = row["encoder_sparsity"]
    if zeros is None:
        return ""
    return "dense" if zeros < DENSE else f"{100 * zeros:.3g} %"


def _usual(engine: str) -> int:
    """Rank engines as `ENGINES` does, unknown ones last."""
    name = engine_of(engine)
    return [*ENGINES, name].index(name)


def _metrics(run: dict[str, Any], entry: dict[str, Any]) -> Row:
    """Return the metrics through this engine if it measured them, otherwise the run's; with the
    one that is plotted as `metric` and `score`, and the group that can be compared."""
    metrics = dict(entry.get("metrics") or run["metrics"])
    task, examples = metrics.pop("task", None), metrics.pop("num_examples", None)
    # The task's main one comes first; toolkit 0.1 wrote SQuAD's in the other order.
    metric = "f1" if "exact_match" in metrics else next(iter(metrics), None)
    return {
        "group": task or run["model"].get("name") or "unnamed",
        "task": task,
        "num_examples": examples,
        **metrics,
        "metric": metric,
        "score": metrics.get(metric),
        "published": (run["config"].get("published") or {}).get(metric),
    }


def _speed(entry: dict[str, Any]) -> Row:
    latency = entry.get("latency_ms", {})
    rss = entry.get("peak_rss_bytes")
    names = ("engine", *SETTING, "isa", "items_per_s", "tokens_per_s", "load_s", "iterations")
    return {
        **{name: entry.get(name) for name in names},
        **{
            f"latency_{name}_ms": latency.get(name) for name in ("p50", "p90", "p99", "mean", "std")
        },
        "peak_rss_mb": None if rss is None else rss / 1e6,
        "precision": None,
        "pareto": False,
    }


def distinguish(rows: Sequence[Row]) -> None:
    """Add the folder's name to the label of runs that would otherwise share one."""
    for same in groups(rows, lambda row: row["run"]):
        if len({row["id"] for row in same}) > 1:
            for row in same:
                row["run"] += f" [{Path(row['folder']).name}]"


def _label(model: dict[str, Any]) -> str:
    """Name a run by what was made small: `bert_base 6 layers 90 % int8`."""
    parts = [str(model.get("name", "unnamed"))]
    if "layers" in model:
        parts.append(f"{model['layers']} layers")
    if "sparsity" in model:
        parts.append(zeros_label({"encoder_sparsity": model["sparsity"]["encoder"]}))
    if "quantization" in model:
        parts.append(model["quantization"]["precision"])
    return " ".join(parts)
