"""A recipe's learning rate → `trainer`, `sparsity.rewind`, `quantization` or `rates`."""

import itertools
import math
from typing import Any

from toolkit.recipes.plan import EPS, MAX_RANGES, Plan, Range, cut, epochs_of
from toolkit.recipes.reading import Modifier, plain, show


def read_rate_function(modifier: Modifier, plan: Plan) -> None:
    start, end = epochs_of(modifier, is_open=False)
    shape = modifier.one_of("lr_func", ("linear", "cosine", "cyclic_linear"))
    first = modifier.number("init_lr", least=0, most=1)
    last = modifier.number("final_lr", least=0, most=1)
    cycle = modifier.number("cycle_epochs", -1.0, most=1e6)
    modifier.only("param_groups", (None,), "one rate is for all weights")
    modifier.only("update_frequency", (-1.0, -1), "the rate changes with every step")
    if shape == "cyclic_linear" and cycle <= 0:
        raise modifier.fault("needs cycle_epochs above 0")
    step = cycle if shape == "cyclic_linear" else end - start
    _add_cycles(modifier, plan, start, end, step, (first, last, shape.removeprefix("cyclic_")))


def read_set_rate(modifier: Modifier, plan: Plan) -> None:
    start, _ = epochs_of(modifier)
    modifier.only("param_groups", (None,), "one rate is for all weights")
    rate = modifier.number("learning_rate", least=0, most=1)
    plan.ranges.append(Range(modifier, start, math.inf, rate, rate))


def read_rate_class(modifier: Modifier, plan: Plan) -> None:
    start, end = epochs_of(modifier)
    end = end if end >= 0 else float(plan.num_epochs or 0)
    if end <= start:
        raise modifier.fault("needs end_epoch, or an EpochRangeModifier that says when it ends")
    modifier.only("update_frequency", (-1.0, -1), "the rate changes where lr_kwargs say")
    valid = ("StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingWarmRestarts")
    kind = modifier.one_of("lr_class", valid)
    rate = modifier.number("init_lr", least=0, most=1)
    kwargs = modifier.take("lr_kwargs")
    if not isinstance(kwargs, dict):
        raise modifier.fault(f"must be a mapping; got {show(kwargs)}", "lr_kwargs")
    inner = Modifier(modifier.file, f"{modifier.kind} {kind}", modifier.line, kwargs)
    if kind == "CosineAnnealingWarmRestarts":
        cycle = inner.number("cycle_epochs", least=EPS)
        least = inner.number("lr_min", least=0, most=1)
        _add_cycles(modifier, plan, start, end, cycle, (rate, least, "cosine"))
    else:
        gamma = inner.number("gamma", least=0, most=1)
        if kind == "MultiStepLR":
            miles = inner.take("milestones")
            steps = plain(miles) if isinstance(miles, list) else None
            if not steps or not all(isinstance(mile, int | float) for mile in steps):
                raise inner.fault("must be a list of epochs", "milestones")
            edges = [start, *(mile for mile in sorted(steps) if start < mile < end), end]
        else:
            default = {"default": 1.0} if kind == "ExponentialLR" else {}
            size = inner.number("step_size", least=EPS, **default)
            edges = cut(modifier, start, end, size)
        for number, (a, b) in enumerate(itertools.pairwise(edges)):
            now = rate * gamma**number
            plan.ranges.append(Range(modifier, a, b, now, now))
    inner.finish()


def _add_cycles(
    modifier: Modifier,
    plan: Plan,
    start: float,
    end: float,
    step: float,
    rates: tuple[float, float, str],
) -> None:
    """Add a range for each cycle; the last may be shorter."""
    edges = cut(modifier, start, end, step)
    for a, b in itertools.pairwise(edges):
        plan.ranges.append(Range(modifier, a, b, *rates))


def add_rates(plan: Plan, groups: dict[str, dict[str, Any]]) -> None:
    """Say the learning rate in the simplest way that says it."""
    trainer = groups.setdefault("trainer", {})
    ranges = _in_order(plan)
    if not ranges:
        return
    base = max(max(each.first, each.last) for each in ranges)
    if base == 0:
        raise ranges[0].modifier.fault("trains nothing: the learning rate is 0 throughout")
    trainer["learning_rate"] = float(base)
    end = float(plan.num_epochs) if plan.num_epochs is not None else math.inf
    quantization = groups.get("quantization")
    start = quantization["start_epoch"] if quantization else end
    head, *tail = ranges
    if kind := _scheduler(head):
        edges = [head.start, head.end] + [each.end for each in tail]
        if len(ranges) == 1 and not quantization and edges == [0, end]:
            trainer["lr_scheduler_type"] = kind
            return
        is_restart = quantization and len(tail) == 1 and tail[0].shape == "linear"
        if is_restart and quantization and edges == [0, start, end] and tail[0].first > 0:
            trainer["learning_rate"] = float(head.first)
            trainer["lr_scheduler_type"] = kind
            quantization["final_learning_rate"] = float(tail[0].last)
            if tail[0].first != head.first:
                quantization["learning_rate"] = float(tail[0].first)
            return
    if not quantization and (fraction := _rewind(plan, groups, ranges, end)):
        groups["sparsity"]["rewind"] = fraction
        return
    groups["rates"] = [  # type: ignore[assignment]
        {
            "start_epoch": float(each.start),
            "end_epoch": float(min(each.end, 1e6)),
            "first": _tidy(each.first / base),
            "last": _tidy(each.last / base),
            "shape": each.shape,
        }
        for each in ranges
    ]


def _in_order(plan: Plan) -> list[Range]:
    """Sort ranges by time; one without an end lasts until the next, or to the end."""
    ranges = sorted(plan.ranges, key=lambda each: (each.start, -each.end))
    end = float(plan.num_epochs) if plan.num_epochs is not None else math.inf
    for one, other in itertools.pairwise(ranges):
        if math.isinf(one.end):
            one.end = other.start
        if one.end > other.start + EPS:
            raise other.modifier.fault(
                f"starts at epoch {other.start:g}, while the rate of line {one.modifier.line} "
                f"lasts until {one.end:g} (epochs count from the start of training, in stages, too)"
            )
    if math.isinf(ranges[-1].end):
        ranges[-1].end = end
    return [each for each in ranges if each.end > each.start]


def _scheduler(one: Range) -> str:
    """Name the Trainer's schedule that a range is; empty if there is none."""
    if one.first == one.last:
        return "constant"
    return one.shape if one.last == 0 else ""


def _rewind(
    plan: Plan, groups: dict[str, dict[str, Any]], ranges: list[Range], end: float
) -> float | None:
    """Return `sparsity.rewind` if the rate is set back at every mask update, and only there."""
    sparsity = groups.get("sparsity")
    head = ranges[0]
    alike = {(each.first, each.last, each.shape) for each in ranges}
    if not sparsity or len(alike) > 1 or head.shape != "linear" or not 0 < head.last < head.first:
        return None
    updates: list[float] = []
    if plan.prunings:
        start, stop = sparsity["start_epoch"], sparsity["end_epoch"]
        step = sparsity["update_frequency"]
        if (stop - start) / step > MAX_RANGES:
            return None
        updates = cut(plan.prunings[0].modifier, start, stop, step)
    edges = sorted({0.0, *updates, end})
    found = [head.start] + [each.end for each in ranges]
    is_same = len(edges) == len(found) and all(
        abs(a - b) < EPS for a, b in zip(edges, found, strict=True)
    )
    return _tidy(head.last / head.first) if is_same else None


def _tidy(number: float) -> float:
    """Round off what a division has left in the last digits."""
    return float(f"{number:.12g}")
