"""`select=…`: the wish that a report answers with the fastest run that meets it."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from toolkit.errors import UsageError, nearest
from toolkit.present.results import Row

Condition = tuple[str, str, float | str]

EQUAL_DIGITS = 3  # decimals by which numbers are equal

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
        (column, operator, value) of each; the value is a number where it reads like one. Numbers
        are equal when their first three decimals are, and names whatever the case of their letters.

    Raises:
        UsageError: It is something else, there is no such column, or it holds no such values.
    """
    conditions: list[Condition] = []
    columns = {column for row in rows for column in row}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|!=|==|=|>|<)\s*([^\s<>=!].*?)\s*", part)
        if match is None:
            raise UsageError(
                "select must be conditions such as f1>=87,latency_p99_ms<=10; "
                f"{part.strip()!r} is none (in quotes, or the shell takes < and > for files: "
                "select='f1>=87')"
            )
        column, sign, value = match.groups()
        if column not in columns:
            raise UsageError(
                f"select names {column!r}, which is no column of the results; "
                + nearest(column, columns)
            )
        conditions.append((column, sign, _number(value)))
        _check(*conditions[-1], rows)
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


def shortfall(conditions: Sequence[Condition], rows: Sequence[Row]) -> str:
    """Say of each condition how many measurements meet it, and how far off the best one is."""
    measured = [row for row in rows if row["items_per_s"] is not None]
    parts = []
    for column, sign, value in conditions:
        known = [row[column] for row in measured if row.get(column) is not None]
        count = sum(_holds(found, sign, value) for found in known)
        part = f"{column}{sign}{value:g}" if isinstance(value, float) else f"{column}{sign}{value}"
        part += f" holds for {count}"
        if known and not count and sign in (">=", ">", "<=", "<"):
            part += f" (the best has {(max if sign[0] == '>' else min)(known):.6g})"
        parts.append(part if known else f"{column} was never measured")
    return "; ".join(parts)


def _check(column: str, sign: str, value: float | str, rows: Sequence[Row]) -> None:
    """Refuse a comparison that can never hold, because numbers and names do not mix.

    Raises:
        UsageError: It is one.
    """
    known = [row[column] for row in rows if row.get(column) is not None]
    is_name = bool(known) and all(isinstance(found, (str, bool)) for found in known)
    if is_name and sign not in ("=", "==", "!="):
        raise UsageError(f"select: {column} has no order; write {column}=… or {column}!=…")
    if is_name or not known:
        return
    if isinstance(value, str):
        raise UsageError(
            f"select: {column} is a number, such as {known[0]:g}; got {value!r}"
            + (", without the sign of percent" * value.endswith("%"))
        )


def _holds(found: Any, sign: str, value: float | str) -> bool:
    if found is None:
        return False
    if isinstance(found, (str, bool)) or isinstance(value, str):
        text = f"{value:g}" if isinstance(value, float) else value
        return OPERATORS[sign](str(found).lower(), text.lower())
    if sign in ("=", "==", "!="):  # 0.9 means 90 % of zeros, of which a model has 0.90001
        found = round(found, EQUAL_DIGITS)
    return OPERATORS[sign](found, value)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
