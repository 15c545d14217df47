"""INT8 without training: the inputs' ranges from texts, outliers moved, sensitive layers kept.

Shapes: B texts, T tokens, N outputs and K inputs of a layer.
"""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.compress.flow import TextBatch, seen
from toolkit.compress.model import check_vocabulary, input_names, longest_text_of
from toolkit.compress.quantization.layers import (
    QuantizedLinear,
    chosen_layers,
    encoder_linears,
    quantize,
    quantized_linears,
    read_grids,
    round_weights,
    unquantize,
)
from toolkit.compress.quantization.ranges import BINS, choose_range
from toolkit.config import ExportRoot, QuantizationConfig, TaskConfig
from toolkit.errors import UsageError
from toolkit.progress import bar
from toolkit.tasks import encode, evaluate, kind_of, load_examples
from toolkit.tasks.features import Feature, collate, load_tokenizer

BATCH_SIZE = 8  # texts run at once; the inputs of all layers are held that long
RANDOM_TEXTS = 16  # of random ids, for a model whose outputs mean nothing
RANDOM_LENGTH = 64  # tokens of the longest of them

Modules = Mapping[str, QuantizedLinear]


def quantize_for_export(
    config: ExportRoot, model: PreTrainedModel, checkpoint: Path, tokenized: Path
) -> dict[str, Any]:
    """Quantize as the checkpoint was trained to be, or by calibration if that is asked for.

    Args:
        checkpoint: Its folder.
        tokenized: The folder of its tokenizer.

    Returns:
        `method`, and what calibration tells; empty for a model that stays in float32.
    """
    facts: dict[str, Any] = {}
    if read_grids(model, checkpoint):
        facts = {"method": "qat"}
    elif config.quantization.is_on:
        facts = {"method": config.quantization.calibration.value}
        facts |= calibrate(config, model, tokenized)
    round_weights(model)
    return facts


def calibrate(config: ExportRoot, model: PreTrainedModel, checkpoint: Path) -> dict[str, Any]:
    """Quantize a float model, in place, as `config.quantization` says.

    Args:
        checkpoint: Its folder. The texts are the task's training texts if a tokenizer is there and
            the model is trained; random ids otherwise, by which nothing is judged.

    Returns:
        What `export.json` tells: the texts, each layer's sensitivity and range, and where
        `max_loss` is set the metric before and after.

    Raises:
        InputError: The task's texts cannot be read, or the tokenizer is another model's.
        UsageError: `keep_float` names no layer, or `max_loss` cannot be measured.
    """
    options = config.quantization
    names = chosen_layers(list(encoder_linears(model)), options.keep_float)
    is_real = config.checkpoint is not None and (checkpoint / "tokenizer.json").is_file()
    if options.max_loss is not None and not is_real:
        raise UsageError(
            "quantization.max_loss is measured by the task's metric: it needs checkpoint=DIR, a "
            "fine-tuned one with its tokenizer"
        )
    if is_real:
        task = _task(config, model)
        features = _training_texts(task, model, checkpoint, options, config.seed)
        texts = f"{len(features)} training texts of task={task.name}"
    else:
        features = _random_texts(model, config.seed)
        texts = f"{len(features)} texts of random ids"
    quantize(model, names)
    modules = quantized_linears(model)
    find_ranges(model, modules, list(text_batches(model, features)), options)
    ranges = {name: (module.input.low, module.input.high) for name, module in modules.items()}
    changes: dict[str, float] = {}
    if is_real and options.num_sensitivity_examples > 0:
        few = list(text_batches(model, features[: options.num_sensitivity_examples]))
        changes = sensitivities(model, modules, few)
    facts: dict[str, Any] = {"texts": texts}
    if options.max_loss is not None:
        judge = _judge(task, model, checkpoint, config.seed)
        facts["metric"] = keep_most_sensitive(modules, changes, judge, options.max_loss)
    left = quantized_linears(model)
    facts["layers"] = [
        {
            "name": name,
            "is_quantized": name in left,
            "change": changes.get(name),
            "range": [float(end) for end in ranges[name] if end is not None],
        }
        for name in modules
    ]
    return facts


def find_ranges(
    model: PreTrainedModel,
    modules: Modules,
    batches: Sequence[TextBatch],
    options: QuantizationConfig,
) -> None:
    """Give every input its range, in place, and before that its factor if `smooth` is set.

    The model computes in float meanwhile; padding is not looked at.
    """
    sharing: dict[int, list[QuantizedLinear]] = {}
    for module in modules.values():
        sharing.setdefault(id(module.input), []).append(module)
    groups = list(sharing.values())
    firsts = [group[0] for group in groups]
    low = [torch.full((first.in_features,), torch.inf) for first in firsts]
    high = [torch.full((first.in_features,), -torch.inf) for first in firsts]
    for i, x in _inputs(model, modules, firsts, batches):
        low[i] = torch.minimum(low[i], x.amin(dim=0))
        high[i] = torch.maximum(high[i], x.amax(dim=0))
    for i, group in enumerate(groups):
        if options.smooth is not None:
            largest = torch.maximum(low[i].abs(), high[i].abs())
            factor = smoothing_factor(largest, [m.weight for m in group], options.smooth)
            group[0].input.factor = factor
            low[i], high[i] = low[i] * factor, high[i] * factor
            for module in group:
                module.weight.data.div_(factor)
    edges = [
        np.linspace(float(low[i].min()), float(high[i].max()), BINS + 1) for i in range(len(groups))
    ]
    counts = [np.zeros(BINS) for _ in groups]
    for i, x in _inputs(model, modules, firsts, batches):
        factor_or_none = firsts[i].input.factor
        x = x if factor_or_none is None else x * factor_or_none
        counts[i] += torch.histc(x, BINS, edges[i][0], edges[i][-1]).numpy()
    for i, first in enumerate(firsts):
        ends = choose_range(counts[i], edges[i], options)
        first.input.reach(*torch.tensor(ends, dtype=torch.float32, device=first.weight.device))


def smoothing_factor(
    largest: torch.Tensor, weights: Sequence[torch.Tensor], strength: float
) -> torch.Tensor:
    """Return what features are multiplied by, and the columns of `weights` divided by.

    `max|w|^(1-strength) / max|x|^strength`, rounded to a power of two, by which floats are
    multiplied exactly.

    Args:
        largest: (K,) float32, each feature's largest magnitude.
        weights: Of the layers that read it, (N, K) each.
        strength: In [0, 1]; 1 makes all features equally large, 0 all columns of the weights.

    Source: Xiao et al. 2023, "SmoothQuant", equation 4.
    """
    columns = torch.stack([w.detach().abs().amax(dim=0) for w in weights]).amax(dim=0)
    power = torch.round((1 - strength) * torch.log2(columns) - strength * torch.log2(largest))
    is_known = (columns > 0) & (largest > 0)
    return torch.where(is_known, torch.exp2(power), 1.0)


def sensitivities(
    model: PreTrainedModel, modules: Modules, batches: Sequence[TextBatch]
) -> dict[str, float]:
    """Return by how much the model's outputs change when one layer alone is quantized.

    Returns:
        By layer: root mean square of the change over that of the float outputs.
    """
    with rounding_only(modules, ()):
        expected = _outputs(model, batches)
    changes = {}
    for name in bar(modules, "sensitivity of layers"):
        with rounding_only(modules, [name]):
            error = _outputs(model, batches) - expected
        changes[name] = float(error.square().mean().sqrt() / expected.square().mean().sqrt())
    return changes


def keep_most_sensitive(
    modules: Modules, changes: Mapping[str, float], judge: Callable[[], float], max_loss: float
) -> dict[str, float]:
    """Put layers back to float, the most sensitive first, until the metric has lost little enough.

    Args:
        modules: Quantized layers by name.
        changes: Their sensitivities.
        judge: Measures the metric, in percent.
        max_loss: Points that may be lost; with no layer quantized none are.

    Returns:
        The metric as `float32` and, with the layers that are left, as `int8`.
    """
    with rounding_only(modules, ()):
        in_float = judge()
    order = sorted(modules, key=lambda name: -changes[name])
    kept: list[str] = []
    while in_float - (value := judge()) > max_loss and len(kept) < len(order):
        kept.append(order[len(kept)])
        modules[kept[-1]].is_rounding = False
    for name in kept:
        unquantize(modules[name])
    return {"float32": in_float, "int8": value}


@contextmanager
def rounding_only(modules: Modules, names: Collection[str]) -> Iterator[None]:
    """Let only these layers round for a while, the others compute in float."""
    before = {name: module.is_rounding for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.is_rounding = name in names
        yield
    finally:
        for name, module in modules.items():
            module.is_rounding = before[name]


def text_batches(model: PreTrainedModel, features: Sequence[Feature]) -> Iterator[TextBatch]:
    """Make batches of the model's inputs, in the features' order."""
    names, pad_id = input_names(model), model.config.pad_token_id or 0
    for start in range(0, len(features), BATCH_SIZE):
        batch = collate(features[start : start + BATCH_SIZE], pad_id)
        yield {name: torch.from_numpy(batch[name]) for name in names}


def _inputs(
    model: PreTrainedModel,
    modules: Modules,
    watched: Sequence[nn.Module],
    batches: Sequence[TextBatch],
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield what each watched layer takes of every batch, (tokens, K), padding left out."""
    with torch.inference_mode(), rounding_only(modules, ()), seen(watched) as values:
        for batch in bar(batches, "calibrating"):
            model(**batch)
            is_token = batch["attention_mask"].bool()
            yield from ((i, value[is_token].float().cpu()) for i, value in enumerate(values))


def _outputs(model: PreTrainedModel, batches: Sequence[TextBatch]) -> torch.Tensor:
    """Return all outputs in one row, those of padding left out."""
    found = []
    with torch.inference_mode():
        for batch in batches:
            is_token = batch["attention_mask"].bool()
            for output in model(**batch).values():
                of_tokens = output.shape[:2] == is_token.shape
                found.append((output[is_token] if of_tokens else output).flatten())
    return torch.cat(found)


def _task(config: ExportRoot, model: PreTrainedModel) -> TaskConfig:
    longest = min(config.task.max_length, longest_text_of(model.config))
    return replace(config.task, max_length=longest)


def _training_texts(
    task: TaskConfig,
    model: PreTrainedModel,
    checkpoint: Path,
    options: QuantizationConfig,
    seed: int,
) -> Sequence[Feature]:
    """Draw training examples and encode them."""
    examples, count = load_examples(task, "train", seed), options.num_calibration_examples
    drawn = random.Random(seed).sample(examples, min(count, len(examples)))
    features = encode(drawn, load_tokenizer(checkpoint), task, training=True)[:count]
    check_vocabulary(features, model, checkpoint)
    return features


def _random_texts(model: PreTrainedModel, seed: int) -> list[Feature]:
    rng, longest = np.random.default_rng(seed), longest_text_of(model.config)
    lowest = min((model.config.pad_token_id or 0) + 1, model.config.vocab_size - 1)
    lengths = rng.integers(1, min(longest, RANDOM_LENGTH) + 1, RANDOM_TEXTS)
    return [
        {
            "input_ids": rng.integers(lowest, model.config.vocab_size, length),
            "attention_mask": np.ones(length, np.int64),
            "token_type_ids": np.zeros(length, np.int64),
        }
        for length in lengths
    ]


def _judge(
    task: TaskConfig, model: PreTrainedModel, checkpoint: Path, seed: int
) -> Callable[[], float]:
    """Return what measures the task's main metric, in percent, on its evaluation examples."""
    examples = load_examples(task, "eval", seed)
    features = encode(examples, load_tokenizer(checkpoint), task, training=False)
    order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
    names = kind_of(task).OUTPUTS

    def judge() -> float:
        rows = []
        with torch.inference_mode():
            for batch in text_batches(model, [features[i] for i in order]):
                answer = model(**batch)
                rows += list(zip(*(answer[name].numpy() for name in names), strict=True))
        outputs: list[Any] = [None] * len(rows)
        for i, row in zip(order, rows, strict=True):
            outputs[i] = np.stack(row) if len(names) > 1 else row[0]
        return next(iter(evaluate(task, examples, features, outputs).values()))

    return judge
