"""A recipe's pruning → `sparsity` and `depth`."""

import re
from typing import Any

from toolkit.families import LINEARS
from toolkit.recipes.plan import Plan, Pruning, epochs_of
from toolkit.recipes.reading import Modifier, plain, show
from toolkit.recipes.weights import NUM_LAYERS, Weight, match, parts_of


def read_layers(modifier: Modifier, plan: Plan) -> None:
    start, end = epochs_of(modifier)
    modifier.ignore("update_frequency")
    if not plan.covers(modifier, start, end):
        raise modifier.fault(
            "drops layers for a part of the training; here they are dropped before it, for good"
        )
    names = modifier.texts("layers")
    for name in names:
        found = re.fullmatch(r"(\w+\.)*layer\.(\d{1,2})", name)
        if not found or int(found[2]) >= NUM_LAYERS:
            raise modifier.fault(
                f"{show(name)} is no encoder layer: expected names such as bert.encoder.layer.3",
                "layers",
            )
        plan.dropped[int(found[2])] = modifier


def read_magnitude(modifier: Modifier, plan: Plan) -> None:
    is_global = modifier.flag("global_sparsity", modifier.kind.startswith("Global"))
    score = modifier.one_of("score_type", ("magnitude", "movement"), "magnitude")
    modifier.only("phased", (False,), "masks are never lifted in between")
    if score == "movement":
        _note_movement(modifier, plan)
    _add_pruning(modifier, plan, {"method": score, "ranking": _ranking(is_global)})


def read_movement(modifier: Modifier, plan: Plan) -> None:
    is_global = modifier.flag("global_sparsity", False)
    _note_movement(modifier, plan)
    _add_pruning(modifier, plan, {"method": "movement", "ranking": _ranking(is_global)})


def _note_movement(modifier: Modifier, plan: Plan) -> None:
    plan.note(
        modifier,
        "scores are learnt by Adam at sparsity.movement.learning_rate, as in the paper (Sanh et "
        "al. 2020), where SparseML adds up gradients; a dropped weight can come back",
    )


def read_second_order(modifier: Modifier, plan: Plan) -> None:
    is_global = modifier.flag("global_sparsity", True)
    fisher: dict[str, Any] = {
        "block": modifier.number("fisher_block_size", 50, least=1),
        "num_gradients": modifier.number("num_grads", 1024, least=1),
        "damping": modifier.number("damp", 1e-7, least=0),
        "recomputations": modifier.number("num_recomputations", 1, least=1),
        "batch_size": "${trainer.per_device_train_batch_size}",  # SparseML's, if it says nothing
    }
    modifier.only("magn_scorer", (False,), "use a MagnitudePruningModifier")
    modifier.only("mask_update", (True,), "kept weights always make up for dropped ones")
    sampler = modifier.take("grad_sampler_kwargs", {})
    if not isinstance(sampler, dict) or set(sampler) - {"batch_size"}:
        raise modifier.fault("may hold batch_size alone", "grad_sampler_kwargs")
    if sampler:
        inner = Modifier(modifier.file, modifier.kind, modifier.line, sampler)
        fisher["batch_size"] = inner.number("batch_size", least=1)
    settings = {"method": "obert", "ranking": _ranking(is_global), "fisher": fisher}
    _add_pruning(modifier, plan, settings)


def _ranking(is_global: bool) -> str:
    return "global" if is_global else "uniform"


def _add_pruning(modifier: Modifier, plan: Plan, settings: dict[str, Any]) -> None:
    for key in ("start_epoch", "end_epoch"):
        modifier.take(key)
    start, end = epochs_of(modifier)
    if end < start:
        raise modifier.fault(f"must be at least start_epoch={start:g}; got {end:g}", "end_epoch")
    initial = modifier.take("init_sparsity")
    if initial == "__FROM_PARAM__":
        initial = None
    else:
        initial = float(modifier.number("init_sparsity", least=0, most=0.999999))
    pattern = _pattern(modifier)
    settings |= {
        "schedule": modifier.one_of("inter_func", ("cubic", "linear"), "cubic"),
        "initial_sparsity": initial,
        "start_epoch": float(start),
        "end_epoch": float(end),
        "update_frequency": float(modifier.number("update_frequency", least=1e-9)),
    } | pattern
    leaves = modifier.flag("leave_enabled", True)
    finals, named = _finals(modifier, plan)
    plan.prunings.append(Pruning(modifier, settings, finals, named, leaves))


def _pattern(modifier: Modifier) -> dict[str, Any]:
    """Turn `mask_type` into a block's shape, or N of M."""
    mask = plain(modifier.take("mask_type", "unstructured"))
    if mask in ("unstructured", "block", "block4"):
        return {"block_shape": [1, 1] if mask == "unstructured" else [1, 4]}
    if isinstance(mask, list) and len(mask) == 2 and all(type(n) is int and n > 0 for n in mask):
        return {"block_shape": mask}
    if isinstance(mask, str) and (found := re.fullmatch(r"(\d{1,3}):(\d{1,3})", mask)):
        return {"n_of_m": [int(found[1]), int(found[2])]}
    raise modifier.fault(
        f"must be unstructured, block4, [1,4] (outputs, inputs) or 2:4; got {show(mask)}",
        "mask_type",
    )


def _finals(modifier: Modifier, plan: Plan) -> tuple[dict[Weight, float], set[int]]:
    """Find the final sparsity of each weight that a modifier names, and layers named in full."""
    final = modifier.take("final_sparsity")
    if isinstance(final, dict):  # sparsity: names
        if modifier.texts("params", []):
            raise modifier.fault("must be [] where final_sparsity names the weights", "params")
        lists = Modifier(modifier.file, modifier.kind, modifier.line, final)
        named = {key: (lists.texts(key), _fraction(modifier, key)) for key in final}
    else:
        number = modifier.number("final_sparsity", least=0, most=0.999999)
        named = {"params": (modifier.texts("params"), float(number))}
    finals: dict[Weight, float] = {}
    layers: set[int] = set()
    for key, (patterns, value) in named.items():
        place = "params" if key == "params" else "final_sparsity"
        found = match(modifier, patterns, plan.clock, place)
        if found.others:
            raise modifier.fault(
                f"names {found.others}, too, but only weights of the encoder's layers are pruned "
                "here: write __ALL_PRUNABLE__, or expressions for these",
                place,
            )
        if found.heads:
            plan.note(modifier, "pooler and head, which params names, too, are left dense")
        for weight in found.weights:
            finals.setdefault(weight, value)
        layers |= found.named
    return finals, layers


def _fraction(modifier: Modifier, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise modifier.fault(f"needs keys in [0, 1); got '{text}'", "final_sparsity")
    return value


def read_constant(modifier: Modifier, plan: Plan) -> None:
    epochs_of(modifier)  # judged in `add_sparsity`, which knows of the others
    modifier.ignore("update_frequency")
    found = match(modifier, modifier.texts("params"), plan.clock)
    if len(found.weights) < len(LINEARS) * NUM_LAYERS:
        raise modifier.fault(
            "must name all weights of the encoder's layers, such as __ALL_PRUNABLE__: zeros are "
            "kept in all of them or in none",
            "params",
        )
    plan.constants.append(modifier)


def add_sparsity(plan: Plan, groups: dict[str, dict[str, Any]]) -> str:
    """Put all pruning together; return the option of `sparsity` that it builds on."""
    if not plan.prunings:
        for modifier in plan.constants:
            start, end = epochs_of(modifier)
            if not plan.covers(modifier, start, end):
                raise modifier.fault("keeps zeros for a part of the training; here it is all of it")
        if plan.constants:
            groups["sparsity"] = {"schedule": "locked"}
        return "locked"
    first = plan.prunings[0]
    finals: dict[Weight, float] = {}
    for pruning in plan.prunings:
        modifier = pruning.modifier
        for key, value in pruning.settings.items():
            if first.settings.get(key) != value:
                raise modifier.fault(
                    f"has another {key} ({value}) than that in line {first.modifier.line} "
                    f"({first.settings.get(key)}): all weights have one schedule here"
                )
        for layer in sorted(pruning.named & plan.dropped.keys()):
            raise modifier.fault(f"names layer {layer}, which is dropped", "params")
        twice = finals.keys() & pruning.finals.keys()
        if twice:
            layer, name = min(twice)
            raise modifier.fault(f"prunes layer {layer}'s {name}, which another one prunes, too")
        finals |= pruning.finals
    end = first.settings["end_epoch"]
    for modifier in plan.constants:
        start, _ = epochs_of(modifier)
        if start < end:
            raise modifier.fault(
                f"starts at epoch {start:g}, before gradual pruning ends at {end:g}"
            )
    holds = any(epochs_of(each)[0] <= end for each in plan.constants)
    for pruning in plan.prunings:
        is_last = plan.num_epochs is not None and end >= plan.num_epochs
        if not (pruning.leaves or holds or is_last):
            raise pruning.modifier.fault(
                "lets zeros grow back after end_epoch; here masks hold to the end", "leave_enabled"
            )
    final, parts = parts_of(finals, plan.dropped)
    if final == 0:
        raise first.modifier.fault("prunes nothing", "final_sparsity")
    initial = first.settings["initial_sparsity"] or 0.0
    for pruning in plan.prunings:
        if any(0 < value < initial for value in pruning.finals.values()):
            raise pruning.modifier.fault(f"is below init_sparsity={initial:g}", "final_sparsity")
    if parts and first.settings["ranking"] == "global":
        raise first.modifier.fault(
            "names a part of the encoder's weights, or several sparsities, which cannot be ranked "
            "globally here: name all, or set global_sparsity: False"
        )
    settings = first.settings | {"final_sparsity": final} | ({"parts": parts} if parts else {})
    block = settings.get("block_shape", [1, 1])
    groups["sparsity"] = {"name": _sparsity_name(settings, block)} | settings
    return "dense"


def _sparsity_name(settings: dict[str, Any], block: list[int]) -> str:
    """Name it as the options of `sparsity` are named."""
    method = {"magnitude": "prune"}.get(settings["method"], settings["method"])
    name = f"{method}{100 * settings['final_sparsity']:g}"
    if "n_of_m" in settings:
        return f"{name}_{settings['n_of_m'][0]}of{settings['n_of_m'][1]}"
    if block == [1, 1]:
        return name
    return f"{name}_block{4 if block == [1, 4] else 'x'.join(map(str, block))}"
