"""The learning rate range by range."""

from pathlib import Path
from typing import Any

import pytest
from support.configs import compose
from support.tiny import make_model, trainer_for
from transformers import TrainerCallback

from toolkit.compress.quantization.callback import QuantizationCallback
from toolkit.compress.rates import RatesCallback, rate_at
from toolkit.config import RateRange, RateShape, TrainRoot
from toolkit.errors import UsageError

pytestmark = pytest.mark.slow


def between(
    start: float, end: float, first: float, last: float, shape: str = "linear"
) -> RateRange:
    return RateRange(
        start_epoch=start, end_epoch=end, first=first, last=last, shape=RateShape(shape)
    )


RATES = [between(0, 1, 0.1, 1), between(1, 2, 1, 0.2)]


def test_rates_over_time() -> None:
    rates = [between(1, 3, 0.2, 1), between(3, 5, 0.8, 0, "cosine"), between(7, 8, 0.5, 0.5)]
    at = {0: 1, 1: 0.2, 2: 0.6, 3: 0.8, 4: 0.4, 5: 0, 6: 0, 7: 0.5, 7.5: 0.5, 9: 0.5}
    assert {epoch: rate_at(epoch, rates) for epoch in at} == pytest.approx(at)


@pytest.mark.parametrize("is_rounding", [False, True])
def test_the_trainer_follows_and_so_does_a_resumed_run(tmp_path: Path, is_rounding: bool) -> None:
    """8 steps an epoch; INT8 from epoch 1 on would set the rate back."""
    q = compose("train", "quantization=int8", "quantization.start_epoch=1").quantization

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 11

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            used.append(kwargs["optimizer"].param_groups[0]["lr"])

    used: list[float] = []

    def logged(folder: Path, *others: Any, resume: str | None = None) -> list[float]:
        callbacks = [*([QuantizationCallback(q)] if is_rounding else []), RatesCallback(RATES)]
        trainer = trainer_for(
            make_model(),
            folder,
            callbacks=[*callbacks, *others],
            epochs=3,
            logging_strategy="steps",
            logging_steps=1,
            save_strategy="steps",
            save_steps=10,
        )
        trainer.train(resume_from_checkpoint=resume)
        return [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]

    wanted = [1e-2 * rate_at(step / 8, RATES) for step in range(24)]
    assert logged(tmp_path / "whole", Watch()) == pytest.approx(wanted)
    assert used == pytest.approx(wanted)
    logged(tmp_path / "parts", Stop())
    resumed = logged(tmp_path / "parts", resume=str(tmp_path / "parts" / "checkpoint-10"))
    assert resumed == pytest.approx(wanted)


def test_a_warm_up_is_refused(tmp_path: Path) -> None:
    trainer = trainer_for(make_model(), tmp_path, callbacks=[RatesCallback(RATES)], warmup_steps=3)
    with pytest.raises(UsageError, match=r"its warm-up too: set trainer\.warmup_steps=0 \(got 3\)"):
        trainer.train()


def test_the_configuration_has_ranges() -> None:
    config = compose(
        "train", "rates=[{start_epoch: 0, end_epoch: 2, first: 1, last: 0.5, shape: cosine}]"
    )
    assert isinstance(config, TrainRoot)
    assert config.rates == [between(0, 2, 1, 0.5, "cosine")]
    with pytest.raises(ValueError, match=r"rates.end_epoch must be above its start_epoch=2; got 2"):
        between(2, 2, 1, 0)
