"""Which weights a recipe's `params` name, and how `sparsity.parts` says the same.

A recipe names parameters as transformers does, in full or by regular expressions. How many layers
the model has is not known here, so expressions are tried on more than any model has.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import regex  # as `re`, but it can be told to stop: an expression may take ages on a short name

from toolkit.families import LINEARS
from toolkit.recipes.reading import Modifier, show

NUM_LAYERS = 48  # tried; as many as the deepest model of these families has
MAX_PATTERNS, MAX_LENGTH = 1000, 200  # of a recipe; characters of one
SECONDS = 2.0  # for all expressions of a recipe
BERT = (
    "encoder.layer.{}.",
    (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ),
    ("attention.output.LayerNorm", "output.LayerNorm"),
)
DISTILBERT = (
    "transformer.layer.{}.",
    (
        *("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        *("attention.out_lin", "ffn.lin1", "ffn.lin2"),
    ),
    ("sa_layer_norm", "output_layer_norm"),
)
# By the name that a task's model has for the encoder: that of a layer, of its weights in the order
# of LINEARS, of its LayerNorms.
SPELLINGS = {"bert.": BERT, "roberta.": BERT, "electra.": BERT, "distilbert.": DISTILBERT, "": BERT}
EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
HEADS = ("classifier", "qa_outputs", "pre_classifier", "classifier.dense", "classifier.out_proj")

Weight = tuple[int, str]  # a layer, as the recipe numbers it, and one of LINEARS


@dataclass
class Clock:
    """What all expressions of a recipe may take together."""

    seconds: float = SECONDS
    patterns: int = MAX_PATTERNS


@dataclass
class Match:
    """What a list of `params` names.

    Attributes:
        weights: Those that may be pruned.
        heads: Whether it names weights of pooler or head, too.
        others: Another parameter that it names, such as one of the embeddings; empty if none.
        named: Layers of which it names a weight in full.
    """

    weights: set[Weight] = field(default_factory=set)
    heads: bool = False
    others: str = ""
    named: set[int] = field(default_factory=set)


def match(modifier: Modifier, patterns: Iterable[str], clock: Clock, key: str = "params") -> Match:
    """Find what `patterns` name, in the spelling of the first family that has any of it.

    Raises:
        InputError: One names nothing that is pruned here, or is no regular expression, or takes
            too long.
    """
    patterns = list(dict.fromkeys(patterns))
    found = {}
    for prefix in SPELLINGS:
        found = {each: _match_one(modifier, each, prefix, clock, key) for each in patterns}
        if any(each.weights for each in found.values()):
            break
    whole = Match()
    for pattern, each in found.items():
        if not each.weights:
            known = ", ".join(prefix.rstrip(".") for prefix in SPELLINGS if prefix)
            what = each.others or ("pooler or head" if each.heads else "")
            raise modifier.fault(
                f"{show(pattern)} names "
                + (f"{what}, which is never pruned here" if what else "no weight of an encoder")
                + f": expected query, key, value, output … of the layers of {known}",
                key,
            )
        whole.weights |= each.weights
        whole.named |= each.named
        whole.heads |= each.heads
        whole.others = whole.others or each.others
    if not patterns:
        raise modifier.fault("names nothing", key)
    return whole


def parts_of(
    values: Mapping[Weight, float], dropped: Iterable[int]
) -> tuple[float, dict[str, float]]:
    """Write the final sparsity of each weight as `final_sparsity` and `parts`.

    Args:
        values: Of the weights that are pruned, as the recipe numbers layers; others stay dense.
        dropped: Layers that the model loses; those that stay are numbered anew.

    Returns:
        The sparsity of what no part names, and the parts, the first that fits counting.
    """
    gone = set(dropped)
    layers = [
        [values.get((layer, name), 0.0) for name in LINEARS]
        for layer in range(NUM_LAYERS)
        if layer not in gone
    ]
    final, rest = max(values.values()), layers[-1]  # which speaks for all layers behind it
    parts: dict[str, float] = {}
    for number, row in enumerate(layers):
        if row != rest:
            parts |= _row(f"layers.{number}", row, rest)
    return final, parts | _row("*", rest, [final] * len(rest))


def _row(layer: str, row: list[float], rest: list[float]) -> dict[str, float]:
    """Name what differs from `rest` in a layer, or in all: `*` alone is every layer."""
    if row == rest:
        return {}
    if len(set(row)) == 1:
        return {f"{layer}.*" if layer != "*" else "*": row[0]}
    pairs = zip(LINEARS, row, rest, strict=True)
    return {f"{layer}.{name}": value for name, value, other in pairs if value != other}


def _match_one(modifier: Modifier, pattern: str, prefix: str, clock: Clock, key: str) -> Match:
    weights, heads, others = _names(prefix)
    if pattern in ("__ALL__", "__ALL_PRUNABLE__"):
        is_all = pattern == "__ALL__"
        return Match(set(weights.values()), True, others[0] if is_all else "")
    if not pattern.startswith("re:"):
        return Match(
            {weights[pattern]} if pattern in weights else set(),
            pattern in heads,
            pattern if pattern in others else "",
            {weights[pattern][0]} if pattern in weights else set(),
        )
    clock.patterns -= 1
    if len(pattern) > MAX_LENGTH or clock.patterns < 0:
        raise modifier.fault(
            f"{show(pattern)} is one of more than {MAX_PATTERNS} expressions, or has more than "
            f"{MAX_LENGTH} characters",
            key,
        )
    if "{" in pattern:  # which may take gigabytes to compile
        raise modifier.fault(f"{show(pattern)} counts repetitions, which is not read", key)
    start = time.monotonic()
    try:
        compiled = regex.compile(pattern.removeprefix("re:"))
        fits = {
            name
            for name in (*weights, *heads, *others)
            if compiled.match(name, timeout=max(clock.seconds - time.monotonic() + start, 1e-3))
        }
    except TimeoutError:
        raise modifier.fault(f"{show(pattern)} takes too long to match", key) from None
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise modifier.fault(f"{show(pattern)} is no regular expression: {error}", key) from None
    clock.seconds -= time.monotonic() - start
    return Match(
        {weight for name, weight in weights.items() if name in fits},
        any(name in fits for name in heads),
        next((name for name in others if name in fits), ""),
    )


@cache
def _names(prefix: str) -> tuple[dict[str, Weight], list[str], list[str]]:
    """List the names of weights that are pruned, of those of pooler and head, and of others."""
    layer, linears, norms = SPELLINGS[prefix]
    weights = {
        f"{prefix}{layer.format(number)}{spelled}.weight": (number, name)
        for number in range(NUM_LAYERS)
        for spelled, name in zip(linears, LINEARS, strict=True)
    }
    heads = [f"{prefix}pooler.dense.weight", *(f"{head}.weight" for head in HEADS)]
    others = [f"{prefix}embeddings.{part}.weight" for part in EMBEDDINGS]
    others += [f"{prefix}{layer.format(0)}{norm}.weight" for norm in norms]
    others += [f"{prefix}{layer.format(0)}{linears[0]}.bias"]
    return weights, heads, others
