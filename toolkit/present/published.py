"""What others published for the cells of BERT-base on SQuAD, from the recipes that repeat them."""

import re
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

MODEL, TASK = "bert_base", "squad"


def published_f1(row: dict[str, Any]) -> float | None:
    """Return the published F1, in percent, of a row's depth, zeros and precision.

    A model without a score counts as well, so that speed measured before any training can be
    drawn against the quality that training is known to reach.
    """
    if row["model"] != MODEL or row["task"] not in (TASK, None) or row["encoder_sparsity"] is None:
        return None
    return _cells().get((row["layers"], round(100 * row["encoder_sparsity"]), row["quantization"]))


@cache
def _cells() -> dict[tuple[int, int, str | None], float]:
    """Return F1 by (layers, percent of zeros, `int8` or None), as the recipes' names say them."""
    found = {}
    for file in (files("toolkit.conf") / "recipe").iterdir():
        name = re.fullmatch(r"bert(\d+)_(?:dense|prune(\d+))(?:_(int8))?\.yaml", file.name)
        if name:
            f1 = yaml.safe_load(file.read_text(encoding="utf-8"))["published"]["f1"]
            if f1 is not None:
                found[int(name[1]), int(name[2] or 0), name[3]] = f1
    return found
