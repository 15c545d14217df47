"""Rows as text: for the terminal, as Markdown and CSV, and in the page's table."""

import csv
import io
from collections.abc import Iterable, Sequence

from toolkit.present.answer import Answer
from toolkit.present.compare import Change, change_cells
from toolkit.present.results import Row

# column → (heading, format) where a report shows it; results.csv has every column
COLUMNS = {
    "run": ("run", "{}"),
    "set": ("set", "{}"),
    "teacher": ("teacher", "{}"),
    "encoder_sparsity": ("zeros", "{:.1%}"),
    "metric": ("metric", "{}"),
    "score": ("score %", "{:.2f}"),
    "published": ("published %", "{:.2f}"),
    "recovery": ("recovery", "{:.1%}"),
    "engine": ("engine", "{}"),
    "precision": ("precision", "{}"),
    "batch_size": ("batch", "{}"),
    "seq_len": ("length", "{}"),
    "lengths": ("lengths", "{}"),
    "num_threads": ("threads", "{}"),
    "items_per_s": ("items/s", "{:.1f}"),
    "tokens_per_s": ("tokens/s", "{:.0f}"),
    "latency_p50_ms": ("p50 ms", "{:.2f}"),
    "latency_p90_ms": ("p90 ms", "{:.2f}"),
    "latency_p99_ms": ("p99 ms", "{:.2f}"),
    "speedup": ("speedup", "{:.2f}"),
    "speedup_same_engine": ("same engine", "{:.2f}"),
    "load_s": ("load s", "{:.2f}"),
    "peak_rss_mb": ("peak MB", "{:.0f}"),
    "onnx_mb": ("file MB", "{:.1f}"),
    "seed": ("seed", "{}"),
    "folder": ("folder", "{}"),
}
PAGE_ONLY = {
    "teacher", "metric", "lengths", "num_threads", "tokens_per_s", "latency_p90_ms", "load_s",
    "peak_rss_mb", "seed", "folder",
}  # fmt: skip
VARYING = ("batch_size", "seq_len", "precision")  # shown where they differ


def cells(rows: Iterable[Row], columns: Iterable[str]) -> list[list[str]]:
    """Format some columns of the rows; what is unknown is empty."""
    return [
        ["" if row.get(name) is None else COLUMNS[name][1].format(row[name]) for name in columns]
        for row in rows
    ]


def printed_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of what tells something; a star marks the Pareto front."""
    values = {name: {row.get(name) for row in rows} - {None} for name in COLUMNS}
    names = [
        name for name in COLUMNS if name not in PAGE_ONLY and len(values[name]) > (name in VARYING)
    ]
    body = cells(rows, names)
    for line, row in zip(body, rows, strict=True):
        line[0] += " *" if row["pareto"] else ""
    return [COLUMNS[name][0] for name in names], body


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns for a terminal: the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table, the first column to the left, the others to the right."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(
        "| " + " | ".join(map(markdown_text, line)) + " |" for line in [header, marks, *rows]
    )


def markdown_text(cell: str) -> str:
    """Escape what Markdown would take for marks or elements; names come from files."""
    escaped = cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())


def csv_table(rows: Sequence[Row]) -> str:
    """Write the rows as CSV, with every column."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(
    rows: Sequence[Row],
    answers: Sequence[Answer],
    changes: Sequence[Change],
    notes: Sequence[str],
    has_picture: bool,
    grids: Sequence[tuple[list[str], list[list[str]]]],
) -> str:
    """Write answers, pictures, comparison, notes and tables as Markdown."""
    parts = ["# Results"]
    for found in answers:
        parts.append(f"**{markdown_text(found.lead)}**: {markdown_text(found.rest)}")
        if found.row["command"]:
            parts.append("\n".join(f"    {line}" for line in found.row["command"].splitlines()))
    parts += ["![quality against speed](pareto.png)"] * has_picture
    if changes:
        parts.append(markdown_table(*change_cells(changes)))
    parts += map(markdown_text, notes)
    if rows:
        parts.append(markdown_table(*printed_cells(rows)))
    if grids:
        parts.append("![speed of untrained models against published scores](grid.png)")
    parts += [markdown_table(*grid) for grid in grids]
    return "\n\n".join(parts) + "\n"
