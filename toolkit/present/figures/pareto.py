"""`pareto.png`: quality against speed, one curve per engine and depth, labelled by sparsity."""

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from toolkit.measure.engines import ENGINES
from toolkit.present.results import Row, groups, labelled, zeros_label

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color: told apart with any colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v",
}  # fmt: skip
LOG_FROM = 4.0  # a range of speeds wider than this is drawn on a logarithmic axis
DPI = 150
LABEL_POINTS = 8.5  # font size
RADII = (9, 15, 23, 33, 45)  # distance of a label from its point, in typographic points


def draw(panels: Sequence[Sequence[Row]], titles: Sequence[str]) -> bytes:
    """Draw the panels and return a PNG.

    Args:
        panels: Rows with `score` and `items_per_s`, `pareto` marked; at least one of each.
        titles: One per panel.
    """
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure((7.6 * columns, 5.4 * lines), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(lines, columns, squeeze=False).ravel()
    layers = sorted({row["layers"] or 0 for panel in panels for row in panel}, reverse=True)
    colours = {number: COLOURS[i % len(COLOURS)] for i, number in enumerate(layers)}
    for axes, rows, title in zip(all_axes, panels, titles, strict=False):
        _draw_panel(axes, rows, title, colours)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    handles: dict[str, Any] = {}
    for axes in all_axes[: len(panels)]:
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False,
        fontsize=9,
    )  # fmt: skip
    figure.canvas.draw()  # settles the layout, which places the labels
    for axes, rows in zip(all_axes, panels, strict=False):
        _label_points(axes, rows)
    figure.set_layout_engine("none")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_panel(axes: Axes, rows: Sequence[Row], title: str, colours: dict[int, str]) -> None:
    speeds = [row["items_per_s"] for row in rows]
    if max(speeds) / min(speeds) > LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(speeds) / 1.3, max(speeds) * 1.3)
    else:
        axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(y=0.15)
    front = sorted((row for row in rows if row["pareto"]), key=lambda row: row["items_per_s"])
    axes.plot(
        *_xy(front), drawstyle="steps-pre", color="0.82", linewidth=7, zorder=1,
        solid_joinstyle="round", label="Pareto front",
    )  # fmt: skip
    for curve in _curves(rows):
        engine = ENGINES.get(curve[0]["engine"])
        marker, dash = (engine.marker, engine.dash) if engine else ("triangle-down", (1, 1))
        axes.plot(
            *_xy(curve), marker=MARKERS[marker], linestyle=(0, dash) if dash else "-",
            color=colours[curve[0]["layers"] or 0], markersize=6, linewidth=1.5, zorder=3,
            label=f"{curve[0]['layers'] or '?'} layers, {curve[0]['engine']}",
        )  # fmt: skip
    baseline = next((row for row in rows if row["baseline"]), None)
    if baseline is not None:
        axes.axhline(baseline["score"], color="0.4", linewidth=0.8, linestyle=(0, (1, 3)), zorder=2)
        axes.plot(
            *_xy([baseline]), marker="*", markersize=17, color="gold", markeredgecolor="black",
            linestyle="none", zorder=4, label="baseline",
        )  # fmt: skip
        unit = baseline["items_per_s"]
        top = axes.secondary_xaxis("top", functions=(lambda x: x / unit, lambda x: x * unit))
        top.set_xlabel("times the baseline's speed", fontsize=9)
        top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        top.xaxis.set_minor_formatter(NullFormatter())
        if axes.get_xscale() == "log":
            top.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            top.xaxis.set_minor_locator(NullLocator())
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel("texts per second" + (" (log)" if axes.get_xscale() == "log" else ""))
    axes.set_ylabel(f"{rows[0]['metric']}, %", parse_math=False)
    axes.grid(color="0.92", zorder=0)


def _label_points(axes: Axes, rows: Sequence[Row]) -> None:
    """Write each point's sparsity beside it, where it covers least of what is there."""
    pixels = DPI / 72  # per typographic point
    segments = _segments(axes, rows)
    points = axes.transData.transform(np.column_stack(_xy(rows)))
    frame = axes.get_window_extent()
    placed = [np.array([x - 5, y - 5, x + 5, y + 5]) for x, y in points]
    rows = labelled(rows)
    centres = axes.transData.transform(np.column_stack(_xy(rows)))  # (N, 2)
    order = np.argsort([-float(np.sum(np.hypot(*(centres - c).T) < 60)) for c in centres])
    for index in order:  # the crowded ones choose first
        text = zeros_label(rows[index])
        if not text:
            continue
        width, height = len(text) * LABEL_POINTS * 0.6 * pixels, LABEL_POINTS * 1.25 * pixels
        costs = []
        for radius in RADII:
            for angle in np.arange(0, 2 * np.pi, np.pi / 8):
                dx, dy = radius * pixels * np.cos(angle), radius * pixels * np.sin(angle)
                # the nearest edge, not the centre, keeps the distance
                x = centres[index][0] + dx + np.cos(angle) * width / 2
                y = centres[index][1] + dy + np.sin(angle) * height / 2
                box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
                inside = frame.x0 < box[0] and box[2] < frame.x1
                inside = inside and frame.y0 < box[1] and box[3] < frame.y1
                cost = radius / 10 + (0 if inside else 1000)
                cost += sum(100 for other in placed if _overlap(box, other))
                cost += 3 * int(np.sum(_inside(segments, box)) > 0)
                costs.append((cost, radius, x, y, box))
        _, radius, x, y, box = min(costs, key=lambda cost: cost[0])
        placed.append(box)
        axes.annotate(
            text, centres[index], (x, y), xycoords="figure pixels", textcoords="figure pixels",
            ha="center", va="center", fontsize=LABEL_POINTS, zorder=5,
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 0}
            if radius > RADII[1] else None,
        )  # fmt: skip


def _curves(rows: Sequence[Row]) -> list[list[Row]]:
    """Gather the rows of each depth and engine, deepest first, each from dense to sparse."""
    ordered = sorted(rows, key=lambda row: (-(row["layers"] or 0), row["encoder_sparsity"] or 0.0))
    return groups(ordered, lambda row: (row["layers"], row["engine"]))


def _segments(axes: Axes, rows: Sequence[Row]) -> NDArray[Any]:
    """Return points along all curves, in pixels (M, 2)."""
    points = [np.empty((0, 2))]
    for curve in _curves(rows):
        corners = axes.transData.transform(np.column_stack(_xy(curve)))
        for a, b in itertools.pairwise(corners):
            steps = max(2, int(np.hypot(*(b - a)) / 3))
            points.append(np.linspace(a, b, steps))
    return np.concatenate(points)


def _inside(points: NDArray[Any], box: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.all((points > box[:2]) & (points < box[2:]), axis=1))


def _overlap(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def _xy(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row["items_per_s"] for row in rows], [row["score"] for row in rows]
