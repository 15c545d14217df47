"""Schedules, learning rates, and masks, against values worked out by other means."""

from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import make_model

from toolkit.compress.sparsity.floor import Floor, Verdict, parse_floor
from toolkit.compress.sparsity.masks import (
    final_targets,
    global_masks,
    mask_of,
    masks_of,
    n_of_m_mask,
    prune_once,
)
from toolkit.compress.sparsity.schedule import rewound_rate, sparsity_at
from toolkit.compress.sparsity.weights import prunable_weights, zero_share
from toolkit.config import Schedule, default_sparsity
from toolkit.errors import UsageError


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_linear_schedule() -> None:
    values = [sparsity_at(t, 2, 6, 0.2, 0.8, Schedule.linear) for t in (1, 2, 3, 4, 5, 6, 9)]
    assert values == pytest.approx([0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.8])


def test_stepwise_schedule() -> None:
    steps = (0.7, 0.8, 0.85, 0.9)
    at = {
        t: sparsity_at(t, 2, 14, 0.0, 0.9, Schedule.stepwise, steps)
        for t in (1, 2, 5, 6, 9, 10, 13, 14, 20)
    }
    assert list(at.values()) == [0, 0.7, 0.7, 0.8, 0.8, 0.85, 0.85, 0.9, 0.9]


def test_published_second_order_schedule() -> None:
    """OBERT's seven levels of 90 %: cubic from 70 % at epoch 2 to 26, every 4 epochs."""
    levels = [sparsity_at(epoch, 2, 26, 0.7, 0.9) for epoch in range(2, 30, 4)]
    by_hand = [0.7, 0.9 - 0.2 * (5 / 6) ** 3, 0.9 - 0.2 * (4 / 6) ** 3, 0.9 - 0.2 * 0.125]
    by_hand += [0.9 - 0.2 * (2 / 6) ** 3, 0.9 - 0.2 / 216, 0.9]
    assert levels == pytest.approx(by_hand)


def test_rewound_rate() -> None:
    """As published: 8e-5 falls to 8e-6 over two epochs, then over each four."""
    boundaries = [0, 20, 60, 100]
    rates = [rewound_rate(step, boundaries, 0.1) for step in (0, 10, 19, 20, 40, 59, 60, 99, 100)]
    expected = [1, 0.55, 1 - 0.9 * 0.95, 1, 0.55, 1 - 0.9 * 39 / 40, 1, 1 - 0.9 * 39 / 40, 0.1]
    assert rates == pytest.approx(expected)


def test_global_ranking_equals_one_sort() -> None:
    scores = {"a": randn(6, 8).abs(), "b": 3 * randn(4, 8, seed=1).abs()}
    masks = global_masks(scores, 0.6, (1, 2))
    sums = {name: each.numpy().reshape(-1, 2).sum(1) for name, each in scores.items()}
    limit = np.sort(np.concatenate(list(sums.values())))[round(0.6 * 40) - 1]
    for name, mask in masks.items():
        kept = mask.numpy().reshape(-1, 2)
        assert (kept[:, 0] == kept[:, 1]).all()
        assert (kept[:, 0] == (sums[name] > limit)).all()
    assert masks["a"].float().mean() < masks["b"].float().mean()


def test_each_row_keeps_as_many() -> None:
    scores = randn(5, 12).abs() * torch.arange(1, 6)[:, None]  # rows of very different size
    mask = mask_of(scores, 0.75, (1, 1), per_row=True)
    assert mask.sum(1).tolist() == [3] * 5
    for row, kept in zip(scores, mask, strict=True):
        assert set(torch.nonzero(kept).flatten().tolist()) == set(row.topk(3).indices.tolist())


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 4), (0.2, 3), (0.4, 2), (0.5, 2)])
def test_n_of_m(sparsity: float, kept: int) -> None:
    scores = randn(3, 8)
    mask = n_of_m_mask(scores, sparsity, 2, 4)
    for group, chosen in zip(scores.reshape(-1, 4), mask.reshape(-1, 4), strict=True):
        assert set(torch.nonzero(chosen).flatten().tolist()) == set(
            group.topk(kept).indices.tolist()
        )
    with pytest.raises(UsageError, match=r"n_of_m=\[2,4\] must divide.*6 inputs"):
        n_of_m_mask(randn(2, 6), 0.5, 2, 4)


def test_zeros_go_first_in_a_group() -> None:
    assert n_of_m_mask(torch.tensor([[0.0, 0.0, 5.0, 0.0]]), 0.5, 2, 4).tolist() == [
        [False, False, True, True]
    ]


def test_targets_per_layer() -> None:
    weights = prunable_weights(make_model("bert"))
    sparsity = default_sparsity(final_sparsity=0.5, layer_sparsity=[0.25, 0.75])
    targets = final_targets(weights, sparsity)
    assert {targets[name] for name in targets if ".0." in name} == {0.25}
    assert {targets[name] for name in targets if ".1." in name} == {0.75}
    masks = masks_of({name: weight.abs() for name, weight in weights.items()}, targets, sparsity)
    for name, mask in masks.items():
        assert float(mask.float().mean()) == pytest.approx(1 - targets[name], abs=0.01)
    with pytest.raises(UsageError, match="one number for each of the 2 encoder layers; got 3"):
        final_targets(weights, default_sparsity(final_sparsity=0.5, layer_sparsity=[0.1] * 3))


def test_targets_of_parts() -> None:
    """The first pattern that fits counts; 0 leaves a layer dense."""
    weights = prunable_weights(make_model("distilbert"))
    parts = {"layers.1.query": 0.6, "layers.1.*": 0.0, "*.output": 0.7}
    sparsity = default_sparsity(final_sparsity=0.5, parts=parts)
    targets = list(final_targets(weights, sparsity).values())
    assert targets == [0.5] * 5 + [0.7, 0.6] + [0.0] * 5
    prune_once(model := make_model("distilbert"), sparsity)
    shares = [zero_share([weight]) for weight in prunable_weights(model).values()]
    assert shares == pytest.approx(targets, abs=5e-3)
    with pytest.raises(UsageError, match=r"parts names 'layers\.2\.\*', but no layer is called so"):
        final_targets(weights, default_sparsity(final_sparsity=0.5, parts={"layers.2.*": 0.1}))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"parts": {"*": 1.0}}, r"parts must have numbers in \[0, 1\)"),
        ({"parts": {"*": 0.5}, "ranking": "global"}, "goes with neither"),
        ({"parts": {"*": 0.5}, "method": "soft_movement"}, "sets final sparsities, which"),
        ({"parts": {"*": 0.5}, "final_sparsity": 0.0}, "exceptions from sparsity.final_sparsity"),
        ({"parts": {"*": 0.2}, "initial_sparsity": 0.3}, "exceptions from sparsity.final_sparsity"),
        ({"parts": {"*": 0.2}, "n_of_m": [2, 4]}, "may leave layers dense beside it"),
        ({"n_of_m": [2, 4], "final_sparsity": 0.7}, r"\[2,4\] means sparsity.final_sparsity=0.5"),
        ({"n_of_m": [5, 4]}, "1 <= n <= m"),
        ({"n_of_m": [2, 4], "block_shape": [1, 4]}, "ranks single weights"),
        ({"schedule": "stepwise"}, "needs sparsity.steps in ascending order"),
        ({"schedule": "stepwise", "steps": [0.3, 0.4]}, "last of sparsity.steps must be"),
        ({"steps": [0.5]}, "belongs to sparsity.schedule=stepwise"),
        ({"method": "movement", "schedule": "once"}, "learns its scores while training"),
        ({"ranking": "global", "layer_sparsity": [0.5, 0.5]}, "choose one"),
        ({"method": "sparsegpt", "schedule": "once", "ranking": "global"}, "one layer at a time"),
        ({"method": "wanda", "schedule": "once", "ranking": "global"}, "one layer at a time"),
        ({"method": "magnitud"}, "Invalid value 'magnitud'"),
        ({"rewind": 0.0}, r"rewind must be in \(0, 1\]"),
        ({"layer_sparsity": [1.0]}, r"layer_sparsity must list numbers in \[0, 1\)"),
        ({"fisher": {"damping": 0}}, "damping must be > 0"),
        ({"movement": {"threshold": 1}}, r"threshold must be in \(0, 1\)"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        default_sparsity(**{"final_sparsity": 0.5, **options})


def test_a_floor_holds_then_rolls_back() -> None:
    floor = parse_floor("accuracy >= 86.5", ["accuracy", "f1"])
    assert (floor.metric, floor.least) == ("accuracy", 86.5)
    judge = floor.judge
    assert judge(0.0, 90.0) is Verdict.go_on
    assert judge(0.5, 88.0) is Verdict.go_on
    assert judge(0.7, 86.0) is Verdict.hold  # the first failure only holds
    assert judge(0.7, 86.5) is Verdict.go_on  # it recovered
    assert (floor.best_sparsity, floor.best_value) == (0.7, 86.5)
    assert judge(0.8, 80.0) is Verdict.hold
    assert judge(0.8, 82.0) is Verdict.roll_back
    assert judge(0.7, 87.0) is Verdict.hold  # pruning is over, but training still helps
    assert (floor.best_sparsity, floor.best_value) == (0.7, 87.0)


def test_a_floor_that_nothing_met_only_holds() -> None:
    floor = Floor("f1", 50.0)
    assert [floor.judge(0.1, 10.0) for _ in range(3)] == [Verdict.hold] * 3


@pytest.mark.parametrize("text", ["accuracy>86", "86", "accuracy>=x", ""])
def test_a_floor_is_read(text: str) -> None:
    with pytest.raises(UsageError, match=r"sparsity.floor must be METRIC>=PERCENT"):
        parse_floor(text)
    with pytest.raises(UsageError, match="one of the task's metrics, accuracy; got 'f1'"):
        parse_floor("f1>=3", ["accuracy"])
