"""Which of C classes a text, or a pair of texts, belongs to; or to which of them, if to several.

An example is a dict: `text` (str), `text_pair` (str or None), `label` (int in [0, num_labels), or a
list of such with `multi_label`).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from toolkit.config import TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.tasks.features import Example, Feature, feature_of, unset
from toolkit.tasks.labels import number_of, spell
from toolkit.tasks.metrics import OF_LABELS
from toolkit.tasks.rows import columns_of, found, read_rows, text_of

AUTO_CLASS = "AutoModelForSequenceClassification"
OUTPUTS = ("logits",)
TARGETS = ("labels",)
METRICS = OF_LABELS  # GLUE judges by some of these (Wang et al. 2019, table 1)
PROBLEM_TYPE = "single_label_classification"  # as config.json has it, unless `multi_label`


def check(task: TaskConfig) -> None:
    """Refuse metrics that do not fit the number of labels.

    Raises:
        UsageError: There is one.
    """
    if task.multi_label and (wrong := {"f1", "mcc"} & set(task.metrics)):
        raise UsageError(
            f"task.multi_label=true cannot be judged by {min(wrong)}, which is about one label "
            "per text: choose task.metrics among accuracy (all labels of a text right), f1_micro, "
            "f1_macro"
        )
    if "f1" in task.metrics and task.num_labels not in (2, None):
        raise UsageError(
            f"the metric f1 judges the second of two labels, but task={task.name} has "
            f"{task.num_labels}: choose f1_macro (mean over labels) or f1_micro"
        )


def read_file(path: Path, task: TaskConfig) -> Iterator[Example]:
    """Read rows of a text, or a pair, and its label: a number from 0, or one of `label_names`.

    Args:
        path: As `toolkit.tasks.rows.read_rows`.
        task: `file_columns`, or `text_columns` and `label_column`, name the columns. With neither
            label names nor their number stated, labels stay as they are spelled.

    Raises:
        InputError: The file is missing or damaged, naming the line.
    """
    for place, row, columns in text_rows(path, task):
        yield text_part(place, row, columns, task) | {"label": _label(place, row, columns, task)}


def from_hub(row: Mapping[str, Any], task: TaskConfig) -> Example:
    """Turn a row of a hub data set into an example."""
    columns, place = columns_of(task, task.columns), f"task={task.name}"
    return text_part(place, row, columns, task) | {"label": _label(place, row, columns, task)}


def labels_in(example: Example) -> list[Any]:
    """Return the labels of an example."""
    label = example["label"]
    return label if isinstance(label, list) else [label]


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskConfig, training: bool
) -> list[Feature]:
    """Encode one feature per example, cut at `task.max_length` tokens.

    `labels` is an int, with `multi_label` a list of C floats, 0 or 1; `is_cut` is added to what
    is longer than `task.max_length`.
    """
    if not task.multi_label:
        return encode_labelled(examples, tokenizer, task, [e["label"] for e in examples])
    targets = np.zeros((len(examples), task.num_labels or 0))
    for row, example in zip(targets, examples, strict=True):
        row[example["label"]] = 1.0
    return encode_labelled(examples, tokenizer, task, targets.tolist())


def score(
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Sequence[NDArray[Any]],
    task: TaskConfig,
) -> dict[str, float]:
    """Compute the task's metrics from one array of logits (C,) per feature."""
    logits, labels = np.stack(outputs), np.array([feature["labels"] for feature in features])
    if task.multi_label:
        # of a logit, since sigmoid(x) >= t where x >= log(t / (1 - t))
        cut = np.log(task.threshold / (1 - task.threshold))
        predicted, labels = (logits >= cut).astype(int), labels.astype(int)
    else:
        predicted = logits.argmax(axis=1)
    return {name: 100.0 * METRICS[name](predicted, labels) for name in task.metrics}


def text_rows(
    path: Path, task: TaskConfig
) -> Iterator[tuple[str, dict[str, Any], dict[str, str | None]]]:
    """Read rows with the names of their columns."""
    columns = columns_of(task, task.file_columns)
    wanted = [name for name in columns.values() if name is not None]
    return ((place, row, columns) for place, row in read_rows(path, task, wanted))


def text_part(
    place: str, row: Mapping[str, Any], columns: Mapping[str, str | None], task: TaskConfig
) -> Example:
    """Return `text` and `text_pair` of a row.

    Raises:
        InputError: One is missing.
    """
    pair = columns["text_pair"]
    return {
        "text": text_of(place, row, str(columns["text"]), task),
        "text_pair": None if pair is None else text_of(place, row, pair, task),
    }


def encode_labelled(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskConfig, labels: Sequence[Any]
) -> list[Feature]:
    """Encode one feature per example, with its `labels`."""
    tokenizer = unset(tokenizer)
    tokenizer.enable_truncation(task.max_length)
    texts = [
        example["text"] if example["text_pair"] is None else (example["text"], example["text_pair"])
        for example in examples
    ]
    return [
        feature_of(encoding, index, labels=label, is_cut=bool(encoding.overflowing))
        for index, (label, encoding) in enumerate(
            zip(labels, tokenizer.encode_batch(texts), strict=True)
        )
    ]


def _label(
    place: str, row: Mapping[str, Any], columns: Mapping[str, str | None], task: TaskConfig
) -> Any:
    column = str(columns["label"])
    value = row[column]
    if not task.multi_label:
        return number_of(place, column, spell(place, column, value), task)
    if isinstance(value, str):
        value = [part for part in value.split(task.label_separator) if part.strip()]
    if not isinstance(value, list):
        raise InputError(
            f"{place}: expected a list of labels in column {column!r}, or a text such as "
            f"a{task.label_separator}b (task.label_separator), empty where there are none; "
            f"{found(value)}"
        )
    spelled = dict.fromkeys(spell(place, column, part) for part in value)
    return [number_of(place, column, label, task) for label in spelled]
