"""Layer dropping: which encoder layers stay, and a smaller but ordinary model made of them."""

import math

from torch import nn
from transformers import PreTrainedModel

from toolkit.config import DepthConfig
from toolkit.errors import UsageError


def kept_layers(num_layers: int, depth: DepthConfig) -> list[int]:
    """Choose the encoder layers that stay.

    `depth.num_layers` = k spaces them evenly: layer i of k stays at floor(i · stride), the last one
    at the end. The stride is n / (k - 1) rounded down to a whole number, which gives the published
    lists (12 → 6: 0 2 4 6 8 11; 12 → 3: 0 6 11). Where that would leave a hole before the last
    layer it is rounded down to halves, then quarters and so on: 12 → 9 has stride 1.5 and gives
    0 1 3 4 6 7 9 10 11.

    Args:
        num_layers: Encoder layers n of the model, at least 1.
        depth: `keep` or `drop` overrides `num_layers`; all None keeps all.

    Returns:
        Layer numbers in ascending order, first and last layer among them unless `keep` says
        otherwise (a single layer is the first).

    Raises:
        UsageError: More layers are asked for than there are.

    Source: layers dropped by the recipes of Neural Magic (2021), "bert-base-6layers" and
        "bert-base-3layers".
    """
    for field in ("keep", "drop"):
        named = getattr(depth, field)
        if named is not None and named[-1] >= num_layers:
            raise UsageError(
                f"depth.{field}={list(named)} names layer {named[-1]}, but the model has only "
                f"{num_layers} layers, numbered from 0"
            )
    if depth.keep is not None:
        return list(depth.keep)
    if depth.drop is not None:
        if len(depth.drop) == num_layers:
            raise UsageError(f"depth.drop names all {num_layers} layers: keep at least one")
        return [layer for layer in range(num_layers) if layer not in depth.drop]
    count = num_layers if depth.num_layers is None else depth.num_layers
    if count > num_layers:
        raise UsageError(
            f"depth keeps {count} layers, but the model has only {num_layers}: choose at most that "
            "many, or depth=full"
        )
    if count == 1:
        return [0]
    parts = 1  # the stride is a multiple of 1 / parts
    while True:
        stride = (num_layers * parts // (count - 1)) / parts
        keep = [math.floor(i * stride) for i in range(count - 1)] + [num_layers - 1]
        # At most one layer more than elsewhere; ends at the latest when the stride is exact.
        if keep[-1] - keep[-2] <= math.ceil(stride) + 1:
            return keep
        parts *= 2


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Find the list of encoder layers of BERT, RoBERTa, ELECTRA and their kin, or of DistilBERT."""
    is_distilbert = model.config.model_type == "distilbert"
    layers = model.base_model.get_submodule(
        "transformer.layer" if is_distilbert else "encoder.layer"
    )
    assert isinstance(layers, nn.ModuleList)
    return layers


def drop_layers(model: PreTrainedModel, keep: list[int]) -> PreTrainedModel:
    """Drop all encoder layers but `keep`, in place.

    The kept layers are renumbered from 0 and `config` says how many there are, so that the saved
    model is an ordinary smaller one.

    Args:
        model: Any of the architectures of `toolkit.compress.model.ARCHITECTURES`.
        keep: Layer numbers as `kept_layers` returns them.

    Returns:
        The same model.
    """
    layers = encoder_layers(model)
    for new, old in enumerate(keep):  # ascending, so none is overwritten before it has moved
        layers[new] = layers[old]
    del layers[len(keep) :]
    if (widths := getattr(model.config, "layer_widths", None)) is not None:
        model.config.layer_widths = [widths[layer] for layer in keep]
    model.config.num_hidden_layers = len(keep)  # DistilBERT maps this name to its n_layers
    return model
