"""A recipe's modifiers → an overlay of our configuration, as the files of `conf/recipe/` are.

What has no counterpart is refused with the modifier's name and its line; what is meant alike but
not to the letter is noted. docs/recipes.md has the table.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolkit.recipes.plan import Plan, epochs_of
from toolkit.recipes.pruning import (
    add_sparsity,
    read_constant,
    read_layers,
    read_magnitude,
    read_movement,
    read_second_order,
)
from toolkit.recipes.quantization import read_quantization
from toolkit.recipes.rates import add_rates, read_rate_class, read_rate_function, read_set_rate
from toolkit.recipes.reading import Modifier, read_modifiers, show

LOGGING = ("log_types", "log_frequency", "constant_logging")  # fields that train nothing
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
EMBEDDING_TABLES = re.compile(r".*embeddings\.(word|position|token_type)_embeddings\.weight")


@dataclass
class Overlay:
    """What a recipe says in our words.

    Attributes:
        values: The overlay: `defaults`, then values below their groups.
        notes: What is meant alike but not to the letter, a sentence each, with its line.
    """

    values: dict[str, Any]
    notes: list[str]


def convert(text: str, file: str) -> Overlay:
    """Convert a recipe.

    Args:
        text: YAML, or Markdown with YAML in front.
        file: Its name, for errors; `.md` tells Markdown.

    Raises:
        InputError: It is no recipe, or something in it has no counterpart here.
    """
    modifiers = read_modifiers(text, file)
    plan = Plan(_num_epochs(modifiers))
    for modifier in modifiers:
        modifier.ignore(*LOGGING)
        if modifier.kind not in READERS:
            known = ", ".join(sorted(READERS))
            raise modifier.fault(f"cannot be carried over; known are {known}")
        READERS[modifier.kind](modifier, plan)
        modifier.finish()
    groups = plan.groups
    if plan.dropped:
        groups["depth"] = {"name": f"drop{len(plan.dropped)}", "drop": sorted(plan.dropped)}
    option = add_sparsity(plan, groups)
    if plan.num_epochs is not None:
        groups.setdefault("trainer", {})["num_train_epochs"] = plan.num_epochs
    if plan.ranges:
        add_rates(plan, groups)
    options = {"depth": "full", "sparsity": option, "teacher": "dense", "quantization": "int8"}
    defaults = [{f"override /{name}": options[name]} for name in options if name in groups]
    return Overlay({"defaults": defaults} | groups, plan.notes)


def _num_epochs(modifiers: list[Modifier]) -> int | None:
    """Return the epochs of a recipe: the last that any of its modifiers names, as SparseML does."""
    ends = [
        modifier.number(key, -1.0)
        for modifier in modifiers
        for key in ("start_epoch", "end_epoch")
        if key in modifier.fields
    ]
    for modifier in modifiers:
        modifier.taken.clear()
    most = max((math.ceil(end) for end in ends if math.isfinite(end)), default=0)
    return most if most > 0 else None


def read_epochs(modifier: Modifier, plan: Plan) -> None:
    epochs_of(modifier)


def _read_teacher(modifier: Modifier, plan: Plan) -> None:
    plan.is_only(modifier)
    start, end = epochs_of(modifier)
    if not plan.covers(modifier, start, end):
        raise modifier.fault("distils for a part of the training; here it is all or nothing")
    outputs = ("logits", "start_logits", "end_logits")
    for key, valid in (("distill_output_keys", outputs), ("teacher_input_keys", INPUTS)):
        for name in modifier.texts(key) if modifier.take(key, None) else []:
            if name not in valid:
                raise modifier.fault(f"may name {', '.join(valid)}; got {show(name)}", key)
    modifier.ignore("update_frequency")
    plan.groups["teacher"] = {
        "hardness": float(modifier.number("hardness", 0.5, least=0, most=1)),
        "temperature": float(modifier.number("temperature", 2.0, least=1e-9)),
    }


def _read_decay(modifier: Modifier, plan: Plan) -> None:
    plan.is_only(modifier)
    start, end = epochs_of(modifier)
    modifier.only("param_groups", (None,), "one decay is for all weights")
    if not plan.covers(modifier, start, end):
        raise modifier.fault("sets weight decay for a part of the training; here it is for all")
    decay = float(modifier.number("weight_decay", least=0))
    plan.groups.setdefault("trainer", {})["weight_decay"] = decay


def _read_trainable(modifier: Modifier, plan: Plan) -> None:
    plan.is_only(modifier)
    start, end = epochs_of(modifier)
    modifier.ignore("params_strict")
    modifier.only("trainable", (False,), "everything is trained, unless it is frozen")
    tables = {
        found[1] for name in modifier.texts("params") if (found := EMBEDDING_TABLES.fullmatch(name))
    }
    if len(tables) != 3 or not plan.covers(modifier, start, end):
        raise modifier.fault(
            "can freeze the embeddings' three tables, by name, for the whole training; nothing else"
        )
    plan.note(modifier, "the embeddings' LayerNorm is frozen with their tables")
    plan.groups["model"] = {"freeze_embeddings": True}


READERS: dict[str, Callable[[Modifier, Plan], None]] = {
    "EpochRangeModifier": read_epochs,
    "LearningRateFunctionModifier": read_rate_function,
    "LearningRateModifier": read_rate_class,
    "SetLearningRateModifier": read_set_rate,
    "SetWeightDecayModifier": _read_decay,
    "TrainableParamsModifier": _read_trainable,
    "LayerPruningModifier": read_layers,
    "GMPruningModifier": read_magnitude,
    "MagnitudePruningModifier": read_magnitude,
    "GlobalMagnitudePruningModifier": read_magnitude,
    "MovementPruningModifier": read_movement,
    "OBSPruningModifier": read_second_order,
    "ConstantPruningModifier": read_constant,
    "DistillationModifier": _read_teacher,
    "QuantizationModifier": read_quantization,
}
