"""`scaling.png`: a panel for everything that is varied."""

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from support.figures import lines_of, points_of, text_boxes

from toolkit.present.chart import COLOURS
from toolkit.present.figures.scaling import draw_scaling


def line(panel: str, label: str, field: str, times: dict[float, float]) -> dict[str, Any]:
    points = [
        {"x": x, "ms": ms, "low_ms": 0.9 * ms, "high_ms": 1.2 * ms} for x, ms in times.items()
    ]
    return {"panel": panel, "label": label, "field": field, "points": points}


LINES = [
    line("batch", "8 tokens", "batch", {1: 1.0, 4: 3.0}),
    line("batch", "64 tokens", "batch", {1: 2.0, 4: 6.0}),
    line("zeros", "64 tokens", "zeros", {0.0: 9.0, 0.9: 2.0}),
    line("length", "x", "length", {float(2**i): 2.0**i for i in range(10)}),
    line("layers", "x", "layers", {1: 1.0, 2: 2.0}),
]


def test_each_panel_holds_its_lines_bands_and_proportions() -> None:
    figure = draw_scaling(LINES, "a $machine$")
    assert figure.get_suptitle() == "a $machine$"
    assert [axes.get_title() for axes in figure.axes] == ["batch", "zeros", "length", "layers"]
    batch, zeros, length, _ = figure.axes
    lines = lines_of(batch)
    assert {name: points_of(one) for name, one in lines.items()} == {
        "8 tokens": [[1, 1], [4, 3]],
        "64 tokens": [[1, 2], [4, 6]],
    }
    assert [to_hex(one.get_color()) for one in lines.values()] == [
        colour.lower() for colour in COLOURS[:2]
    ]
    dotted = [one for one in batch.get_lines() if one.get_linestyle() == ":"]
    assert [points_of(one) for one in dotted] == [[[1, 0.75], [4, 3]], [[1, 1.5], [4, 6]]]
    assert [one.get_linestyle() for one in zeros.get_lines()] == ["-"]  # proportional to nothing
    (band,) = zeros.collections
    corners = band.get_paths()[0].vertices
    assert {tuple(corner) for corner in np.round(np.asarray(corners), 6).tolist()} == {
        (0.0, 8.1), (0.0, 10.8), (0.9, 1.8), (0.9, 2.4),
    }  # fmt: skip
    assert (batch.get_xscale(), zeros.get_xscale()) == ("log", "linear")
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "texts per call",
        "% zeros",
        "tokens per text",
        "layers",
    ]
    text_boxes(figure, batch)  # draws, which makes the ticks' texts
    assert [text.get_text() for text in zeros.get_xticklabels()] == ["0", "90"]
    assert sorted(length.get_xticks()) == [2, 8, 32, 128, 512]  # every other one


@pytest.mark.parametrize(("panels", "rows"), [(1, 1), (3, 1), (4, 2)])
def test_three_panels_stand_side_by_side(panels: int, rows: int) -> None:
    lines = [line(str(i), "x", "layers", {1: 1.0, 2: 2.0}) for i in range(panels)]
    figure = draw_scaling(lines, "a machine")
    width, height = figure.get_size_inches() * figure.dpi
    assert (round(width), round(height)) == (1254, 363 * rows)
    assert len(figure.axes) == panels
