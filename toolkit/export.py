"""`toolkit export`: checkpoint → ONNX, published once it has been loaded back and compared."""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from toolkit.artifact.exported import size_bytes
from toolkit.artifact.onnx_writer import OPSET, quiet, write_onnx
from toolkit.artifact.parity import check_parity, check_sparse, check_zeros, parity_batches
from toolkit.artifact.qdq import write_qdq
from toolkit.artifact.sparse_writer import write_sparse
from toolkit.compress.model import load_checkpoint
from toolkit.compress.quantization.calibration import quantize_for_export
from toolkit.compress.quantization.layers import (
    as_float,
    describe_quantization,
    integers_of,
    quantized_linears,
    round_words,
)
from toolkit.compress.sparsity.weights import describe_checkpoint
from toolkit.compress.what_if import make_checkpoint
from toolkit.config import ExportRoot, Format, from_plain
from toolkit.engine.reader.sparse_file import SUFFIX
from toolkit.errors import UsageError
from toolkit.files import added_to, size_of
from toolkit.measure.worker import answer_requests
from toolkit.present.export_summary import print_summary
from toolkit.record import new_record, read_record, root_id, write_record
from toolkit.tasks import check_names

COPIED_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"),
)


def export(config: ExportRoot) -> Path:
    """Export a checkpoint, or a what-if model with untrained weights if none is given.

    Args:
        config: `checkpoint` names a Hugging Face folder. Null makes one inside the export folder
            from `model`, `depth` and `sparsity`.

    Returns:
        The export folder: `output_dir`, else `export` beside the checkpoint.

    Raises:
        UsageError: Neither checkpoint nor folder is named, or the task has no such kind or metric.
        InputError: The checkpoint is missing, damaged or of another architecture, or the disk is
            full.
        GateError: An engine's outputs differ from torch's by more than `export.atol`, or zeros
            were lost. No file is left then.
    """
    check_names(config.task)
    if config.checkpoint is None and config.output_dir is None:
        raise UsageError("export needs checkpoint=DIR, or output_dir=DIR for untrained weights")
    folder = Path(config.output_dir or Path(str(config.checkpoint)).resolve().parent / "export")
    record = new_record("export", config)
    with added_to(folder, last="model.onnx", also=f"model{SUFFIX}") as partial, quiet():
        if config.checkpoint is None:
            checkpoint = make_checkpoint(config, partial / "checkpoint")
            relative = checkpoint.name
        else:
            checkpoint = Path(config.checkpoint)
            relative = os.path.relpath(checkpoint.resolve(), folder.resolve())
        # the plainest graph; without a tuned kernel of torch's in between
        model = load_checkpoint(checkpoint, attn_implementation="eager")
        onnx = partial / "model.onnx"
        quantization = quantize_for_export(config, model, checkpoint)
        is_quantized = bool(quantized_linears(model))
        words = round_words(model) if is_quantized and config.quantization.embeddings else None
        with as_float(model):
            inputs = write_onnx(model, onnx)
        if is_quantized:
            write_qdq(onnx, integers_of(model), words)
        batches, texts = parity_batches(config, model, checkpoint, inputs)
        facts = {
            "checkpoint": relative,
            "opset": OPSET,
            "parity": check_parity(config, model, onnx, batches) | {"texts": texts},
            "zeros": check_zeros(model, onnx),
            "quantization": quantization,
            "versions": {
                name: version(name) for name in ("toolkit", "torch", "transformers", "onnx")
            },
        }
        if config.export.format is Format.sparse:
            sparse = partial / f"model{SUFFIX}"
            write_sparse(onnx, sparse, config.export.values)
            facts["sparse"] = check_sparse(config, onnx, sparse, batches)
        for name in COPIED_FILES:
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, partial / name)
        record = _fill_record(record, config, model, onnx, quantization.get("method", ""))
        write_record(partial / "record.json", record)
        (partial / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print_summary(folder, facts)
    return folder


def _fill_record(
    record: dict[str, Any], config: ExportRoot, model: PreTrainedModel, onnx: Path, method: str
) -> dict[str, Any]:
    """Carry the training's record along, and add what the export knows.

    A calibrated model is another one than was trained: a run of its own, yet without metrics.
    """
    name = config.model.name
    if config.checkpoint is not None:
        checkpoint = Path(config.checkpoint)
        trained = checkpoint.resolve().parent / "record.json"
        name = checkpoint.resolve().name
        if trained.is_file():
            earlier = read_record(trained)
            if method in ("", "qat"):
                record["run"]["parent"] = root_id(earlier)
                record["metrics"] = earlier["metrics"]
            name = earlier["model"].get("name", name)
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


def _export_as_asked(_: dict[str, Any], *, config: dict[str, Any]) -> dict[str, Any]:
    export(from_plain(ExportRoot, config))
    return {}


if __name__ == "__main__":  # `bench` makes what-if models in a process of its own, free of torch
    answer_requests({"export": _export_as_asked})
