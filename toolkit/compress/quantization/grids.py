"""The arithmetic of INT8, as pure functions: what a number becomes on a grid of integers.

Weights are symmetric, one scale per output: integers from -127 to 127, so that zero stays zero.
Inputs have one scale and one zero point per tensor: integers from 0 to 255, 0.0 among them exactly.
Shapes: N outputs and K inputs of a weight.
"""

from typing import NamedTuple

import torch

WEIGHT_MAX = 127  # -128 is left out: the grid is symmetric, and u8 · s8 sums stay smaller
INPUT_MAX = 255


class Grid(NamedTuple):
    """The integers of an input: `x ≈ scale · (q - zero_point)`, q in 0…255.

    Attributes:
        scale: () float32, positive.
        zero_point: () int32 in 0…255, the integer of 0.0.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor


def weight_scales(weight: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of each row over 127: (N,) float32; 1 for a row of zeros.

    Args:
        weight: (N, K) float32.
    """
    scales = weight.detach().abs().amax(dim=1) / WEIGHT_MAX
    return torch.where(scales > 0, scales, 1.0)


def weight_integers(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the nearest integers of `weight / scales`, ties to even: (N, K) int8."""
    integers = torch.round(weight.detach() / scales[:, None])
    return integers.clamp(-WEIGHT_MAX, WEIGHT_MAX).to(torch.int8)


def round_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight on its grid, (N, K) float32; gradients pass as if nothing were rounded."""
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -WEIGHT_MAX, WEIGHT_MAX)


def grid_of(low: torch.Tensor, high: torch.Tensor) -> Grid:
    """Return the grid that reaches from `low` to `high`, widened to hold 0.0.

    Args:
        low: () float32, smallest number to hold; `high`: the largest.

    Returns:
        The grid; of scale 1 where both are 0.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / INPUT_MAX
    scale = torch.where(scale > 0, scale, 1.0)
    zero_point = torch.round(-low / scale).clamp(0, INPUT_MAX)
    return Grid(scale.to(torch.float32), zero_point.to(torch.int32))


def round_input(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return an input on its grid, float32, what lies outside clipped to its ends.

    Gradients pass where nothing is clipped.
    """
    return torch.fake_quantize_per_tensor_affine(
        x.float(), grid.scale, grid.zero_point, 0, INPUT_MAX
    )
