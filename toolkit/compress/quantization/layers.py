"""Linear layers that compute as their integers will, and the file that says how.

A layer becomes a `QuantizedLinear` by changing its class alone, so that names, parameters and
checkpoints stay those of the float model. Shapes: B texts, T tokens, K features.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from toolkit.compress.depth import encoder_layers
from toolkit.compress.quantization.grids import (
    Grid,
    grid_of,
    round_input,
    round_weight,
    weight_integers,
    weight_scales,
)
from toolkit.errors import InputError, UsageError, nearest
from toolkit.families import LINEARS
from toolkit.files import write_text

GRIDS_FILE = "quantization.json"  # beside a checkpoint's weights
SHARED = ("query", "key", "value")  # read the same input, so they share its grid


class Input:
    """What is known of the input of one or several layers.

    Attributes:
        grid: Where its numbers are rounded to; None before anything was seen.
        low: () float32, the smallest number that shall be held; `high`: the largest.
        factor: (K,) float32 that the features are multiplied by before they are rounded; None
            leaves them.
    """

    def __init__(self) -> None:
        self.grid: Grid | None = None
        self.low: torch.Tensor | None = None
        self.high: torch.Tensor | None = None
        self.factor: torch.Tensor | None = None

    def reach(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Take the grid from `low` to `high`, () float32 each."""
        self.low, self.high, self.grid = low, high, grid_of(low, high)


class QuantizedLinear(nn.Linear):
    """A linear layer of rounded inputs and rounded weights; parameters as `nn.Linear` has them.

    Attributes:
        input: Of this layer, shared by those that read the same.
        is_rounding: False computes in float.
    """

    input: Input
    is_rounding: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `round(weight) @ round(x) + bias`, (…, N)."""
        if self.input.factor is not None:
            x = x * self.input.factor
        if not self.is_rounding:
            return nn.functional.linear(x, self.weight, self.bias)
        assert self.input.grid is not None, "a layer without a grid"
        return nn.functional.linear(
            round_input(x, self.input.grid), round_weight(self.weight), self.bias
        )


@dataclass(frozen=True)
class Integers:
    """A quantized layer as arrays: `scale · weight @ (q(factor · x) - x_zero_point) · x_scale`.

    Attributes:
        weight: (N, K) int8.
        scale: (N,) float32.
        x_scale: Of the input.
        x_zero_point: In 0…255.
        factor: (K,) float32, or None.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    x_scale: float
    x_zero_point: int
    factor: NDArray[np.float32] | None


def encoder_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Name the six linear layers of each encoder layer: `layers.0.query` …, in order."""
    return {
        f"layers.{number}.{name}": module
        for number, layer in enumerate(encoder_layers(model))
        for name, module in zip(
            LINEARS, (part for part in layer.modules() if isinstance(part, nn.Linear)), strict=True
        )
    }


def quantized_linears(model: PreTrainedModel) -> dict[str, QuantizedLinear]:
    """Name those of them that are quantized."""
    return {
        name: module
        for name, module in encoder_linears(model).items()
        if isinstance(module, QuantizedLinear)
    }


def chosen_layers(names: Sequence[str], keep_float: Iterable[str]) -> list[str]:
    """Leave out the layers that `keep_float` names.

    Args:
        names: As `encoder_linears` has them.
        keep_float: Names, or patterns such as `layers.0.*` and `*.output`.

    Raises:
        UsageError: One fits no layer.
    """
    for pattern in keep_float:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"quantization.keep_float names '{pattern}', but no layer is called so; "
                f"{nearest(pattern, names)}"
            )
    return [name for name in names if not any(fnmatchcase(name, p) for p in keep_float)]


def quantize(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Make these layers `QuantizedLinear`, in place; their inputs are yet unseen."""
    linears, inputs = encoder_linears(model), dict[str, Input]()
    for name in names:
        layer, _, kind = name.rpartition(".")
        place = f"{layer}.input" if kind in SHARED else name
        module: Any = linears[name]
        module.__class__ = QuantizedLinear
        module.is_rounding = True
        module.input = inputs.setdefault(place, Input())


def unquantize(module: QuantizedLinear) -> None:
    """Make a layer an ordinary one again, in place, that computes in float what it did before."""
    if module.input.factor is not None:
        module.weight.data.mul_(module.input.factor)
    plain: Any = module
    plain.__class__ = nn.Linear
    for name in ("input", "is_rounding"):
        delattr(plain, name)


@contextmanager
def as_float(model: PreTrainedModel) -> Iterator[None]:
    """Let quantized layers be ordinary ones for a while, for those who would look inside.

    What `factor` does to inputs is left out then.
    """
    modules: list[Any] = list(quantized_linears(model).values())
    for module in modules:
        module.__class__ = nn.Linear
    try:
        yield
    finally:
        for module in modules:
            module.__class__ = QuantizedLinear


def round_weights(model: PreTrainedModel) -> None:
    """Put the weights of quantized layers on their grid, for good; zeros stay zeros."""
    with torch.no_grad():
        for module in quantized_linears(model).values():
            module.weight.copy_(round_weight(module.weight))


def round_words(model: PreTrainedModel) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round the word embeddings in place as weights are, each word by its own scale.

    Returns:
        The integers (V, E), and the scales (V, 1) float32.
    """
    table: Any = model.get_input_embeddings().weight
    scales = weight_scales(table)
    integers = weight_integers(table, scales)
    with torch.no_grad():
        table.copy_(integers * scales[:, None])
    return integers.cpu().numpy(), scales[:, None].cpu().numpy()


def integers_of(model: PreTrainedModel) -> dict[str, Integers]:
    """Return the quantized layers as arrays, by name."""
    found = {}
    for name, module in quantized_linears(model).items():
        scales, grid, factor = weight_scales(module.weight), module.input.grid, module.input.factor
        assert grid is not None
        found[name] = Integers(
            weight_integers(module.weight, scales).cpu().numpy(),
            scales.cpu().numpy(),
            float(grid.scale),
            int(grid.zero_point),
            None if factor is None else factor.cpu().numpy(),
        )
    return found


def write_grids(model: PreTrainedModel, folder: Path) -> None:
    """Note the grids of the inputs beside a checkpoint; those of weights follow from the weights.

    Nothing is written for a model without quantized layers.
    """
    layers = {
        name: {"scale": integers.x_scale, "zero_point": integers.x_zero_point}
        for name, integers in integers_of(model).items()
    }
    if layers:
        facts = {"weights": "int8", "inputs": "uint8", "layers": layers}
        write_text(folder / GRIDS_FILE, json.dumps(facts, indent=1) + "\n")


def read_grids(model: PreTrainedModel, folder: Path) -> bool:
    """Quantize the layers that the file in a checkpoint names; False if there is no such file.

    Raises:
        InputError: It is damaged, or of another model.
    """
    path = folder / GRIDS_FILE
    if not path.is_file():
        return False
    try:
        layers: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["layers"]
        grids = {name: (float(at["scale"]), int(at["zero_point"])) for name, at in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}): train again, or remove it to "
            "export in float32"
        ) from None
    known = encoder_linears(model)
    for name, (scale, zero_point) in grids.items():
        if name not in known or not 0 < scale < float("inf") or not 0 <= zero_point <= 255:
            raise InputError(
                f"{path} gives {name} the scale {scale:g} and the zero point {zero_point}: it is "
                "damaged, or of another model"
            )
    quantize(model, grids)
    for name, module in quantized_linears(model).items():
        scale, zero_point = grids[name]
        module.input.grid = Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32))
    return True


def describe_quantization(model: PreTrainedModel, method: str) -> dict[str, Any]:
    """Say what of a model is quantized: the `quantization` of a record's `model`, if anything is.

    Args:
        method: How the inputs' grids were found: `qat`, or the calibration's name.
    """
    chosen = quantized_linears(model)
    kept = [name for name in encoder_linears(model) if name not in chosen]
    if not chosen:
        return {}
    facts = {"precision": "int8", "method": method, "layers": len(chosen), "kept_float": kept}
    return {"quantization": facts}
