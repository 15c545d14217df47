"""The learning rate range by range, `rates`: a callback that replaces the Trainer's schedule."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from toolkit.compress.sparsity.callback import replaceable
from toolkit.config import RateRange, RateShape
from toolkit.errors import UsageError


def rate_at(epoch: float, rates: Sequence[RateRange]) -> float:
    """Return the learning rate as a fraction of `trainer.learning_rate`.

    It is 1 before the first range; between two, and behind the last, a range's last value holds.

    Args:
        epoch: From 0.
        rates: In ascending order.
    """
    begun = [each for each in rates if each.start_epoch <= epoch]
    if not begun:
        return 1.0
    now = begun[-1]
    progress = min((epoch - now.start_epoch) / (now.end_epoch - now.start_epoch), 1.0)
    if now.shape is RateShape.cosine:
        progress = (1.0 - math.cos(math.pi * progress)) / 2.0
    return now.first + progress * (now.last - now.first)


class RatesCallback(TrainerCallback):
    """Sets the learning rate of `transformers.Trainer`; nothing of it needs to be saved.

    Args:
        rates: In ascending order.
    """

    def __init__(self, rates: Sequence[RateRange]) -> None:
        self.rates = rates

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Replace the schedule, after those of pruning and INT8.

        Raises:
            UsageError: It has a warm-up, or is of a kind that cannot be replaced.
        """
        if args.warmup_steps > 0:
            raise UsageError(
                "rates replaces the Trainer's schedule, its warm-up too: set "
                f"trainer.warmup_steps=0 (got {args.warmup_steps:g}), and begin with a range that "
                "rises"
            )
        batches = len(kwargs["train_dataloader"])
        steps_per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        scheduler = replaceable(kwargs["lr_scheduler"], "rates")

        def factor(step: int) -> float:
            return rate_at(step / steps_per_epoch, self.rates)

        scheduler.lr_lambdas = [factor] * len(scheduler.lr_lambdas)
        for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]  # logged
