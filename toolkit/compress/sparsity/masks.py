"""From scores to masks: which weights stay, given what each is worth.

Scores are (N, K) like their weights, N outputs, K inputs; the larger, the sooner a weight is kept.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from transformers import PreTrainedModel

from toolkit.compress.sparsity.weights import prunable_weights
from toolkit.config import Ranking, SparsityConfig
from toolkit.errors import UsageError, nearest
from toolkit.families import LINEARS


def masks_of(
    scores: Mapping[str, torch.Tensor], targets: Mapping[str, float], sparsity: SparsityConfig
) -> dict[str, torch.Tensor]:
    """Rank weights as configured.

    Args:
        scores: (N, K) of each weight.
        targets: The sparsity of each; with global ranking all are the same, the whole's.
        sparsity: Its `ranking`, `block_shape` and `n_of_m` count.

    Returns:
        (N, K) bool of each weight, True where kept.

    Raises:
        UsageError: The blocks, or groups of m, do not divide a weight.
    """
    n, k = sparsity.block_shape
    if sparsity.n_of_m is not None:
        keep, of = sparsity.n_of_m
        return {name: n_of_m_mask(scores[name], targets[name], keep, of) for name in scores}
    if sparsity.ranking is Ranking["global"]:
        return global_masks(scores, next(iter(targets.values())), (n, k))
    per_row = sparsity.ranking is Ranking["row"]
    return {name: mask_of(scores[name], targets[name], (n, k), per_row) for name in scores}


def mask_of(
    scores: torch.Tensor,
    sparsity: float,
    block_shape: tuple[int, int] = (1, 1),
    per_row: bool = False,
) -> torch.Tensor:
    """Keep the blocks with the largest sums of scores.

    Exactly `round(sparsity · blocks)` are dropped, of the matrix or of each row of blocks; among
    equals those that come first, so that every process of a run finds the same mask.

    Args:
        scores: (N, K), any float type.
        sparsity: Fraction of blocks to drop, in [0, 1].
        block_shape: (n, k), which must divide (N, K); (1, 1) is unstructured.
        per_row: Whether each row of blocks loses the same number.

    Returns:
        (N, K) bool, True where kept.

    Raises:
        UsageError: The blocks do not divide the weight.
    """
    sums = block_sums(scores, block_shape)  # (N / n, K / k)
    if per_row:
        count = round(sparsity * sums.shape[1])
        keep = torch.stack([_all_but_smallest(row, count) for row in sums])
    else:
        count = round(sparsity * sums.numel())
        keep = _all_but_smallest(sums.flatten(), count).reshape(sums.shape)
    return _spread(keep, block_shape)


def global_masks(
    scores: Mapping[str, torch.Tensor], sparsity: float, block_shape: tuple[int, int] = (1, 1)
) -> dict[str, torch.Tensor]:
    """Keep the blocks with the largest sums of scores of all weights together.

    Args:
        scores: (N, K) of each weight.
        sparsity: Fraction of all blocks to drop, in [0, 1].
        block_shape: (n, k), which must divide every (N, K).

    Returns:
        (N, K) bool of each weight, True where kept.

    Raises:
        UsageError: The blocks do not divide a weight.
    """
    sums = {name: block_sums(each, block_shape) for name, each in scores.items()}
    everything = torch.cat([each.flatten() for each in sums.values()])
    keep = _all_but_smallest(everything, round(sparsity * everything.numel()))
    parts = keep.split([each.numel() for each in sums.values()])
    return {
        name: _spread(part.reshape(each.shape), block_shape)
        for part, (name, each) in zip(parts, sums.items(), strict=True)
    }


def n_of_m_mask(scores: torch.Tensor, sparsity: float, n: int, m: int) -> torch.Tensor:
    """Keep the best of every m consecutive weights of a row: n, or more before the last update.

    Args:
        scores: (N, K), K a multiple of m.
        sparsity: In [0, 1 - n / m]; `round((1 - sparsity) · m)` of each m are kept, at least n.
        n: Kept at the end.
        m: Weights that compete.

    Returns:
        (N, K) bool, True where kept.

    Raises:
        UsageError: m does not divide K.
    """
    if scores.shape[1] % m:
        raise UsageError(
            f"sparsity.n_of_m=[{n},{m}] must divide every pruned weight; one has "
            f"{scores.shape[1]} inputs"
        )
    groups = scores.detach().float().reshape(-1, m)
    kept = max(n, round((1.0 - sparsity) * m))
    # of equal scores the later stay, as elsewhere here
    best = groups.flip(1).argsort(dim=1, descending=True, stable=True)[:, :kept]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True).flip(1)
    return mask.reshape(scores.shape)


def block_sums(scores: torch.Tensor, block_shape: tuple[int, int]) -> torch.Tensor:
    """Add up the scores of each block: (N, K) -> (N / n, K / k), float32.

    Raises:
        UsageError: The blocks do not divide the weight.
    """
    rows, columns = scores.shape
    n, k = block_shape
    if rows % n or columns % k:
        raise UsageError(
            f"sparsity.block_shape={[n, k]} must divide every pruned weight; one is "
            f"{rows} x {columns}"
        )
    return scores.detach().float().reshape(rows // n, n, columns // k, k).sum(dim=(1, 3))


def prune_once(model: PreTrainedModel, sparsity: SparsityConfig) -> PreTrainedModel:
    """Set the smallest weights to zero, in the configured pattern, without data or training.

    Returns:
        The same model.
    """
    weights = prunable_weights(model)
    targets = final_targets(weights, sparsity)
    magnitudes = {name: weight.detach().abs() for name, weight in weights.items()}
    for name, mask in masks_of(magnitudes, targets, sparsity).items():
        weights[name].data.masked_fill_(~mask, 0.0)
    return model


def final_targets(
    weights: Mapping[str, torch.Tensor], sparsity: SparsityConfig
) -> dict[str, float]:
    """Return the final sparsity of each weight.

    Raises:
        UsageError: `layer_sparsity` has another number of layers than the model, or `parts` names
            a layer that it lacks.
    """
    if sparsity.parts is not None:
        return _targets_of_parts(list(weights), sparsity.parts, sparsity.final_sparsity)
    if sparsity.layer_sparsity is None:
        return dict.fromkeys(weights, sparsity.final_sparsity)
    layers = [int(next(part for part in name.split(".") if part.isdigit())) for name in weights]
    if len(sparsity.layer_sparsity) != max(layers) + 1:
        raise UsageError(
            f"sparsity.layer_sparsity must have one number for each of the {max(layers) + 1} "
            f"encoder layers; got {len(sparsity.layer_sparsity)}"
        )
    return {
        name: sparsity.layer_sparsity[layer] for name, layer in zip(weights, layers, strict=True)
    }


def _targets_of_parts(
    weights: list[str], parts: Mapping[str, float], final_sparsity: float
) -> dict[str, float]:
    """Let the first pattern that fits a weight's layer, such as `layers.0.query`, decide."""
    count = len(LINEARS)
    names = [f"layers.{i // count}.{LINEARS[i % count]}" for i in range(len(weights))]
    for pattern in parts:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"sparsity.parts names '{pattern}', but no layer is called so; "
                f"{nearest(pattern, names)}"
            )
    return {
        weight: next(
            (value for pattern, value in parts.items() if fnmatchcase(name, pattern)),
            final_sparsity,
        )
        for weight, name in zip(weights, names, strict=True)
    }


def _spread(keep: torch.Tensor, block_shape: tuple[int, int]) -> torch.Tensor:
    n, k = block_shape
    return keep.repeat_interleave(n, 0).repeat_interleave(k, 1)


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
