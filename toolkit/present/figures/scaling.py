"""`scaling.png`: a panel for everything that `toolkit.measure.scaling` varies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from toolkit.present.chart import COLOURS

COLUMNS = 3
PANEL = (3.8, 3.3)  # inches
DPI = 110
MAX_TICKS = 8


def draw_scaling(lines: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw milliseconds per call, one panel per `panel` of the lines.

    The line is the median, the band reaches from the best round to the worst, and a dotted line
    shows time that is proportional to batch, length or depth, through the last point.

    Args:
        lines: As `toolkit.measure.scaling.summarise_sweep` returns them.
        title: The machine.
    """
    panels = list(dict.fromkeys(line["panel"] for line in lines))
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure((PANEL[0] * COLUMNS, PANEL[1] * rows), DPI, layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    for axes, panel in zip(
        figure.subplots(rows, COLUMNS, squeeze=False).flat, panels, strict=False
    ):
        _draw_panel(axes, panel, [line for line in lines if line["panel"] == panel])
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    return figure


def _draw_panel(axes: Axes, panel: str, lines: Sequence[Mapping[str, Any]]) -> None:
    field = lines[0]["field"]
    is_log = field in ("batch", "length")
    axes.set_yscale("log")
    if is_log:
        axes.set_xscale("log")
    for line, colour in zip(lines, COLOURS, strict=False):
        x, ms, low, high = (
            [point[name] for point in line["points"]] for name in ("x", "ms", "low_ms", "high_ms")
        )
        if field in ("batch", "length", "layers"):
            axes.plot(x, [ms[-1] * at / x[-1] for at in x], ":", color="0.6", linewidth=1.0)
        axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(x, ms, marker="o", markersize=4, color=colour, label=line["label"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(_ticks(x)))
    unit = 100 if field == "zeros" else 1
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{unit * value:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title(panel, fontsize=10)
    names = {"batch": "texts per call", "length": "tokens per text", "zeros": "% zeros"}
    axes.set_xlabel(names.get(field, field), fontsize=9)
    axes.set_ylabel("ms per call", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", zorder=0)
    axes.legend(fontsize=8, framealpha=1.0)


def _ticks(x: Sequence[float]) -> list[float]:
    """Return the values themselves; every other one, from the last, where they are many."""
    return list(x) if len(x) <= MAX_TICKS else list(x[::-1][::2])
