"""The distillation loss against float64, and the Trainer that computes it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import configs
from support.tiny import FAMILIES, examples_of, make_model, trainer_for
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from toolkit.compress.distillation import distillation_loss
from toolkit.compress.model import load_tokenizer, save_checkpoint
from toolkit.compress.teacher import DistillationTrainer, load_teacher
from toolkit.config import (
    EmbeddingLoss,
    ModelConfig,
    Pooling,
    TaskConfig,
    TeacherConfig,
    TeacherKind,
    Weights,
)
from toolkit.errors import InputError, UsageError
from toolkit.tasks import demo

pytestmark = pytest.mark.slow

STUDENT = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
TEACHER = np.array([[4.0, -1.0, 0.0], [-2.0, 2.0, 2.5]])


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def reference(hardness: float, temperature: float, label_loss: float) -> float:
    """The formula, written out in float64: KL(teacher || student), summed, mean over the batch."""
    t, s = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    divergence = (t * np.log(t / s)).sum(axis=-1).mean()
    return float((1 - hardness) * label_loss + hardness * temperature**2 * divergence)


@pytest.mark.parametrize(("hardness", "temperature"), [(1.0, 2.0), (0.0, 2.0), (0.3, 5.5)])
def test_loss_is_the_formula(hardness: float, temperature: float) -> None:
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    loss = distillation_loss(
        (student,), (teacher,), torch.tensor(0.7, dtype=torch.float64), hardness, temperature
    )
    assert float(loss) == pytest.approx(reference(hardness, temperature, 0.7), rel=1e-12)


def test_raw_logits_would_be_noticed() -> None:
    """The published system's mistake: logits where kl_div wants probabilities."""
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    loss = float(distillation_loss((student,), (teacher,), torch.tensor(0.0), 1.0, 1.0))
    wrong = float(torch.nn.functional.kl_div(student.log_softmax(-1), teacher, reduction="sum") / 2)
    assert not np.isclose(loss, wrong, rtol=0.1)
    same = distillation_loss((student,), (student + 3.0,), torch.tensor(0.0), 1.0, 2.0)
    assert float(same) == pytest.approx(0.0, abs=1e-12)  # a shift changes no probability


def test_start_and_end_are_averaged() -> None:
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    none = torch.tensor(0.0)
    start = distillation_loss((student,), (teacher,), none, 1.0, 2.0)
    end = distillation_loss((teacher,), (student,), none, 1.0, 2.0)
    both = distillation_loss((student, teacher), (teacher, student), none, 1.0, 2.0)
    assert float(both) == pytest.approx(float(start + end) / 2)


def test_gradient_pulls_towards_the_teacher() -> None:
    student = torch.tensor(STUDENT, requires_grad=True)
    distillation_loss((student,), (torch.tensor(TEACHER),), torch.tensor(0.0), 1.0, 1.0).backward()
    assert student.grad is not None
    expected = (softmax(STUDENT) - softmax(TEACHER)) / len(STUDENT)  # of cross entropy, batch mean
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-12)


def test_trainer_learns_the_teacher(tmp_path: Path) -> None:
    """With hardness 1 a student ends near a teacher that contradicts the labels."""
    teacher = make_model(seed=1, dropout=0.5)
    with torch.no_grad():
        teacher.classifier.bias += torch.tensor([2.0, -2.0])
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = make_model(seed=2)
    trainer = trainer_for(student, tmp_path, epochs=6, teacher=teacher)
    trainer.train()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    batch = trainer.data_collator(examples_of(64))
    del batch["labels"]
    student.eval()
    with torch.no_grad():
        distance = (student(**batch).logits - teacher(**batch).logits).softmax(-1)
    assert distance.sub(0.5).abs().max() < 0.2
    examples: Any = examples_of(64)
    loss = trainer.evaluate(examples)["eval_loss"]
    assert loss > 1.0  # outside training it is the loss on the labels


def test_hardness_zero_is_plain_training(tmp_path: Path) -> None:
    plain, taught = make_model(), make_model()
    trainer_for(plain, tmp_path / "plain").train()
    trainer_for(taught, tmp_path / "taught", teacher=make_model(seed=5), hardness=0.0).train()
    for a, b in zip(plain.state_dict().values(), taught.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_question_answering_logits() -> None:
    values = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", **values, num_hidden_layers=1, intermediate_size=32)
    student = AutoModelForQuestionAnswering.from_config(config)
    teacher = AutoModelForQuestionAnswering.from_config(config).eval()
    trainer = trainer_for(student, Path("/nonexistent-is-never-made"), teacher=teacher)
    inputs = {
        "input_ids": torch.arange(6)[None],
        "attention_mask": torch.ones(1, 6, dtype=torch.long),
        "token_type_ids": torch.zeros(1, 6, dtype=torch.long),
        "start_positions": torch.tensor([1]),
        "end_positions": torch.tensor([2]),
    }
    student.train()
    torch.manual_seed(0)
    loss, outputs = trainer.compute_loss(student, inputs, return_outputs=True)
    with torch.no_grad():
        theirs = teacher(**{name: inputs[name] for name in list(inputs)[:3]})
    expected = distillation_loss(
        (outputs.start_logits, outputs.end_logits),
        (theirs.start_logits, theirs.end_logits),
        outputs.loss,
        1.0,
        2.0,
    )
    torch.testing.assert_close(loss, expected)


def test_distilbert_learns_from_bert(tmp_path: Path) -> None:
    """The teacher sees token types though the student takes none."""
    teacher = make_model()
    seen: list[set[str]] = []
    teacher.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    trainer = trainer_for(
        make_model("distilbert"), tmp_path, teacher=teacher, remove_unused_columns=False
    )
    trainer.train()
    assert seen == [{"input_ids", "attention_mask", "token_type_ids"}] * 8


def task(num_labels: int = 2) -> TaskConfig:
    return replace(configs.task("demo"), num_labels=num_labels, max_length=16)


def teacher_config(kind: TeacherKind, path: Path | None = None) -> TeacherConfig:
    none: TeacherConfig = configs.compose("train").teacher
    return replace(none, kind=kind, path=str(path) if path else None)


def demo_student() -> tuple[Any, PreTrainedTokenizerFast]:
    made = ModelConfig(
        name="demo", path=None, weights=Weights.random, config={}, freeze_embeddings=False
    )
    return make_model(vocab_size=demo.make_tokenizer().get_vocab_size()), load_tokenizer(made)


def test_teachers(tmp_path: Path) -> None:
    student, tokenizer = demo_student()
    assert load_teacher(teacher_config(TeacherKind.none), student, tokenizer, task()) is None
    own: Any = load_teacher(teacher_config(TeacherKind.self), student, tokenizer, task())
    assert own is not None
    assert own is not student
    with torch.no_grad():
        student.classifier.bias += 1.0
    assert not torch.equal(own.classifier.bias, student.classifier.bias)

    save_checkpoint(tmp_path / "teacher", student, tokenizer)
    config = teacher_config(TeacherKind.dense, tmp_path / "teacher")
    dense: Any = load_teacher(config, student, tokenizer, task())
    assert dense is not None
    assert torch.equal(dense.classifier.bias, student.classifier.bias)
    with pytest.raises(InputError, match="made for 2 labels, but task=demo has 3"):
        load_teacher(config, student, tokenizer, task(num_labels=3))


def test_teacher_with_another_vocabulary(tmp_path: Path) -> None:
    student, tokenizer = demo_student()
    _, other = demo_student()
    other.add_tokens(["zebra"])
    save_checkpoint(tmp_path / "teacher", student, other)
    config = teacher_config(TeacherKind.dense, tmp_path / "teacher")
    with pytest.raises(InputError, match="has another vocabulary"):
        load_teacher(config, student, tokenizer, task())


def test_teachers_of_embeddings(tmp_path: Path) -> None:
    embedding = configs.task("embedding", "max_length=16")
    classifier, tokenizer = demo_student()
    with pytest.raises(UsageError, match="there is nothing to learn: add teacher=self"):
        load_teacher(teacher_config(TeacherKind.none), classifier, tokenizer, embedding)
    dense = teacher_config(TeacherKind.dense, tmp_path / "teacher")
    save_checkpoint(tmp_path / "teacher", classifier, tokenizer)
    with pytest.raises(InputError, match="task=embedding needs a model without a head"):
        load_teacher(dense, classifier, tokenizer, embedding)
    save_checkpoint(tmp_path / "teacher", classifier.base_model, tokenizer)
    assert load_teacher(dense, classifier.base_model, tokenizer, embedding) is not None
    wide = make_model(hidden_size=32, vocab_size=len(tokenizer)).base_model
    with pytest.raises(UsageError, match=r"hidden_size=32, the teacher 16.*vectors are as long"):
        load_teacher(dense, wide, tokenizer, embedding)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", list(EmbeddingLoss))
def test_vectors_of_texts(tmp_path: Path, family: str, kind: EmbeddingLoss) -> None:
    """The formulas in float64; no dropout, so that a copy of the teacher has nothing to learn."""
    teacher = make_model(family, seed=1).base_model
    student = make_model(family, seed=2, dropout=0.5).base_model
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=TrainingArguments(str(tmp_path), use_cpu=True),
        pooling=Pooling.mean,
        embedding_loss=kind,
    )
    batch = {
        name: torch.tensor([feature[name] for feature in examples_of(4)])
        for name in trainer.student_inputs
    }
    batch["attention_mask"][1, 5:] = 0
    student.train()
    found = trainer.compute_loss(student, dict(batch)).item()

    with torch.no_grad():
        both = [model.eval()(**batch).last_hidden_state.double() for model in (student, teacher)]
    s, t = (
        np.array([row[: int(length)].mean(0).numpy() for row, length in zip(
            hidden, batch["attention_mask"].sum(1), strict=True)])
        for hidden in both
    )  # fmt: skip
    if kind is EmbeddingLoss.cosine:
        sizes = np.linalg.norm(s, axis=1) * np.linalg.norm(t, axis=1)
        expected = float(np.mean(1 - (s * t).sum(axis=1) / sizes))
    else:
        expected = float(((s - t) ** 2).sum() / (t**2).sum())
    assert found == pytest.approx(expected, rel=1e-4)
    student.load_state_dict(teacher.state_dict())
    assert trainer.compute_loss(student.train(), dict(batch)).item() == pytest.approx(0, abs=1e-6)


def test_a_users_own_script() -> None:
    from toolkit import train

    assert train.DistillationTrainer is DistillationTrainer
    assert train.SparsificationCallback.__name__ == "SparsificationCallback"
