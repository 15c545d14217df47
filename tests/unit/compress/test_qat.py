"""INT8 learnt while training: the schedule, the zeros, a resume, and what is saved."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.configs import TINY, compose
from support.tiny import make_model, pruning, trainer_for
from transformers import AutoModelForSequenceClassification

from toolkit.compress.flow import seen
from toolkit.compress.model import evaluating
from toolkit.compress.quantization.callback import (
    RANGES_FILE,
    QuantizationCallback,
    qat_steps,
    rate_factor,
)
from toolkit.compress.quantization.grids import round_weight
from toolkit.compress.quantization.layers import (
    GRIDS_FILE,
    as_float,
    encoder_linears,
    quantized_linears,
)
from toolkit.errors import InputError, UsageError
from toolkit.record import read_record
from toolkit.train import train

pytestmark = pytest.mark.slow


def qat(*overrides: str, is_rewound: bool = False) -> QuantizationCallback:
    """Round from epoch 1 on; the trainer of `tiny` makes 8 steps in an epoch."""
    values = ("start_epoch=1", *overrides)
    config = compose("train", "quantization=int8", *(f"quantization.{value}" for value in values))
    return QuantizationCallback(config.quantization, is_rewound)


def compose_at(folder: Path, *overrides: str) -> Any:
    return replace(compose("train", *overrides), output_dir=str(folder))


def trained(folder: Path, *callbacks: Any, resume: str | None = None, **arguments: Any) -> Any:
    model = make_model(dropout=0.1)
    values: dict[str, Any] = {"epochs": 3} | arguments
    trainer = trainer_for(model, folder, callbacks=list(callbacks), **values)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_steps() -> None:
    q = qat().quantization
    assert qat_steps(q, 8, 24) == (8, 16)
    assert qat_steps(qat("start_epoch=null").quantization, 8, 32) == (24, 28)
    assert qat_steps(qat("freeze_epoch=2.5").quantization, 8, 24) == (8, 20)
    assert qat_steps(qat("freeze_epoch=1").quantization, 8, 24) == (8, 8)
    with pytest.raises(UsageError, match=r"starts at epoch 1 .* but training ends after 1 epochs"):
        qat_steps(q, 8, 8)


def test_the_learning_rate_is_completed_set_back_and_completed_again(tmp_path: Path) -> None:
    assert rate_factor(10, 10, 20, 0.5, 0.1) == 0.5
    assert rate_factor(15, 10, 20, 0.5, 0.1) == pytest.approx(0.3)

    def rates(name: str, *callbacks: Any) -> list[float]:
        trainer = trained(
            tmp_path / name, *callbacks, logging_strategy="steps", logging_steps=1, epochs=2
        )
        return [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]

    found = rates("a", qat("learning_rate=0.02", "final_learning_rate=0.01"))
    # linear to 0 over 8 steps in the place of 16, then from 0.02 to 0.01 over the other 8
    expected = [1e-2 * (1 - step / 8) for step in range(8)]
    expected += [0.02 - 0.01 * step / 8 for step in range(8)]
    assert found == pytest.approx(expected)
    rewinding = pruning(0.5, rewind=0.1)
    found = rates("b", rewinding, qat(is_rewound=True))
    assert found[8:] == pytest.approx([1e-2 * (1 - step / 8) for step in range(8)])
    assert found[7] == pytest.approx(1e-2)  # as pruning's last update has set it


def test_rounding_starts_in_time_and_ranges_are_frozen_late(tmp_path: Path) -> None:
    found: list[tuple[int, float]] = []

    class Watch(QuantizationCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            modules = quantized_linears(kwargs["model"])
            high = modules["layers.0.query"].input.high if modules else None
            found.append((len(modules), 0.0 if high is None else float(high)))

    callback = Watch(qat("keep_float=['*.value']", "freeze_epoch=2.5").quantization)
    trainer = trained(tmp_path, callback, epochs=4)
    assert [count for count, _ in found] == [0] * 8 + [10] * 24
    highs = [high for _, high in found[8:]]
    for first, last in ((0, 8), (8, 12), (12, 24)):  # epoch 1, half of epoch 2, frozen
        assert len(set(highs[first:last])) == 1
    assert len(set(highs)) == 3
    for name, linear in encoder_linears(trainer.model).items():
        on_grid = torch.allclose(round_weight(linear.weight), linear.weight, rtol=1e-6, atol=0)
        assert on_grid == (not name.endswith("value"))


def test_ranges_are_those_of_calibration(tmp_path: Path) -> None:
    """With all 64 examples and `min_max` no draw matters: the largest number of all is found."""
    expected: list[float] = []

    class Watch(QuantizationCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model, data = kwargs["model"], kwargs["train_dataloader"]
            if state.global_step == self.freeze:
                last = encoder_linears(model)["layers.1.output"]
                batch = data.collate_fn([data.dataset[i] for i in range(len(data.dataset))])
                batch = {name: part for name, part in batch.items() if name != "labels"}
                with torch.no_grad(), evaluating(model), as_float(model), seen([last]) as taken:
                    model(**batch)
                expected.append(float(taken[0][batch["attention_mask"].bool()].max()))
            super().on_step_begin(args, state, control, **kwargs)

    options = qat("calibration=min_max", "num_calibration_examples=64", "smooth=0.5")
    trainer = trained(tmp_path, Watch(options.quantization))
    at = quantized_linears(trainer.model)["layers.1.output"].input
    assert at.high is not None
    assert float(at.high) == pytest.approx(expected[0])
    assert at.factor is None  # only an export moves outliers


@pytest.mark.parametrize("step", [6, 12, 20])  # before, between two calibrations, once frozen
def test_resumed_run_is_bit_identical(tmp_path: Path, step: int) -> None:
    def callbacks() -> list[Any]:
        return [pruning(0.8, block_shape=[1, 4]), qat("freeze_epoch=2")]

    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": step}
    whole = trained(tmp_path, *callbacks(), **saving)
    resumed = trained(tmp_path, *callbacks(), resume=str(tmp_path / f"checkpoint-{step}"), **saving)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    ours, theirs = (quantized_linears(t.model) for t in (resumed, whole))
    for name in theirs:
        assert ours[name].input.grid == theirs[name].input.grid
    zeros = sum(int((w.weight == 0).sum()) for w in theirs.values())
    assert zeros >= 0.79 * sum(w.weight.numel() for w in theirs.values())


def test_a_checkpoint_without_its_ranges_is_refused(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 12}
    trained(tmp_path, qat(), **saving)
    checkpoint = tmp_path / "checkpoint-12"
    assert len(load_file(checkpoint / RANGES_FILE)) == 2 * 12
    with pytest.raises(InputError, match="belong to another model"):
        trained(tmp_path, qat("keep_float=['*.value']"), resume=str(checkpoint), **saving)
    (checkpoint / RANGES_FILE).unlink()
    with pytest.raises(InputError, match="expected the ranges of the run to resume at"):
        trained(tmp_path, qat(), resume=str(checkpoint), **saving)


def test_what_has_not_been_rounded_cannot_be_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_best_model_at_end` compares with `best_metric`."""
    callback, model = qat(), make_model()
    monkeypatch.setattr(callback, "_calibrate", lambda *_, **__: None)  # there are no examples
    callback.names, callback.start, callback.freeze = list(encoder_linears(model)), 8, 16
    callback.steps_per_epoch = 8
    left = []
    for step in (0, 8, 16, 17):
        state = SimpleNamespace(global_step=step, best_metric=0.5)
        callback.on_step_begin(None, state, None, model=model, train_dataloader=None)
        left.append(state.best_metric)
    assert left == [None, None, None, 0.5]


def test_it_composes_and_leaves_a_plain_checkpoint(tmp_path: Path) -> None:
    """Half the layers, four fifths of the weights, a teacher and eight bits."""
    first = (*TINY, "model.config.num_hidden_layers=4")
    train(compose_at(tmp_path / "teacher", *first))
    student = tmp_path / "student"
    train(
        compose_at(
            student,
            *first,
            "trainer.num_train_epochs=2",
            f"model.path={tmp_path / 'teacher' / 'checkpoint'}",
            "model.weights=pretrained",
            "depth=layers2",
            "sparsity=prune80_block4",
            "sparsity.start_epoch=0",
            "sparsity.end_epoch=1",
            "sparsity.update_frequency=0.25",
            "teacher=dense",
            f"teacher.path={tmp_path / 'teacher' / 'checkpoint'}",
            "teacher.hidden_weight=1",
            "quantization=int8",
            "quantization.start_epoch=1",
        )
    )
    record = read_record(student)
    assert record["model"]["layers"] == 2
    assert record["model"]["sparsity"]["encoder"] >= 0.8
    assert record["model"]["quantization"]["method"] == "qat"
    model = AutoModelForSequenceClassification.from_pretrained(student / "checkpoint")
    weights = {name: linear.weight.detach() for name, linear in encoder_linears(model).items()}
    grids = json.loads((student / "checkpoint" / GRIDS_FILE).read_text())["layers"]
    assert grids.keys() == weights.keys()
    for weight in weights.values():
        torch.testing.assert_close(round_weight(weight), weight, rtol=1e-6, atol=0)
        groups = weight.reshape(-1, 4)
        dropped = (groups == 0).all(dim=1)
        assert float(dropped.float().mean()) == pytest.approx(0.8, abs=0.01)
