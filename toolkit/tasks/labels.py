"""Labels: how they are spelled in data, and the numbers a model knows them by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.config import TaskConfig
from toolkit.errors import InputError, UsageError, nearest
from toolkit.tasks.rows import found

MOST = 10_000  # labels; more are no labels, but numbers to predict or texts


def spell(place: str, column: str, value: Any) -> str:
    """Return a label as text: 1, 1.0 and "1" are the same one.

    Raises:
        InputError: It is missing, or neither a text nor a number.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)) and value == value:  # NaN is not
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    hint = ": several labels each need task.multi_label=true" if isinstance(value, list) else ""
    raise InputError(f"{place}: expected a label in column {column!r}; {found(value)}{hint}")


def numbering(task: TaskConfig) -> dict[str, int]:
    """Return the number of each spelling: a name, or the number itself where no name is one."""
    names = dict(zip(task.label_names or (), range(task.num_labels or 0), strict=False))
    if any(_is_number(name) for name in names):
        return names
    return {str(number): number for number in range(task.num_labels or 0)} | names


def number_of(place: str, column: str, spelled: str, task: TaskConfig) -> int | str:
    """Return a label's number; its spelling while the labels are being found.

    Raises:
        InputError: The task does not have it.
    """
    if task.num_labels is None:
        return spelled
    numbers = numbering(task)
    if spelled in numbers:
        return numbers[spelled]
    names = task.label_names or list(numbers)
    unseen = task.eval_file is not None and place.startswith(str(Path(task.eval_file)))
    raise InputError(
        f"{place}: expected a label, {either(names)}, in column {column!r}; found {spelled!r}"
        + (
            f"; {nearest(spelled, names)} The model can learn only labels of task.train_file: add "
            "rows with this one there, or state all with task.label_names=[…]"
            if unseen
            else ""
        )
    )


def order(spelled: Iterable[str], known: Sequence[str] | None, source: str) -> list[str]:
    """Put the labels found in data in order.

    Args:
        spelled: Those found, each once.
        known: Those of the model that is trained further, whose order stays.
        source: Where they were found.

    Raises:
        InputError: There is one only.
    """
    labels = set(spelled)
    if known is not None and (labels <= set(known) or labels <= set(map(str, range(len(known))))):
        return list(known)
    if len(labels) < 2:
        raise InputError(
            f"{source}: all rows have the label {next(iter(labels), None)!r}, so that there is "
            "nothing to tell apart: is task.label_column the right one?"
        )
    return sorted(labels, key=lambda name: (_value(name), name))


def learnt(task: TaskConfig, id2label: Mapping[Any, str]) -> TaskConfig:
    """State the labels of a task that does not, by the configuration of a model trained on it.

    Args:
        id2label: Of config.json; empty where there is none.

    Raises:
        UsageError: The task does not state them, and neither does the model; or in another order.
    """
    if task.num_labels is not None:
        check_order(task, names_in(id2label))
        return task
    if not id2label:
        raise UsageError(
            f"task={task.name} takes its labels from the model's config.json, which lies not beside"
            " it: state them with task.label_names=[…], in the order of their numbers"
        )
    return replace(task, label_names=names_in(id2label), num_labels=len(id2label))


def check_order(task: TaskConfig, known: Sequence[str] | None) -> None:
    """Refuse labels that are a model's, but numbered in another way: it would seem to know nothing.

    Raises:
        UsageError: They are.
    """
    names = list(task.label_names or ())
    if known is not None and set(known) == set(names) and list(known) != names:
        raise UsageError(
            f"the model has the labels {', '.join(known)} in this order, task={task.name} has "
            f"{', '.join(names)}: state the model's with task.label_names=[{','.join(known)}] "
            "if the data spell their labels; numbers would be wrong ones"
        )


def names_in(id2label: Mapping[Any, str]) -> list[str] | None:
    """Return the names in the order of their numbers; None for transformers' LABEL_0, LABEL_1, …"""
    names = [name for _, name in sorted((int(i), name) for i, name in id2label.items())]
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else names


def either(names: Sequence[str]) -> str:
    """List names for a sentence, the first ten of many."""
    if len(names) > 10:
        return f"{', '.join(names[:10])} or one of {len(names) - 10} more"
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _is_number(name: str) -> bool:
    return name.lstrip("-").isdecimal()


def _value(name: str) -> float:
    """Sort numbers by their value, before all that are none (which share one)."""
    return float(name) if _is_number(name) else float("inf")
