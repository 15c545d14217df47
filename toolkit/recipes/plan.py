"""What a recipe's modifiers add up to, before it is said in our words."""

import math
from dataclasses import dataclass, field
from typing import Any

from toolkit.recipes.reading import Modifier
from toolkit.recipes.weights import Clock, Weight

MAX_RANGES = 1000  # of the learning rate, or of pruning's updates
EPS = 1e-6  # epochs that are one and the same, rounding aside


@dataclass
class Range:
    """The learning rate between two epochs."""

    modifier: Modifier
    start: float
    end: float
    first: float
    last: float
    shape: str = "linear"


@dataclass
class Pruning:
    """What a gradual pruning modifier asks for."""

    modifier: Modifier
    settings: dict[str, Any]  # of `sparsity`
    finals: dict[Weight, float]
    named: set[int]  # layers named in full, not by an expression that fits others, too
    leaves: bool  # masks hold after the end


@dataclass
class Plan:
    """What the modifiers read so far add up to.

    Attributes:
        num_epochs: Of the whole recipe; None if it says nothing.
    """

    num_epochs: int | None
    clock: Clock = field(default_factory=Clock)
    notes: list[str] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    prunings: list[Pruning] = field(default_factory=list)
    constants: list[Modifier] = field(default_factory=list)
    dropped: dict[int, Modifier] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)  # those ready as they are
    once: dict[str, Modifier] = field(default_factory=dict)  # kinds of which there may be one

    def note(self, modifier: Modifier, what: str) -> None:
        """Tell the user, once for all modifiers of the kind."""
        if not any(f"{modifier.kind}: {what}" in note for note in self.notes):
            self.notes.append(f"{modifier.file}, line {modifier.line}: {modifier.kind}: {what}")

    def is_only(self, modifier: Modifier) -> None:
        """Refuse a second modifier of a kind."""
        if modifier.kind in self.once:
            first = self.once[modifier.kind].line
            raise modifier.fault(f"is the second one, after that in line {first}; expected one")
        self.once[modifier.kind] = modifier

    def covers(self, modifier: Modifier, start: float, end: float) -> bool:
        """Tell whether a modifier acts during the whole training."""
        lasts = end < 0 or (self.num_epochs is not None and end >= self.num_epochs)
        return start <= 0 and lasts


def epochs_of(modifier: Modifier, is_open: bool = True) -> tuple[float, float]:
    """Return where a modifier starts, -1 being 0, and where it ends, -1 being never."""
    start = modifier.number("start_epoch", -1.0, least=-1, most=1e6)
    end = modifier.number("end_epoch", -1.0, least=-1, most=1e6)
    if not is_open and end <= start:
        raise modifier.fault(f"must be above start_epoch={start:g}; got {end:g}", "end_epoch")
    return max(start, 0.0), end


def cut(modifier: Modifier, start: float, end: float, step: float) -> list[float]:
    """Cut a span of epochs into pieces of one length, of which the last may be shorter.

    Returns:
        Their edges, the first and the last included.

    Raises:
        InputError: They are too many.
    """
    count = math.ceil((end - start) / step - EPS)
    if count > MAX_RANGES:
        raise modifier.fault(f"has {count} cycles or steps, more than {MAX_RANGES}")
    return [start + step * number for number in range(count)] + [end]
