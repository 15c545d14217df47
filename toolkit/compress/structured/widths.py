"""Encoder layers of different widths: what is left of each, and the model made of that."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.compress.depth import encoder_layers
from toolkit.families import LINEARS


class Kept(NamedTuple):
    """What stays of one encoder layer: numbers of heads and of neurons, each ascending."""

    heads: Sequence[int]
    neurons: Sequence[int]


def linears_of(layer: nn.Module) -> dict[str, nn.Linear]:
    """Return the six linear modules of an encoder layer, by the names of `families.LINEARS`."""
    modules = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    return dict(zip(LINEARS, modules, strict=True))  # every family defines them in this order


def head_size_of(layer: nn.Module) -> int:
    """Return the features of one attention head."""
    size = _attention_of(layer).attention_head_size
    assert isinstance(size, int)
    return size


def widths_of(model: PreTrainedModel) -> list[list[int]]:
    """Return [heads, neurons] of every encoder layer."""
    widths = []
    for layer in encoder_layers(model):
        linears = linears_of(layer)
        heads = linears["query"].out_features // head_size_of(layer)
        widths.append([heads, linears["intermediate"].out_features])
    return widths


def shrink(model: PreTrainedModel, kept: Sequence[Kept]) -> PreTrainedModel:
    """Remove all heads and neurons but those in `kept`, in place.

    Rows of query, key and value and columns of attention's output go with a head, a row of the
    intermediate and a column of the output weight with a neuron. `config` says what is left
    (`note_widths`).

    Args:
        model: Any of the families; its layers may have different widths already.
        kept: One per layer, at least one head and one neuron each.

    Returns:
        The same model.
    """
    for layer, (heads, neurons) in zip(encoder_layers(model), kept, strict=True):
        attention, size = _attention_of(layer), head_size_of(layer)
        rows = (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()
        linears = linears_of(layer)
        for name in ("query", "key", "value"):
            _select(linears[name], rows=rows)
        _select(linears["attention_output"], columns=rows)
        _select(linears["intermediate"], rows=torch.tensor(neurons))
        _select(linears["output"], columns=torch.tensor(neurons))
        for name in ("num_attention_heads", "n_heads"):
            if hasattr(attention, name):
                setattr(attention, name, len(heads))
        if hasattr(attention, "all_head_size"):
            attention.all_head_size = len(rows)
    note_widths(model)
    return model


def resize(model: PreTrainedModel, widths: Sequence[Sequence[int]]) -> PreTrainedModel:
    """Give a new model these [heads, neurons] per layer, in place, before weights are loaded.

    Raises:
        ValueError: They are not one pair per layer, of at least 1 and at most what the model has.
    """
    whole = widths_of(model)
    if len(widths) != len(whole) or not all(
        len(pair) == 2 and all(1 <= n <= most for n, most in zip(pair, full, strict=True))
        for pair, full in zip(widths, whole, strict=True)
    ):
        raise ValueError(
            f"layer_widths must be [heads, neurons] of each of the {len(whole)} layers, at least "
            f"[1, 1] and at most {whole[0]}; got {[list(pair) for pair in widths]}"
        )
    return shrink(model, [Kept(range(heads), range(neurons)) for heads, neurons in widths])


def note_widths(model: PreTrainedModel) -> None:
    """Write into `config` how wide the layers are: `layer_widths`, [heads, neurons] of each.

    A stock configuration has no number for fewer heads of the same size, nor for layers that
    differ. Where all heads are left and all layers have as many neurons, it can say so itself, and
    `layer_widths` is left out.
    """
    config: Any = model.config
    widths = widths_of(model)
    neurons = "hidden_dim" if config.model_type == "distilbert" else "intermediate_size"
    if all(width == [config.num_attention_heads, widths[0][1]] for width in widths):
        setattr(config, neurons, widths[0][1])
        if hasattr(config, "layer_widths"):
            del config.layer_widths
    else:
        config.layer_widths = widths


def _attention_of(layer: nn.Module) -> Any:
    return next(module for module in layer.modules() if hasattr(module, "attention_head_size"))


def _select(
    linear: nn.Linear, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> None:
    weight, bias = linear.weight.data, linear.bias.data
    if rows is not None:
        weight, bias = weight[rows.to(weight.device)], bias[rows.to(weight.device)]
        linear.bias = nn.Parameter(bias)
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    linear.weight = nn.Parameter(weight.contiguous())
    linear.out_features, linear.in_features = weight.shape
