"""Movement, second-order and calibrated pruning: the rules alone, against NumPy by other ways."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.tiny import examples_of, make_model
from torch import nn

from toolkit.compress.depth import encoder_layers
from toolkit.compress.model import evaluating
from toolkit.compress.sparsity.calibration import (
    draw_batches,
    layerwise_step,
    prune_before_training,
    sparsegpt,
    wanda_scores,
)
from toolkit.compress.sparsity.fisher import (
    GRADIENTS_AT_ONCE,
    groups_that_fit,
    inverse_fisher,
    obs_scores,
    obs_update,
)
from toolkit.compress.sparsity.masks import final_targets, masks_of
from toolkit.compress.sparsity.movement import (
    MovementScores,
    initial_scores,
    regularization_gradient,
)
from toolkit.compress.sparsity.weights import describe_checkpoint, prunable_weights
from toolkit.config import default_sparsity
from toolkit.errors import UsageError

BLOCK = 4
OPTIONS = default_sparsity(
    final_sparsity=0.5, fisher={"block": BLOCK, "damping": 1e-3, "batch_size": 2}
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def positive(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Make symmetric positive definite matrices (count, size, size)."""
    root = randn(count, size, size + 2, seed=seed)
    return root @ root.transpose(1, 2) + 0.1 * torch.eye(size)


def cheapest(
    fisher: NDArray[Any], w: NDArray[Any], dropped: list[int]
) -> tuple[NDArray[Any], float]:
    """Minimize `d F d / 2` with `d = -w` on the dropped weights, by the normal equations."""
    kept = [i for i in range(len(w)) if i not in dropped]
    d = np.zeros_like(w)
    d[dropped] = -w[dropped]
    if kept:
        right = -fisher[np.ix_(kept, dropped)] @ d[dropped]
        d[kept] = np.linalg.solve(fisher[np.ix_(kept, kept)], right)
    return d, float(d @ fisher @ d / 2)


def test_inverse_fisher_equals_numpy() -> None:
    """20 gradients of a weight of 6 x 5, in 8 blocks of four of which the last is half empty."""
    gradients = randn(20, 6, 5)
    weight = nn.Parameter(torch.zeros(6, 5))

    def backward(number: int) -> None:
        weight.grad = gradients[number].clone()

    found = inverse_fisher({"w": weight}, backward, range(20), OPTIONS.fisher)["w"].numpy()
    flat = np.zeros((20, 32))
    flat[:, :30] = gradients.reshape(20, 30).numpy()
    for block in range(8):
        g = flat[:, block * 4 : block * 4 + 4]
        np.testing.assert_allclose(
            found[block], np.linalg.inv(g.T @ g / 20 + 1e-3 * np.eye(4)), rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("group", [1, 2, 4])
def test_scores_are_the_least_loss(group: int) -> None:
    weight, fisher = randn(2, 8), positive(4, BLOCK)
    scores = obs_scores(weight, torch.linalg.inv(fisher), group).reshape(4, BLOCK)
    for block, row in enumerate(weight.reshape(4, BLOCK).numpy().astype(np.float64)):
        for first in range(0, BLOCK, group):
            dropped = list(range(first, first + group))
            _, loss = cheapest(fisher[block].numpy().astype(np.float64), row, dropped)
            assert float(scores[block, dropped].sum()) == pytest.approx(loss, rel=1e-3)


def test_updates_are_the_best_ones() -> None:
    weight, fisher = randn(2, 8), positive(4, BLOCK)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    inverse = torch.linalg.inv(fisher)
    update = obs_update(weight, inverse, mask).reshape(4, BLOCK)
    for block in range(4):
        w = weight.reshape(4, BLOCK)[block].numpy().astype(np.float64)
        dropped = [i for i in range(BLOCK) if not mask.reshape(4, BLOCK)[block, i]]
        best, _ = cheapest(fisher[block].numpy().astype(np.float64), w, dropped)
        np.testing.assert_allclose(update[block].numpy(), best, rtol=1e-3, atol=1e-3)
    # a single dropped weight: the published formula
    first, f = weight.flatten()[:BLOCK], inverse[0]
    torch.testing.assert_close(update[0], -first[1] * f[:, 1] / f[1, 1], rtol=1e-3, atol=1e-4)


def test_a_block_may_end_behind_the_weight() -> None:
    weight, inverse = randn(3, 3), positive(3, BLOCK)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[2, 2] = False
    assert obs_scores(weight, inverse).shape == (3, 3)
    update = obs_update(weight, inverse, mask)
    assert float(update[2, 2]) == pytest.approx(-float(weight[2, 2]), rel=1e-5)
    assert not update.flatten()[:8].any()


def test_memory_bounds_the_passes() -> None:
    weights = {name: torch.empty(1024, 1024) for name in "abcde"}
    each = 4 * 2**20 * (50 + GRADIENTS_AT_ONCE) / 2**30  # GiB of one
    fisher = default_sparsity(final_sparsity=0.5, fisher={"memory_gib": 2.5 * each}).fisher
    assert groups_that_fit(weights, fisher) == [["a", "b"], ["c", "d"], ["e"]]
    fisher = default_sparsity(final_sparsity=0.5, fisher={"memory_gib": each / 9}).fisher
    assert groups_that_fit(weights, fisher) == [[name] for name in "abcde"]


def test_movement_learns_as_adam_does() -> None:
    """Three steps, the second of two micro-batches; the score of a dropped weight moves, too."""
    weight = nn.Parameter(randn(2, 3))
    options = default_sparsity(final_sparsity=0.5).movement
    scores = MovementScores({"w": weight}, options, is_soft=False)
    gradients = [[randn(2, 3, seed=1)], [randn(2, 3, seed=2), randn(2, 3, seed=3)], [randn(2, 3)]]
    expected, m, v = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3))
    for step, parts in enumerate(gradients, 1):
        for part in parts:
            scores.add_gradient("w", part)
        scores.step(progress=0.5, rate_factor=0.5)
        g = sum(part.numpy() for part in parts) * weight.detach().numpy()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected -= 0.5 * 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(scores.scores["w"].numpy(), expected, rtol=1e-4)


def test_scores_may_begin_at_magnitudes() -> None:
    weight = np.array([[3.0, -1.0], [0.0, -2.0]], np.float32)
    found = initial_scores(torch.tensor(weight), 0.5).numpy()
    np.testing.assert_allclose(found, 0.5 * np.abs(weight) / weight.std(ddof=1), rtol=1e-6)
    assert initial_scores(torch.ones(2, 2), 0.0).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert torch.isfinite(initial_scores(torch.zeros(2, 2), 0.5)).all()  # a layer of zeros


def test_soft_movement_pays_for_open_weights() -> None:
    score = randn(4, 4).double().requires_grad_()
    (3.0 * torch.sigmoid(score).mean()).backward()
    found = regularization_gradient(score.detach(), 3.0)
    assert score.grad is not None
    torch.testing.assert_close(found, score.grad)


def test_soft_masks_follow_the_threshold() -> None:
    weight = nn.Parameter(randn(2, 3))
    options = default_sparsity(final_sparsity=0.5, movement={"threshold": 0.4}).movement
    scores = MovementScores({"w": weight}, options, is_soft=True)
    scores.scores["w"].copy_(torch.tensor([[-3.0, -1.0, 0.0], [-0.3, 0.5, -0.45]]))
    assert scores.soft_masks(0.0)["w"].all()
    # sigmoid(-1) = 0.27, sigmoid(-0.45) = 0.39, sigmoid(-0.3) = 0.43
    assert scores.soft_masks(1.0)["w"].tolist() == [[False, False, True], [True, True, False]]
    assert scores.soft_masks(0.5)["w"].tolist() == [[False, True, True], [True, True, True]]


def test_wanda_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0]])
    assert wanda_scores(weight, torch.tensor([6.0, 1.0, 0.5])).tolist() == [[6.0, 2.0, 1.5]]


def test_sparsegpt_equals_column_by_column_elimination() -> None:
    """Each dropped weight is made up for, in the best way, by the columns behind it alone."""
    weight, inputs = randn(3, 6), randn(40, 6, seed=1) @ randn(6, 6, seed=2)
    gram = inputs.T @ inputs
    found = sparsegpt(weight, gram, 0.5, default_sparsity(final_sparsity=0.5, ranking="row"))

    hessian = gram.numpy().astype(np.float64)
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(6)
    tails = [np.linalg.inv(hessian[c:, c:]) for c in range(6)]
    expected = weight.numpy().astype(np.float64)
    for row in expected:
        scores = [row[c] ** 2 / tails[c][0, 0] for c in range(6)]
        dropped = sorted(np.argsort(scores)[:3])
        for c in dropped:
            row[c:] -= row[c] / tails[c][0, 0] * tails[c][:, 0]
            row[c] = 0.0
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_sparsegpt_keeps_the_output_better_than_magnitude() -> None:
    weight, inputs = randn(16, 256), randn(512, 64, seed=1) @ randn(64, 256, seed=2)
    gram, sparsity = inputs.T @ inputs, default_sparsity(final_sparsity=0.5)
    found = sparsegpt(weight, gram, 0.5, sparsity)
    assert float((found == 0).float().mean()) == 0.5
    small = weight * (weight.abs() > weight.abs().median())
    errors = [float((inputs @ (new - weight).T).norm()) for new in (found, small)]
    assert errors[0] < 0.75 * errors[1]
    dead = inputs.clone()
    dead[:, 7] = 0.0
    assert not sparsegpt(weight, dead.T @ dead, 0.5, sparsity)[:, 7].any()
    with pytest.raises(UsageError, match="blocks of 3 columns do not divide"):
        sparsegpt(weight, gram, 0.5, default_sparsity(final_sparsity=0.5, block_shape=[1, 3]))


def test_drawing_goes_round_evenly() -> None:
    data = list(range(5))

    def draw(seed: int) -> list[list[int]]:
        return list(draw_batches(data, list, 12, 4, seed))

    batches = draw(1)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    flat = [number for batch in batches for number in batch]
    assert sorted(flat[:5]) == sorted(flat[5:10]) == data
    assert draw(1) == batches != draw(2)


def batches_of(size: int) -> Any:
    def batches() -> Iterator[dict[str, torch.Tensor]]:
        examples = examples_of(32)
        for first in range(0, 32, size):
            part = examples[first : first + size]
            yield {name: torch.tensor([each[name] for each in part]) for name in part[0]}

    return batches


def plain_layerwise_step(model: Any, texts: Any, sparsity: Any) -> None:
    """Prune layer by layer, the whole model run with hooks on it, anew for every layer."""
    weights = prunable_weights(model)
    targets = final_targets(weights, sparsity)
    for layer in encoder_layers(model):
        linears = {
            name: module
            for name, weight in weights.items()
            for module in layer.modules()
            if getattr(module, "weight", None) is weight
        }
        taken: dict[str, list[torch.Tensor]] = {name: [] for name in linears}
        hooks = [
            linear.register_forward_pre_hook(lambda _, x, into=taken[name]: into.append(x[0]))
            for name, linear in linears.items()
        ]
        grams = dict.fromkeys(linears, torch.zeros(()))
        with torch.no_grad(), evaluating(model):
            for text in texts():
                model(**text)
                for name, (x,) in taken.items():
                    tokens = x[text["attention_mask"] == 1].float()
                    grams[name] = grams[name] + tokens.T @ tokens
                    taken[name].clear()
        for hook in hooks:
            hook.remove()
        if sparsity.method.value == "sparsegpt":
            for name in linears:
                weights[name].data = sparsegpt(weights[name], grams[name], targets[name], sparsity)
        else:
            scores = {n: wanda_scores(weights[n], grams[n].diagonal().sqrt()) for n in linears}
            for name, mask in masks_of(scores, targets, sparsity).items():
                weights[name].data *= mask


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_layers_see_what_the_whole_pruned_model_gives_them(
    family: str, method: str, precision: str
) -> None:
    """In mixed precision, too, which a Trainer puts around the forward pass of the whole model."""
    sparsity = default_sparsity(final_sparsity=0.5, schedule="once", method=method)

    def texts() -> Iterator[dict[str, torch.Tensor]]:
        for batch in batches_of(8)():
            batch["attention_mask"][1, 5:] = 0
            if family == "distilbert":
                del batch["token_type_ids"]
            yield batch

    models = [make_model(family, dropout=0.1) for _ in range(2)]
    if precision == "bf16":
        for model in models:
            model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    plain_layerwise_step(models[0], texts, sparsity)
    masks = layerwise_step(
        models[1], final_targets(prunable_weights(models[1]), sparsity), sparsity, texts
    )
    wanted, found = (prunable_weights(model) for model in models)
    assert masks.keys() == found.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)
        assert torch.equal(masks[name], weight != 0)
    assert models[1].training


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "obert"])
@pytest.mark.parametrize(
    "pattern", [{}, {"block_shape": [1, 4]}, {"n_of_m": [2, 4]}, {"ranking": "row"}]
)
def test_pruning_once_reaches_its_sparsity(
    family: str, method: str, pattern: dict[str, Any]
) -> None:
    model = make_model(family)
    sparsity = default_sparsity(
        final_sparsity=0.5, schedule="once", method=method, **pattern,
        fisher={"block": 8, "recomputations": 2},
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert prune_before_training(model, sparsity, batches_of(8), batches_of(2)) is model
    measured = describe_checkpoint("x", model)["sparsity"]
    assert {tensor["sparsity"] for tensor in measured["tensors"]} == {0.5}
    weights = prunable_weights(model)
    for name, value in model.state_dict().items():
        if name not in weights:
            assert torch.equal(value, before[name])
        elif method in ("sparsegpt", "obert"):  # what is kept makes up for what is not
            kept = weights[name] != 0
            assert not torch.equal(weights[name][kept], before[name][kept])
    assert not any(parameter.grad is not None for parameter in model.parameters())
    if pattern == {"block_shape": [1, 4]}:
        for weight in weights.values():
            blocks = (weight != 0).reshape(-1, 4)
            assert torch.equal(blocks.any(1), blocks.all(1))


@pytest.mark.slow
@pytest.mark.parametrize("ranking", ["uniform", "global"])
def test_memory_changes_nothing_but_the_passes(ranking: str) -> None:
    results = []
    for memory in (4.0, 1e-9):
        model = make_model("bert")
        sparsity = default_sparsity(
            final_sparsity=0.5, schedule="once", method="obert", ranking=ranking,
            fisher={"block": 8, "memory_gib": memory},
        )  # fmt: skip
        prune_before_training(model, sparsity, batches_of(8), batches_of(2))
        assert describe_checkpoint("x", model)["sparsity"]["encoder"] == 0.5
        results.append([weight.detach() for weight in prunable_weights(model).values()])
    if ranking == "uniform":
        # A later pass sees what an earlier one has changed, so only the first weight is the same.
        results = [result[:1] for result in results]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_second_order_costs_less_than_magnitude() -> None:
    """On the tiny task, learnt by heart, at 50 %: the loss grows less."""
    losses: dict[str, float] = {}
    for method in ("magnitude", "obert", "none"):
        model = make_model("bert")
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(12):
            for batch in batches_of(8)():
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        if method != "none":
            sparsity = default_sparsity(
                final_sparsity=0.6, schedule="once", method=method,
                fisher={"block": 32, "recomputations": 4},
            )  # fmt: skip
            prune_before_training(model, sparsity, batches_of(8), batches_of(1))
        with torch.no_grad():
            losses[method] = float(np.mean([float(model(**b).loss) for b in batches_of(8)()]))
    ordered = [losses[name] for name in ("none", "obert", "magnitude")]
    assert all(a < b for a, b in pairwise(ordered)), losses
