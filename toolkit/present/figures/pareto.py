"""`pareto.png`: quality against speed, one curve per engine and depth, labelled by sparsity."""

import math
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from toolkit.present.chart import LABEL_POINTS, Panel
from toolkit.present.results import Row

MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v",
    "pentagon": "p", "x": "X",
}  # fmt: skip
SIZE = (7.6, 5.4)  # inches of a panel: across two columns of a paper nothing has to shrink
DPI = 200  # for print
FONT = 10.5  # points, of axes and titles
SMALL = 9.5  # of legend and ticks
FAINT = 0.4  # opacity of the set with which another is compared


def draw_pareto(panels: Sequence[Panel], rows: Sequence[Row]) -> Figure:
    """Draw the panels, at least one.

    Args:
        panels: Of those that `make_panels` returns the ones with a metric.
        rows: What they were made of.
    """
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure((SIZE[0] * columns, SIZE[1] * lines), DPI, layout="constrained")
    handles: dict[str, Artist] = {}
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(lines, columns, number)
        _draw_panel(axes, panel, rows)
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False,
        fontsize=SMALL,
    )  # fmt: skip
    return figure


def _draw_panel(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    def at(chosen: Sequence[int], y: str = "score") -> tuple[list[float], list[float]]:
        known = [rows[i] for i in chosen if rows[i][y] is not None]
        return [row["items_per_s"] for row in known], [row[y] for row in known]

    if panel.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlim=panel.x_range, ylim=panel.y_range)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if panel.front:
        axes.plot(
            *at(panel.front), drawstyle="steps-pre", color="0.82", linewidth=7, zorder=1,
            solid_joinstyle="round", label="Pareto front",
        )  # fmt: skip
    for curve in panel.curves:
        x, y = at(curve.rows, curve.y)
        if not x:
            continue
        axes.plot(
            x, y, marker=MARKERS[curve.marker], color=curve.colour, label=curve.name,
            linestyle=(0, curve.dash) if curve.dash else "-", markersize=6, linewidth=1.5, zorder=3,
            fillstyle="left" if curve.fill == "half" else "full", markerfacecoloralt="white",
            markerfacecolor="white" if curve.fill == "hollow" else curve.colour,
            alpha=FAINT if curve.is_faint else 1.0,
        )  # fmt: skip
    if panel.baseline is not None:
        unit = rows[panel.baseline]["items_per_s"]
        score = _height(rows[panel.baseline])
        if score is not None:
            axes.axhline(score, color="0.4", linewidth=0.8, linestyle=(0, (1, 3)), zorder=2)
            axes.plot(
                unit, score, marker="*", markersize=17, color="gold", markeredgecolor="black",
                linestyle="none", zorder=4, label="baseline",
            )  # fmt: skip
        top = axes.secondary_xaxis("top", functions=(lambda x: x / unit, lambda x: x * unit))
        top.set_xlabel("times the baseline's speed", fontsize=FONT)
        top.tick_params(labelsize=SMALL)
        top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        top.xaxis.set_minor_formatter(NullFormatter())
        if panel.is_log:
            top.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            top.xaxis.set_minor_locator(NullLocator())
    leader = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 0}
    for label in panel.labels:
        point = (rows[label.row]["items_per_s"], rows[label.row][label.y])
        axes.annotate(
            label.text, point, (label.dx, label.dy), textcoords="offset points", ha="center",
            va="center", fontsize=LABEL_POINTS, zorder=5,
            arrowprops=leader if label.has_leader else None,
        ).set_in_layout(False)  # fmt: skip
    axes.set_title(panel.title, fontsize=FONT, parse_math=False)
    axes.set_xlabel("texts per second" + (" (log)" if panel.is_log else ""), fontsize=FONT)
    axes.set_ylabel(f"{panel.metric}, %", fontsize=FONT, parse_math=False)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color="0.92", zorder=0)


def _height(row: Row) -> float | None:
    """Return the score of a row, or what others published for it where it has none."""
    score: float | None = row["published"] if row["score"] is None else row["score"]
    return score
