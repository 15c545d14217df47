"""From texts to what stays of every layer: the removal paths of a model, and a choice on them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.compress.depth import encoder_layers
from toolkit.compress.flow import TextBatch
from toolkit.compress.model import input_names
from toolkit.compress.structured.calibrate import REPAIRED, input_grams, output_sensitivities
from toolkit.compress.structured.choice import choose
from toolkit.compress.structured.order import RemovalPath, removal_path
from toolkit.compress.structured.widths import Kept, head_size_of, linears_of
from toolkit.tasks.features import collate

# Neurons go so many at a time, one tile of the kernels' rows, and more of a layer with more than
# `STEPS` of these. The engine's time is a line in their number, so finer steps would gain nothing.
NEURON_MULTIPLE = 16
STEPS = 96
BATCH = 32  # calibration texts that run together

Costs = Callable[[Sequence[int], bool], Sequence[float]]  # of numbers of units; in the last layer?


class LayerPaths(NamedTuple):
    """How one layer shrinks: numbers of heads and of neurons it can have, and in which order.

    `heads[i]` are left after i steps of `attention`, likewise `neurons` of `feed_forward`.
    """

    attention: RemovalPath
    heads: list[int]
    feed_forward: RemovalPath
    neurons: list[int]


def calibration_batches(
    model: PreTrainedModel, features: Sequence[dict[str, Any]], count: int, seed: int
) -> list[TextBatch]:
    """Draw `count` texts (all, if there are fewer); those of similar lengths share a batch."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(features), generator=generator)[:count].tolist()
    texts = sorted((features[i] for i in drawn), key=lambda text: len(text["input_ids"]))
    names, pad_id = input_names(model), model.config.pad_token_id or 0
    batches = []
    for start in range(0, len(texts), BATCH):
        arrays = collate(texts[start : start + BATCH], pad_id)
        batches.append({name: torch.from_numpy(arrays[name]).to(model.device) for name in names})
    return batches


def removal_paths(model: PreTrainedModel, batches: Sequence[TextBatch]) -> list[LayerPaths]:
    """Find in which order every layer's units go; errors are in units of the loss (nats per token).

    The least that stays is one head and `NEURON_MULTIPLE` neurons, so that the graph remains an
    ordinary one, which every engine runs.
    """
    grams = input_grams(model, batches)
    sensitivities = output_sensitivities(model, batches)
    paths = []
    for layer, gram, sensitivity in zip(encoder_layers(model), grams, sensitivities, strict=True):
        linears = linears_of(layer)
        weights = {
            name: linears[name].weight.detach().cpu().double() * sensitivity[name].sqrt()[:, None]
            for name in REPAIRED
        }
        size, neurons = head_size_of(layer), linears["output"].in_features
        heads = linears["attention_output"].in_features // size
        first = removal_path(weights["attention_output"], gram["attention_output"], size, 1, 1)
        least = min(NEURON_MULTIPLE, neurons)
        per_step = NEURON_MULTIPLE * math.ceil(neurons / (STEPS * NEURON_MULTIPLE))
        second = removal_path(weights["output"], gram["output"], 1, per_step, least)
        counts = [max(neurons - per_step * step, least) for step in range(len(second.errors))]
        paths.append(LayerPaths(first, list(range(heads, 0, -1)), second, counts))
    return paths


def choose_kept(
    paths: Sequence[LayerPaths], attention_ms: Costs, feed_forward_ms: Costs, budget_ms: float
) -> list[Kept] | None:
    """Choose what stays of every layer: least error within the budget.

    Args:
        paths: Of every layer.
        attention_ms: Time of attention with so many heads, in one layer.
        feed_forward_ms: Time of the feed-forward part with so many neurons.
        budget_ms: Time for all layers together.

    Returns:
        None if the narrowest layers take longer.
    """
    costs, errors = [], []
    for number, path in enumerate(paths):
        is_last = number == len(paths) - 1
        costs += [attention_ms(path.heads, is_last), feed_forward_ms(path.neurons, is_last)]
        errors += [path.attention.errors, path.feed_forward.errors]
    chosen = choose(costs, errors, budget_ms) if budget_ms > 0 else None
    if chosen is None:
        return None
    kept = []
    for path, heads, neurons in zip(paths, chosen[::2], chosen[1::2], strict=True):
        numbers = path.attention.order[-path.heads[heads] :]
        kept.append(
            Kept(sorted(numbers), sorted(path.feed_forward.order[-path.neurons[neurons] :]))
        )
    return kept
