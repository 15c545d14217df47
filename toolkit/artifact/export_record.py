"""The record of an export: the training's carried along, and what the export knows."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from toolkit.artifact.exported import size_bytes
from toolkit.compress.quantization.layers import describe_quantization
from toolkit.compress.sparsity.weights import describe_checkpoint
from toolkit.config import ExportRoot, Format
from toolkit.engine.reader.sparse_file import SUFFIX
from toolkit.files import size_of
from toolkit.record import read_record, root_id


def find_training(checkpoint: Path) -> dict[str, Any] | None:
    """Return the record of the run that made a checkpoint, if it lies beside it."""
    file = checkpoint.resolve().parent / "record.json"
    return read_record(file) if file.is_file() else None


def fill_record(
    record: dict[str, Any],
    config: ExportRoot,
    model: PreTrainedModel,
    checkpoint: Path,
    onnx: Path,
    method: str,
    trained: dict[str, Any] | None,
) -> dict[str, Any]:
    """Carry the training's record along, and add what the export knows.

    A calibrated model is another one than was trained: a run of its own, yet without metrics.
    """
    name = config.model.name
    if config.checkpoint is not None:
        name = Path(config.checkpoint).resolve().name
        if trained is not None:
            if method in ("", "qat"):
                record["run"]["parent"] = root_id(trained)
                record["metrics"] = trained["metrics"]
            name = trained["model"].get("name", name)
        record["size_bytes"]["checkpoint"] = size_of(checkpoint)
    record["model"] = (
        describe_checkpoint(name, model)
        | {"random_weights": config.checkpoint is None}
        | describe_quantization(model, method)
    )
    record["size_bytes"]["onnx"] = size_bytes(onnx)
    if config.export.format is Format.sparse:
        record["size_bytes"]["sparse"] = size_bytes(onnx.with_suffix(SUFFIX))
    return record
