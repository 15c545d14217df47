"""Tasks: read the examples, turn them into model inputs, judge the outputs. Imports no torch.

`load_examples` -> `encode` -> `collate` -> (a model) -> `evaluate`. What kind of task it is decides
how; each kind is a module (`KINDS`) that has

    AUTO_CLASS  transformers' class of a model with the task's head
    OUTPUTS     the model's outputs that are judged
    TARGETS     what features carry besides the model's inputs: the labels, each an integer, a
                float, or a list of one integer per token
    METRICS     names that `task.metrics` may hold
    read_file(path, task)                         -> examples of a local file
    from_hub(row, task)                           -> example of a row of a hub data set
    encode(examples, tokenizer, task, training)   -> features
    score(examples, features, outputs, task)      -> metrics by name

An example is a dict of what the kind knows about it, a feature a dict of one input of the model.
Data sets, columns and metrics are values of `conf/task/*.yaml`.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray
from tokenizers import Tokenizer

from toolkit.config import TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.progress import bar, shows_bars
from toolkit.tasks import embedding, question_answering, text_classification
from toolkit.tasks.demo import generate_examples
from toolkit.tasks.features import Example, Feature

KINDS: dict[str, ModuleType] = {
    "embedding": embedding,
    "question_answering": question_answering,
    "text_classification": text_classification,
}
HELD_OUT = (
    1000  # examples of `train_file` that judge where there is no `eval_file`; at most a tenth
)


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


def load_examples(task: TaskConfig, split: str, seed: int) -> list[Example]:
    """Read one split of a task: from local files, from the hub, or generated.

    Args:
        task: `train_file` or `eval_file` set: that file; `data_dir` set: the official files of
            that folder; null: the hub data set `path`; all null: the generated reviews of `demo`.
        split: `train` or `eval`.
        seed: Chooses the generated training examples, and what is held back of a `train_file`
            without an `eval_file`; real data ignore it otherwise.

    Returns:
        The examples, in the order of the source, at most `max_train_samples` or
        `max_eval_samples`.

    Raises:
        InputError: A file is missing or damaged (naming file and line), or the hub cannot be read.
        UsageError: There is no such kind of task, it does not know one of the metrics, or no data
            are named.
    """
    check_names(task)
    kind = kind_of(task)
    limit = task.max_train_samples if split == "train" else task.max_eval_samples
    if task.train_file is not None or task.eval_file is not None:
        examples = _read_own(task, split, seed)
    elif task.data_dir is not None:
        examples = kind.read_file(Path(task.data_dir) / task.files[split], task)
    elif task.path is not None:
        examples = [
            kind.from_hub(row, task)
            for row in bar(_read_hub(task.path, task, split, limit), f"reading {split}")
        ]
    elif task.name == "demo":
        examples = generate_examples(split, seed, limit)
    else:
        raise UsageError(
            f"task={task.name} needs task.path (a hub data set), task.data_dir=DIR, or files of "
            "your own: task.train_file=F task.eval_file=F"
        )
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
        task: Its kind, `max_length`, and what else the kind reads.
        training: Whether targets are wanted where finding them costs something.

    Returns:
        One or more features per example, in order, each with `input_ids`, `attention_mask`,
        `token_type_ids` (lists of T ints; leave out the inputs that a model does not take),
        `example_index` (int), and what the kind adds.
    """
    features: list[Feature] = kind_of(task).encode(examples, tokenizer, task, training)
    return features


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


def _read_own(task: TaskConfig, split: str, seed: int) -> list[Example]:
    kind = kind_of(task)
    if split == "eval" and task.eval_file is not None:
        examples: list[Example] = kind.read_file(Path(task.eval_file), task)
        return examples
    if task.train_file is None:
        raise UsageError("task.eval_file is only judged by: name what to learn from, too, with "
                         "task.train_file=F")  # fmt: skip
    examples = kind.read_file(Path(task.train_file), task)
    if task.eval_file is not None:
        return examples
    count = min(HELD_OUT, len(examples) // 10)
    held_out = set(random.Random(f"held out {seed}").sample(range(len(examples)), count))
    is_eval = split == "eval"
    return [example for i, example in enumerate(examples) if (i in held_out) == is_eval]


def _read_hub(path: Sequence[str], task: TaskConfig, split: str, limit: int | None) -> Any:
    import datasets

    if not shows_bars():
        datasets.disable_progress_bars()
    part = task.splits[split] + (f"[:{limit}]" if limit is not None else "")
    try:
        return datasets.load_dataset(*path, split=part)
    except Exception as error:  # a dozen kinds: offline, no such set, no such split, a broken cache
        raise InputError(
            f"cannot load the data set {'/'.join(path)} from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}): check "
            "the network, or name a folder of local files with task.data_dir=DIR"
        ) from error
