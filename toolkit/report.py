"""`toolkit report`: from the records of runs to tables, a picture and an answer."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.config import ReportRoot
from toolkit.errors import GateError, InputError
from toolkit.files import write_text
from toolkit.present.chart import Panel, make_panels
from toolkit.present.grid import answers, grid_cells, merge_grids, title_of_grid
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
from toolkit.progress import say, tell, warn
from toolkit.record import read_record


def report(config: ReportRoot) -> list[Row]:
    """Collect records; write report.html, report.md, results.csv, pareto.png, and grid.png where
    `toolkit grid` measured; print a table.

    Returns:
        The rows, as they stand in `results.csv`.

    Raises:
        InputError: There is no readable record below the paths.
        UsageError: `select` is no list of conditions, or names an unknown column.
        GateError: No run meets `select`; the report has been written.
    """
    records = collect(config.paths)
    grids = merge_grids([record for _, record in records if "grid" in record])
    runs = merge_runs([(file, record) for file, record in records if "grid" not in record])
    rows = [row for run in runs for row in make_rows(run)]
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
    notes += [sentence for grid in grids for sentence in (title_of_grid(grid), *answers(grid))]
    folder, panels = Path(config.output_dir), make_panels(rows)
    write(folder, rows, panels, notes, grids)
    tables = [printed_cells(rows)] * bool(rows) + [grid_cells(grid) for grid in grids]
    for table in tables:
        say(text_table(*table))
    say("\n".join(notes))
    tell(f"report: {folder / 'report.html'}")
    for name in ["pareto.png"] * bool(panels) + ["grid.png"] * bool(grids):
        say(f"picture: {folder / name}")
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
            warn(f"skipped {error}")
    if not records:
        found = f"{len(files)} unreadable ones" if files else "none"
        raise InputError(
            f"expected at least one record.json below {', '.join(paths)}, found {found}: "
            "`toolkit train`, `bench` and `grid` write them"
        )
    return records


def write(
    folder: Path,
    rows: Sequence[Row],
    panels: Sequence[Panel],
    notes: Sequence[str],
    grids: Sequence[dict[str, Any]],
) -> None:
    """Write the files; a picture of which there is nothing to draw is not left from before."""
    pictures = {folder / "pareto.png": panels, folder / "grid.png": grids}
    for picture, parts in pictures.items():
        if parts:
            # here: matplotlib takes a second to import
            from toolkit.present.figures import save_png
            from toolkit.present.figures.grid import draw_grids
            from toolkit.present.figures.pareto import draw_pareto

            save_png(picture, draw_pareto(panels, rows) if parts is panels else draw_grids(grids))
        else:
            picture.unlink(missing_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "results.csv", text.getvalue())
    written = ["# Results", *notes]
    if panels:
        written.insert(1, "![quality against speed](pareto.png)")
    if rows:
        written.append(markdown_table(*printed_cells(rows)))
    if grids:
        written.append("![speed of untrained models against published scores](grid.png)")
    written += [markdown_table(*grid_cells(grid)) for grid in grids]
    write_text(folder / "report.md", "\n\n".join(written) + "\n")
    drawn = (folder / "grid.png").read_bytes() if grids else None
    write_text(folder / "report.html", page(rows, panels, notes, drawn, grids))


def _rank(row: Row) -> tuple[Any, ...]:
    """Order within a group: fast before slow, the unmeasured last."""
    return row["group"], -(row["items_per_s"] or 0.0), row["run"]
