"""The proof of an export: every engine computes what torch does, and no zero is lost.

Letters: B texts, T tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from toolkit.artifact.agreement import Batch, Run, largest_difference, onnxruntime_run
from toolkit.compress.model import check_vocabulary, longest_text_of
from toolkit.compress.quantization.calibration import rounding_only
from toolkit.compress.quantization.layers import quantized_linears
from toolkit.compress.sparsity.weights import prunable_weights
from toolkit.config import ExportRoot, Values
from toolkit.engine import Engine
from toolkit.engine.reader.graph import read_graph
from toolkit.errors import GateError, UsageError
from toolkit.families import LINEARS
from toolkit.tasks import encode, load_examples
from toolkit.tasks.features import collate, load_tokenizer

PARITY_LENGTHS = (1, 2, 3, 17)  # tokens, besides real texts and the longest the model allows


def parity_batches(
    config: ExportRoot, model: PreTrainedModel, checkpoint: Path, inputs: Sequence[str]
) -> tuple[list[Batch], str]:
    """Make what the engines are compared on: the task's texts alone and padded, and many lengths.

    Returns:
        Batches of the graph's inputs, (B, T) int64 each; and where the texts came from: only a
        checkpoint without a tokenizer is compared on random ids.

    Raises:
        InputError: The task's texts cannot be read, or the tokenizer is another model's.
    """
    longest, pad_id = longest_text_of(model.config), model.config.pad_token_id or 0
    rng = np.random.default_rng(config.seed)
    count = config.export.num_parity_examples
    task = replace(
        config.task,
        max_length=min(config.task.max_length, longest),
        max_eval_samples=min(config.task.max_eval_samples or count, count),
    )
    if (checkpoint / "tokenizer.json").is_file():
        examples = load_examples(task, "eval", config.seed)
        features = encode(examples, load_tokenizer(checkpoint), task, training=False)[:count]
        check_vocabulary(features, model, checkpoint)
        texts = f"{len(features)} texts of task={task.name}"
    else:
        features = [
            _random_feature(rng, model, length)
            for length in rng.integers(2, min(longest, 64) + 1, count)
        ]
        texts = "random ids, because the checkpoint has no tokenizer"
    groups = [features, features[:1]]
    groups += [
        [_random_feature(rng, model, length)]
        for length in {*PARITY_LENGTHS, longest} - {0}
        if length <= longest
    ]
    batches = [collate(group, pad_id) for group in groups]
    return [{name: batch[name] for name in inputs} for batch in batches], texts


def check_parity(
    config: ExportRoot, model: PreTrainedModel, onnx: Path, batches: Sequence[Batch]
) -> dict[str, Any]:
    """Compare every engine with torch.

    Returns:
        Per engine the largest absolute difference of any output where there is no padding (null
        where the engine is not installed), the tolerance, the batches' shapes, and the kernel and
        zeros of each of the sparse engine's layers.

    Raises:
        GateError: A difference exceeds `export.atol`.
    """
    torch_outputs, is_quantized = torch_run(model), bool(quantized_linears(model))
    expected = [torch_outputs(batch) for batch in batches]
    rounding = rounding_error(model, batches, expected) if is_quantized else 0.0
    # either of two that round may be so far from float, in opposite directions
    atol = config.export.atol + 2.0 * rounding
    try:
        asked = config.engine
        # torch's threads still compete for the CPU, so timings taken here would be wrong; the file
        # is judged in float32, whatever the engine may compute in later
        engine = Engine.load(onnx, asked.num_threads, asked.isa, asked.kernel, keep_timings=False)
    except ValueError as error:  # no such ISA or kernel here
        raise UsageError(str(error)) from error
    runs: dict[str, Run | None] = {"sparse": engine.run, "onnxruntime": onnxruntime_run(onnx)}
    differences: dict[str, float | None] = {}
    for name, run in runs.items():
        if run is None:
            differences[name] = None
            continue
        differences[name] = worst = max(
            largest_difference(run(batch), outputs, batch["attention_mask"])
            for batch, outputs in zip(batches, expected, strict=True)
        )
        if not worst <= atol:
            allowed = f"export.atol={config.export.atol:g}"
            if is_quantized:
                allowed += f" and twice the {rounding:.2g} that rounding to INT8 makes"
            raise GateError(
                f"the outputs of engine {name} differ from torch's by {worst:.2g}, more than "
                f"{allowed}: the export was not kept"
            )
    return {
        "max_difference": differences,
        "atol": atol,
        "batches": [list(batch["input_ids"].shape) for batch in batches],
        "kernels": {name: _kernel(weight) for name, weight in engine.weights()},
    }


def rounding_error(
    model: PreTrainedModel, batches: Sequence[Batch], expected: Sequence[Batch]
) -> float:
    """Return by how much a quantized model's outputs differ at most from those in float.

    Engines add up in different orders, so a number that lies between two integers may become the
    other one, and more of them follow from it: what two engines differ by is rounding error again.

    Args:
        batches: Inputs.
        expected: The quantized model's outputs.
    """
    with rounding_only(quantized_linears(model), ()):
        outputs = [torch_run(model)(batch) for batch in batches]
    return max(
        largest_difference(found, quantized, batch["attention_mask"])
        for batch, found, quantized in zip(batches, outputs, expected, strict=True)
    )


def check_zeros(model: PreTrainedModel, onnx: Path) -> dict[str, Any]:
    """Count the zeros of every prunable weight in the checkpoint and in the ONNX file.

    Raises:
        GateError: They differ.
    """
    written = [getattr(layer, name).weight for layer in read_graph(onnx).layers for name in LINEARS]
    tensors = []
    for (name, weight), array in zip(prunable_weights(model).items(), written, strict=True):
        counts = [weight.numel() - int(torch.count_nonzero(weight))]
        counts.append(array.size - int(np.count_nonzero(array)))
        if counts[0] != counts[1] or array.shape != tuple(weight.shape):
            raise GateError(
                f"{name} of shape {tuple(weight.shape)} has {counts[0]} zeros in the checkpoint, "
                f"but {counts[1]} of shape {array.shape} in ONNX: the export was not kept"
            )
        tensors.append({"name": name, "elements": array.size, "zeros": counts[1]})
    zeros, elements = (sum(t[key] for t in tensors) for key in ("zeros", "elements"))
    return {"encoder": zeros / elements, "equal_to_checkpoint": True, "tensors": tensors}


def check_sparse(
    config: ExportRoot, onnx: Path, sparse: Path, batches: Sequence[Batch]
) -> dict[str, Any]:
    """Compare what the engine computes of a sparse file with what it computes of the ONNX file.

    Returns:
        What float32 weights are stored as, the file's bytes, and the largest difference: exactly 0
        unless they were rounded.

    Raises:
        GateError: It is not.
    """
    asked = config.engine
    exact, found = (
        Engine.load(file, asked.num_threads, asked.isa, asked.kernel, keep_timings=False)
        for file in (onnx, sparse)
    )
    worst = max(
        largest_difference(found.run(batch), exact.run(batch), batch["attention_mask"])
        for batch in batches
    )
    if config.export.values is Values.fp32 and worst != 0.0:
        raise GateError(
            f"{sparse.name} computes other numbers than {onnx.name}, by up to {worst:.2g}: the "
            "export was not kept"
        )
    values = config.export.values.value
    return {"values": values, "bytes": sparse.stat().st_size, "max_difference": worst}


def torch_run(model: PreTrainedModel, is_bf16: bool = False) -> Run:
    """Return how torch runs a model, in bfloat16 under autocast if so asked; float32 outputs."""

    def run(batch: Batch) -> Batch:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            outputs = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
        return {name: tensor.float().numpy() for name, tensor in outputs.items()}

    return run


def _random_feature(rng: np.random.Generator, model: PreTrainedModel, length: int) -> Any:
    """One text of random ids, none of them padding."""
    ids = rng.integers(0, model.config.vocab_size, length)
    pad_id = model.config.pad_token_id or 0
    ids[ids == pad_id] = pad_id + 1
    types = rng.integers(0, getattr(model.config, "type_vocab_size", 1) or 1, length)
    return {"input_ids": ids, "attention_mask": np.ones(length), "token_type_ids": types}


def _kernel(weight: Any) -> dict[str, Any]:
    return {"kernel": weight.form, "sparsity": 1.0 - weight.density}
