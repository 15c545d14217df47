"""The terms of distillation: against NumPy by hand, and against what transformers computes."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import configs
from support.tiny import FAMILIES, examples_of, make_model, trainer_for
from transformers import TrainingArguments

from toolkit.compress.depth import encoder_layers
from toolkit.compress.distillation import evenly_spaced, hidden_loss, relation_loss
from toolkit.compress.structured.widths import Kept, shrink
from toolkit.compress.teacher import map_layers, needs_states
from toolkit.config import Attention, TeacherConfig
from toolkit.errors import UsageError

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
VALID = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]  # text, token


def states(seed: int, layers: int = 2, size: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, size, generator=generator) for _ in range(layers)]


def teacher_config(**changes: Any) -> TeacherConfig:
    none: TeacherConfig = configs.compose("train").teacher
    return replace(none, **changes)


def test_hidden_loss_is_the_relative_error_of_tokens_that_count() -> None:
    student, teacher = states(0), states(1)
    expected = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        error = sum(float(((ours[i, t] - theirs[i, t]) ** 2).sum()) for i, t in VALID)
        expected += error / sum(float((theirs[i, t] ** 2).sum()) for i, t in VALID) / 2
    assert float(hidden_loss(student, teacher, MASK)) == pytest.approx(expected, rel=1e-6)

    assert float(hidden_loss(teacher, teacher, MASK)) == 0.0
    silent = [torch.zeros_like(x) for x in teacher]
    assert float(hidden_loss(silent, teacher, MASK)) == pytest.approx(1.0)
    for layer in student:
        layer[0, 3] = math.nan  # padding
    assert float(hidden_loss(student, teacher, MASK)) == pytest.approx(expected, rel=1e-6)


def relations(a: torch.Tensor, b: torch.Tensor, heads: int, text: int) -> Any:
    """softmax(a·bᵀ / √d) of one text's own tokens, (heads, T', T'), in float64."""
    length = int(MASK[text].sum())
    size = a.shape[-1] // heads
    found = []
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        x, y = (z[text, :length, columns].double().numpy() for z in (a, b))
        powers = np.exp(x @ y.T / math.sqrt(size))
        found.append(powers / powers.sum(axis=1, keepdims=True))
    return np.array(found)


@pytest.mark.parametrize("teacher_size", [6, 12])
def test_relation_loss_is_the_mean_divergence(teacher_size: int) -> None:
    """Also of a teacher with other features per head."""
    heads = 3
    student = [(a, b) for a, b in zip(states(0), states(1), strict=True)]
    teacher = list(zip(states(2, size=teacher_size), states(3, size=teacher_size), strict=True))
    expected = []
    for ours, theirs in zip(student, teacher, strict=True):
        rows = []
        for text in range(2):
            s, t = relations(*ours, heads, text), relations(*theirs, heads, text)
            rows += list((t * np.log(t / s)).sum(axis=-1).flatten())
        expected.append(np.mean(rows))
    found = relation_loss(student, teacher, heads, MASK)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(relation_loss(teacher, teacher, heads, MASK)) == pytest.approx(0.0, abs=1e-7)


def test_relation_loss_has_a_gradient_and_padding_none() -> None:
    values = [x.requires_grad_() for x in states(0)]
    relation_loss([(x, x) for x in values], [(x, x) for x in states(1)], 2, MASK).backward()
    for value in values:
        assert value.grad is not None
        assert torch.isfinite(value.grad).all()
        assert not value.grad[MASK == 0].any()
        assert value.grad[MASK != 0].any()


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (3, 12, [3, 7, 11]),  # TinyBERT: every fourth
        (6, 12, [1, 3, 5, 7, 9, 11]),
        (2, 3, [1, 2]),
        (1, 6, [5]),
        (4, 2, [0, 0, 1, 1]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_evenly_spaced(student: int, teacher: int, expected: list[int]) -> None:
    assert evenly_spaced(student, teacher) == expected


def test_map_of_layers() -> None:
    """A layer that was kept is compared with itself; a deeper teacher's are spaced evenly."""
    assert map_layers(teacher_config(), 12, [0, 6, 11], 12) == [0, 6, 11]
    assert map_layers(teacher_config(), 6, [0, 2, 5], 12) == [3, 7, 11]
    assert map_layers(teacher_config(layer_map=[0, 0, 2]), 6, [0, 2, 5], 6) == [0, 0, 2]
    for wrong in ([0, 1], [0, 1, 6]):
        with pytest.raises(UsageError, match="the student's 3 layers, one of the teacher's, 0 to"):
            map_layers(teacher_config(layer_map=wrong), 6, [0, 2, 5], 6)


def test_logits_alone_need_no_states() -> None:
    assert not needs_states(teacher_config())
    assert needs_states(teacher_config(hidden_weight=0.1))
    assert needs_states(teacher_config(attention=Attention.maps))


def sharp(model: Any) -> Any:
    """Let a new model's tokens relate to few others, rather than to all alike."""
    with torch.no_grad():
        for layer in encoder_layers(model):
            for linear in [m for m in layer.modules() if isinstance(m, torch.nn.Linear)][:3]:
                linear.weight *= 20.0
    return model


def batch_of(count: int = 4) -> dict[str, torch.Tensor]:
    batch = {
        name: torch.tensor([feature[name] for feature in examples_of(count)])
        for name in ("input_ids", "attention_mask", "token_type_ids", "labels")
    }
    batch["attention_mask"][1, 5:] = 0
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("attention", [Attention.maps, Attention.values])
def test_the_trainer_adds_what_transformers_computes(
    tmp_path: Path, family: str, attention: Attention
) -> None:
    """Attention maps and hidden states as the models themselves give them; the layer map."""
    teacher = make_model(family, seed=1, **{"n_layers" if family == "distilbert" else
                                            "num_hidden_layers": 3})  # fmt: skip
    teacher, student, batch = sharp(teacher), sharp(make_model(family, seed=2)), batch_of()
    losses = {}
    terms: dict[str, dict[str, Any]] = {
        "logits": {},
        "hidden": {"hidden_weight": 10.0},
        "attention": {"attention": attention, "attention_weight": 3.0},
    }
    for name, more in terms.items():
        trainer = trainer_for(student, tmp_path, teacher=teacher, layer_map=[0, 2], **more)
        student.train()
        losses[name] = trainer.compute_loss(student, dict(batch)).item()

    inputs = {name: batch[name] for name in trainer.student_inputs}
    for model in (student, teacher):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        ours, theirs = (
            model(**inputs, output_hidden_states=True, output_attentions=True)
            for model in (student, teacher)
        )
    mask = batch["attention_mask"]
    of_student, of_teacher = ours.hidden_states[1:], theirs.hidden_states[1:]
    expected = float(hidden_loss(of_student, (of_teacher[0], of_teacher[2]), mask))
    assert losses["hidden"] - losses["logits"] == pytest.approx(10 * expected, rel=1e-4)
    if attention is Attention.maps:
        divergences = []
        for i, j in ((0, 0), (1, 2)):
            s, t = ours.attentions[i].double(), theirs.attentions[j].double()
            divergence = torch.where(t > 0, t * (t / s).log(), 0.0).sum(-1)  # (B, heads, T)
            divergences.append(divergence.transpose(1, 2)[mask != 0].mean())
        distance = float(torch.stack(divergences).mean())
        assert losses["attention"] - losses["logits"] == pytest.approx(3 * distance, rel=1e-4)
    else:
        assert losses["attention"] > losses["logits"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{"hidden_weight": 10.0}, {"attention": Attention.maps}, {"attention": Attention.values}],
)
def test_training_brings_the_states_nearer(tmp_path: Path, more: dict[str, Any]) -> None:
    """With the logits' term, which has no say over attention, switched off."""
    teacher, student = sharp(make_model(seed=1)), sharp(make_model(seed=2))
    trainer = trainer_for(student, tmp_path, epochs=4, teacher=teacher, hardness=0.0, **more)
    batch = batch_of(16)

    def distance() -> float:
        student.train()
        with torch.no_grad():
            taught = float(trainer.compute_loss(student, dict(batch)))
            student.eval()
            return taught - float(trainer.compute_loss(student, dict(batch)))  # the labels' part

    before = distance()
    trainer.train()
    assert 0.0 < distance() < 0.7 * before


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    student, wide = make_model(), make_model(hidden_size=32)
    with pytest.raises(UsageError, match="hidden_size=16, the teacher 32, which cannot be compare"):
        trainer_for(student, tmp_path, teacher=wide, hidden_weight=1.0)
    trainer_for(student, tmp_path, teacher=wide, attention=Attention.values)
    more_heads = make_model(num_attention_heads=4)
    with pytest.raises(UsageError, match=r"num_attention_heads=2, the teacher 4.*attention=none"):
        trainer_for(student, tmp_path, teacher=more_heads, attention=Attention.maps)
    narrow = shrink(make_model(), [Kept([0], range(8)), Kept([0, 1], range(8))])
    with pytest.raises(UsageError, match="head by head, but heads have been removed from a layer"):
        trainer_for(narrow, tmp_path, teacher=make_model(), attention=Attention.values)
    names = [field.name for field in fields(TrainingArguments)]
    name = "activation_checkpointing"  # older transformers: gradient_checkpointing
    one: dict[str, Any] = {name if name in names else "gradient_checkpointing": True}
    with pytest.raises(UsageError, match=r"leave trainer.gradient_checkpointing out"):
        trainer_for(student, tmp_path, teacher=make_model(), attention=Attention.maps,
                    **one)  # fmt: skip
