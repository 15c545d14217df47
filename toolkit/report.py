"""`toolkit report`: from the records of runs to tables, a picture and an answer."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.config import ReportRoot
from toolkit.errors import GateError, InputError
from toolkit.files import write_bytes, write_text
from toolkit.present.page import page
from toolkit.present.results import (
    Row,
    add_ratios,
    distinguish,
    groups,
    is_plotted,
    labelled,
    make_rows,
    mark_pareto_front,
    merge_runs,
    panel_of,
)
from toolkit.present.select import answer, parse_select, select
from toolkit.present.tables import markdown_table, text_table
from toolkit.record import read_record

# column → (heading, format) in the printed and the Markdown table; results.csv has every column
SHOWN = {
    "run": ("run", "{}"),
    "encoder_sparsity": ("zeros", "{:.1%}"),
    "score": ("score %", "{:.2f}"),
    "recovery": ("recovery", "{:.1%}"),
    "engine": ("engine", "{}"),
    "batch_size": ("batch", "{}"),
    "seq_len": ("length", "{}"),
    "items_per_s": ("items/s", "{:.1f}"),
    "latency_p50_ms": ("p50 ms", "{:.2f}"),
    "latency_p99_ms": ("p99 ms", "{:.2f}"),
    "speedup": ("speedup", "{:.2f}"),
    "speedup_same_engine": ("same engine", "{:.2f}"),
    "onnx_mb": ("file MB", "{:.1f}"),
}


def report(config: ReportRoot) -> list[Row]:
    """Collect records; write report.html, report.md, results.csv, pareto.png; print a table.

    Returns:
        The rows, as they stand in `results.csv`.

    Raises:
        InputError: There is no readable record below the paths.
        UsageError: `select` is no list of conditions, or names an unknown column.
        GateError: No run meets `select`; the report has been written.
    """
    runs = merge_runs(collect(config.paths))
    rows = [row for run in runs for row in make_rows(run)]
    distinguish(rows)
    notes = [note for group in groups(rows, lambda row: row["group"]) for note in add_ratios(group)]
    panels = [panel for panel in groups(rows, panel_of) if any(map(is_plotted, panel))]
    for panel in panels:
        mark_pareto_front([row for row in panel if is_plotted(row)])
    plotted = {row["group"] for panel in panels for row in panel}
    rows.sort(key=lambda row: (row["group"] not in plotted, *_rank(row)))
    measured = [row for row in rows if row["engine"]]
    notes = [f"{_title(same[0])}." for same in groups(measured, panel_of)] + notes
    notes += _left_out(rows)
    conditions = parse_select(config.select, rows) if config.select else []
    chosen = select(conditions, rows) if conditions else None
    if chosen is not None:
        notes.insert(0, f"The fastest run with {config.select}: {answer(chosen)}.")
    folder = Path(config.output_dir)
    write(folder, rows, panels, notes)
    print(text_table(*_cells(rows)))
    print(*notes, sep="\n")
    print(f"report: {folder / 'report.html'}")
    if panels:
        print(f"picture: {folder / 'pareto.png'}")
    if conditions and chosen is None:
        raise GateError(f"none of {len(rows)} measurements meets select={config.select}")
    return rows


def collect(paths: Sequence[str]) -> list[tuple[Path, dict[str, Any]]]:
    """Read every `record.json` below the paths; warn of those that cannot be read.

    Raises:
        InputError: A path does not exist, or no readable record is found.
    """
    files: dict[Path, Path] = {}  # resolved → as named, so that none counts twice
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"expected records below {path}, but there is no such folder or file")
        for file in [path] if path.is_file() else sorted(path.rglob("record.json")):
            files.setdefault(file.resolve(), file)
    records = []
    for file in files.values():
        try:
            records.append((file, read_record(file)))
        except InputError as error:
            print(f"warning: skipped {error}", file=sys.stderr)
    if not records:
        found = f"{len(files)} unreadable ones" if files else "none"
        raise InputError(
            f"expected at least one record.json below {', '.join(paths)}, found {found}: "
            "`toolkit train` and `toolkit bench` write them"
        )
    return records


def write(
    folder: Path, rows: Sequence[Row], panels: Sequence[Sequence[Row]], notes: Sequence[str]
) -> None:
    """Write the four files; without a panel there is no picture, and an old one is removed."""
    picture = folder / "pareto.png"
    if panels:
        from toolkit.present.figures.pareto import draw  # here: matplotlib takes a second to import

        plotted = [[row for row in panel if is_plotted(row)] for panel in panels]
        write_bytes(picture, draw(plotted, [_title(panel[0]) for panel in panels]))
    else:
        picture.unlink(missing_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "results.csv", text.getvalue())
    parts = ["# Results", *notes, markdown_table(*_cells(rows))]
    if panels:
        parts.insert(1, "![quality against speed](pareto.png)")
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    titles = {panel_of(panel[0]): _title(panel[0]) for panel in panels}
    labels = {id(row) for panel in panels for row in labelled([r for r in panel if is_plotted(r)])}
    shown = [
        row | {"panel": titles.get(panel_of(row)), "labelled": id(row) in labels} for row in rows
    ]
    write_text(folder / "report.html", page(shown, notes))


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Format the columns that tell something; a star marks the Pareto front."""
    values = {name: {row[name] for row in rows} - {None} for name in SHOWN}
    names = [name for name in SHOWN if len(values[name]) > (name in ("batch_size", "seq_len"))]
    body = [
        ["" if row[name] is None else SHOWN[name][1].format(row[name]) for name in names]
        for row in rows
    ]
    for line, row in zip(body, rows, strict=True):
        line[0] += " *" if row["pareto"] else ""
    return [SHOWN[name][0] for name in names], body


def _rank(row: Row) -> tuple[Any, ...]:
    """Order within a group: fast before slow, the unmeasured last."""
    return row["group"], -(row["items_per_s"] or 0.0), row["run"]


def _left_out(rows: Sequence[Row]) -> list[str]:
    """Say which runs are listed but not plotted, and why."""
    notes = []
    for column, reason in (
        ("items_per_s", "speed was not measured (`toolkit bench onnx=DIR` does)"),
        ("score", "accuracy was not measured"),
    ):
        runs = dict.fromkeys(row["run"] for row in rows if row[column] is None)
        if runs:
            notes.append(f"Listed but not plotted, because {reason}: {', '.join(runs)}.")
    return notes


def _title(row: Row) -> str:
    """Say under which conditions the rows of a panel were measured."""
    texts = "texts of at most" if row["lengths"] == "task" else "texts of"
    return (
        f"{row['group']}: {row['batch_size']} {texts} {row['seq_len']} tokens, "
        f"{row['num_threads']} threads, {row['cpu']}"
    )
