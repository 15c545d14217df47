"""A loss in which some labels weigh more than others. B texts, T tokens, C labels."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

from toolkit.config import TaskConfig
from toolkit.errors import UsageError
from toolkit.tasks.features import IGNORED, Feature

LabelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def find_weights(task: TaskConfig, features: Iterable[Feature]) -> list[float]:
    """Return the weights of C labels: those stated, or balanced.

    Balanced, a label that n of N labels are weighs `N / (C n)`, so that all labels together count
    alike; of several labels per text one that n of N texts have weighs `(N - n) / n` where it is
    there. A label that no text has weighs 0.

    Args:
        features: Of training, with `labels`; read where `task.class_weights` is balanced.

    Raises:
        UsageError: There are not as many weights as labels.
    """
    count = task.num_labels or 0
    if isinstance(task.class_weights, list):
        if len(task.class_weights) != count:
            raise UsageError(
                f"task.class_weights must hold one number for each of the {count} labels "
                f"({', '.join(task.label_names or ())}); got {len(task.class_weights)}"
            )
        return [float(weight) for weight in task.class_weights]
    seen, total = [0.0] * count, 0
    for feature in features:
        labels = feature["labels"]
        if task.multi_label:
            seen, total = [n + label for n, label in zip(seen, labels, strict=True)], total + 1
            continue
        for label in labels if isinstance(labels, list) else [labels]:
            if label != IGNORED:
                seen[label] += 1
                total += 1
    if task.multi_label:
        return [(total - n) / n if n else 0.0 for n in seen]
    return [total / (sum(map(bool, seen)) * n) if n else 0.0 for n in seen]


def weighted_loss(weights: list[float], problem_type: str | None) -> LabelLoss:
    """Return the loss of logits (…, C) and labels (…): cross entropy, averaged by weight.

    With several labels per text, labels (B, C), it is binary cross entropy, in which a label that
    is there has its weight and one that is not weighs 1.
    """

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits, weight = logits.float(), torch.tensor(weights, device=logits.device)
        if problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
        rows, classes = labels.flatten(), logits.flatten(0, -2)
        summed = F.cross_entropy(classes, rows, weight, ignore_index=IGNORED, reduction="sum")
        total = weight[rows[rows != IGNORED]].sum()
        return summed / total.clamp_min(torch.finfo(torch.float32).tiny)

    return loss


def describe(task: TaskConfig, weights: list[float]) -> str:
    """Say what each label weighs."""
    names: Any = task.label_names or range(len(weights))
    each = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=True))
    return f"weights of the labels in the loss: {each}"
