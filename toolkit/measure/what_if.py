"""The model that is measured: an export, or one made as the configuration describes it."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from toolkit.artifact.exported import Exported, describe_onnx, read_exported
from toolkit.config import BenchRoot, ExportRoot, Weights, narrow
from toolkit.errors import UsageError
from toolkit.measure.worker import Worker
from toolkit.progress import say
from toolkit.record import plain


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
    say(f"making {config.model.name} with random weights …")
    root = narrow(
        config,
        ExportRoot,
        checkpoint=None,
        model=replace(config.model, weights=Weights.random),
        output_dir=str(folder / "export"),
    )
    log, threads = folder / "export.log", config.engine.num_threads
    with Worker("toolkit export", log, threads, module="toolkit.export") as worker:
        worker.ask("export", config=plain(asdict(root)))
    return folder / "export"


def model_facts(config: BenchRoot, model: Exported) -> dict[str, Any]:
    """Return the `model` of the record: from the one beside the ONNX file, or from its graph."""
    if config.onnx is None:
        known = (model.record or {}).get("model", {})
        return {**known, "name": config.model.name, "random_weights": True}
    return describe_onnx(model.onnx) if model.record is None else dict(model.record["model"])
