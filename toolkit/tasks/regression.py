"""Which number a text, or a pair of texts, has.

An example is a dict: `text` (str), `text_pair` (str or None), `label` (float).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from toolkit.config import TaskConfig
from toolkit.errors import InputError
from toolkit.tasks.features import Example, Feature
from toolkit.tasks.metrics import OF_NUMBERS
from toolkit.tasks.rows import columns_of, found
from toolkit.tasks.text_classification import encode_labelled, text_part, text_rows

AUTO_CLASS = "AutoModelForSequenceClassification"
OUTPUTS = ("logits",)
TARGETS = ("labels",)
METRICS = OF_NUMBERS
PROBLEM_TYPE = "regression"


def read_file(path: Path, task: TaskConfig) -> Iterator[Example]:
    """Read rows of a text, or a pair, and its number.

    Args:
        path: As `toolkit.tasks.rows.read_rows`.
        task: `file_columns`, or `text_columns` and `label_column`, name the columns.

    Raises:
        InputError: The file is missing or damaged, naming the line.
    """
    for place, row, columns in text_rows(path, task):
        label = number(place, str(columns["label"]), row[str(columns["label"])])
        yield text_part(place, row, columns, task) | {"label": label}


def from_hub(row: Mapping[str, Any], task: TaskConfig) -> Example:
    """Turn a row of a hub data set into an example."""
    columns, place = columns_of(task, task.columns), f"task={task.name}"
    label = number(place, str(columns["label"]), row[str(columns["label"])])
    return text_part(place, row, columns, task) | {"label": label}


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskConfig, training: bool
) -> list[Feature]:
    """Encode one feature per example, cut at `task.max_length` tokens, with `labels` (float)."""
    return encode_labelled(examples, tokenizer, task, [example["label"] for example in examples])


def score(
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Sequence[NDArray[Any]],
    task: TaskConfig,
) -> dict[str, float]:
    """Compute the task's metrics from one array (1,) per feature."""
    predicted = np.concatenate(outputs).astype(np.float64)
    labels = np.array([feature["labels"] for feature in features])
    return {name: 100.0 * METRICS[name](predicted, labels) for name in task.metrics}


def number(place: str, column: str, value: Any) -> float:
    """Return a finite number.

    Raises:
        InputError: It is missing, or none.
    """
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise InputError(f"{place}: expected a number in column {column!r}; {found(value)}")
    return result
