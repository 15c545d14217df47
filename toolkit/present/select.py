"""`select=…`: the wish that a report answers with the fastest run that meets it."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from toolkit.errors import UsageError, nearest
from toolkit.present.results import Row

Condition = tuple[str, str, float | str]

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


def parse_select(text: str, rows: Sequence[Row]) -> list[Condition]:
    """Read conditions such as `f1>=87,latency_p99_ms<=10,engine=sparse`.

    Returns:
        (column, operator, value) of each; the value is a number where it reads like one.

    Raises:
        UsageError: It is something else, or there is no such column.
    """
    conditions: list[Condition] = []
    columns = {column for row in rows for column in row}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|!=|==|=|>|<)\s*([^\s<>=!].*?)\s*", part)
        if match is None:
            raise UsageError(
                "select must be conditions such as f1>=87,latency_p99_ms<=10; "
                f"{part.strip()!r} is none"
            )
        column, sign, value = match.groups()
        if column not in columns:
            raise UsageError(
                f"select names {column!r}, which is no column of the results; "
                + nearest(column, columns)
            )
        conditions.append((column, sign, _number(value)))
    return conditions


def select(conditions: Sequence[Condition], rows: Sequence[Row]) -> Row | None:
    """Return the fastest row that meets all conditions; a row without a value meets none of it."""
    qualified = [
        row
        for row in rows
        if row["items_per_s"] is not None
        and all(_holds(row.get(column), sign, value) for column, sign, value in conditions)
    ]
    return max(qualified, key=lambda row: row["items_per_s"], default=None)


def answer(row: Row) -> str:
    """Say what was found."""
    score = "" if row["score"] is None else f", {row['metric']} {row['score']:.2f}"
    speedup = row.get("speedup")
    times = "" if speedup is None else f", {speedup:.1f} times the baseline's speed"
    return (
        f"{row['run']} through {row['engine']}{score}, {row['items_per_s']:.1f} items/s{times}, "
        f"p99 {row['latency_p99_ms']:.2f} ms ({row['folder']})"
    )


def _holds(found: Any, sign: str, value: float | str) -> bool:
    if found is None:
        return False
    if isinstance(value, str) or isinstance(found, str):
        found, value = str(found), str(value)
    return OPERATORS[sign](found, value)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
