"""`roofline.png`: what the machine allows, and where each fused operation of the engine stands."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color: told apart with any colour vision
COLOURS = {"generated": "#0072B2", "table": "#D55E00", "dense": "#009E73"}
OTHER = "#7F7F7F"  # operations without a weight
ROOFS = {"l2": ("L2", ":"), "l3": ("L3", "--"), "memory": ("memory", "-.")}
SIZE = (8.0, 5.6)  # inches: 800 pixels wide
DPI = 100
LABEL_POINTS = 9.0  # font size
GAP = 1.22  # labels closer than this factor in height are moved apart


def draw_entry(record: Mapping[str, Any], entry: Mapping[str, Any]) -> bytes:
    """Draw one entry of a record's `speed` that has a `roofline`; return a PNG."""
    model = record["model"]
    zeros = model.get("sparsity", {}).get("encoder")
    facts = [
        str(model["name"]),
        *([f"{model['layers']} layers"] if "layers" in model else []),
        *([f"{100 * zeros:.0f} % zeros"] if zeros is not None else []),
        f"{entry['batch_size']} × {entry['seq_len']} tokens",
    ]
    machine = f"{record['environment']['cpu']}, {entry['isa']}, {entry['num_threads']} threads"
    return draw(entry["roofline"], ", ".join(facts), machine)


def draw(roofline: Mapping[str, Any], title: str, machine: str) -> bytes:
    """Draw the roofs and the points; return a PNG of 800 pixels width.

    Args:
        roofline: `fma_gflops`, `read_gb_per_s` and `points`, as in the record.
        title: What was measured.
        machine: Where.
    """
    peak, bandwidths, marks = (roofline[n] for n in ("fma_gflops", "read_gb_per_s", "points"))
    figure = Figure(SIZE, DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    x_limits, y_limits = limits(roofline)
    axes.set(xlim=x_limits, ylim=y_limits)
    for name, (label, style) in ROOFS.items():
        if name in bandwidths:
            x, y = roof(peak, bandwidths[name], x_limits)
            text = f"{label}: {bandwidths[name]:.0f} GB/s"
            axes.plot(x, y, color="black", linestyle=style, linewidth=1.2, label=text)
    axes.axhline(peak, color="black", linewidth=1.6, label=f"FMA peak: {peak:.0f} GFLOP/s")
    for form in dict.fromkeys(form_of(mark) for mark in marks):
        chosen = [mark for mark in marks if form_of(mark) == form]
        axes.plot(
            [mark["intensity"] for mark in chosen], [mark["gflops"] for mark in chosen],
            linestyle="none", marker="o", markersize=7, color=COLOURS.get(form, OTHER),
            label=f"{form} kernel" if form in COLOURS else "no weight",
        )  # fmt: skip
    _label(axes, marks)
    axes.set_title(f"{title}\n{machine}", fontsize=10, parse_math=False)
    axes.set_xlabel("operations per byte of weights and activations")
    axes.set_ylabel("useful GFLOP/s, all threads")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="0.92", which="both", zorder=0)
    axes.legend(loc="lower right", fontsize=8.5, framealpha=1.0)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def roof(
    peak: float, bandwidth: float, limits: tuple[float, float]
) -> tuple[list[float], list[float]]:
    """Return intensities and the GFLOP/s that the machine allows there: a corner and two ends."""
    low, high = limits
    corner = peak / bandwidth
    x = [low, *([corner] if low < corner < high else []), high]
    return x, [min(peak, bandwidth * at) for at in x]


def limits(roofline: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ranges of both axes: every point, every roof's corner and the peak with room."""
    marks, peak = roofline["points"], roofline["fma_gflops"]
    corners = [peak / rate for name, rate in roofline["read_gb_per_s"].items() if name in ROOFS]
    x = [mark["intensity"] for mark in marks] + corners
    y = [mark["gflops"] for mark in marks] + [peak]
    return (min(x) / 2, max(x) * 4), (min(y) / 2.5, max(y) * 1.6)


def form_of(mark: Mapping[str, Any]) -> str:
    """Return the form of the kernel, or the instruction set alone where there is no weight."""
    return str(mark["kernel"]).partition("_")[0]


def label_heights(marks: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return where each label goes, in GFLOP/s: at its point, or below labels that stand there.

    Labels stand in one column per group of close intensities, so heights alone keep them apart.
    """
    heights = [0.0] * len(marks)
    order = sorted(range(len(marks)), key=lambda i: -marks[i]["gflops"])
    placed: list[tuple[float, float]] = []
    for i in order:
        height = marks[i]["gflops"]
        for x, other in placed:  # highest first
            near = abs(np.log(x / marks[i]["intensity"])) < np.log(4.0)
            if near and height > other / GAP:
                height = other / GAP
        heights[i] = height
        placed.append((marks[i]["intensity"], height))
    return heights


def _label(axes: Axes, marks: Sequence[Mapping[str, Any]]) -> None:
    for mark, height in zip(marks, label_heights(marks), strict=True):
        axes.annotate(
            f"{mark['op'].replace('_', ' ')} {mark['peak_share']:.0%}",
            (mark["intensity"], mark["gflops"]), (mark["intensity"] * 1.2, height),
            fontsize=LABEL_POINTS, va="center", zorder=5,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0},
        )  # fmt: skip
