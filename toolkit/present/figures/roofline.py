"""`roofline.png`: what the machine allows, and where each fused operation of the engine stands."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from toolkit.present.roofline import (
    FORMS,
    INTEGERS,
    NARROW,
    OTHER,
    ROOFS,
    form_of,
    label_places,
    limits,
    roof,
)

SIZE = (8.0, 5.6)  # inches: 800 pixels wide
DPI = 100
LABEL_POINTS = 9.0  # font size


def draw_roofline(record: Mapping[str, Any], entry: Mapping[str, Any]) -> Figure:
    """Draw the roofs and the points of an entry of a record's `speed` that has a `roofline`."""
    model = record["model"]
    zeros = model.get("sparsity", {}).get("encoder")
    most = "at most " if entry["lengths"] == "task" else ""
    facts = [
        str(model["name"]),
        *([f"{model['layers']} layers"] if "layers" in model else []),
        *([f"{100 * zeros:.0f} % zeros"] if zeros is not None else []),
        f"{entry['batch_size']} × {most}{entry['seq_len']} tokens",
    ]
    machine = f"{record['environment']['cpu']}, {entry['isa']}, {entry['num_threads']} threads"
    roofline = entry["roofline"]
    peak, bandwidths, marks = (roofline[n] for n in ("fma_gflops", "read_gb_per_s", "points"))
    figure = Figure(SIZE, DPI, layout="constrained")
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
    for name, (label, shade) in NARROW.items():
        if name in roofline:
            text = f"{label}: {roofline[name]:.0f}"
            axes.axhline(roofline[name], color=shade, linewidth=1.6, label=text)
    for form in dict.fromkeys(form_of(mark) for mark in marks):
        chosen = [mark for mark in marks if form_of(mark) == form]
        axes.plot(
            [mark["intensity"] for mark in chosen], [mark["gflops"] for mark in chosen],
            linestyle="none", marker="s" if form.startswith(INTEGERS) else "o",
            markersize=7, color=FORMS.get(form, OTHER),
            label=f"{form} kernel" if form in FORMS else "other operations",
        )  # fmt: skip
    _label(axes, marks)
    axes.set_title(f"{', '.join(facts)}\n{machine}", fontsize=10, parse_math=False)
    axes.set_xlabel("operations per byte of weights and activations")
    axes.set_ylabel("useful GFLOP/s, all threads")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="0.92", which="both", zorder=0)
    axes.legend(loc="lower right", fontsize=8.5, framealpha=1.0)
    return figure


def _label(axes: Axes, marks: Sequence[Mapping[str, Any]]) -> None:
    for mark, (x, y, is_left) in zip(marks, label_places(marks), strict=True):
        axes.annotate(
            f"{mark['op'].replace('_', ' ')} {mark['peak_share']:.0%}",
            (mark["intensity"], mark["gflops"]), (x, y),
            fontsize=LABEL_POINTS, va="center", ha="right" if is_left else "left", zorder=5,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0},
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
        )  # fmt: skip
