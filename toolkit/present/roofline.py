"""The roofline as facts: the picture and the page draw what stands here."""

from collections.abc import Mapping, Sequence
from typing import Any

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
NARROW = {
    "fp16_gflops": ("half, GFLOP/s", "0.55"),
    "bf16_gflops": ("bfloat16, GFLOP/s", "0.4"),
    "int8_gops": ("8 bits, GOP/s", "0.7"),
}
ROOFS = {"l2": ("L2", ":"), "l3": ("L3", "--"), "memory": ("memory", "-.")}

# Factors, since both axes are logarithmic: between points of one cluster at most, between clusters
# that both have their labels to the right at least, from points to their labels, between labels.
CLUSTER, ROOM, APART, GAP = 1.6, 5.0, 1.3, 1.2


def roofline_chart(roofline: Mapping[str, Any]) -> dict[str, Any]:
    """Say what the page draws of a record's `speed[].roofline`.

    Returns:
        `lines` (`name`, `x`, `y`, `dash`), `points` (`op`, `kernel`, `colour`, `symbol`, `x`, `y`,
        `share` of the peak, `time_ms`, and the label's place: `label_x`, `label_y`, `is_left`), and
        `x_range`, `y_range`.
    """
    peak, bandwidths, marks = (roofline[n] for n in ("fma_gflops", "read_gb_per_s", "points"))
    x_range, y_range = limits(roofline)
    lines = [{"name": f"FMA peak, {peak:.0f} GFLOP/s", "dash": "solid", "y": [peak, peak]}]
    lines += [
        {"name": f"{label}: {roofline[name]:.0f}", "dash": "solid", "y": [roofline[name]] * 2}
        for name, (label, _) in NARROW.items()
        if name in roofline
    ]
    for line in lines:
        line["x"] = list(x_range)
    for name, (label, style) in ROOFS.items():
        if name in bandwidths:
            x, y = roof(peak, bandwidths[name], x_range)
            dash = {":": "dot", "--": "dash", "-.": "dashdot"}[style]
            text = f"{label}, {bandwidths[name]:.0f} GB/s"
            lines.append({"name": text, "dash": dash, "x": x, "y": y})
    points = [
        {
            "op": mark["op"].replace("_", " "),
            "kernel": mark["kernel"],
            "colour": FORMS.get(form_of(mark), OTHER),
            "symbol": "square" if form_of(mark).startswith(INTEGERS) else "circle",
            "x": mark["intensity"],
            "y": mark["gflops"],
            "share": mark["peak_share"],
            "time_ms": mark["time_ms"],
            "label_x": x,
            "label_y": y,
            "is_left": is_left,
        }
        for mark, (x, y, is_left) in zip(marks, label_places(marks), strict=True)
    ]
    return {"lines": lines, "points": points, "x_range": x_range, "y_range": y_range}


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
