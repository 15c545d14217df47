"""An accuracy floor: how sparse can a model get without falling below it?"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from toolkit.errors import GateError, UsageError


class Verdict(Enum):
    """What pruning does after an evaluation."""

    go_on = "go on"
    hold = "hold"  # train on at this sparsity
    roll_back = "roll back"  # return to the sparsest model that passed, and stay there


@dataclass
class Floor:
    """The floor, and what the evaluations so far have said of it.

    An evaluation below it makes the target hold; a second one in a row rolls back to the sparsest
    model that passed, if any has, and pruning is over.

    Attributes:
        metric: Name of a metric.
        least: What it must at least be, in percent.
        best_sparsity: Of the sparsest model that passed, in [0, 1); None if none has.
        best_value: Its metric.
        failures: Evaluations in a row that fell below.
        is_over: Whether a roll-back has ended pruning.
    """

    metric: str
    least: float
    best_sparsity: float | None = None
    best_value: float = 0.0
    failures: int = 0
    is_over: bool = False

    def passes(self, value: float) -> bool:
        """Tell whether a metric's value (percent) is high enough."""
        return value >= self.least

    def judge(self, sparsity: float, value: float) -> Verdict:
        """Take in an evaluation.

        Args:
            sparsity: Of the model evaluated, in [0, 1).
            value: Its metric, in percent.

        Returns:
            What to do. After a passed one the model is the one to keep if `best_sparsity` and
            `best_value` now are its own.
        """
        if self.passes(value):
            self.failures = 0
            new, old = (sparsity, value), (self.best_sparsity, self.best_value)
            if old[0] is None or new >= old:
                self.best_sparsity, self.best_value = new
            return Verdict.hold if self.is_over else Verdict.go_on
        self.failures += 1
        if self.failures == 1 or self.best_sparsity is None:
            return Verdict.hold
        self.is_over = True
        return Verdict.roll_back


def parse_floor(text: str, metrics: Sequence[str] | None = None) -> Floor:
    """Read a floor such as `accuracy>=86`.

    Args:
        text: A metric, `>=`, and a number of percent.
        metrics: Those there are; None if that is not known yet.

    Raises:
        UsageError: It is none, or names a metric that there is not.
    """
    found = re.fullmatch(r"\s*(\w+)\s*>=\s*(\d+(?:\.\d+)?)\s*", text)
    if found is None:
        raise UsageError(
            f"sparsity.floor must be METRIC>=PERCENT, such as 'accuracy>=86'; got {text!r}"
        )
    if metrics is not None and found[1] not in metrics:
        raise UsageError(
            f"sparsity.floor must name one of the task's metrics, {', '.join(metrics)}; "
            f"got {found[1]!r}"
        )
    return Floor(found[1], float(found[2]))


def check_floor(text: str, metrics: Mapping[str, float], folder: Path) -> None:
    """Judge what a run ended with.

    Args:
        text: The floor.
        metrics: Of the model in `folder`, in percent.
        folder: Named in the sentence.

    Raises:
        GateError: No model met the floor, so the last one is there.
    """
    floor = parse_floor(text)
    if not floor.passes(metrics[floor.metric]):
        raise GateError(
            f"no model met sparsity.floor={text}: the last one, with "
            f"{metrics[floor.metric]:.2f} %, is saved in {folder}"
        )
