"""`grid.png`: measured speed of cells that others trained, against what they published."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from toolkit.present.chart import COLOURS, FRAME, place_labels
from toolkit.present.grid import RECOVERIES, Point, points_of, title_of_grid

MARKERS = {"fp32": "o", "bf16": "s", "fp16": "D", "auto": "v", "int8": "^"}
ROOM = 0.12  # of the height, below the points: for the marks of cells without a figure


def draw_grids(grids: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each grid, at least one, in a panel of its own.

    The height is the published share of the dense score, the colour the depth, the shape the
    precision; a cell without a published figure is a mark on the axis.

    Args:
        grids: As `toolkit.present.grid.merge_grids` returns them.
    """
    columns = min(2, len(grids))
    figure = Figure(
        (8.4 * columns, 5.6 * math.ceil(len(grids) / columns)), 130, layout="constrained"
    )
    for number, grid in enumerate(grids, 1):
        axes = figure.add_subplot(math.ceil(len(grids) / columns), columns, number)
        _draw(axes, grid)
    return figure


def _draw(axes: Axes, grid: Mapping[str, Any]) -> None:
    cells, points = grid["cells"], points_of(grid)
    depths = sorted({cell["layers"] for cell in cells}, reverse=True)
    colours = {depth: COLOURS[i % len(COLOURS)] for i, depth in enumerate(depths)}
    recoveries = [point.recovery for point in points] or [0.9, 1.0]
    low, high = min(recoveries), max(recoveries)
    height = (high - low) or 0.1
    floor = low - (2 * ROOM) * height
    axes.set(xscale="log", ylim=(floor, high + ROOM * height))
    for limit in RECOVERIES:
        axes.axhline(limit, color="0.75", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    speeds = [cell["items_per_s"] for cell in cells]
    left, right = min(speeds) / 1.25, max(speeds) * 1.25
    axes.set_xlim(left, right)
    for point in points:
        cell = point.cell
        axes.plot(
            cell["items_per_s"], point.recovery, MARKERS[cell["precision"]], markersize=7,
            color=colours[cell["layers"]], zorder=3,
        )  # fmt: skip
    width, top = math.log(right / left), high + ROOM * height

    def place(chosen: Sequence[Point]) -> NDArray[np.float64]:
        """Return where points lie in FRAME, (N, 2)."""
        return np.array(
            [
                (
                    FRAME[0] * math.log(point.cell["items_per_s"] / left) / width,
                    FRAME[1] * (point.recovery - floor) / (top - floor),
                )
                for point in chosen
            ]
        ).reshape(-1, 2)

    # a recipe once, at its fastest precision: the others lie at the same height
    named = list({point.recipe: point for point in sorted(points, key=_speed)}.values())
    texts = [f"{100 * p.cell['zeros']:.3g} %" if p.cell["zeros"] else "dense" for p in named]
    offsets = place_labels(texts, place(named), place(points), [])
    for point, text, (dx, dy, is_far) in zip(named, texts, offsets, strict=True):
        axes.annotate(
            text, (point.cell["items_per_s"], point.recovery), (dx, dy), ha="center", va="center",
            textcoords="offset points", fontsize=8, zorder=4,
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6} if is_far else None,
        )  # fmt: skip
    for cell in cells:
        if not cell["published"]:
            axes.plot(
                cell["items_per_s"], floor + ROOM / 2 * height, MARKERS[cell["precision"]],
                markersize=6, color=colours[cell["layers"]], markerfacecolor="none", zorder=3,
            )  # fmt: skip
    axes.axhline(floor + ROOM * height, color="0.4", linewidth=0.8)
    axes.text(
        0.005, ROOM / (1 + 3 * ROOM) + 0.005, "below: no published figure", fontsize=7.5,
        transform=axes.transAxes, va="bottom", color="0.4",
    )  # fmt: skip
    axes.set_yticks([tick for tick in axes.get_yticks() if floor + ROOM * height < tick < top])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("texts per second, measured here (log)")
    metric = grid["dense"]["metric"] if grid["dense"] else "score"
    axes.set_ylabel(f"published {metric} over the dense model's", parse_math=False)
    axes.set_title(title_of_grid(grid), fontsize=9, parse_math=False)
    axes.grid(color="0.93", which="major", zorder=0)
    shapes = dict.fromkeys(cell["precision"] for cell in cells)
    handles = [
        *(Line2D([], [], color=colours[d], linewidth=5, label=f"{d} layers") for d in depths),
        *(Line2D([], [], color="0.3", marker=MARKERS[name], linestyle="none", label=name)
          for name in shapes),
    ]  # fmt: skip
    axes.legend(handles=handles, fontsize=8, framealpha=1.0, loc="upper right")


def _speed(point: Point) -> float:
    return float(point.cell["items_per_s"])
