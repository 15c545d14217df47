"""Recipes in SparseML's language, written for the tests."""

from collections.abc import Mapping

PARTS = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
ENCODER = [f"re:bert.encoder.layer.*.{part}.weight" for part in PARTS]
EPOCHS = ("EpochRangeModifier", {"start_epoch": 0.0, "end_epoch": 10})
MAGNITUDE = {
    "params": ENCODER,
    "init_sparsity": 0.05,
    "final_sparsity": 0.85,
    "start_epoch": 1,
    "end_epoch": 6.0,
    "update_frequency": 0.05,
}
ROUNDING = {"start_epoch": 7.0, "disable_quantization_observer_epoch": 8.0}


def recipe(*modifiers: tuple[str, Mapping[str, object]], head: str = "") -> str:
    """Write modifiers, each a name and its fields, as YAML; two lines each, and a line a field."""
    lines = [head.rstrip()] if head else []
    lines.append("modifiers:")
    for name, fields in modifiers:
        lines.append(f"  - !{name}")
        lines += [f"      {key}: {value}" for key, value in fields.items()]
    return "\n".join(lines) + "\n"


def rate(
    start: object, end: object, first: object, last: object, **more: object
) -> tuple[str, dict[str, object]]:
    """Make a LearningRateFunctionModifier, linear unless `more` says otherwise."""
    return "LearningRateFunctionModifier", {
        "lr_func": "linear",
        "start_epoch": start,
        "end_epoch": end,
        "init_lr": first,
        "final_lr": last,
    } | more
