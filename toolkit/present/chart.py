"""The chart of quality against speed, as facts: `pareto.png` and the page draw what stands here."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

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
        name: What the legend says.
        colour: Of the depth.
        marker: Shape of the points, of the engine.
        fill: Inside of the points, of the precision: `full`, `hollow`, or `half` (the page draws
            this as a dot).
        dash: As in `EngineEntry`.
        rows: Positions of the rows.
    """

    name: str
    colour: str
    marker: str
    fill: str
    dash: tuple[int, ...]
    rows: list[int]


@dataclass(frozen=True)
class Label:
    """A text whose centre stands `dx`, `dy` typographic points right of and above its point."""

    row: int
    text: str
    dx: float
    dy: float
    has_leader: bool


@dataclass(frozen=True)
class Panel:
    """What was measured in one setting. Rows are positions in the list that it was made of.

    Attributes:
        title: The setting.
        metric: Name of the score.
        is_log: Whether the axis of speed is logarithmic.
        x_range: Ends of the axis of speed.
        y_range: Ends of the axis of quality.
        curves: Deepest first.
        front: The Pareto front, slow to fast.
        baseline: The row that speed is compared with, if it is in this panel.
        labels: How sparse the models are.
    """

    title: str
    metric: str
    is_log: bool
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    curves: list[Curve]
    front: list[int]
    baseline: int | None
    labels: list[Label]


def make_panels(rows: Sequence[Row]) -> list[Panel]:
    """Say what is drawn of rows whose Pareto front is marked; a depth has one colour throughout."""
    index = {id(row): i for i, row in enumerate(rows)}
    plotted = [row for row in rows if is_plotted(row)]
    depths = sorted({row["layers"] or 0 for row in plotted}, reverse=True)
    colours = {depth: COLOURS[i % len(COLOURS)] for i, depth in enumerate(depths)}
    return [_panel(panel, index, colours) for panel in groups(plotted, panel_of)]


def _panel(rows: Sequence[Row], index: dict[int, int], colours: dict[int, str]) -> Panel:
    ordered = sorted(rows, key=lambda row: (-(row["layers"] or 0), row["encoder_sparsity"] or 0.0))
    lines = groups(ordered, lambda row: (row["layers"], row.get("quantization"), row["engine"]))
    curves = []
    for line in lines:
        layers, engine = line[0]["layers"], line[0]["engine"]
        known = ENGINES.get(engine_of(engine))
        marker, dash = (known.marker, known.dash) if known else UNKNOWN
        integers = line[0].get("quantization")
        name = f"{layers or '?'} layers, {f'{integers}, ' if integers else ''}{engine}"
        fill = FILLS.get(integers or precision_of(engine), "hollow")
        places = [index[id(row)] for row in line]
        curves.append(Curve(name, colours[layers or 0], marker, fill, dash, places))
    x, y = ([row[name] for row in rows] for name in ("items_per_s", "score"))
    is_log = max(x) / min(x) > LOG_FROM
    x_range = (min(x) / 1.3, max(x) * 1.3) if is_log else _widened(x, 0.12)
    y_range = _widened(y, 0.15)

    def place(chosen: Sequence[Row]) -> Array:
        """Return where rows lie in FRAME, (N, 2)."""
        scale = math.log if is_log else float
        low, high = map(scale, x_range)
        return np.array(
            [
                (
                    FRAME[0] * (scale(row["items_per_s"]) - low) / (high - low),
                    FRAME[1] * (row["score"] - y_range[0]) / (y_range[1] - y_range[0]),
                )
                for row in chosen
            ]
        )

    named = [row for row in labelled(rows) if zeros_label(row)]
    texts = [zeros_label(row) for row in named]
    offsets = place_labels(texts, place(named), place(rows), [place(line) for line in lines])
    front = sorted((row for row in rows if row["pareto"]), key=lambda row: row["items_per_s"])
    return Panel(
        title=title_of(rows[0]),
        metric=rows[0]["metric"],
        is_log=is_log,
        x_range=x_range,
        y_range=y_range,
        curves=curves,
        front=[index[id(row)] for row in front],
        baseline=next((index[id(row)] for row in rows if row["baseline"]), None),
        labels=[
            Label(index[id(row)], text, *offset)
            for row, text, offset in zip(named, texts, offsets, strict=True)
        ],
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
        half = np.array([len(texts[i]) * LABEL_POINTS * 0.3, LABEL_POINTS * 0.625])
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
