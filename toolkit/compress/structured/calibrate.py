"""What linear layers take, how much their outputs matter, and how they are repaired.

B texts, T tokens, K inputs and N outputs of a linear layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.compress.depth import encoder_layers
from toolkit.compress.flow import TextBatch, enter, run_layer, seen
from toolkit.compress.model import evaluating
from toolkit.compress.structured.order import damped
from toolkit.compress.structured.widths import linears_of
from toolkit.progress import bar

REPAIRED = ("attention_output", "output")


@torch.no_grad()
def input_grams(
    model: PreTrainedModel, batches: Sequence[TextBatch]
) -> list[dict[str, torch.Tensor]]:
    """Average x xᵀ over all tokens, x the input of both output projections of every layer.

    Returns:
        Per layer by name (`REPAIRED`): (K + 1, K + 1) float64, of x with a 1 at its end.
    """
    with evaluating(model):
        flows = [enter(model, batch) for batch in batches]
        tokens = sum(int(flow.is_token.sum()) for flow in flows)
        grams = []
        for layer in bar(encoder_layers(model), "calibrating"):
            linears = linears_of(layer)
            sums: dict[str, Any] = dict.fromkeys(REPAIRED, 0.0)
            for flow in flows:
                with seen([linears[name] for name in REPAIRED]) as inputs:
                    flow.hidden = run_layer(layer, flow)
                for name, x in zip(REPAIRED, inputs, strict=True):
                    x = with_one(x[flow.is_token])
                    sums[name] = sums[name] + _to_float64(x.T @ x)
            grams.append({name: value / tokens for name, value in sums.items()})
    return grams


@torch.no_grad()
def repair(model: PreTrainedModel, original: PreTrainedModel, batches: Sequence[TextBatch]) -> None:
    """Fit the output projections of a shrunk model, in place, to what the original one computes.

    Layer by layer, attention before feed-forward: `min_W Σ |W x + r - t|² + damping · |W - W₀|²`,
    where x and the residual r come from the repaired model so far, W₀ is the weight as it was,
    and the target t is what the original layer hands to its LayerNorm. So every fit also corrects
    what the ones before it left over.

    Source: least squares in sequence, as Park et al. 2024, "Accurate retraining-free pruning for
        pretrained encoder-based language models" (K-prune), https://arxiv.org/abs/2308.03449.
    """
    with evaluating(model), evaluating(original):
        ours = [enter(model, batch) for batch in batches]
        theirs = [enter(original, batch) for batch in batches]
        layers = zip(encoder_layers(model), encoder_layers(original), strict=True)
        for layer, goal in layers:
            targets = []
            for flow in theirs:
                with seen(_norms(goal)) as sums:
                    flow.hidden = run_layer(goal, flow)
                targets.append([x[flow.is_token] for x in sums])
            for part, name in enumerate(REPAIRED):
                linear, norm = linears_of(layer)[name], _norms(layer)[part]
                gram: Any = 0.0
                cross: Any = 0.0
                tokens = 0
                for flow, target in zip(ours, targets, strict=True):
                    with seen([linear, norm]) as inputs:
                        run_layer(layer, flow)
                    x, total = (value[flow.is_token] for value in inputs)
                    residual = total - linear(x)
                    x = with_one(x)
                    gram = gram + _to_float64(x.T @ x)
                    cross = cross + _to_float64(x.T @ (target[part] - residual))
                    tokens += len(x)
                refit(linear, gram / tokens, cross / tokens)
            for flow in ours:
                flow.hidden = run_layer(layer, flow)


def refit(linear: nn.Linear, gram: torch.Tensor, cross: torch.Tensor) -> None:
    """Solve the damped least squares of `repair`, from the present weight and bias, in place.

    Args:
        linear: (N, K).
        gram: (K + 1, K + 1) mean of x xᵀ, x with a 1 at its end.
        cross: (K + 1, N) mean of x tᵀ.
    """
    before = _to_float64(torch.cat([linear.weight, linear.bias[:, None]], 1)).T  # (K + 1, N)
    change = torch.linalg.solve(damped(gram), cross - gram @ before)
    after = (before + change).T.to(linear.weight)
    linear.weight.copy_(after[:, :-1])
    linear.bias.copy_(after[:, -1])


def output_sensitivities(
    model: PreTrainedModel, batches: Sequence[TextBatch]
) -> list[dict[str, torch.Tensor]]:
    """Average the squared gradient of the loss on labels that the model itself draws.

    That is the diagonal of the Fisher information of every output of both projections: by it a
    squared error there becomes a change of the loss, which makes layers comparable. No labels are
    needed. Outputs that are no logits, and a single logit, are taken for means of normal
    distributions. Draws from torch's global generator.

    Returns:
        Per layer by name (`REPAIRED`): (N,) float64, mean over all tokens.

    Source: Kwon et al. 2022, "A fast post-training pruning framework for transformers",
        https://arxiv.org/abs/2204.09656, which scores masks so.
    """
    modules = [linears_of(layer)[name] for layer in encoder_layers(model) for name in REPAIRED]
    sums: list[Any] = [0.0] * len(modules)
    tokens = 0
    with evaluating(model), torch.enable_grad():
        for batch in bar(batches, "calibrating"):
            with seen(modules, made=True) as made:
                outputs = model(**batch)
            is_token = batch["attention_mask"].bool()
            gradients = torch.autograd.grad(drawn_loss(outputs, is_token), made)
            tokens += int(is_token.sum())
            for i, gradient in enumerate(gradients):
                sums[i] = sums[i] + _to_float64(gradient[is_token].square().sum(0))
    means = iter(value / tokens for value in sums)
    return [{name: next(means) for name in REPAIRED} for _ in encoder_layers(model)]


def drawn_loss(outputs: Any, is_token: torch.Tensor) -> torch.Tensor:
    """Sum, over the texts, minus the logarithm of the probability of labels drawn from it.

    Args:
        outputs: A model's; of logits of tokens (B, T, C) those of padding do not count, of the
            start and end of an answer (B, T) padding is not drawn.
        is_token: (B, T) bool.
    """
    found = {name: value for name, value in outputs.items() if name.endswith("logits")}
    total = torch.zeros((), device=is_token.device)
    for name, value in (found or dict(list(outputs.items())[:1])).items():
        if name in ("start_logits", "end_logits"):
            value = value.masked_fill(~is_token, -torch.inf)
        elif value.shape[:2] == is_token.shape and value.dim() == 3:
            value = value[is_token]
        if name.endswith("logits") and value.shape[-1] > 1:
            choices = torch.distributions.Categorical(logits=value)
            total = total - choices.log_prob(choices.sample()).sum()
        else:  # -log N(drawn; value, 1) has this gradient
            total = total + (value * torch.randn_like(value)).sum()
    return total


def with_one(x: torch.Tensor) -> torch.Tensor:
    """(…, K) → (…, K + 1), a 1 at the end: the input of the bias."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


def _to_float64(values: torch.Tensor) -> torch.Tensor:
    """Sums are kept on the CPU, in float64, which not all devices have."""
    return values.cpu().double()


def _norms(layer: nn.Module) -> list[nn.Module]:
    """Return attention's LayerNorm and the one behind the feed-forward part."""
    first, second = (module for module in layer.modules() if isinstance(module, nn.LayerNorm))
    return [first, second]
