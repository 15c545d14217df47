"""What a student is to learn from a teacher: pure functions of both models' outputs.

B: examples of a batch, T: tokens, C: classes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

SPANS = ("start_logits", "end_logits")  # (B, T): their classes are the tokens of a text
NO_CLASS = -1e30  # the logit of padding: its probability is 0, and so is its share of a divergence


def distillation_loss(
    student_logits: tuple[torch.Tensor, ...],
    teacher_logits: tuple[torch.Tensor, ...],
    labels_loss: torch.Tensor,
    hardness: float,
    temperature: float,
) -> torch.Tensor:
    """Mix the loss on the labels with the distance from the teacher.

    `(1 - h) · CE + h · T² · KL(softmax(t / T) || softmax(s / T))`; KL is summed over the
    classes and averaged over the batch. T² keeps the gradient's size whatever the temperature.

    Args:
        student_logits: (B, C) each: one for classification, start and end for question answering,
            whose distances are averaged.
        teacher_logits: Of the same shapes.
        labels_loss: CE, a scalar.
        hardness: h in [0, 1]; 1 ignores the labels.
        temperature: T > 0.

    Returns:
        A scalar.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.
    """
    distances = [
        F.kl_div(
            F.log_softmax(student / temperature, dim=-1),
            F.log_softmax(teacher / temperature, dim=-1),
            log_target=True,
            reduction="batchmean",
        )
        for student, teacher in zip(student_logits, teacher_logits, strict=True)
    ]
    distance = torch.stack(distances).mean() * temperature**2
    return (1.0 - hardness) * labels_loss + hardness * distance


def logits_of(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Choose the logits among a model's outputs, in float32."""
    return {name: value.float() for name, value in outputs.items() if name.endswith("logits")}


def is_per_token(name: str, logits: torch.Tensor) -> bool:
    """Tell logits of tokens, (B, T) of a span or (B, T, C), from those of whole texts, (B, C)."""
    return name in SPANS or logits.dim() == 3


def choices(logits: Mapping[str, torch.Tensor], mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Turn the logits of every head into rows of one choice each, padding left out.

    Args:
        logits: By name: (B, C) of whole texts, (B, T) of a span's start or end, (B, T, C) of
            tokens.
        mask: (B, T), 0 at padding.

    Returns:
        In their order: (B, C) as they are; (B, T) with `NO_CLASS` at padding; and (tokens, C).
    """
    rows = []
    for name, value in logits.items():
        if name in SPANS:
            rows.append(value.masked_fill(mask == 0, NO_CLASS))
        else:
            rows.append(value[mask != 0] if value.dim() == 3 else value)
    return tuple(rows)
