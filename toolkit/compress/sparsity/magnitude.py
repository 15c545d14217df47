"""Magnitude pruning: the smallest weights go."""

import torch
from transformers import PreTrainedModel

from toolkit.compress.sparsity.weights import prunable_weights
from toolkit.errors import UsageError


def magnitude_mask(
    weight: torch.Tensor, sparsity: float, block_shape: tuple[int, int]
) -> torch.Tensor:
    """Keep the blocks with the largest sums of magnitudes.

    Exactly `round(sparsity · blocks)` blocks are dropped; among equals those that come first.

    Args:
        weight: (N, K), any float type; N outputs, K inputs.
        sparsity: Fraction of blocks to drop, in [0, 1].
        block_shape: (n, k), which must divide (N, K); (1, 1) is unstructured.

    Returns:
        (N, K) bool, True where kept.

    Raises:
        UsageError: The blocks do not divide the weight.
    """
    rows, columns = weight.shape
    n, k = block_shape
    if rows % n or columns % k:
        raise UsageError(
            f"sparsity.block_shape={[n, k]} must divide every pruned weight; one is "
            f"{rows} x {columns}"
        )
    scores = weight.detach().abs().float()
    scores = scores.reshape(rows // n, n, columns // k, k).sum(dim=(1, 3))  # (N / n, K / k)
    keep = _all_but_smallest(scores.flatten(), round(sparsity * scores.numel())).reshape(
        scores.shape
    )
    return keep.repeat_interleave(n, 0).repeat_interleave(k, 1)


def prune_once(
    model: PreTrainedModel, sparsity: float, block_shape: tuple[int, int] = (1, 1)
) -> PreTrainedModel:
    """Set the smallest weights to zero, a fraction `sparsity` of each, without any training.

    Returns:
        The same model.
    """
    for weight in prunable_weights(model).values():
        mask = magnitude_mask(weight, sparsity, block_shape)
        weight.data.masked_fill_(~mask, 0.0)
    return model


def _all_but_smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mark all but the `count` smallest scores (M,); a selection, ten times as fast as a sort.

    Of equal scores those that come first go, so that every process finds the same mask.
    """
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = torch.kthvalue(scores, count).values
    keep = ~(scores < limit)  # a NaN is kept, so that it shows
    equal = torch.nonzero(scores == limit).flatten()
    keep[equal[: count - int((scores < limit).sum())]] = False
    return keep
