"""The chart of quality against speed, as facts: `pareto.png` and the page draw what stands here."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.measure.contenders import engine_of, precision_of
from toolkit.measure.engines import ENGINES
from toolkit.present.results import (
    Row,
    groups,
    is_plotted,
    labelled,
    panel_of,
    title_of,
    zeros_label,
)

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color: told apart with any colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# Curve.fill by precision, of a quantized model by that of its weights; any other, such as auto,
# may be 16 bits and is hollow
FILLS = {"fp32": "full", "bf16": "hollow", "fp16": "hollow", "int8": "half"}
UNKNOWN = ("x", (1, 1))  # marker and dash of an engine that is not in ENGINES
LOG_FROM = 4.0  # a range of speeds wider than this is drawn on a logarithmic axis
FRAME = (500.0, 270.0)  # typographic points: the size of a panel for which labels are placed
LABEL_POINTS = 8.5  # font size
POINT = 3.5  # half the size of a point, in typographic points
RADII = (9, 15, 23, 33, 45)  # distance of a label from its point, in typographic points
NEAR = 15  # a farther label has a line that leads to its point

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The rows of one depth, engine and precision, from dense to sparse, and how they are drawn.

    Attributes:
        depth: The layers.
        style: Engine and precision.
        colour: Of the depth.
        marker: Shape of the points, of the engine.
        fill: Inside of the points, of the precision: `full`, `hollow`, or `half` (the page draws
            this as a dot).
        dash: As in `EngineEntry`.
        is_faint: Whether it is of the set that another is compared with.
        y: What it shows of its rows: `score`, or `published`: what others reached, at our speed.
        rows: Positions of the rows.
    """

    depth: str
    style: str
    colour: str
    marker: str
    fill: str
    dash: tuple[int, ...]
    is_faint: bool
    y: str
    rows: list[int]

    @property
    def name(self) -> str:
        """What a legend of single curves says."""
        return f"{self.depth}, {self.style}"


@dataclass(frozen=True)
class Label:
    """A text whose centre stands `dx`, `dy` typographic points right of and above its point."""

    row: int
    y: str
    text: str
    dx: float
    dy: float
    has_leader: bool


@dataclass(frozen=True)
class Panel:
    """What was measured in one setting. Rows are positions in the list that it was made of.

    Attributes:
        title: The setting.
        metric: Name of the score, or of the published one; None if there is neither, so that
            there is no picture.
        is_log: Whether the axis of speed is logarithmic.
        x_range: Ends of the axis of speed.
        y_range: Ends of the axis of quality.
        curves: Deepest first.
        front: The Pareto front, slow to fast.
        baseline: The row that speed is compared with, if it is in this panel.
        labels: How sparse the models are.
    """

    title: str
    metric: str | None
    is_log: bool
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    curves: list[Curve]
    front: list[int]
    baseline: int | None
    labels: list[Label]


def make_panels(rows: Sequence[Row], before: str | None = None) -> list[Panel]:
    """Say what is drawn of rows whose Pareto front is marked; a depth has one colour throughout.

    Args:
        rows: As `add_ratios` leaves them.
        before: The set with which another is compared, drawn faintly; None if there is one set.
    """
    index = {id(row): i for i, row in enumerate(rows)}
    measured = [row for row in rows if row["items_per_s"] is not None]
    depths = sorted({row["layers"] or 0 for row in measured}, reverse=True)
    colours = {depth: COLOURS[i % len(COLOURS)] for i, depth in enumerate(depths)}
    return [_panel(panel, index, colours, before) for panel in groups(measured, panel_of)]


def _panel(
    rows: Sequence[Row], index: dict[int, int], colours: dict[int, str], before: str | None
) -> Panel:
    ordered = sorted(rows, key=lambda row: (-(row["layers"] or 0), row["encoder_sparsity"] or 0.0))
    lines = groups(ordered, _line)
    curves = [_curve(line, index, colours, before) for line in lines]
    published = groups(
        fastest_published(ordered), lambda row: (row["layers"], row.get("quantization"))
    )
    curves += [_published_curve(line, index, colours) for line in published]
    # what has a place in a picture: (row, name of its height)
    points = [(row, "score") for row in rows if is_plotted(row)]
    points += [(row, "published") for line in published for row in line]
    x, y = [row["items_per_s"] for row in rows], [row[name] for row, name in points]
    is_log = max(x) / min(x) > LOG_FROM
    x_range = (min(x) / 1.3, max(x) * 1.3) if is_log else _widened(x, 0.12)
    y_range = _widened(y or [0.0], 0.15)

    def place(chosen: Sequence[tuple[Row, str]]) -> Array:
        """Return where points lie in FRAME, (N, 2)."""
        scale = math.log if is_log else float
        low, high = map(scale, x_range)
        return np.array(
            [
                (
                    FRAME[0] * (scale(row["items_per_s"]) - low) / (high - low),
                    FRAME[1] * (row[name] - y_range[0]) / (y_range[1] - y_range[0]),
                )
                for row, name in chosen
            ]
        ).reshape(-1, 2)

    named = [(row, "score") for row in labelled([row for row, y in points if y == "score"])]
    # one label serves a score and the published one of its model, which has the same speed
    named += [(row, y) for row, y in points if y == "published" and not is_plotted(row)]
    named = [point for point in named if zeros_label(point[0])]
    texts = [zeros_label(row) for row, _ in named]
    drawn = [[(row, "score") for row in line if is_plotted(row)] for line in lines]
    drawn += [[(row, "published") for row in line] for line in published]
    offsets = place_labels(texts, place(named), place(points), [place(line) for line in drawn])
    front = sorted((row for row in rows if row["pareto"]), key=lambda row: row["items_per_s"])
    metrics = [row["metric"] for row in rows if is_plotted(row)] or ["f1"] * bool(published)
    return Panel(
        title=title_of(rows[0]),
        metric=next(iter(metrics), None),
        is_log=is_log,
        x_range=x_range,
        y_range=y_range,
        curves=curves,
        front=[index[id(row)] for row in front],
        baseline=next((index[id(row)] for row in rows if row["baseline"]), None),
        labels=[
            Label(index[id(row)], name, text, *offset)
            for (row, name), text, offset in zip(named, texts, offsets, strict=True)
        ],
    )


def fastest_published(rows: Sequence[Row]) -> list[Row]:
    """Choose the rows of a panel with a published figure: each model once, at its best speed."""
    cells = groups(
        (row for row in rows if row.get("published") is not None),
        lambda row: (row["layers"], zeros_label(row), row.get("quantization")),
    )
    return [max(cell, key=lambda row: row["items_per_s"]) for cell in cells]


def _line(row: Row) -> tuple[Any, ...]:
    """Name what the rows of one curve share."""
    return row["layers"], row.get("quantization"), row["engine"], row.get("set")


def _curve(
    line: Sequence[Row], index: dict[int, int], colours: dict[int, str], before: str | None
) -> Curve:
    layers, integers, engine, origin = _line(line[0])
    known = ENGINES.get(engine_of(engine))
    marker, dash = (known.marker, known.dash) if known else UNKNOWN
    style = f"{f'{integers}, ' if integers else ''}{engine}"
    return Curve(
        depth=f"{layers or '?'} layers",
        style=f"{style} ({origin})" if origin else style,
        colour=colours[layers or 0],
        marker=marker,
        fill=FILLS.get(integers or precision_of(engine), "hollow"),
        dash=dash,
        is_faint=origin is not None and origin == before,
        y="score",
        rows=[index[id(row)] for row in line],
    )


def _published_curve(line: Sequence[Row], index: dict[int, int], colours: dict[int, str]) -> Curve:
    layers, integers = line[0]["layers"], line[0].get("quantization")
    return Curve(
        depth=f"{layers} layers",
        style=f"{f'{integers}, ' if integers else ''}published F1",
        colour=colours[layers or 0],
        marker="pentagon",
        fill="hollow",
        dash=(2, 2),
        is_faint=False,
        y="published",
        rows=[index[id(row)] for row in line],
    )


def place_labels(
    texts: Sequence[str], centres: Array, points: Array, curves: Sequence[Array]
) -> list[tuple[float, float, bool]]:
    """Choose where each label stands: near its point, where it covers least of what is there.

    Args:
        texts: N labels.
        centres: The points that they belong to, (N, 2), in typographic points within FRAME.
        points: All points, (M, 2).
        curves: Corners of the lines, (…, 2) each.

    Returns:
        From each centre to the middle of its label, and whether that is far.
    """
    along = [np.linspace(a, b, 100) for curve in curves for a, b in itertools.pairwise(curve)]
    lines = np.concatenate([np.empty((0, 2)), *along])
    placed = [np.array([x - POINT, y - POINT, x + POINT, y + POINT]) for x, y in points]
    offsets = [(0.0, 0.0, False)] * len(texts)
    crowd = [np.sum(np.hypot(*(centres - centre).T) < 30) for centre in centres]
    for i in np.argsort([-int(count) for count in crowd]):  # the crowded ones choose first
        half = np.array([len(texts[i]) * LABEL_POINTS * 0.34, LABEL_POINTS * 0.7])
        costs = []
        for radius, angle in itertools.product(RADII, np.arange(0, 2 * np.pi, np.pi / 8)):
            towards = np.array([np.cos(angle), np.sin(angle)])
            offset = towards * (radius + half)  # the nearest edge, not the centre, keeps away
            low, high = centres[i] + offset - half, centres[i] + offset + half
            is_inside = (low > 0).all() and (high < FRAME).all()
            hits = sum(bool((low < o[2:]).all() and (o[:2] < high).all()) for o in placed)
            crosses = bool(((lines > low) & (lines < high)).all(axis=1).any())
            cost = radius / 10 + 1000 * (not is_inside) + 100 * hits + 3 * crosses
            costs.append((cost, radius, offset, np.concatenate([low, high])))
        _, radius, (dx, dy), box = min(costs, key=lambda found: found[0])
        placed.append(box)
        offsets[i] = (round(float(dx), 1), round(float(dy), 1), radius > NEAR)
    return offsets


def _widened(values: Sequence[float], by: float) -> tuple[float, float]:
    """Return the range of values with room on both sides."""
    low, high = min(values), max(values)
    room = by * ((high - low) or abs(high) or 1.0)
    return low - room, high + room
