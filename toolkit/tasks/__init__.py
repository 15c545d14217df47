"""Tasks: read the examples, turn them into model inputs, judge the outputs. Imports no torch.

`load_examples` -> `encode` -> `collate` -> (a model) -> `evaluate`. Letters: B features of a batch,
T tokens of a feature, C classes.

An example is a dict. Text classification: `text` (str), `text_pair` (str or None), `label` (int in
[0, num_labels)). Question answering: see `toolkit.tasks.question_answering`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from toolkit import demo, squad
from toolkit.config import TaskConfig, TaskKind
from toolkit.errors import InputError, UsageError

Example = dict[str, Any]
Feature = dict[str, Any]
Columns = tuple[str, str | None, str]

# Columns of the text, of its pair and of the label: in the official TSV files (GLUE), on the hub.
COLUMNS: dict[str, tuple[Columns, Columns]] = {
    "sst2": (("sentence", None, "label"), ("sentence", None, "label")),
    "mrpc": (("#1 String", "#2 String", "Quality"), ("sentence1", "sentence2", "label")),
}
TSV_FILES = {"train": "train.tsv", "eval": "dev.tsv"}
HUB_SPLITS = {"train": "train", "eval": "validation"}
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TARGETS = ("labels", "start_positions", "end_positions")


def load_examples(task: TaskConfig, split: str, seed: int) -> list[Example]:
    """Read one split of a task: generated, from local files, or from the hub.

    Args:
        task: `data_dir` set: the official files of that folder; null: the hub data set `path`.
        split: `train` or `eval`.
        seed: Chooses the generated training examples (`demo`); real data ignore it.

    Returns:
        The examples, in the order of the source, at most `max_train_samples` or
        `max_eval_samples`.

    Raises:
        InputError: A file is missing or damaged (naming file and line), or the hub cannot be read.
        UsageError: There is no such task.
    """
    limit = task.max_train_samples if split == "train" else task.max_eval_samples
    if task.name == "demo":
        return demo.generate_examples(split, seed, limit)
    if task.name not in ("squad", *COLUMNS):
        raise UsageError(
            f"task.name must be one of demo, squad, {', '.join(COLUMNS)}; got {task.name!r}"
        )
    if task.data_dir is None:
        examples = _from_hub(task, split, limit)
    elif task.name == "squad":
        examples = squad.read_examples(Path(task.data_dir), split)
    else:
        examples = _read_tsv(Path(task.data_dir) / TSV_FILES[split], task)
    if not examples:
        raise InputError(f"task={task.name} has no examples in split {split!r}")
    return examples[:limit]


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskConfig, training: bool
) -> list[Feature]:
    """Turn examples into model inputs, without padding.

    Args:
        examples: As `load_examples` returns them.
        tokenizer: Left as it is; its own truncation and padding settings are not used.
        task: `max_length`, and for question answering `doc_stride`.
        training: Question answering: add the answer's position instead of `offsets`.

    Returns:
        Per feature `input_ids`, `attention_mask`, `token_type_ids` (lists of T ints; leave out the
        inputs that a model does not take) and `example_index` (int). Text classification: one
        feature per example, in order, with `labels` (int). Question answering: one or more windows
        per example, in order, with `start_positions` and `end_positions` (int) when training and
        `offsets` otherwise (`toolkit.tasks.question_answering.encode`).
    """
    if task.kind is TaskKind.question_answering:
        return squad.encode(examples, tokenizer, task.max_length, task.doc_stride, training)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy: settings below stay here
    tokenizer.no_padding()
    tokenizer.enable_truncation(task.max_length)
    texts = [
        example["text"] if example["text_pair"] is None else (example["text"], example["text_pair"])
        for example in examples
    ]
    return [
        {**model_inputs(encoding), "labels": example["label"], "example_index": index}
        for index, (example, encoding) in enumerate(
            zip(examples, tokenizer.encode_batch(texts), strict=True)
        )
    ]


def collate(
    features: Sequence[Feature], pad_id: int, length: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """Pad features on the right to one batch.

    Args:
        features: At least one, as `encode` returns them.
        pad_id: Id of the padding token; padding has attention mask 0 and token type 0.
        length: Tokens per row; None takes the longest feature's. Not less than that.

    Returns:
        Those of `input_ids`, `attention_mask`, `token_type_ids` (B, T) and of `labels`,
        `start_positions`, `end_positions` (B,) that the features have, as int64.
    """
    longest = max(len(feature["input_ids"]) for feature in features)
    length = longest if length is None else length
    if length < longest:
        raise ValueError(f"length must be at least {longest}, the longest feature's; got {length}")
    batch = {}
    for name in MODEL_INPUTS:
        if name in features[0]:
            fill = pad_id if name == "input_ids" else 0
            batch[name] = np.full((len(features), length), fill, dtype=np.int64)
            for row, feature in zip(batch[name], features, strict=True):
                row[: len(feature[name])] = feature[name]
    for name in TARGETS:
        if name in features[0]:
            batch[name] = np.array([feature[name] for feature in features], dtype=np.int64)
    return batch


def evaluate(
    task: TaskConfig,
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Sequence[NDArray[Any]],
) -> dict[str, float]:
    """Judge a model's outputs by the task's metrics.

    Args:
        task: Decides the metrics.
        examples: As `load_examples` returns them.
        features: As `encode(…, training=False)` returns them.
        outputs: One array of logits per feature, in the order of `features`. Text classification:
            (C,). Question answering: (2, T), row 0 for the start and row 1 for the end; columns
            beyond the feature's own tokens are ignored.

    Returns:
        Percentages in [0, 100]: `exact_match` and `f1` (squad), `accuracy` and `f1` (mrpc),
        `accuracy` (others).
    """
    if len(features) != len(outputs):
        raise ValueError(f"expected {len(features)} outputs, one per feature; got {len(outputs)}")
    if task.kind is TaskKind.question_answering:
        predictions = squad.best_answers(examples, features, outputs)
        return squad.score(examples, predictions)
    labels = np.array([examples[feature["example_index"]]["label"] for feature in features])
    predicted = np.array([int(np.argmax(logits)) for logits in outputs])
    metrics = {"accuracy": 100.0 * float(np.mean(predicted == labels))}
    if task.name == "mrpc":  # judged by both (GLUE, Wang et al. 2019, table 1)
        true_positives = int(np.sum((predicted == 1) & (labels == 1)))
        positives = int(np.sum(predicted == 1) + np.sum(labels == 1))
        metrics["f1"] = 100.0 * 2 * true_positives / positives if positives else 0.0
    return metrics


def main_metric(task: TaskConfig) -> str:
    """Name the metric that accuracy floors and reports look at first."""
    return "f1" if task.kind is TaskKind.question_answering else "accuracy"


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `tokenizer.json` of a checkpoint or export folder.

    Raises:
        InputError: It is missing or damaged.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"expected a tokenizer at {path}, but there is none: name the folder of a checkpoint "
            "or export that holds one"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception for every kind of damage
        raise InputError(f"{path} is not a readable tokenizer: {error}") from None


def model_inputs(encoding: Encoding) -> Feature:
    """Take the model's inputs out of one encoding of `tokenizers`."""
    return {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
    }


def _read_tsv(path: Path, task: TaskConfig) -> list[Example]:
    columns = COLUMNS[task.name][0]
    lines = _lines(path, task)
    header = next(lines, "").split("\t")
    missing = [column for column in columns if column is not None and column not in header]
    if missing:
        raise InputError(
            f"{path}, line 1: expected the column {missing[0]!r} of task={task.name}, separated by "
            f"tabs; found {header}"
        )
    text_column, pair_column, label_column = columns
    text, label = header.index(text_column), header.index(label_column)
    pair = None if pair_column is None else header.index(pair_column)
    examples = []
    for number, line in enumerate(lines, start=2):
        fields = line.split("\t")  # GLUE has no quoting: quotes are literal
        if len(fields) != len(header):
            raise InputError(
                f"{path}, line {number}: expected {len(header)} tab-separated fields as in the "
                f"first line; found {len(fields)}"
            )
        if fields[label] not in map(str, range(task.num_labels)):
            raise InputError(
                f"{path}, line {number}: expected a label from 0 to {task.num_labels - 1} in "
                f"column {label_column!r}; found {fields[label]!r}"
            )
        examples.append(
            {
                "text": fields[text].strip(),
                "text_pair": None if pair is None else fields[pair].strip(),
                "label": int(fields[label]),
            }
        )
    return examples


def _lines(path: Path, task: TaskConfig) -> Iterator[str]:
    """Yield the lines of a text file; only line feeds end a line, unlike in `str.splitlines`."""
    text = squad.read_text(path, f"task={task.name} with task.data_dir={task.data_dir}")
    for line in text.split("\n"):
        if line.strip():
            yield line.rstrip("\r")


def _from_hub(task: TaskConfig, split: str, limit: int | None) -> list[Example]:
    import datasets  # type: ignore[import-untyped]  # slow to import, not needed for local files

    if not task.path:
        raise UsageError(f"task={task.name} needs task.path (a hub data set) or task.data_dir=DIR")
    part = HUB_SPLITS[split] + (f"[:{limit}]" if limit is not None else "")
    try:
        rows = datasets.load_dataset(*task.path, split=part)
    except Exception as error:  # a dozen kinds: offline, no such set, no such split, a broken cache
        raise InputError(
            f"cannot load the data set {'/'.join(task.path)} from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}): check "
            "the network, or name a folder of local files with task.data_dir=DIR"
        ) from error
    if task.kind is TaskKind.question_answering:
        return [squad.from_hub(row) for row in rows]
    text, pair, label = COLUMNS[task.name][1]
    return [
        {
            "text": row[text].strip(),
            "text_pair": None if pair is None else row[pair].strip(),
            "label": int(row[label]),
        }
        for row in rows
    ]
