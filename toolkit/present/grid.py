"""What `toolkit grid` found, beside what others published: points, a table, and which are best."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from toolkit.present.tables import text_table

RECOVERIES = (0.99, 0.98, 0.95)  # of the dense model's score
Grid = Mapping[str, Any]


class Point(NamedTuple):
    """A measured cell that a recipe was published for.

    Attributes:
        cell: As the record's `grid.cells` has it.
        recipe: Its name.
        recovery: The published score over the dense model's, as a fraction.
    """

    cell: Mapping[str, Any]
    recipe: str
    recovery: float


def points_of(grid: Grid) -> list[Point]:
    """List the cells with a published figure, once per recipe; none without a dense one."""
    if grid["dense"] is None:
        return []
    dense = grid["dense"]["score"]
    return [
        Point(cell, known["recipe"], known["score"] / dense)
        for cell in grid["cells"]
        for known in cell["published"]
    ]


def merge_grids(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put the grids of one model, machine and call together: precisions may be measured apart.

    Returns:
        The parts of each, in the order of their first record, with `model` and `cpu`; of a cell
        that was measured twice the newer one.
    """
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: str(record["run"]["started"])):
        grid, cpu = record["grid"], record["environment"].get("cpu")
        setting = tuple(grid[name] for name in ("batch_size", "seq_len", "num_threads", "isa"))
        key = (record["model"]["name"], cpu, *setting)
        start = {**grid, "model": record["model"]["name"], "cpu": cpu, "cells": []}
        known = merged.setdefault(key, start)
        cells = [*known["cells"], *grid["cells"]]
        by_name = {(c["layers"], c["zeros"], c["precision"]): c for c in cells}
        known["cells"] = list(by_name.values())
    return list(merged.values())


def title_of_grid(grid: Grid) -> str:
    """Say what was measured, and where."""
    return (
        f"{grid['model']}, random weights: {grid['batch_size']} texts of {grid['seq_len']} tokens, "
        f"{grid['num_threads']} threads, {grid['isa']}, {grid['cpu']}"
    )


def answers(grid: Grid) -> list[str]:
    """Say which cells are the fastest whose published score keeps a share of the dense one's."""
    points = points_of(grid)
    if not points:
        return ["No figure was published for any of these cells: they show speed alone."]
    parts = []
    for limit in RECOVERIES:
        good = [point for point in points if point.recovery >= limit]
        if not good:
            parts.append(f"at least {limit:.0%}: none")
            continue
        best = max(good, key=lambda point: (point.cell["items_per_s"], point.recovery))
        parts.append(
            f"at least {limit:.0%}: {name_of(best.cell)} with {best.cell['items_per_s']:.1f} "
            f"texts/s ({best.recipe}, {best.recovery:.2%})"
        )
    metric = grid["dense"]["metric"]
    untried = sum(not cell["published"] for cell in grid["cells"])
    return [
        f"Fastest by published share of the dense model's {metric} ({grid['dense']['score']:.2f} "
        f"%): {'; '.join(parts)}.",
        f"{untried} of {len(grid['cells'])} cells have no published figure.",
    ]


def name_of(cell: Mapping[str, Any]) -> str:
    """Name a cell: `6 layers 90 % int8`."""
    zeros = f"{100 * cell['zeros']:.3g} %" if cell["zeros"] else "dense"
    return f"{cell['layers']} layers {zeros} {cell['precision']}"


def grid_cells(grid: Grid) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of a table: a row per model, texts per second by precision, and
    the best published recovery in float and in INT8."""
    precisions = list(dict.fromkeys(cell["precision"] for cell in grid["cells"]))
    models = sorted({(cell["layers"], cell["zeros"]) for cell in grid["cells"]},
                    key=lambda model: (-model[0], model[1]))  # fmt: skip
    best: dict[tuple[int, float, bool], Point] = {}
    for point in sorted(points_of(grid), key=lambda point: point.recovery):
        cell = point.cell
        best[cell["layers"], cell["zeros"], cell["precision"] == "int8"] = point
    speeds = {(c["layers"], c["zeros"], c["precision"]): c["items_per_s"] for c in grid["cells"]}
    kinds = [kind for kind in (False, True) if any(key[2] == kind for key in best)]
    header = ["layers, zeros", *(f"{name}, texts/s" for name in precisions)]
    header += ["recovery in int8" if kind else "recovery" for kind in kinds]
    rows = []
    for layers, zeros in models:
        row = [f"{layers}, {f'{100 * zeros:.3g} %' if zeros else 'dense'}"]
        row += [
            f"{speeds[layers, zeros, name]:.1f}" if (layers, zeros, name) in speeds else ""
            for name in precisions
        ]
        for kind in kinds:
            found = best.get((layers, zeros, kind))
            row.append(f"{found.recovery:.1%} {found.recipe}" if found else "")
        rows.append(row)
    return header, rows


def grid_table(grid: Grid) -> str:
    """Write the table for a terminal."""
    return text_table(*grid_cells(grid))
