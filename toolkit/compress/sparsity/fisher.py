"""Second-order pruning by the empirical Fisher matrix: what dropping a weight costs, and how the
others make up for it.

The matrix is block-diagonal: B consecutive weights of a matrix, rows after one another, make one
block. M: blocks of a weight, padded to M · B weights where it has fewer.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from toolkit.config import FisherOptions

GIB = 2**30
GRADIENTS_AT_ONCE = 16  # added to the matrices together: one pass over them in memory
BLOCKS_AT_ONCE = 4096  # inverted together, in float64


def add_gradients(fisher: torch.Tensor, gradients: torch.Tensor) -> None:
    """Add the outer products of gradients to the blocks of a matrix, in place.

    Args:
        fisher: (M, B, B) float32.
        gradients: (G, N · K) float32, each a gradient of the whole weight.
    """
    blocks, size, _ = fisher.shape
    padded = F.pad(gradients, (0, blocks * size - gradients.shape[1]))
    parts = padded.reshape(-1, blocks, size).transpose(0, 1)  # (M, G, B)
    fisher.baddbmm_(parts.transpose(1, 2), parts)


def invert_fisher(fisher: torch.Tensor, num_gradients: int, damping: float) -> torch.Tensor:
    """Invert `sum / num_gradients + damping · I` block by block, in float64, in place.

    Args:
        fisher: (M, B, B) float32, sums of outer products.
        num_gradients: Gradients summed up.
        damping: > 0.

    Returns:
        The same tensor, the inverse.
    """
    eye = torch.eye(fisher.shape[1], dtype=torch.float64, device=fisher.device)
    for part in fisher.split(BLOCKS_AT_ONCE):
        part.copy_(torch.linalg.inv(part.double() / num_gradients + damping * eye))
    return fisher


def obs_scores(weight: torch.Tensor, inverse: torch.Tensor, group: int = 1) -> torch.Tensor:
    """Estimate how much the loss grows when a weight, or a group of neighbours, is dropped.

    A single weight costs `w² / (2 · F⁻¹[q, q])`, a group `w_Q · (F⁻¹[Q, Q])⁻¹ · w_Q / 2`, spread
    evenly over its members.

    Args:
        weight: (N, K).
        inverse: (M, B, B), of the damped Fisher matrix.
        group: Consecutive weights dropped together; divides B and K.

    Returns:
        (N, K) float32, not negative.

    Source: Kurtic et al. 2022, "The Optimal BERT Surgeon", equations 4 and 5.
    """
    values = _blocks(weight, inverse)  # (M, B)
    if group == 1:
        scores = values.square() / (2.0 * inverse.diagonal(dim1=1, dim2=2))
    else:
        scores = torch.empty_like(values)
        for first in range(0, values.shape[1], group):
            part = slice(first, first + group)
            w = values[:, part, None]  # (M, group, 1)
            solved = torch.linalg.solve(inverse[:, part, part], w)
            scores[:, part] = (w * solved).sum(1) / (2.0 * group)
    return scores.flatten()[: weight.numel()].reshape(weight.shape)


def obs_update(weight: torch.Tensor, inverse: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute what the kept weights change by, to make up for those that are dropped.

    `-F⁻¹[:, Q] · (F⁻¹[Q, Q])⁻¹ · w_Q` for the dropped weights Q of each block: with a single one q
    this is `-w_q · F⁻¹[:, q] / F⁻¹[q, q]`.

    Args:
        weight: (N, K), not yet masked.
        inverse: (M, B, B), of the damped Fisher matrix.
        mask: (N, K) bool, True where kept.

    Returns:
        (N, K) float32; adding it makes dropped weights zero, up to rounding.

    Source: Kurtic et al. 2022, "The Optimal BERT Surgeon", equation 5.
    """
    values = _blocks(weight, inverse)
    dropped = ~_blocks(mask, inverse)  # padding counts as dropped: its weights are zero
    update = torch.empty_like(values)
    for part in torch.arange(len(values), device=values.device).split(BLOCKS_AT_ONCE):
        f, q, w = inverse[part].double(), dropped[part], values[part].double()
        # Rows and columns of kept weights become those of the identity: one solve for all blocks.
        both = q[:, :, None] & q[:, None, :]
        system = torch.where(both, f, torch.eye(f.shape[1], dtype=f.dtype, device=f.device))
        solved = torch.linalg.solve(system, (w * q)[:, :, None])
        update[part] = -(f @ solved)[:, :, 0].float()
    return update.flatten()[: weight.numel()].reshape(weight.shape)


def groups_that_fit(weights: Mapping[str, torch.Tensor], fisher: FisherOptions) -> list[list[str]]:
    """Split weights into passes, each of which stays within `memory_gib` (at least one weight).

    A weight takes 4 bytes for each of its B columns of the matrix and each of the gradients that
    are added together.
    """
    room = fisher.memory_gib * GIB
    passes: list[list[str]] = []
    used = room
    for name, weight in weights.items():
        size = 4.0 * weight.numel() * (fisher.block + GRADIENTS_AT_ONCE)
        if used + size > room:
            passes.append([])
            used = 0.0
        passes[-1].append(name)
        used += size
    return passes


def inverse_fisher(
    weights: Mapping[str, nn.Parameter],
    backward: Callable[[Any], None],
    batches: Iterable[Any],
    fisher: FisherOptions,
) -> dict[str, torch.Tensor]:
    """Estimate the inverse of the damped empirical Fisher matrix of some weights.

    Args:
        weights: (N, K) parameters by name, whose matrices fit into memory together.
        backward: Adds the gradients of one batch's loss to the parameters' `grad`.
        batches: One for each gradient.
        fisher: `block` and `damping`.

    Returns:
        (M, B, B) float32 of each weight.
    """
    matrices = {
        name: torch.zeros(-(-weight.numel() // fisher.block), fisher.block, fisher.block,
                          device=weight.device)
        for name, weight in weights.items()
    }  # fmt: skip
    waiting: dict[str, list[torch.Tensor]] = {name: [] for name in weights}
    count = 0

    def add() -> None:
        for name, gradients in waiting.items():
            if gradients:
                add_gradients(matrices[name], torch.stack(gradients))
                gradients.clear()

    for batch in batches:
        backward(batch)
        for name, weight in weights.items():
            assert weight.grad is not None
            waiting[name].append(weight.grad.detach().float().flatten())
            weight.grad = None
        count += 1
        if count % GRADIENTS_AT_ONCE == 0:
            add()
    add()
    return {name: invert_fisher(matrix, count, fisher.damping) for name, matrix in matrices.items()}


def _blocks(values: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Cut a weight or mask (N, K) into the blocks of its matrix: (M, B), padded with zeros."""
    blocks, size, _ = inverse.shape
    flat = values.detach().flatten()
    if flat.dtype != torch.bool:
        flat = flat.float()
    return F.pad(flat, (0, blocks * size - flat.numel())).reshape(blocks, size)
