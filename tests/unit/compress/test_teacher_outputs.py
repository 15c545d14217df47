"""One pass of the teacher: what it gives, that training with it is the same, and its cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.tiny import SMALL, VOCAB_SIZE, make_model, trainer_for
from transformers import AutoConfig, AutoModelForQuestionAnswering, TrainingArguments

from toolkit.compress import teacher_outputs
from toolkit.compress.distillation import NO_CLASS, choices
from toolkit.compress.teacher_outputs import (
    ROW,
    TeacherOutputs,
    batches,
    compute,
    find_outputs,
    key_of,
    pays,
)
from toolkit.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def texts(count: int = 64, seed: int = 0) -> list[dict[str, Any]]:
    """Encoded features of 1 to 20 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 21, count)
    return [
        {
            "input_ids": rng.integers(5, VOCAB_SIZE, length).tolist(),
            "attention_mask": [1] * length,
            "token_type_ids": [0] * length,
            "labels": int(length % 2),
        }
        for length in lengths
    ]


def alone(model: Any, feature: dict[str, Any]) -> Any:
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        return model(**{name: torch.tensor([feature[name]]) for name in names})


def question_answering_model() -> Any:
    torch.manual_seed(3)
    return AutoModelForQuestionAnswering.from_config(AutoConfig.for_model("bert", **SMALL)).eval()


def test_classes_are_those_of_each_text_alone() -> None:
    teacher, features = make_model(dropout=0.5), texts()
    outputs = compute(teacher, features, 0, None)
    assert not teacher.training
    assert outputs.of_tokens == {}
    for feature, row in zip(features, outputs.of_inputs["logits"], strict=True):
        np.testing.assert_allclose(row, alone(teacher, feature).logits[0].numpy(), atol=1e-6)
    found = outputs.look_up(torch.tensor([7, 0, 7]), length=30)["logits"]
    assert torch.equal(found, torch.from_numpy(outputs.of_inputs["logits"][[7, 0, 7]]))


def test_spans_are_those_of_each_text_alone() -> None:
    teacher, features = question_answering_model(), texts(9)
    outputs = compute(teacher, features, 0, None)
    assert outputs.of_inputs == {}
    found = outputs.look_up(torch.arange(9), length=25)
    assert list(found) == ["start_logits", "end_logits"]
    for i, feature in enumerate(features):
        theirs, length = alone(teacher, feature), len(feature["input_ids"])
        for name in found:
            np.testing.assert_allclose(found[name][i, :length], theirs[name][0], atol=1e-6)
            assert not found[name][i, length:].any()


def test_choices_leave_padding_out() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    spans, classes, tokens = torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 3, 4)
    found = choices({"start_logits": spans, "logits": classes}, mask)
    assert found[0].tolist()[1] == pytest.approx([spans[1, 0].item(), NO_CLASS, NO_CLASS])
    assert torch.equal(found[0][0], spans[0])
    assert torch.equal(found[0].softmax(-1)[1], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(found[1], classes)
    (found_tokens,) = choices({"logits": tokens}, mask)
    assert torch.equal(found_tokens, torch.stack([*tokens[0], tokens[1, 0]]))


def test_batches_hold_every_input_once_and_at_most_their_tokens() -> None:
    lengths = np.random.default_rng(0).integers(1, 512, 1000)
    found = batches(lengths)
    assert sorted(i for batch in found for i in batch) == list(range(1000))
    assert all(len(b) * lengths[b].max() <= teacher_outputs.BATCH_TOKENS for b in found)
    assert len(found) < 1.3 * lengths.sum() / teacher_outputs.BATCH_TOKENS
    assert batches(np.array([10_000, 3])) == [[0], [1]]


def run(
    folder: Path, features: list[dict[str, Any]], outputs: TeacherOutputs | None, **more: Any
) -> tuple[list[float], Any]:
    """Train 2 epochs; return the loss of every step, and the model."""
    student = make_model(seed=1, dropout=0.1)
    trainer = trainer_for(student, folder, epochs=2, logging_strategy="steps", logging_steps=1,
                          remove_unused_columns=False, **more)  # fmt: skip
    trainer.train_dataset = [feature | {ROW: row} for row, feature in enumerate(features)]
    collate = trainer.data_collator

    def with_rows(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return collate(batch) | {ROW: torch.tensor([feature[ROW] for feature in batch])}

    trainer.data_collator = with_rows
    trainer.teacher_outputs = outputs
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], student


def test_losses_are_the_same_from_memory_and_disk_and_nearly_beside_the_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features, teacher = texts(), make_model(seed=4)
    arguments = TrainingArguments(str(tmp_path / "x"), use_cpu=True)
    runs = []
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        outputs = find_outputs(teacher, features, 0, arguments, cache)
        runs.append(run(tmp_path / "x", features, outputs))
    said = capsys.readouterr().out
    assert said.count("one pass over 64 inputs took") == 2
    assert said.count("outputs for 64 inputs are in") == 1
    assert runs[0][0] == runs[1][0] == runs[2][0]
    for model in (runs[1][1], runs[2][1]):
        for a, b in zip(runs[0][1].parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)

    live, _ = run(tmp_path / "x", features, None, teacher=teacher)
    assert len(live) == 16
    np.testing.assert_allclose(live, runs[0][0], atol=1e-5)


def test_the_key_is_of_all_that_counts() -> None:
    features = texts(4)

    def key(features: list[dict[str, Any]] = features, pad: int = 0, precision: str = "None",
            **model: Any) -> str:  # fmt: skip
        return key_of(make_model(**model), features, pad, precision)

    other = [dict(feature) for feature in features]
    other[2]["input_ids"] = [*other[2]["input_ids"][:-1], 6]
    # the same tokens, cut into texts in another way
    moved = [
        feature | {name: feature[name][:1] for name in ("input_ids", "attention_mask")}
        for feature in features
    ]
    keys = [
        key(), key(other), key(moved), key(features[::-1]), key(features[:3]), key(pad=1),
        key(precision="torch.bfloat16"), key(seed=1), key(layer_norm_eps=1e-6),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key() == key()
    half = make_model().bfloat16()
    assert key_of(half, features, 0, "None") == key_of(half, features, 0, "None") != key()


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign"])
def test_a_damaged_file_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    features, teacher = texts(), question_answering_model()
    arguments = TrainingArguments(str(tmp_path / "x"), use_cpu=True)
    first = find_outputs(teacher, features, 0, arguments, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    content = bytearray(whole)
    if damage == "bit":
        content[len(content) // 2] ^= 1
    damaged = {"cut": whole[:-100], "bit": bytes(content), "empty": b"", "foreign": b"PK??" * 30}
    path.write_bytes(damaged[damage])
    capsys.readouterr()
    again = find_outputs(teacher, features, 0, arguments, tmp_path / "cache")
    said = capsys.readouterr().out
    assert "is damaged" in said
    assert "is made again" in said
    assert path.read_bytes() == whole
    assert [path] == list((tmp_path / "cache").iterdir())
    for name, values in first.of_tokens.items():
        assert same(values, again.of_tokens[name])


def same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.tobytes() == other.tobytes()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = TrainingArguments(str(tmp_path / "x"), use_cpu=True)
    with pytest.raises(InputError, match=r"cannot write the teacher's outputs .* teacher.cache="):
        find_outputs(make_model(), texts(4), 0, arguments, tmp_path / "file" / "cache")


def test_a_pass_over_more_than_training_sees_does_not_pay(tmp_path: Path) -> None:
    def arguments(**more: Any) -> TrainingArguments:
        values: dict[str, Any] = {"per_device_train_batch_size": 4, "use_cpu": True}
        return TrainingArguments(str(tmp_path), **values, **more)

    assert pays(arguments(num_train_epochs=1), 100)
    assert not pays(arguments(num_train_epochs=0.5), 100)
    assert not pays(arguments(max_steps=24), 100)
    assert pays(arguments(max_steps=25), 100)
    assert pays(arguments(max_steps=5, gradient_accumulation_steps=5), 100)
