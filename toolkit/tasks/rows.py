"""Rows of a local file, one at a time: CSV, TSV, JSON lines or Parquet, by the file's suffix.

Every fault names the file and the line; a row is either read whole or refused.
"""

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.config import TaskConfig
from toolkit.errors import InputError, nearest
from toolkit.progress import say_once

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]  # where a row stands, such as `own.csv, line 3`, and its columns
LONGEST = 1 << 24  # characters of a field and bytes of a line: more is no row, but a broken file
BATCH_ROWS = 256  # of Parquet, in memory at a time


def read_rows(path: Path, task: TaskConfig, wanted: Sequence[str] = ()) -> Rows:
    """Read a file's rows, by its suffix: one of `READERS`.

    Args:
        path: CSV with quotes as RFC 4180 has them; TSV without any quoting, as GLUE's is; one JSON
            object per line; or Parquet. Text is UTF-8. Blank lines are no rows.
        task: `header` names the columns of CSV and TSV that have no such line,
            `skip_broken_rows` leaves out rows with another number of fields.
        wanted: Columns that every row must have.

    Raises:
        InputError: The file is missing, of another kind or damaged, naming the line, or lacks a
            column.
    """
    check_is_file(path, task)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(READERS)}, by which it is read; "
            f"found {path.suffix or 'no suffix'!r}: convert it, or rename it if it is one of these"
        )
    return reader(path, task, wanted)


def text_of(place: str, row: Mapping[str, Any], column: str, task: TaskConfig) -> str:
    """Return a text without the blanks around it.

    Raises:
        InputError: There is none. Named data sets may have empty ones, as QQP has.
    """
    value, is_own = row[column], task.train_file is not None or task.eval_file is not None
    if isinstance(value, str) and (value.strip() or not is_own):
        return value.strip()
    raise InputError(f"{place}: expected a text in column {column!r}; {found(value)}")


def found(value: Any) -> str:
    """Say what stands where something else is expected, in a few words."""
    if value is None or value == "":
        return "it is missing: fill it in, or leave the row out"
    return f"found {value!r}" if len(repr(value)) < 100 else f"found {repr(value)[:100]} …"


def columns_of(task: TaskConfig, named: Mapping[str, str | None]) -> dict[str, str | None]:
    """Name the columns of `text`, `text_pair` and `label`: one's own names before `named`."""
    columns = {"text_pair": None, **named}
    if task.text_columns is not None:
        columns |= dict.fromkeys(("text", "text_pair"))
        columns |= zip(("text", "text_pair"), task.text_columns, strict=False)
    if task.label_column is not None:
        columns["label"] = task.label_column
    return columns


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Read lines with their numbers from 1; only line feeds end a line, unlike `str.splitlines`.

    Raises:
        InputError: The file cannot be read, is no UTF-8, or has a line that cannot be one.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST):
                number += 1
                if len(raw) == LONGEST:
                    raise InputError(
                        f"{path}, line {number}: longer than {LONGEST >> 20} MiB, which is no row: "
                        "expected one row per line"
                    )
                if number == 1:
                    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise InputError(f"{path} is in UTF-16: save it as UTF-8")
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                try:
                    yield number, raw.decode()
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}, line {number}: the byte 0x{raw[error.start]:02x} at position "
                        f"{error.start + 1} is no UTF-8: save the file as UTF-8 "
                        f"(`iconv -f latin1 -t utf-8` if it is Latin-1)"
                    ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def check_columns(
    place: str, columns: Sequence[str], wanted: Sequence[str], task: TaskConfig
) -> None:
    """Refuse a file, or a row, that lacks a column.

    Raises:
        InputError: One of `wanted` is not among `columns`; the nearest are named.
    """
    for column in wanted:
        if column not in columns:
            raise InputError(
                f"{place}: expected the column {column!r} of task={task.name}; found "
                f"{[*columns]}; {nearest(column, columns)} (task.text_columns and "
                "task.label_column name them)"
            )


def check_is_file(path: Path, task: TaskConfig) -> None:
    """Refuse a file that is none.

    Raises:
        InputError: There is none at `path`, or a folder, or it is empty.
    """
    if path.is_dir():
        raise InputError(f"task={task.name} expects a file at {path}, but that is a folder")
    if not path.is_file():
        raise InputError(f"task={task.name} expects the file {path}, but there is none")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: task={task.name} expects at least one row there")


def _read_csv(path: Path, task: TaskConfig, wanted: Sequence[str]) -> Rows:
    csv.field_size_limit(LONGEST)
    last = 0

    def lines() -> Iterator[str]:
        nonlocal last
        for number, line in lines_of(path):
            last = number
            yield line

    def rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(lines(), strict=True)
        while True:
            start = last + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(
                    f"{path}, line {start}: the row that begins here is no CSV ({error}): a quote "
                    'within a quoted field is written twice, ""'
                ) from None
            if fields:
                yield start, fields

    return _with_header(path, task, wanted, rows(), "comma")


def _read_tsv(path: Path, task: TaskConfig, wanted: Sequence[str]) -> Rows:
    rows = (
        (number, line.rstrip("\r\n").split("\t")) for number, line in lines_of(path) if line.strip()
    )
    return _with_header(path, task, wanted, rows, "tab")


def _with_header(
    path: Path,
    task: TaskConfig,
    wanted: Sequence[str],
    rows: Iterator[tuple[int, list[str]]],
    separator: str,
) -> Rows:
    """Name the fields of rows of text."""
    header, broken, first_broken = task.header, 0, 0
    if header is not None:
        check_columns("task.header", header, wanted, task)
    for number, fields in rows:
        if header is None:
            header = [name.strip() for name in fields]
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise InputError(f"{path}, line {number}: the column {twice!r} is there twice")
            check_columns(f"{path}, line {number}", header, wanted, task)
        elif len(fields) == len(header):
            yield f"{path}, line {number}", dict(zip(header, fields, strict=True))
        elif task.skip_broken_rows:
            broken, first_broken = broken + 1, first_broken or number
        else:
            raise InputError(
                f"{path}, line {number}: expected {len(header)} {separator}-separated fields as in "
                f"{'the first line' if task.header is None else 'task.header'}; found {len(fields)}"
                " (task.skip_broken_rows=true leaves such rows out)"
            )
    if broken:
        say_once(
            f"{path}: {broken} rows with another number of fields than {len(header or ())} are "
            f"left out, the first in line {first_broken} (task.skip_broken_rows=true)"
        )


def _read_json_lines(path: Path, task: TaskConfig, wanted: Sequence[str]) -> Rows:
    for number, line in lines_of(path):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{place}: not JSON ({error.msg} at position {error.colno}): expected one object "
                "per line, not one array or object over many lines"
            ) from None
        except RecursionError:
            raise InputError(f"{place}: JSON nested too deeply to be a row") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected a JSON object; {found(row)}")
        check_columns(place, list(row), wanted, task)
        yield place, row


def _read_parquet(path: Path, task: TaskConfig, wanted: Sequence[str]) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        # without a buffer as large as a group of rows, which may be all of them
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            number = 0
            check_columns(str(path), file.schema_arrow.names, wanted, task)
            for batch in file.iter_batches(BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot read {path} as Parquet ({reason}): write it again") from None


READERS: dict[str, Callable[[Path, TaskConfig, Sequence[str]], Rows]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
}
