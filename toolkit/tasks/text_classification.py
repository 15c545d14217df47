"""Which of C classes a text, or a pair of texts, belongs to.

An example is a dict: `text` (str), `text_pair` (str or None), `label` (int in [0, num_labels)).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from toolkit.config import TaskConfig
from toolkit.errors import InputError
from toolkit.files import read_text
from toolkit.tasks.features import Example, Feature, encode_texts, feature_of, unset

AUTO_CLASS = "AutoModelForSequenceClassification"
OUTPUTS = ("logits",)
TARGETS = ("labels",)


def read_file(path: Path, task: TaskConfig) -> list[Example]:
    """Read a file of tab-separated columns with a header, as GLUE has them: without any quoting.

    Args:
        path: The file, in UTF-8.
        task: `file_columns` names the columns. A label is a number from 0, or one of `label_names`.

    Raises:
        InputError: The file is missing or damaged, naming the line.
    """
    text = read_text(path, f"task={task.name} with task.data_dir={task.data_dir}")
    # only line feeds end a line, unlike in `str.splitlines`; the last one may
    lines = [(i, line.rstrip("\r")) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    header = lines[0][1].split("\t") if lines else []
    for column in task.file_columns.values():
        if column is not None and column not in header:
            raise InputError(
                f"{path}, line 1: expected the column {column!r} of task={task.name}, separated by "
                f"tabs; found {header}"
            )
    examples = []
    for number, line in lines[1:]:
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(
                f"{path}, line {number}: expected {len(header)} tab-separated fields as in the "
                f"first line; found {len(fields)}"
            )
        row = dict(zip(header, fields, strict=True))
        label = row[str(task.file_columns["label"])]
        if label not in (names := _labels(task)):
            raise InputError(
                f"{path}, line {number}: expected a label, {_either(names)}, in column "
                f"{task.file_columns['label']!r}; found {label!r}"
            )
        examples.append(_example(row, task.file_columns, names[label]))
    return examples


def from_hub(row: Mapping[str, Any], task: TaskConfig) -> Example:
    """Turn a row of a hub data set into an example."""
    return _example(row, task.columns, int(row[str(task.columns["label"])]))


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskConfig, training: bool
) -> list[Feature]:
    """Encode one feature per example, cut at `task.max_length` tokens, with `labels` (int)."""
    tokenizer = unset(tokenizer)
    tokenizer.enable_truncation(task.max_length)
    texts = [
        example["text"] if example["text_pair"] is None else (example["text"], example["text_pair"])
        for example in examples
    ]
    return [
        feature_of(encoding, index, labels=example["label"])
        for index, (example, encoding) in enumerate(
            zip(examples, encode_texts(tokenizer, texts), strict=True)
        )
    ]


def score(
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Sequence[NDArray[Any]],
    task: TaskConfig,
) -> dict[str, float]:
    """Compute the task's metrics from one array of logits (C,) per feature."""
    labels = np.array([examples[feature["example_index"]]["label"] for feature in features])
    predicted = np.array([int(np.argmax(logits)) for logits in outputs])
    return {name: 100.0 * METRICS[name](predicted, labels) for name in task.metrics}


def accuracy(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the fraction of right predictions; both (N,)."""
    return float(np.mean(predicted == labels))


def f1(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return F1 of class 1, in [0, 1]; both (N,)."""
    true_positives = int(np.sum((predicted == 1) & (labels == 1)))
    positives = int(np.sum(predicted == 1) + np.sum(labels == 1))
    return 2 * true_positives / positives if positives else 0.0


def matthews(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the correlation of two classes, in [-1, 1], 0 where one of them never occurs.

    Args:
        predicted: (N,), 0 or 1.
        labels: (N,), 0 or 1.

    Source: Matthews 1975, https://doi.org/10.1016/0005-2795(75)90109-9.
    """
    if predicted.min() == predicted.max() or labels.min() == labels.max():
        return 0.0
    return float(np.corrcoef(predicted, labels)[0, 1])


# GLUE judges by these (Wang et al. 2019, table 1).
METRICS: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64]], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "mcc": matthews,
}


def _example(row: Mapping[str, Any], columns: Mapping[str, str | None], label: int) -> Example:
    pair = columns["text_pair"]
    return {
        "text": row[str(columns["text"])].strip(),
        "text_pair": None if pair is None else row[pair].strip(),
        "label": label,
    }


def _labels(task: TaskConfig) -> dict[str, int]:
    """Return the label that each spelling in a file means."""
    names = task.label_names or map(str, range(task.num_labels))
    return {name: number for number, name in enumerate(names)}


def _either(names: Mapping[str, int]) -> str:
    return " or ".join(filter(None, [", ".join(list(names)[:-1]), list(names)[-1]]))
