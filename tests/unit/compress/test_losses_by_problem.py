"""Losses that follow the problem: several labels each, numbers, and labels that weigh more."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import configs
from torch import nn

from toolkit.compress.class_weights import describe, find_weights, weighted_loss
from toolkit.compress.distillation import distillation_loss
from toolkit.errors import UsageError


def test_numbers_are_distilled_by_their_squared_error() -> None:
    ours, theirs = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])
    loss = distillation_loss((ours,), (theirs,), torch.tensor(8.0), 0.25, 5.0, "regression")
    assert float(loss) == pytest.approx(0.75 * 8 + 0.25 * (1 + 4) / 2)


def test_several_labels_are_distilled_each_by_itself() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 4), torch.randn(3, 4)
    problem, none = "multi_label_classification", torch.tensor(0.0)
    loss = distillation_loss((ours,), (theirs,), none, 1.0, 2.0, problem)
    # each label as a choice of two
    pairs = [
        torch.stack([x / 2, torch.zeros_like(x)], dim=-1).log_softmax(-1) for x in (ours, theirs)
    ]
    divergence = (pairs[1].exp() * (pairs[1] - pairs[0])).sum(-1).mean()
    assert float(loss) == pytest.approx(4 * float(divergence), rel=1e-5)
    same = distillation_loss((theirs,), (theirs,), none, 1.0, 2.0, problem)
    assert float(same) == pytest.approx(0.0, abs=1e-6)


def test_balanced_weights() -> None:
    task = configs.task("text_classification", "label_names=[a,b,c]", "class_weights=balanced")
    features: list[dict[str, Any]] = [{"labels": label} for label in (0, 0, 0, 1)]
    assert find_weights(task, features) == pytest.approx([4 / 6, 2.0, 0.0])
    assert describe(task, [0.5, 2.0, 0.0]).endswith("loss: a 0.5, b 2, c 0")
    tags = replace(task, kind="token_classification")
    words = [{"labels": [-100, 0, 2, -100]}, {"labels": [-100, 0, 0, -100]}]
    assert find_weights(tags, words) == pytest.approx([4 / 6, 0.0, 2.0])
    several = replace(task, multi_label=True)
    texts = [{"labels": [1.0, 0.0, 0.0]}, {"labels": [1.0, 1.0, 0.0]}]
    assert find_weights(several, texts) == [0.0, 1.0, 0.0]
    stated = replace(task, class_weights=[1, 2])
    with pytest.raises(UsageError, match=r"one number for each of the 3 labels \(a, b, c\); got 2"):
        find_weights(stated, [])


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_weighted_cross_entropy_is_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(*shape, 3), torch.randint(0, 3, shape)
    labels.view(-1)[1] = -100
    expected = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]))(
        logits.view(-1, 3), labels.view(-1)
    )
    found = weighted_loss([1.0, 2.0, 5.0], "single_label_classification")(logits, labels)
    assert float(found) == pytest.approx(float(expected))
    # a batch with nothing to learn from
    nothing = weighted_loss([1.0, 2.0, 5.0], None)(logits, torch.full(shape, -100))
    assert float(nothing) == 0.0


def test_weights_of_several_labels() -> None:
    logits, labels = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    found = weighted_loss([3.0, 9.0], "multi_label_classification")(logits, labels)
    assert float(found) == pytest.approx((3 + 1) * float(torch.tensor(2.0).log()) / 2)
