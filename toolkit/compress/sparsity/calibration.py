"""What calibration texts tell: pruning once, without training, and the steps of second-order
pruning.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.compress.depth import encoder_layers
from toolkit.compress.flow import enter, on_device, run_layer, seen
from toolkit.compress.model import evaluating
from toolkit.compress.sparsity.fisher import (
    groups_that_fit,
    inverse_fisher,
    obs_scores,
    obs_update,
)
from toolkit.compress.sparsity.masks import (
    final_targets,
    mask_of,
    masks_of,
    n_of_m_mask,
    prune_once,
)
from toolkit.compress.sparsity.weights import prunable_weights, zero_share
from toolkit.config import Method, Ranking, SparsityConfig
from toolkit.errors import UsageError
from toolkit.progress import bar

HESSIAN_DAMPING = 0.01  # of the mean of the diagonal, as published
COLUMNS_AT_ONCE = 128  # pruned before the columns behind them are corrected, as published
Batches = Callable[[], Iterator[Any]]


def prune_before_training(
    model: PreTrainedModel, sparsity: SparsityConfig, texts: Batches, gradients: Batches
) -> PreTrainedModel:
    """Prune to the final sparsity at once, by `sparsity.method`.

    Args:
        model: Changed in place; fine-tuned already, or the inputs say little.
        sparsity: With `schedule=once`.
        texts: Calibration batches; each call gives the same ones.
        gradients: Batches for second-order pruning, one per gradient.

    Returns:
        The same model.
    """
    weights = prunable_weights(model)
    targets = final_targets(weights, sparsity)
    if sparsity.method is Method.obert:
        second_order_step(model, weights, targets, sparsity, gradients)
    elif sparsity.method in (Method.wanda, Method.sparsegpt):
        layerwise_step(model, targets, sparsity, texts)
    else:
        prune_once(model, sparsity)
    return model


@torch.no_grad()
def layerwise_step(
    model: PreTrainedModel, targets: Mapping[str, float], sparsity: SparsityConfig, texts: Batches
) -> dict[str, torch.Tensor]:
    """Prune to `targets` by what each layer takes, as the pruned layers before it make it.

    Args:
        model: Its weights change in place.
        targets: The sparsity of each prunable weight.
        sparsity: `method` wanda or sparsegpt, pattern, ranking.
        texts: Calibration batches, called once.

    Returns:
        (N, K) bool of each weight, True where kept.
    """
    weights = prunable_weights(model)
    names = {id(weight): name for name, weight in weights.items()}
    masks: dict[str, torch.Tensor] = {}
    with evaluating(model):
        flows = [enter(model, on_device(model, batch)) for batch in texts()]
        for layer in bar(encoder_layers(model), "pruning layers"):
            linears = {
                names[id(module.weight)]: module
                for module in layer.modules()
                if isinstance(module, nn.Linear)
            }
            grams: dict[str, Any] = dict.fromkeys(linears, 0.0)  # (K, K) float32 each
            for flow in flows:
                with seen([*linears.values()]) as inputs:
                    run_layer(layer, flow)
                for name, x in zip(linears, inputs, strict=True):
                    # float32 here, outside of the model's autocast: rounded to bfloat16, the sum
                    # would have no inverse
                    tokens = x[flow.is_token].float()
                    grams[name] = grams[name] + tokens.T @ tokens
            if sparsity.method is Method.sparsegpt:
                for name in linears:
                    new = sparsegpt(weights[name], grams[name], targets[name], sparsity)
                    weights[name].copy_(new)
                    masks[name] = new != 0
            else:
                scores = {
                    name: wanda_scores(weights[name], grams[name].diagonal().sqrt())
                    for name in linears
                }
                masks |= masks_of(scores, targets, sparsity)
                for name in linears:
                    weights[name].masked_fill_(~masks[name], 0.0)
            for flow in flows:
                flow.hidden = run_layer(layer, flow)
    return masks


def second_order_step(
    model: PreTrainedModel,
    weights: Mapping[str, nn.Parameter],
    targets: Mapping[str, float],
    sparsity: SparsityConfig,
    gradients: Batches,
) -> dict[str, torch.Tensor]:
    """Prune to `targets` by second order, and let the kept weights make up for it.

    On the way there the Fisher matrix is estimated `recomputations` times, each for an equal share
    of the weights to drop.

    Args:
        model: Its weights change in place.
        weights: (N, K) parameters by name.
        targets: The sparsity of each.
        sparsity: Pattern, ranking, and `fisher`.
        gradients: Batches, one per gradient; each call gives the same ones.

    Returns:
        (N, K) bool of each weight, True where kept.
    """
    start = {name: zero_share([weight]) for name, weight in weights.items()}
    if sparsity.ranking is Ranking["global"]:
        start = dict.fromkeys(weights, zero_share(weights.values()))
    masks: dict[str, torch.Tensor] = {}
    for number in range(1, sparsity.fisher.recomputations + 1):
        share = number / sparsity.fisher.recomputations
        now = {
            name: max(start[name] + share * (target - start[name]), 0.0)
            for name, target in targets.items()
        }
        masks = _second_order_masks(model, weights, now, sparsity, gradients)
    return masks


def _second_order_masks(
    model: PreTrainedModel,
    weights: Mapping[str, nn.Parameter],
    targets: Mapping[str, float],
    sparsity: SparsityConfig,
    gradients: Batches,
) -> dict[str, torch.Tensor]:
    n, k = sparsity.block_shape
    passes = groups_that_fit(weights, sparsity.fisher)
    is_global = sparsity.ranking is Ranking["global"]
    scores: dict[str, torch.Tensor] = {}
    masks: dict[str, torch.Tensor] = {}

    def inverses(names: Sequence[str]) -> dict[str, torch.Tensor]:
        part = {name: weights[name] for name in names}
        with evaluating(model):
            found = inverse_fisher(
                part,
                lambda batch: _backward(model, batch),
                bar(gradients(), "gradients", sparsity.fisher.num_gradients),
                sparsity.fisher,
            )
        model.zero_grad(set_to_none=True)
        return found

    def apply(names: Sequence[str], found: Mapping[str, torch.Tensor]) -> None:
        for name in names:
            weight, mask = weights[name], masks[name]
            zeros = weight.detach() == 0
            update = obs_update(weight, found[name], mask)
            weight.data.add_(update.to(weight.dtype)).masked_fill_(~mask | zeros, 0.0)

    for names in passes:
        found = inverses(names)
        for name in names:
            group = k if n == 1 and sparsity.fisher.block % k == 0 else 1
            scores[name] = obs_scores(weights[name], found[name], group)
        if not is_global:
            masks |= masks_of({name: scores[name] for name in names}, targets, sparsity)
            apply(names, found)
    if is_global:
        masks = masks_of(scores, targets, sparsity)
        for names in passes:  # one pass keeps its matrices; several make theirs again
            apply(names, found if len(passes) == 1 else inverses(names))
    return masks


def wanda_scores(weight: torch.Tensor, input_norms: torch.Tensor) -> torch.Tensor:
    """Multiply each weight's magnitude by the norm of its input.

    Args:
        weight: (N, K).
        input_norms: (K,), the L2 norm of each input over all tokens.

    Returns:
        (N, K).

    Source: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models".
    """
    return weight.detach().abs() * input_norms


def sparsegpt(
    weight: torch.Tensor, gram: torch.Tensor, target: float, sparsity: SparsityConfig
) -> torch.Tensor:
    """Prune one linear layer so that its output changes least, column by column.

    What dropping a weight changes in the output is made up for by the weights of the columns behind
    it. Each 128 columns lose the same share.

    Args:
        weight: (N, K).
        gram: (K, K), the sum over all tokens of the outer products of the inputs.
        target: Fraction to drop, in [0, 1).
        sparsity: Its pattern and ranking (uniform or row).

    Returns:
        The new weight (N, K), float32.

    Raises:
        UsageError: The pattern does not divide 128 columns.

    Source: Frantar and Alistarh 2023, "SparseGPT", algorithm 1.
    """
    n, k = sparsity.block_shape
    step = sparsity.n_of_m[1] if sparsity.n_of_m is not None else k
    if COLUMNS_AT_ONCE % step:
        raise UsageError(
            f"sparsity.method=sparsegpt prunes {COLUMNS_AT_ONCE} columns at once, which blocks of "
            f"{step} columns do not divide: choose a power of two"
        )
    new = weight.detach().double()
    hessian = gram.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0
    new[:, dead] = 0.0
    hessian.diagonal().add_(HESSIAN_DAMPING * hessian.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)  # (K, K)
    for first in range(0, new.shape[1], COLUMNS_AT_ONCE):
        part = slice(first, first + COLUMNS_AT_ONCE)
        block, local = new[:, part], inverse[part, part]
        scores = (block / local.diagonal()).square()
        if sparsity.n_of_m is not None:
            mask = n_of_m_mask(scores, target, *sparsity.n_of_m)
        else:
            mask = mask_of(scores, target, (n, k), sparsity.ranking is Ranking["row"])
        errors = torch.zeros_like(block)
        for column in range(block.shape[1]):
            dropped = block[:, column] * ~mask[:, column]
            errors[:, column] = dropped / local[column, column]
            # the column itself among them, which loses exactly what is dropped
            block[:, column:] -= errors[:, column, None] * local[column, column:]
        block.masked_fill_(~mask, 0.0)
        new[:, part.stop :] -= errors @ inverse[part, part.stop :]
    return new.float()


def draw_batches(
    dataset: Any, collate: Callable[[list[Any]], Any], count: int, batch_size: int, seed: int
) -> Iterator[Any]:
    """Draw examples at random, each as often as the others, in batches.

    Args:
        dataset: Has a length, and examples by number.
        collate: Makes a batch of a list of examples.
        count: Examples in all; more than there are go round again.
        batch_size: Examples of a batch, at most.
        seed: Decides which.
    """
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-count // len(dataset))
    order = torch.cat([torch.randperm(len(dataset), generator=generator) for _ in range(rounds)])
    for numbers in order[:count].split(batch_size):
        yield collate([dataset[int(number)] for number in numbers])


def loss_on_labels(model: PreTrainedModel, batch: Any) -> torch.Tensor:
    """Compute a model's own loss on a batch.

    Raises:
        UsageError: The batch has no labels.
    """
    loss: torch.Tensor | None = getattr(model(**on_device(model, batch)), "loss", None)
    if loss is None:
        raise UsageError(
            "sparsity.method=obert needs a loss on labels, which this task has not: "
            "use sparsity.method=magnitude"
        )
    return loss


def _backward(model: PreTrainedModel, batch: Any) -> None:
    loss_on_labels(model, batch).backward()
