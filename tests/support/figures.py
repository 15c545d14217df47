"""What a figure shows, asked of matplotlib."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def lines_of(axes: Axes) -> dict[str, Line2D]:
    """Return the lines that the legend names."""
    return {
        str(line.get_label()): line
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def points_of(line: Line2D) -> list[list[float]]:
    """Return x and y of each corner."""
    points: list[list[float]] = np.asarray(line.get_xydata()).tolist()
    return points


def text_boxes(figure: Figure, axes: Axes) -> dict[str, list[Bbox]]:
    """Return where each text stands in pixels, arrows left out."""
    figure.draw_without_rendering()
    found: dict[str, list[Bbox]] = {}
    for text in axes.texts:
        box = Text.get_window_extent(text)
        found.setdefault(text.get_text(), []).append(box)
    return found


def are_apart(boxes: list[Bbox]) -> bool:
    """Tell whether no box covers another."""
    return not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
