"""`toolkit export`: checkpoint → ONNX, published once it has been loaded back and compared."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from toolkit.artifact.exported import size_bytes
from toolkit.artifact.onnx_writer import OPSET, quiet, write_onnx
from toolkit.artifact.parity import check_parity, check_zeros, parity_batches
from toolkit.artifact.qdq import write_qdq
from toolkit.compress.model import load_checkpoint
from toolkit.compress.quantization.calibration import calibrate
from toolkit.compress.quantization.layers import (
    as_float,
    describe_quantization,
    integers_of,
    quantized_linears,
    read_grids,
    round_weights,
    round_words,
)
from toolkit.compress.sparsity.weights import describe_checkpoint
from toolkit.compress.what_if import make_checkpoint
from toolkit.config import ExportRoot, from_plain
from toolkit.errors import UsageError
from toolkit.files import added_to, size_of
from toolkit.measure.worker import answer_requests
from toolkit.record import new_record, read_record, root_id, write_record
from toolkit.tasks import check_names
from toolkit.tasks.labels import learnt

HALF = 0.5  # a layer of this sparsity should not run dense, and is worth a warning if it does
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
    with added_to(folder, last="model.onnx") as partial, quiet():
        if config.checkpoint is None:
            checkpoint = make_checkpoint(config, partial / "checkpoint")
            relative = checkpoint.name
        else:
            checkpoint = Path(config.checkpoint)
            relative = os.path.relpath(checkpoint.resolve(), folder.resolve())
        # the plainest graph; without a tuned kernel of torch's in between
        model = load_checkpoint(checkpoint, attn_implementation="eager")
        config = replace(config, task=learnt(config.task, model.config.id2label))
        onnx = partial / "model.onnx"
        quantization = _quantize(config, model, checkpoint)
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
        for name in COPIED_FILES:
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, partial / name)
        record = _fill_record(record, config, model, onnx, quantization.get("method", ""))
        write_record(partial / "record.json", record)
        (partial / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _print_summary(folder, facts)
    return folder


def _quantize(config: ExportRoot, model: PreTrainedModel, checkpoint: Path) -> dict[str, Any]:
    """Quantize as the checkpoint was trained to be, or by calibration if that is asked for.

    Returns:
        `method`, and what calibration tells; empty for a model that stays in float32.
    """
    facts: dict[str, Any] = {}
    if read_grids(model, checkpoint):
        facts = {"method": "qat"}
    elif config.quantization.is_on:
        facts = {"method": config.quantization.calibration.value}
        facts |= calibrate(config, model, checkpoint)
    round_weights(model)
    return facts


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
    return record


def _print_summary(folder: Path, facts: dict[str, Any]) -> None:
    parity, zeros = facts["parity"], facts["zeros"]
    size = size_bytes(folder / "model.onnx")
    print(f"exported {folder / 'model.onnx'}: {size / 1e6:.1f} MB, opset {facts['opset']}")
    for engine, difference in parity["max_difference"].items():
        told = "not installed, not compared" if difference is None else f"{difference:.2g}"
        print(f"largest difference to torch, {engine}: {told}")
    print(f"compared on {parity['texts']}")
    kept = (
        "those of rounding among them" if facts["quantization"] else "as many as in the checkpoint"
    )
    print(f"zeros in the encoder's weights: {zeros['encoder']:.2%}, {kept}")
    for name, layer in parity["kernels"].items():
        if layer["kernel"] == "dense" and layer["sparsity"] >= HALF:
            print(f"warning: {name} runs dense in spite of {layer['sparsity']:.0%} zeros")
    counts = Counter(layer["kernel"] for layer in parity["kernels"].values())
    print("kernels:", ", ".join(f"{count} layers {name}" for name, count in counts.items()))
    if facts["quantization"]:
        _print_quantization(facts["quantization"])


def _print_quantization(facts: dict[str, Any]) -> None:
    """Say how the ranges were found, and how sensitive each layer is, the most sensitive first."""
    if facts["method"] == "qat":
        print("INT8 as it was trained")
        return
    layers = facts["layers"]
    count = sum(layer["is_quantized"] for layer in layers)
    print(f"INT8: {count} layers, calibrated by {facts['method']} on {facts['texts']}")
    for layer in sorted(layers, key=lambda layer: -(layer["change"] or 0.0)):
        if layer["change"] is not None:
            told = "" if layer["is_quantized"] else ", kept in float32"
            print(f"  {layer['name']:26} changes the outputs by {layer['change']:.2%}{told}")
    if "metric" in facts:
        before, after = facts["metric"].values()
        print(f"metric in float32 {before:.2f} %, in INT8 {after:.2f} %")


def _export_as_asked(_: dict[str, Any], *, config: dict[str, Any]) -> dict[str, Any]:
    export(from_plain(ExportRoot, config))
    return {}


if __name__ == "__main__":  # `bench` makes what-if models in a process of its own, free of torch
    answer_requests({"export": _export_as_asked})
