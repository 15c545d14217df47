"""`toolkit report`: from the records of runs to tables, a picture and an answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.config import ReportRoot
from toolkit.errors import GateError
from toolkit.files import write_text
from toolkit.present.answer import answer, selected
from toolkit.present.chart import Panel, make_panels
from toolkit.present.collect import collect
from toolkit.present.compare import arrange, change_cells
from toolkit.present.grid import answers as grid_answers
from toolkit.present.grid import grid_cells, merge_grids, title_of_grid
from toolkit.present.page import page
from toolkit.present.results import (
    Row,
    add_ratios,
    groups,
    is_plotted,
    left_out,
    mark_pareto_front,
    panel_of,
    title_of,
)
from toolkit.present.select import parse_select, select, shortfall
from toolkit.present.tables import csv_table, markdown, printed_cells, text_table
from toolkit.progress import say, tell


def report(config: ReportRoot) -> list[Row]:
    """Collect records; write report.html, report.md, results.csv, pareto.png, and grid.png where
    `toolkit grid` measured; print a table.

    Two paths that hold measurements of the same models are also compared, the second with the
    first, and the rows of each stay apart; otherwise all records of one model are one run.

    Returns:
        The rows, as they stand in `results.csv`.

    Raises:
        InputError: There is no readable record below the paths.
        UsageError: `select` is no list of conditions, or names an unknown column.
        GateError: No run meets `select`; the report has been written.
    """
    collected = collect(config.paths)
    found = [record for records in collected.values() for _, record in records]
    grids = merge_grids([record for record in found if "grid" in record])
    rows, details, changes, notes = arrange(collected)
    ratios = [
        note for group in groups(rows, lambda row: row["group"]) for note in add_ratios(group)
    ]
    plotted = [row for row in rows if is_plotted(row)]
    for panel in groups(plotted, panel_of):
        mark_pareto_front(panel)
    shown = {row["group"] for row in plotted}
    rows.sort(key=lambda row: (row["group"] not in shown, *_rank(row)))
    measured = groups((row for row in rows if row["engine"]), panel_of)
    notes += [*(f"{title_of(same[0])}." for same in measured), *ratios, *left_out(rows)]
    notes += [sentence for grid in grids for sentence in (title_of_grid(grid), *grid_answers(grid))]
    answers = answer(rows, config.within)
    conditions = parse_select(config.select, rows) if config.select else []
    chosen = select(conditions, rows) if conditions else None
    if chosen is not None:
        answers.insert(0, selected(chosen, str(config.select)))
    folder = Path(config.output_dir)
    panels = make_panels(rows, config.paths[0] if changes else None)
    pictured = [panel for panel in panels if panel.metric is not None]
    picture = draw(folder, pictured, rows, grids)
    write_text(folder / "results.csv", csv_table(rows))
    grid_tables = [grid_cells(grid) for grid in grids]
    text = markdown(rows, answers, changes, notes, bool(pictured), grid_tables)
    write_text(folder / "report.md", text)
    told = [details[id(row)] for row in rows]
    text = page(rows, told, panels, answers, changes, notes, picture, grids)
    write_text(folder / "report.html", text)
    for sentence in answers:
        say(str(sentence))
    tables = [printed_cells(rows)] * bool(rows) + [change_cells(changes)] * bool(changes)
    for table in [*tables, *grid_tables]:
        say(text_table(*table))
    say("\n".join(notes))
    tell(f"report: {folder / 'report.html'}")
    for name in ["pareto.png"] * bool(pictured) + ["grid.png"] * bool(grids):
        say(f"picture: {folder / name}")
    if conditions and chosen is None:
        raise GateError(
            f"none of {len(rows)} measurements meets select={config.select}: "
            f"{shortfall(conditions, rows)}"
        )
    return rows


def draw(
    folder: Path, panels: Sequence[Panel], rows: Sequence[Row], grids: Sequence[dict[str, Any]]
) -> bytes | None:
    """Draw the pictures; one of which there is nothing to draw is not left from before.

    Returns:
        The picture of the grids, if there are any.
    """
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
    return (folder / "grid.png").read_bytes() if grids else None


def _rank(row: Row) -> tuple[Any, ...]:
    """Order within a group: fast before slow, the unmeasured last."""
    return row["group"], -(row["items_per_s"] or 0.0), row["run"]
