"""Tasks: read the examples, turn them into model inputs, judge the outputs. Imports no torch.

`load_examples` -> `encode` -> `collate` -> (a model) -> `evaluate`. What kind of task it is decides
how; each kind is a module (`KINDS`) that has

    AUTO_CLASS  transformers' class of a model with the task's head
    OUTPUTS     the model's outputs that are judged
    TARGETS     what features carry besides the model's inputs: the labels, each an integer, a
                float, a list of one integer per token, or a list of floats
    METRICS     names that `task.metrics` may hold
    read_file(path, task)                         -> examples of a local file, one by one
    from_hub(row, task)                           -> example of a row of a hub data set
    encode(examples, tokenizer, task, training)   -> features
    score(examples, features, outputs, task)      -> metrics by name

and, where it has labels that a task may leave to its data,

    labels_in(example)                            -> its labels
    check(task)                                   refuses what does not go together
    PROBLEM_TYPE                                  of config.json

An example is a dict of what the kind knows about it, a feature a dict of one input of the model.
Both lie on disk, and are read as they are needed: a large file does not fill the memory. Data sets,
columns and metrics are values of `conf/task/*.yaml`.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from toolkit.config import TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.progress import bar, shows_bars
from toolkit.tasks import (
    embedding,
    question_answering,
    regression,
    text_classification,
    token_classification,
)
from toolkit.tasks.demo import generate_examples
from toolkit.tasks.features import Example, Feature
from toolkit.tasks.labels import MOST, check_order, order
from toolkit.tasks.on_disk import OnDisk
from toolkit.tasks.rows import check_columns, columns_of

KINDS: dict[str, ModuleType] = {
    "embedding": embedding,
    "question_answering": question_answering,
    "regression": regression,
    "text_classification": text_classification,
    "token_classification": token_classification,
}
HELD_OUT = (
    1000  # examples of `train_file` that judge where there is no `eval_file`; at most a tenth
)
ENCODED = 1024  # examples encoded at a time, in memory together


def kind_of(task: TaskConfig) -> Any:
    """Return the module of a task's kind.

    Raises:
        UsageError: There is no such kind.
    """
    if task.kind not in KINDS:
        raise UsageError(f"task.kind must be one of {', '.join(KINDS)}; got {task.kind!r}")
    return KINDS[task.kind]


def check_names(task: TaskConfig) -> None:
    """Refuse a kind that is none and metrics that it does not know, before anything is loaded.

    Raises:
        UsageError: There is one.
    """
    metrics = kind_of(task).METRICS
    for metric in task.metrics:
        if metric not in metrics:
            raise UsageError(
                f"task.metrics of {task.kind} must be among {', '.join(metrics)}; got {metric!r}"
            )
    if task.multi_label and task.kind != "text_classification":
        raise UsageError(
            f"task.multi_label=true gives a text several labels (kind text_classification); "
            f"task={task.name} is of kind {task.kind}"
        )
    weights, has_classes = task.class_weights, hasattr(kind_of(task), "labels_in")
    if weights is not None and not has_classes:
        raise UsageError(
            f"task.class_weights weighs the labels of a classification; task={task.name} of kind "
            f"{task.kind} has none"
        )
    if isinstance(weights, list) and task.num_labels not in (None, len(weights)):
        raise UsageError(
            f"task.class_weights must hold task.num_labels={task.num_labels} numbers, one per "
            f"label; got {len(weights)}"
        )
    if hasattr(kind_of(task), "check"):
        kind_of(task).check(task)


def problem_type(task: TaskConfig) -> str | None:
    """Return what transformers calls the problem in config.json, which decides the loss."""
    if task.multi_label:
        return "multi_label_classification"
    return getattr(kind_of(task), "PROBLEM_TYPE", None)


def find_labels(task: TaskConfig, known: Sequence[str] | None) -> TaskConfig:
    """State the labels of a task that leaves them to its training data.

    Args:
        task: Left as it is where it states its labels.
        known: Those of the model that is trained further, which keep their order.

    Raises:
        InputError: The data cannot be read, or have one label only, or too many to be labels.
        UsageError: The labels do not fit the metrics or class weights, or are the model's in
            another order.
    """
    kind, names, found = kind_of(task), None, dict[str, None]()
    if task.num_labels is not None or not hasattr(kind, "labels_in"):
        check_order(task, known)
        return task
    if task.train_file is not None:
        source = task.train_file
        examples = kind.read_file(Path(source), task)
    elif task.path is not None:
        source = "/".join(task.path)
        rows = _read_hub(task.path, task, "train", None)
        names = _names_on_hub(rows, task)
        examples = (kind.from_hub(row, task) for row in rows)
    else:
        source, examples = "", _examples(task, "train", 0)
    for example in examples if names is None else ():
        found.update(dict.fromkeys(kind.labels_in(example)))
        if len(found) > MOST:
            raise InputError(
                f"{source} has more than {MOST:,} different labels: is task.label_column the right "
                "one? Numbers are learnt by task=regression"
            )
    if names is None and not found:
        raise InputError(f"{source} has no rows: task={task.name} expects at least one there")
    names = names or order(found, known, source)
    task = replace(task, label_names=names, num_labels=len(names))
    check_names(task)
    return task


def load_examples(task: TaskConfig, split: str, seed: int) -> Sequence[Example]:
    """Read one split of a task: from local files, from the hub, or generated.

    Args:
        task: `train_file` or `eval_file` set: that file; `data_dir` set: the official files of
            that folder; null: the hub data set `path`; all null: the generated reviews of `demo`.
        split: `train` or `eval`.
        seed: Chooses the generated training examples, and what is held back of a `train_file`
            without an `eval_file`; real data ignore it otherwise.

    Returns:
        The examples, in the order of the source, at most `max_train_samples` or
        `max_eval_samples`. They lie on disk: each is made anew when it is asked for.

    Raises:
        InputError: A file is missing or damaged (naming file and line), or the hub cannot be read.
        UsageError: There is no such kind of task, it does not know one of the metrics, or no data
            are named.
    """
    check_names(task)
    limit = task.max_train_samples if split == "train" else task.max_eval_samples
    if task.train_file is not None and task.eval_file is None:
        whole = OnDisk(bar(_examples(task, "train", seed), "reading train"))
        examples = whole.pick(_held_out(whole, task, split, seed))[:limit]
    else:
        examples = OnDisk(bar(islice(_examples(task, split, seed), limit), f"reading {split}"))
    if not examples:
        raise InputError(f"task={task.name} has no examples in split {split!r}")
    return examples


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskConfig, training: bool
) -> Sequence[Feature]:
    """Turn examples into model inputs, without padding.

    Args:
        examples: As `load_examples` returns them.
        tokenizer: Left as it is; its own truncation and padding settings are not used.
        task: Its kind, `max_length`, and what else the kind reads.
        training: Whether targets are wanted where finding them costs something.

    Returns:
        One or more features per example, in order, each with `input_ids`, `attention_mask`,
        `token_type_ids` (lists of T ints; leave out the inputs that a model does not take),
        `example_index` (int), and what the kind adds. They lie on disk: each is made anew when it
        is asked for.
    """

    def parts() -> Iterator[Feature]:
        for start in bar(range(0, len(examples), ENCODED), "encoding"):
            part = [examples[i] for i in range(start, min(start + ENCODED, len(examples)))]
            for feature in kind_of(task).encode(part, tokenizer, task, training):
                feature["example_index"] += start
                yield feature

    return OnDisk(parts())


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
        outputs: One array per feature, in their order: the kind's output without the batch axis,
            its several `OUTPUTS` stacked in their order; rows beyond a feature's tokens are
            ignored.

    Returns:
        Percentages in [0, 100] (correlations in [-100, 100]), in the order of `task.metrics`;
        without those for which the data have nothing to judge by.
    """
    if len(features) != len(outputs):
        raise ValueError(f"expected {len(features)} outputs, one per feature; got {len(outputs)}")
    found = kind_of(task).score(examples, features, outputs, task)
    return {metric: found[metric] for metric in task.metrics if metric in found}


def _examples(task: TaskConfig, split: str, seed: int) -> Iterable[Example]:
    """Read a split's examples one by one."""
    kind = kind_of(task)
    limit = task.max_train_samples if split == "train" else task.max_eval_samples
    if task.train_file is not None or task.eval_file is not None:
        file = task.train_file if split == "train" else task.eval_file
        if file is None:
            raise UsageError(
                "task.eval_file is only judged by: name what to learn from, too, with "
                "task.train_file=F"
            )
        examples: Iterable[Example] = kind.read_file(Path(file), task)
    elif task.data_dir is not None:
        examples = kind.read_file(Path(task.data_dir) / task.files[split], task)
    elif task.path is not None:
        rows = _read_hub(task.path, task, split, limit)
        examples = (kind.from_hub(row, task) for row in rows)
    elif task.name == "demo":
        examples = generate_examples(split, seed, limit)
    else:
        raise UsageError(
            f"task={task.name} needs task.path (a hub data set), task.data_dir=DIR, or files of "
            "your own: task.train_file=F task.eval_file=F"
        )
    return examples


def _held_out(
    examples: Sequence[Example], task: TaskConfig, split: str, seed: int
) -> NDArray[np.int64]:
    """Return which examples of a `train_file` are in a split, with an equal share of each label.

    Raises:
        InputError: There are too few to hold any back.
    """
    count = min(HELD_OUT, len(examples) // 10)
    if count == 0:
        raise InputError(
            f"{task.train_file} has {len(examples)} rows, too few to judge a model by some of "
            "them: give at least 10, or rows to be judged by with task.eval_file=F"
        )
    generator, groups = random.Random(f"held out {seed}"), defaultdict(list)
    is_grouped = task.kind == "text_classification" and not task.multi_label
    for place, example in enumerate(examples):
        groups[example["label"] if is_grouped else None].append(place)
    # all labels one after the other, shuffled within: at equal distances, each gives its share
    queue = []
    for label in sorted(groups, key=str):
        of_label = groups[label]
        if len(of_label) > 1:  # a label's only example is needed to learn from
            queue += generator.sample(of_label, len(of_label))
    is_held_out = np.zeros(len(examples), dtype=bool)
    is_held_out[[queue[(2 * i + 1) * len(queue) // (2 * count)] for i in range(count)]] = True
    return np.flatnonzero(is_held_out == (split == "eval"))


def _names_on_hub(rows: Any, task: TaskConfig) -> list[str] | None:
    """Return the labels' names that a hub data set tells, for its numbers."""
    column = columns_of(task, task.columns)["label"]
    feature = getattr(rows, "features", {}).get(column)
    feature = getattr(feature, "feature", feature)  # of a list, one per word
    names: list[str] | None = getattr(feature, "names", None)
    return names


def _read_hub(path: Sequence[str], task: TaskConfig, split: str, limit: int | None) -> Any:
    import datasets

    if not shows_bars():
        datasets.disable_progress_bars()
    part = task.splits[split] + (f"[:{limit}]" if limit is not None else "")
    try:
        rows = datasets.load_dataset(*path, split=part)
    except Exception as error:  # a dozen kinds: offline, no such set, no such split, a broken cache
        raise InputError(
            f"cannot load the data set {'/'.join(path)} from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}): check "
            "the network, or name a folder of local files with task.data_dir=DIR"
        ) from error
    wanted = [name for name in columns_of(task, task.columns).values() if name is not None]
    if task.kind in ("regression", "text_classification", "token_classification"):
        found = getattr(rows, "column_names", wanted)
        check_columns(f"the data set {'/'.join(path)}", found, wanted, task)
    return rows
