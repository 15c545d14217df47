"""The weights that may be pruned, and how many zeros they hold."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.compress.depth import encoder_layers
from toolkit.families import LINEARS
from toolkit.record import describe_model


def prunable_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Name the weights that are pruned: the six linear ones of each encoder layer.

    Query, key, value, attention output, intermediate and output, whatever the architecture calls
    them. Never embeddings, pooler, LayerNorm, biases or the task's head.

    Returns:
        Parameters by their names in `state_dict()`, in its order; each (N, K).
    """
    layers = encoder_layers(model)
    linear = {
        id(module.weight)
        for layer in layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    }
    weights = {name: value for name, value in model.named_parameters() if id(value) in linear}
    assert len(weights) == len(LINEARS) * len(layers), f"{len(weights)} in {len(layers)} layers"
    return weights


def zero_share(weights: Iterable[torch.Tensor]) -> float:
    """Return the fraction of zeros in some weights."""
    weights = list(weights)
    return sum(map(_zeros, weights)) / sum(weight.numel() for weight in weights)


def describe_checkpoint(name: str, model: PreTrainedModel) -> dict[str, Any]:
    """Count layers, parameters and zeros: the `model` of a record."""
    weights = prunable_weights(model)
    parameters = list(model.parameters())
    return describe_model(
        name,
        layers=len(encoder_layers(model)),
        weights={key: (tuple(weight.shape), _zeros(weight)) for key, weight in weights.items()},
        parameters=sum(parameter.numel() for parameter in parameters),
        zeros=sum(map(_zeros, parameters)),
    )


def _zeros(weight: torch.Tensor) -> int:
    return weight.numel() - int(torch.count_nonzero(weight))
