"""What a student is to learn from a teacher: pure functions of both models' outputs.

B: examples of a batch, T: tokens, C: classes, D: features of a hidden state.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from toolkit.config import EmbeddingLoss, Pooling

SPANS = ("start_logits", "end_logits")  # (B, T): their classes are the tokens of a text
NO_CLASS = -1e30  # the logit of padding: its probability is 0, and so is its share of a divergence


def distillation_loss(
    student_logits: tuple[torch.Tensor, ...],
    teacher_logits: tuple[torch.Tensor, ...],
    labels_loss: torch.Tensor,
    hardness: float,
    temperature: float,
    problem_type: str | None = None,
) -> torch.Tensor:
    """Mix the loss on the labels with the distance from the teacher.

    `(1 - h) · CE + h · T² · KL(softmax(t / T) || softmax(s / T))`; KL is summed over the
    classes and averaged over the batch. T² keeps the gradient's size whatever the temperature.
    Where each class is there or not by itself, KL is that of `sigmoid`, averaged over the classes;
    numbers have neither: there it is the mean squared error.

    Args:
        student_logits: (B, C) each: one for classification, start and end for question answering,
            whose distances are averaged.
        teacher_logits: Of the same shapes.
        labels_loss: CE, a scalar.
        hardness: h in [0, 1]; 1 ignores the labels.
        temperature: T > 0.
        problem_type: As in config.json: `multi_label_classification`, `regression`, or one class
            of several.

    Returns:
        A scalar.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.
    """
    distances = [
        _distance(student, teacher, temperature, problem_type)
        for student, teacher in zip(student_logits, teacher_logits, strict=True)
    ]
    return (1.0 - hardness) * labels_loss + hardness * torch.stack(distances).mean()


def _distance(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, problem_type: str | None
) -> torch.Tensor:
    if problem_type == "regression":
        return F.mse_loss(student, teacher)
    student, teacher = student / temperature, teacher / temperature
    if problem_type == "multi_label_classification":
        chances = teacher.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(teacher, chances)
        divergence = F.binary_cross_entropy_with_logits(student, chances) - entropy
    else:
        divergence = F.kl_div(
            F.log_softmax(student, dim=-1),
            F.log_softmax(teacher, dim=-1),
            log_target=True,
            reduction="batchmean",
        )
    return divergence * temperature**2


def taught(
    outputs: Mapping[str, torch.Tensor], mask: torch.Tensor, pooling: Pooling | None
) -> dict[str, torch.Tensor]:
    """Choose what a teacher teaches among a model's outputs: logits, or a text's vector.

    Args:
        outputs: Of a model.
        mask: (B, T), 0 at padding.
        pooling: Set for embeddings.

    Returns:
        By name in float32: the logits of every head, or `embedding` (B, D).
    """
    if pooling is None:
        return {name: value.float() for name, value in outputs.items() if name.endswith("logits")}
    return {"embedding": pool(outputs["last_hidden_state"].float(), mask, pooling)}


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Make one vector (B, D) of each text's hidden states (B, T, D); `mask` (B, T) 0 at padding."""
    if pooling is Pooling.cls:
        return hidden[:, 0]
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def embedding_loss(
    student: torch.Tensor, teacher: torch.Tensor, kind: EmbeddingLoss
) -> torch.Tensor:
    """Compare vectors (B, D) with the teacher's.

    Returns:
        A scalar: the mean of `1 − cos(s, t)`, or `‖s − t‖² / ‖t‖²` over the batch.
    """
    if kind is EmbeddingLoss.cosine:
        return (1.0 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    return (student - teacher).square().sum() / teacher.square().sum()


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


def hidden_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor
) -> torch.Tensor:
    """Compare hidden states: `‖s − t‖² / ‖t‖²` over all tokens of a batch, averaged over layers.

    The teacher's own size divides, so that 1 is the error of a student that says nothing, in
    every layer, and one weight fits all models.

    Args:
        student: (B, T, D) each, one per layer.
        teacher: Of the same shapes.
        mask: (B, T), 0 at padding, which is left out.

    Returns:
        A scalar, >= 0.

    Source: Kurtic et al. 2023, "Sparse fine-tuning for inference acceleration of large language
        models", section 3 (SquareHead).
    """
    kept = mask != 0
    errors = [
        (ours[kept].float() - theirs[kept].float()).square().sum()
        / theirs[kept].float().square().sum()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def relation_loss(
    student: Sequence[tuple[torch.Tensor, torch.Tensor]],
    teacher: Sequence[tuple[torch.Tensor, torch.Tensor]],
    heads: int,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Compare how tokens relate: `KL(R_t || R_s)` with `R = softmax(a·bᵀ / √d)` in every head.

    Queries and keys for a and b give the attention maps, values for both the value relation. D may
    differ between student and teacher.

    Args:
        student: Pairs a, b, (B, T, D) each, one pair per layer.
        teacher: As many pairs.
        heads: Into which D is cut, d = D / heads features each.
        mask: (B, T), 0 at padding: no token relates to it, and its own relations do not count.

    Returns:
        The divergence summed over the tokens that a token relates to, averaged over tokens, heads
        and layers; a scalar.

    Source: Wang et al. 2020, "MiniLM", equations 4 (attention) and 7 (values), there of the last
        layer alone.
    """
    divergences = []
    for ours, theirs in zip(student, teacher, strict=True):
        s, t = _log_relation(*ours, heads, mask), _log_relation(*theirs, heads, mask)
        divergence = F.kl_div(s, t, log_target=True, reduction="none").sum(-1)  # (B, heads, T)
        divergences.append(divergence.transpose(1, 2)[mask != 0].mean())
    return torch.stack(divergences).mean()


def _log_relation(a: torch.Tensor, b: torch.Tensor, heads: int, mask: torch.Tensor) -> torch.Tensor:
    a, b = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (a, b))  # B heads T d
    scores = a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5
    return F.log_softmax(scores.masked_fill(mask[:, None, None, :] == 0, NO_CLASS), dim=-1)


def evenly_spaced(student_layers: int, teacher_layers: int) -> list[int]:
    """Choose a teacher's layer for each of a student's: as deep in proportion, last with last.

    Source: the uniform strategy of Jiao et al. 2020, "TinyBERT", section 4.1.
    """
    return [-(-(i + 1) * teacher_layers // student_layers) - 1 for i in range(student_layers)]
