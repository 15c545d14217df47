"""`roofline.png`: what the machine allows, and where each fused operation of the engine stands."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from toolkit.present.chart import COLOURS

*SIX, OTHER = COLOURS  # the last: operations that are not one weight of a layer
FORMS = dict(
    zip(
        ("generated", "table", "dense", "bf16_dense", "bf16_block", "bf16_compressed", "f16_table"),
        (*SIX, "#F0E442"),
        strict=True,
    )
)
FORMS["f16_generated"] = "#882255"
FORMS |= {"s8_generated": SIX[0], "s8_table": SIX[1], "s8_dense": SIX[2], "s8_block": SIX[4]}
INTEGERS = "s8_"  # squares, in the colours of the float forms
NARROW = {"bf16_gflops": ("bfloat16, GFLOP/s", "0.4"), "int8_gops": ("8 bits, GOP/s", "0.7")}
ROOFS = {"l2": ("L2", ":"), "l3": ("L3", "--"), "memory": ("memory", "-.")}
SIZE = (8.0, 5.6)  # inches: 800 pixels wide
DPI = 100
LABEL_POINTS = 9.0  # font size

# Factors, since both axes are logarithmic: between points of one cluster at most, between clusters
# that both have their labels to the right at least, from points to their labels, between labels.
CLUSTER, ROOM, APART, GAP = 1.6, 5.0, 1.3, 1.2


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
    y = [mark["gflops"] for mark in marks] + [
        roofline.get(name, peak) for name in ("fma_gflops", *NARROW)
    ]
    return (min(x) / 2, max(x) * 4), (min(y) / 2.5, max(y) * 1.6)


def form_of(mark: Mapping[str, Any]) -> str:
    """Return the form of the kernel, or the instruction set alone where there is no weight."""
    kernel = str(mark["kernel"])
    return next((form for form in FORMS if kernel.startswith(f"{form}_")), kernel.partition("_")[0])


def label_places(marks: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, bool]]:
    """Choose where each label stands: in a column beside its cluster of points.

    A cluster is a run of intensities less than CLUSTER apart. Its labels stand to the right, or to
    the left where the next cluster is nearer than ROOM; each at the height of its point, or
    below the labels that would cover it.

    Returns:
        Per point intensity, GFLOP/s, and whether the text ends there instead of starting.
    """
    order = sorted(range(len(marks)), key=lambda i: marks[i]["intensity"])
    clusters: list[list[int]] = []
    for i in order:
        if clusters and marks[i]["intensity"] < CLUSTER * marks[clusters[-1][-1]]["intensity"]:
            clusters[-1].append(i)
        else:
            clusters.append([i])
    places = [(0.0, 0.0, False)] * len(marks)
    for number, cluster in enumerate(clusters):
        first, last = (marks[cluster[end]]["intensity"] for end in (0, -1))
        following = clusters[number + 1][0] if number + 1 < len(clusters) else None
        is_left = following is not None and marks[following]["intensity"] < ROOM * last
        x, lowest = (first / APART if is_left else last * APART), float("inf")
        for i in sorted(cluster, key=lambda i: -marks[i]["gflops"]):
            lowest = min(marks[i]["gflops"], lowest / GAP)
            places[i] = (x, lowest, is_left)
    return places


def _label(axes: Axes, marks: Sequence[Mapping[str, Any]]) -> None:
    for mark, (x, y, is_left) in zip(marks, label_places(marks), strict=True):
        axes.annotate(
            f"{mark['op'].replace('_', ' ')} {mark['peak_share']:.0%}",
            (mark["intensity"], mark["gflops"]), (x, y),
            fontsize=LABEL_POINTS, va="center", ha="right" if is_left else "left", zorder=5,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0},
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
        )  # fmt: skip
