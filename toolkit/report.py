"""`toolkit report`: from the records of runs to tables, a picture and an answer."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.config import ReportRoot
from toolkit.errors import GateError, InputError
from toolkit.files import write_text
from toolkit.present.chart import Panel, make_panels
from toolkit.present.page import page
from toolkit.present.results import (
    Row,
    add_ratios,
    distinguish,
    groups,
    is_plotted,
    left_out,
    make_rows,
    mark_pareto_front,
    merge_runs,
    panel_of,
    title_of,
)
from toolkit.present.select import answer, parse_select, select
from toolkit.present.tables import markdown_table, printed_cells, text_table
from toolkit.record import read_record


def report(config: ReportRoot) -> list[Row]:
    """Collect records; write report.html, report.md, results.csv, pareto.png; print a table.

    Returns:
        The rows, as they stand in `results.csv`.

    Raises:
        InputError: There is no readable record below the paths.
        UsageError: `select` is no list of conditions, or names an unknown column.
        GateError: No run meets `select`; the report has been written.
    """
    rows = [row for run in merge_runs(collect(config.paths)) for row in make_rows(run)]
    distinguish(rows)
    ratios = [
        note for group in groups(rows, lambda row: row["group"]) for note in add_ratios(group)
    ]
    plotted = [row for row in rows if is_plotted(row)]
    for panel in groups(plotted, panel_of):
        mark_pareto_front(panel)
    shown = {row["group"] for row in plotted}
    rows.sort(key=lambda row: (row["group"] not in shown, *_rank(row)))
    measured = groups((row for row in rows if row["engine"]), panel_of)
    notes = [*(f"{title_of(same[0])}." for same in measured), *ratios, *left_out(rows)]
    conditions = parse_select(config.select, rows) if config.select else []
    chosen = select(conditions, rows) if conditions else None
    if chosen is not None:
        notes.insert(0, f"The fastest run with {config.select}: {answer(chosen)}.")
    folder, panels = Path(config.output_dir), make_panels(rows)
    write(folder, rows, panels, notes)
    print(text_table(*printed_cells(rows)))
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


def write(folder: Path, rows: Sequence[Row], panels: Sequence[Panel], notes: Sequence[str]) -> None:
    """Write the four files; without a panel there is no picture, and an old one is removed."""
    picture = folder / "pareto.png"
    if panels:
        # here: matplotlib takes a second to import
        from toolkit.present.figures import save_png
        from toolkit.present.figures.pareto import draw_pareto

        save_png(picture, draw_pareto(panels, rows))
    else:
        picture.unlink(missing_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "results.csv", text.getvalue())
    parts = ["# Results", *notes, markdown_table(*printed_cells(rows))]
    if panels:
        parts.insert(1, "![quality against speed](pareto.png)")
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    write_text(folder / "report.html", page(rows, panels, notes))


def _rank(row: Row) -> tuple[Any, ...]:
    """Order within a group: fast before slow, the unmeasured last."""
    return row["group"], -(row["items_per_s"] or 0.0), row["run"]
