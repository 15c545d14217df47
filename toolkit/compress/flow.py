"""Texts on their way through the encoder, layer by layer, so that none is run for those behind it.

B texts, T tokens, H features.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.compress.depth import encoder_layers

TextBatch = dict[str, torch.Tensor]  # the model's inputs, each (B, T)


@dataclass
class Flow:
    """One batch in front of a layer.

    Attributes:
        hidden: (B, T, H), what the layer takes.
        arguments: What else it takes, by position.
        keywords: And by name.
        is_token: (B, T) bool, False at padding.
        autocast: Arguments of `torch.autocast`, as they hold within the model: a Trainer puts
            mixed precision around the whole forward pass, not around a layer's.
    """

    hidden: torch.Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    is_token: torch.Tensor
    autocast: dict[str, Any]


def enter(model: PreTrainedModel, batch: TextBatch) -> Flow:
    """Run the embeddings, and whatever else comes before the first layer."""
    caught: list[Flow] = []

    def stop(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden, *rest = arguments
        device = hidden.device.type
        autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        is_token = batch["attention_mask"].bool()
        caught.append(Flow(hidden, tuple(rest), keywords, is_token, autocast))
        raise _Entered

    hook = encoder_layers(model)[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**batch)
    except _Entered:
        pass
    finally:
        hook.remove()
    return caught[0]


def on_device(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Move a batch to the model, without what only a teacher takes."""
    known = inspect.signature(type(model).forward).parameters
    return {name: part.to(model.device) for name, part in batch.items() if name in known}


def run_layer(layer: nn.Module, flow: Flow) -> torch.Tensor:
    """Return what a layer makes of `flow.hidden`, (B, T, H): the next layer's, once put there."""
    with torch.autocast(**flow.autocast):
        output = layer(flow.hidden, *flow.arguments, **flow.keywords)
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, torch.Tensor)
    return hidden


@contextmanager
def seen(modules: Sequence[nn.Module], made: bool = False) -> Iterator[list[torch.Tensor]]:
    """Note what the modules take - or what they give - in a list that is filled by their run."""
    values: list[Any] = [None] * len(modules)

    def note(at: int) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(_: nn.Module, taken: Any, given: torch.Tensor) -> None:
            values[at] = given if made else taken[0]

        return hook

    hooks = [module.register_forward_hook(note(i)) for i, module in enumerate(modules)]
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()


class _Entered(Exception):  # noqa: N818 - it is no error
    """Ends a forward pass in front of the first layer."""
