"""Schedule, masks, and the callback inside a real Trainer."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.tiny import FAMILIES, examples_of, make_model, pruning, trainer_for
from transformers import TrainerCallback

from toolkit.compress.batching import LikeLengths
from toolkit.compress.sparsity.callback import MASKS_FILE, SparsificationCallback
from toolkit.compress.sparsity.masks import mask_of, prune_once
from toolkit.compress.sparsity.schedule import sparsity_at
from toolkit.compress.sparsity.weights import describe_checkpoint, prunable_weights
from toolkit.config import default_sparsity
from toolkit.errors import InputError, UsageError

pytestmark = pytest.mark.slow


def test_schedule_has_the_published_shape() -> None:
    at = [sparsity_at(time, 2, 20, 0.0, 0.8) for time in (0, 1.99, 2, 11, 20, 30)]
    assert at[:3] == [0, 0, 0]
    assert at[3] == pytest.approx(0.8 - 0.8 * 0.5**3)
    assert at[4:] == [0.8, 0.8]
    assert sparsity_at(2, 2, 20, 0.5, 0.8) == pytest.approx(0.5)
    assert sparsity_at(3, 3, 3, 0.0, 0.8) == 0.8


@given(st.lists(st.floats(0, 40), min_size=2), st.floats(0, 0.5), st.floats(0.5, 0.99))
def test_schedule_never_falls(times: list[float], initial: float, final: float) -> None:
    values = [sparsity_at(time, 2, 20, initial, final) for time in sorted(times)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert all(0 <= value <= final + 1e-12 for value in values)


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([(1, 1), (1, 4), (2, 2)]),
    st.floats(0, 1),
    st.integers(0, 9),
)
def test_mask_counts_exactly(
    rows: int, columns: int, block: tuple[int, int], sparsity: float, seed: int
) -> None:
    shape = (rows * block[0], columns * block[1])
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    mask = mask_of(weight.abs(), sparsity, block)
    size = block[0] * block[1]
    dropped = round(sparsity * rows * columns)
    assert mask.shape == weight.shape
    assert int((~mask).sum()) == dropped * size
    scores = weight.abs().reshape(rows, block[0], columns, block[1]).sum((1, 3))
    kept = mask.reshape(rows, block[0], columns, block[1]).all(3).all(1)
    assert kept.sum() == rows * columns - dropped  # blocks are whole
    if 0 < dropped < rows * columns:
        assert scores[kept].min() >= scores[~kept].max()


def test_ties_are_broken_by_position() -> None:
    mask = mask_of(torch.ones(2, 4), 0.5)
    assert mask.tolist() == [[False] * 4, [True] * 4]


def test_masks_only_grow() -> None:
    """Pruned weights are zero, so a later, larger mask drops them again."""
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    first = mask_of(weight.abs(), 0.3)
    second = mask_of((weight * first).abs(), 0.6)
    assert not (second & ~first).any()


def test_block_must_divide() -> None:
    with pytest.raises(UsageError, match=r"block_shape=\[1, 4\] must divide.*8 x 6"):
        mask_of(torch.ones(8, 6), 0.5, (1, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_prunable_weights(family: str) -> None:
    model = make_model(family)
    weights = prunable_weights(model)
    assert len(weights) == 12
    assert all(model.state_dict()[name].shape == weight.shape for name, weight in weights.items())
    assert not [name for name in weights if "embed" in name or "norm" in name.lower()]
    assert not [name for name in weights if "classifier" in name or "pooler" in name]


def test_prune_once_and_measure() -> None:
    model = prune_once(make_model("bert"), default_sparsity(final_sparsity=0.75))
    measured = describe_checkpoint("x", model)["sparsity"]
    assert measured["encoder"] == 0.75
    assert {tensor["sparsity"] for tensor in measured["tensors"]} == {0.75}
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert measured["whole_model"] == zeros / sum(p.numel() for p in model.parameters())


class Watch(TrainerCallback):
    """Notes sparsity, and whether gradients, moments and weights respect the masks."""

    def __init__(self, callback: SparsificationCallback) -> None:
        self.callback = callback
        self.sparsities: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, mask in self.callback.masks.items():
            gradient = self.callback.weights[name].grad
            assert gradient is not None
            assert not gradient[~mask].any()
            assert gradient.any()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, mask in self.callback.masks.items():
            weight = self.callback.weights[name]
            assert not weight[~mask].any()
            assert not kwargs["optimizer"].state[weight]["exp_avg"][~mask].any()
            assert not kwargs["optimizer"].state[weight]["exp_avg_sq"][~mask].any()
        self.sparsities.append(describe_checkpoint("x", kwargs["model"])["sparsity"]["encoder"])


def test_training_reaches_the_final_sparsity(tmp_path: Path) -> None:
    """8 steps per epoch, pruning from step 8 to 24, a mask update every 4 steps, 32 steps."""
    model = make_model("bert")
    callback = pruning(0.75, start_epoch=1.0, end_epoch=3.0, update_frequency=0.5)
    watch = Watch(callback)
    trainer_for(model, tmp_path, epochs=4, callbacks=[callback, watch]).train()
    wanted = [sparsity_at(step, 8, 24, 0.0, 0.75) for step in range(8, 28, 4)]
    assert watch.sparsities[:8] == [0.0] * 8
    assert watch.sparsities[8:28] == pytest.approx(sorted(wanted * 4), abs=1 / 256)
    assert watch.sparsities[24:] == [0.75] * 8
    assert not [p for p in model.parameters() if p._post_accumulate_grad_hooks]


def test_pruning_may_end_with_training(tmp_path: Path) -> None:
    model = make_model("bert")
    callback = pruning(final_sparsity=0.9, end_epoch=1.0, block_shape=(1, 4))
    trainer_for(model, tmp_path, callbacks=[callback]).train()
    measured = describe_checkpoint("x", model)["sparsity"]
    assert {t["sparsity"] for t in measured["tensors"]} == {
        round(0.9 * t["shape"][0] * t["shape"][1] / 4) * 4 / (t["shape"][0] * t["shape"][1])
        for t in measured["tensors"]
    }


def test_pruned_checkpoint_stays_pruned(tmp_path: Path) -> None:
    model = prune_once(make_model("bert"), default_sparsity(final_sparsity=0.5))
    zeros = {name: weight == 0 for name, weight in prunable_weights(model).items()}
    callback = pruning(initial_sparsity=0.5, final_sparsity=0.5, end_epoch=0.0)
    trainer_for(model, tmp_path, callbacks=[callback]).train()
    for name, weight in prunable_weights(model).items():
        assert torch.equal(weight == 0, zeros[name])


def test_clipping_sees_masked_gradients(tmp_path: Path) -> None:
    """What is left of the gradients has the whole norm that clipping allows."""
    callback = pruning(0.95, end_epoch=0.0)
    norms: list[float] = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            squares = [
                (weight.grad * callback.masks[name]).square().sum()
                for name, weight in callback.weights.items()
                if weight.grad is not None
            ]
            norms.append(float(torch.stack(squares).sum().sqrt()))

    model = make_model("bert")
    model.requires_grad_(False)  # the head's gradients would outweigh all others
    for weight in prunable_weights(model).values():
        weight.requires_grad_()
    trainer_for(model, tmp_path, callbacks=[callback, Norm()], max_grad_norm=1e-9).train()
    assert norms == pytest.approx([1e-9] * 8, rel=0.05)  # clipping divides by norm + 1e-6


def test_too_short_run_is_refused(tmp_path: Path) -> None:
    callback = pruning(0.8, end_epoch=2.0)
    trainer = trainer_for(make_model("bert"), tmp_path, callbacks=[callback])
    with pytest.raises(UsageError, match=r"sparsity\.end_epoch=2\.0, but training"):
        trainer.train()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "movement"},
        {"method": "soft_movement"},
        {"method": "obert", "fisher": {"num_gradients": 4, "block": 8}, "ranking": "global"},
        {"method": "sparsegpt", "num_calibration": 8},
        {"floor": "made>=55"},
    ],
    ids=["magnitude", "movement", "soft_movement", "obert", "sparsegpt", "floor"],
)
def test_resumed_run_is_bit_identical(tmp_path: Path, options: dict[str, Any]) -> None:
    """Stopped after step 11 of 16, between two mask updates, with dropout and accumulation."""
    rewind = {"rewind": 0.5, **options}

    def run(folder: Path, stop_at: int | None, resume: str | None) -> dict[str, torch.Tensor]:
        model = make_model("bert", dropout=0.1)
        callback = pruning(final_sparsity=0.8, end_epoch=1.5, update_frequency=0.25, **rewind)
        callback.evaluate = lambda: {"made": 100.0 * (1.0 - callback.current)}
        trainer = trainer_for(
            model,
            folder,
            epochs=2,
            callbacks=[callback, *([Stop(stop_at)] if stop_at else [])],
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            save_strategy="steps",
            save_steps=5 if stop_at else 100,
        )
        trainer.train(resume_from_checkpoint=resume)
        return {name: value.clone() for name, value in model.state_dict().items()}

    whole = run(tmp_path / "whole", None, None)
    run(tmp_path / "parts", 11, None)
    masks = load_file(tmp_path / "parts" / "checkpoint-10" / MASKS_FILE)
    kept = float(torch.cat([m.flatten() for m in masks.values()]).float().mean())
    assert 0 < kept < 1 or options.get("method") == "soft_movement"
    resumed = run(tmp_path / "parts", None, str(tmp_path / "parts" / "checkpoint-10"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    (tmp_path / "parts" / "checkpoint-10" / MASKS_FILE).unlink()
    with pytest.raises(InputError, match="expected the masks of the run to resume at"):
        run(tmp_path / "parts", None, str(tmp_path / "parts" / "checkpoint-10"))


class Stop(TrainerCallback):
    """Stops training after a step, without saving."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    """2 x 8 gives the weights of 16, pruning included; stock Trainers take twice the step."""

    def run(batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
        model = make_model("bert")
        callback = pruning(0.5, end_epoch=0.5)
        trainer_for(
            model,
            tmp_path / str(batch_size),
            callbacks=[callback],
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",  # Adam hides a wrong scale
            learning_rate=0.5,
            max_grad_norm=0.0,
        ).train()
        weights: dict[str, torch.Tensor] = model.state_dict()
        return weights

    small, large = run(8, 2), run(16, 1)
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-4, atol=1e-6)


def test_examples_differ() -> None:
    """The tiny task is no constant: otherwise the tests above would see zero gradients."""
    assert len({str(example) for example in examples_of(16)}) == 16


def sparsity_of(model: Any) -> float:
    share: float = describe_checkpoint("x", model)["sparsity"]["encoder"]
    return share


@pytest.mark.parametrize("ranking", ["uniform", "global"])
def test_movement_reaches_its_sparsity_and_lets_weights_return(
    tmp_path: Path, ranking: str
) -> None:
    model = make_model("bert")
    callback = pruning(0.8, method="movement", ranking=ranking, end_epoch=2.0)
    seen: list[dict[str, torch.Tensor]] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append({name: mask.clone() for name, mask in callback.masks.items()})
            assert callback.movement is not None
            for name, mask in callback.masks.items():
                weight = callback.weights[name].detach()
                assert not weight[~mask].any()
                assert torch.equal(weight[mask], callback.movement.dense[name][mask])

    trainer_for(model, tmp_path, epochs=3, callbacks=[callback, Look()]).train()
    assert sparsity_of(model) == pytest.approx(0.8, abs=1e-3)
    returned = [
        int((after[name] & ~before[name]).sum())
        for before, after in itertools.pairwise(seen)
        for name in after
    ]
    assert sum(returned) > 0
    if ranking == "global":
        assert len({float(mask.float().mean()) for mask in callback.masks.values()}) > 1


def test_soft_movement_gets_sparser_with_its_regularization(tmp_path: Path) -> None:
    found = []
    for regularization in (0.0, 400.0):
        model = make_model("bert")
        movement = {"regularization": regularization, "threshold": 0.45, "learning_rate": 0.05}
        callback = pruning(0.9, method="soft_movement", movement=movement, end_epoch=2.0)
        trainer_for(model, tmp_path, epochs=3, callbacks=[callback]).train()
        found.append(sparsity_of(model))
    assert found[0] < found[1]
    assert found[1] > 0.5


def test_second_order_pruning_in_training(tmp_path: Path) -> None:
    """Seven levels as published, all layers ranked together."""
    model = make_model("bert")
    callback = pruning(
        0.9, method="obert", ranking="global", initial_sparsity=0.7, end_epoch=3.0,
        update_frequency=0.5, rewind=0.1, fisher={"num_gradients": 8, "block": 8},
    )  # fmt: skip
    watch = Watch(callback)
    rates: list[float] = []

    class Rate(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    trainer_for(model, tmp_path, epochs=4, callbacks=[callback, watch, Rate()]).train()
    levels = [sparsity_at(step, 0, 24, 0.7, 0.9) for step in range(0, 28, 4)]
    assert watch.sparsities[:28] == pytest.approx(sorted(levels * 4), abs=1e-3)
    assert sparsity_of(model) == pytest.approx(0.9, abs=1e-3)
    assert len({float(mask.float().mean()) for mask in callback.masks.values()}) > 1
    # the rate falls over four steps and is set back, six times, then falls to the end
    fall = [1e-2 * (1 - 0.9 * step / 4) for step in range(4)]
    rest = [1e-2 * (1 - 0.9 * step / 8) for step in range(8)]
    assert rates == pytest.approx(fall * 6 + rest)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_pruning_by_texts_in_training(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model("bert")
    callback = pruning(0.8, method=method, end_epoch=2.0, update_frequency=0.5, num_calibration=16)
    watch = Watch(callback)
    trainer_for(model, tmp_path, epochs=3, callbacks=[callback, watch], bf16=True).train()
    assert f"by {method}: 5 mask updates, each looks at 16 examples" in capsys.readouterr().out
    levels = [sparsity_at(step, 0, 16, 0.0, 0.8) for step in range(0, 20, 4)]
    assert watch.sparsities[:20] == pytest.approx(sorted(levels * 4), abs=2e-3)
    assert sparsity_of(model) == pytest.approx(0.8, abs=2e-3)


def test_a_sparse_model_is_pruned_on(tmp_path: Path) -> None:
    model = prune_once(make_model("bert"), default_sparsity(final_sparsity=0.5))
    callback = pruning(0.8, end_epoch=1.0)
    watch = Watch(callback)
    trainer_for(model, tmp_path, epochs=2, callbacks=[callback, watch]).train()
    wanted = [sparsity_at(step, 0, 8, 0.5, 0.8) for step in range(8)]
    assert watch.sparsities[:8] == pytest.approx(wanted, abs=1e-2)
    assert sparsity_of(model) == pytest.approx(0.8, abs=1e-3)
    model = prune_once(make_model("bert"), default_sparsity(final_sparsity=0.9))
    with pytest.raises(UsageError, match=r"already has 89.* zeros, more than the final"):
        trainer_for(model, tmp_path, epochs=2, callbacks=[pruning(0.8)]).train()


@pytest.mark.parametrize("schedule", ["locked", "once"])
def test_zeros_are_kept(tmp_path: Path, schedule: str) -> None:
    model = prune_once(make_model("bert"), default_sparsity(final_sparsity=0.5))
    zeros = {name: weight == 0 for name, weight in prunable_weights(model).items()}
    before = {name: weight.clone() for name, weight in prunable_weights(model).items()}
    trainer_for(model, tmp_path, callbacks=[pruning(0.0, schedule=schedule)]).train()
    for name, weight in prunable_weights(model).items():
        assert torch.equal(weight == 0, zeros[name])
        assert not torch.equal(weight, before[name])


def test_locking_needs_zeros(tmp_path: Path) -> None:
    trainer = trainer_for(make_model("bert"), tmp_path, callbacks=[pruning(0, schedule="locked")])
    with pytest.raises(UsageError, match="these have none: name a sparse checkpoint"):
        trainer.train()


def test_a_floor_ends_with_the_sparsest_model_that_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The made-up metric falls with sparsity; 60 % of it are left at 40 % zeros."""
    model = make_model("bert")
    callback = pruning(0.8, schedule="linear", end_epoch=4.0, floor="made>=55")
    callback.evaluate = lambda: {"made": 100.0 * (1.0 - callback.current)}
    trainer_for(model, tmp_path, epochs=6, callbacks=[callback]).train()
    # linear: 17.5, 37.5 and 57.5 % zeros at the ends of the first epochs
    assert sparsity_of(model) == pytest.approx(0.375, abs=0.01)
    verdicts = [
        line.rpartition(": ")[2]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("epoch")
    ]
    assert verdicts == ["go on", "go on", "hold", "roll back", "hold", "hold"]
    with pytest.raises(UsageError, match=r"sparsity.floor .* needs `evaluate`"):
        trainer_for(make_model("bert"), tmp_path, callbacks=[pruning(0.8, floor="x>=1")]).train()


def test_the_log_shows_sparsity(tmp_path: Path) -> None:
    callback = pruning(0.8)
    trainer = trainer_for(
        make_model("bert"), tmp_path, callbacks=[callback], logging_strategy="steps",
        logging_steps=1, epochs=2,
    )  # fmt: skip
    trainer.train()
    logged = [entry["sparsity"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] < logged[3] < logged[-1] == pytest.approx(0.8, abs=1e-3)


def test_batches_have_like_lengths() -> None:
    lengths = torch.randint(5, 60, (203,), generator=torch.Generator().manual_seed(0)).tolist()
    order = list(LikeLengths(lengths, 8, 1, lambda: 0))
    assert sorted(order) == list(range(203))
    batches = [[lengths[i] for i in order[first : first + 8]] for first in range(0, 203, 8)]
    padding = sum(max(batch) * len(batch) - sum(batch) for batch in batches)
    at_random = sum(
        max(lengths[first : first + 8]) * 8 - sum(lengths[first : first + 8])
        for first in range(0, 200, 8)
    )
    assert padding < at_random / 2
    # not in order of length: neighbours differ as much as any two
    means = torch.tensor([sum(batch) / len(batch) for batch in batches])
    assert float((means[1:] - means[:-1]).abs().mean()) > float(means.std()) / 2
    assert list(LikeLengths(lengths, 8, 1, lambda: 0)) == order  # whatever was drawn before
    assert list(LikeLengths(lengths, 8, 2, lambda: 0)) != order
    assert list(LikeLengths(lengths, 8, 1, lambda: 1)) != order


def test_predictions_come_in_the_order_of_the_examples(tmp_path: Path) -> None:
    model = make_model("bert")
    trainer = trainer_for(model, tmp_path, train_sampling_strategy="group_by_length")
    examples: Any = [
        {
            name: value[: 2 + i % 6] if isinstance(value, list) else value
            for name, value in e.items()
        }
        for i, e in enumerate(examples_of(32))
    ]
    found = trainer.predict(examples).predictions
    model.train(False)
    for example, logits in zip(examples, found, strict=True):
        inputs = {name: torch.tensor([value]) for name, value in example.items()}
        with torch.no_grad():
            expected = model(**inputs).logits[0]
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-4, atol=1e-5)
