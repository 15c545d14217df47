"""The speed of an earlier record, and whether it may be compared with today's."""

from typing import Any

from toolkit.config import BenchRoot
from toolkit.errors import GateError, UsageError
from toolkit.progress import say
from toolkit.record import SPEED_KEY, speed_key

SAME_SPARSITY = 0.005  # models pruned to one target differ by less


def check_comparable(
    config: BenchRoot, baseline: dict[str, Any], cpu: str, model: dict[str, Any]
) -> None:
    """Refuse a baseline of another model or machine, whose speed says nothing about this one.

    Args:
        config: Names the baseline.
        baseline: Its record.
        cpu: Of this machine.
        model: `model` of the record to come.

    Raises:
        UsageError: CPU, model name, layers or sparsity differ.
    """
    before, sparsity = baseline["model"], [_zeros(baseline["model"]), _zeros(model)]
    facts = {
        "CPU": (baseline["environment"].get("cpu"), cpu),
        "model": (before.get("name"), model.get("name")),
        "layers": (before.get("layers"), model.get("layers")),
    }
    is_known = None not in sparsity
    if not is_known or abs(sparsity[0] - sparsity[1]) > SAME_SPARSITY:
        facts["encoder sparsity"] = sparsity[0], sparsity[1]
    for name, (theirs, ours) in facts.items():
        if theirs != ours:
            raise UsageError(
                f"baseline={config.baseline} was measured with {name} {theirs}, this run has "
                f"{ours}: compare with a record of the same model on the same CPU"
            )


def compare(config: BenchRoot, baseline: dict[str, Any], entry: dict[str, Any]) -> None:
    """Compare the first engine's speed with an earlier record's.

    Raises:
        UsageError: The baseline has no entry of that engine, batch size and length.
        GateError: Items/s fell by more than `max_regression`.
    """
    earlier = [old for old in baseline["speed"] if speed_key(old) == speed_key(entry)]
    what = ", ".join(f"{name}={entry[name]}" for name in SPEED_KEY if entry[name] is not None)
    if not earlier:
        raise UsageError(f"baseline={config.baseline} has no measurement of {what}")
    ratio = entry["items_per_s"] / earlier[0]["items_per_s"]
    sentence = (
        f"{what}: {entry['items_per_s']:.1f} items/s is {ratio:.2f} times the baseline's "
        f"{earlier[0]['items_per_s']:.1f}"
    )
    if ratio < 1 - config.max_regression:
        raise GateError(f"{sentence}, below {1 - config.max_regression:g} (max_regression)")
    say(sentence)


def _zeros(model: dict[str, Any]) -> Any:
    return model.get("sparsity", {}).get("encoder")
