"""`toolkit export`: checkpoint → ONNX, published once it has been loaded back and compared."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolkit.artifact.export_record import fill_record, find_training
from toolkit.artifact.model_card import add_card
from toolkit.artifact.onnx_writer import OPSET, quiet, write_onnx
from toolkit.artifact.parity import check_parity, check_sparse, check_zeros, parity_batches
from toolkit.artifact.qdq import write_qdq
from toolkit.artifact.sparse_writer import write_sparse
from toolkit.compress.model import folder_of, load_checkpoint, tokenizer_of
from toolkit.compress.quantization.calibration import quantize_for_export
from toolkit.compress.quantization.layers import (
    as_float,
    integers_of,
    quantized_linears,
    round_words,
)
from toolkit.compress.sentence_modules import SPARSE, write_modules
from toolkit.compress.what_if import make_checkpoint
from toolkit.config import ExportRoot, Format, from_plain
from toolkit.engine.reader.sparse_file import SUFFIX
from toolkit.errors import InputError, UsageError
from toolkit.files import added_to
from toolkit.measure.worker import answer_requests
from toolkit.present.export_summary import print_summary
from toolkit.record import new_record, write_record
from toolkit.tasks import check_names
from toolkit.tasks.labels import learnt

COPIED_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"),
)


def export(config: ExportRoot) -> Path:
    """Export a checkpoint, or a what-if model with untrained weights if none is given.

    Args:
        config: `checkpoint` names a Hugging Face folder or hub id. Null makes one inside the export
            folder from `model`, `depth` and `sparsity`.

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
        name = config.checkpoint or str(make_checkpoint(config, partial / "checkpoint"))
        # the plainest graph; without a tuned kernel of torch's in between
        model = load_checkpoint(name, attn_implementation="eager")
        config = replace(config, task=learnt(config.task, model.config.id2label or {}))
        checkpoint = folder_of(name)
        relative = os.path.relpath(checkpoint.resolve(), folder.resolve())
        if config.checkpoint is None:
            relative = checkpoint.name
        tokenized = checkpoint
        if config.checkpoint is not None and not (checkpoint / "tokenizer.json").is_file():
            with suppress(InputError):  # there is none: said in the summary
                tokenizer_of(name).save_pretrained(partial)
                tokenized = partial
        onnx = partial / "model.onnx"
        quantization = quantize_for_export(config, model, checkpoint, tokenized)
        is_quantized = bool(quantized_linears(model))
        words = round_words(model) if is_quantized and config.quantization.embeddings else None
        with as_float(model):
            inputs = write_onnx(model, onnx)
        if is_quantized:
            write_qdq(onnx, integers_of(model), words)
        batches, texts = parity_batches(config, model, tokenized, inputs)
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
        model.config.save_pretrained(partial)
        write_modules(checkpoint, partial, model.config.to_dict(), SPARSE, config.task.pooling)
        trained = None if config.checkpoint is None else find_training(checkpoint)
        method = quantization.get("method", "")
        record = fill_record(record, config, model, checkpoint, onnx, method, trained)
        write_record(partial / "record.json", record)
        add_card(folder, partial, record, trained, checkpoint)
        (partial / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print_summary(folder, facts)
    return folder


def _export_as_asked(_: dict[str, Any], *, config: dict[str, Any]) -> dict[str, Any]:
    export(from_plain(ExportRoot, config))
    return {}


if __name__ == "__main__":  # `bench` makes what-if models in a process of its own, free of torch
    answer_requests({"export": _export_as_asked})
