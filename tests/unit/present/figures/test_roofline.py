"""`roofline.png`: roofs, points and labels."""

from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from support.figures import are_apart, lines_of, points_of, text_boxes

from cython_kernels import _kernels
from toolkit.present.chart import COLOURS
from toolkit.present.figures.roofline import draw_roofline
from toolkit.present.roofline import (
    FORMS,
    GAP,
    OTHER,
    form_of,
    label_places,
    limits,
    roof,
)


def mark(op: str, kernel: str, intensity: float, gflops: float) -> dict[str, Any]:
    return {
        "op": op,
        "kernel": kernel,
        "intensity": intensity,
        "gflops": gflops,
        "peak_share": gflops / 200,
    }


ROOFLINE: dict[str, Any] = {
    "fma_gflops": 200.0,
    "read_gb_per_s": {"l1": 400.0, "l2": 200.0, "l3": 100.0, "memory": 20.0},
    "points": [
        mark("qkv", "generated_avx512", 27.0, 190.0),
        mark("output", "table_avx512", 24.0, 185.0),
        mark("attention", "avx512", 32.0, 180.0),
        mark("attention_output", "generated_avx512", 12.0, 150.0),
        mark("output_norm", "avx512", 1.1, 90.0),
        mark("attention_norm", "avx512", 1.1, 89.0),
    ],
}


def test_roofs_rise_to_the_peak() -> None:
    assert roof(200.0, 20.0, (1.0, 100.0)) == ([1.0, 10.0, 100.0], [20.0, 200.0, 200.0])
    assert roof(200.0, 400.0, (1.0, 100.0)) == ([1.0, 100.0], [200.0, 200.0])


def test_the_axes_hold_every_point_and_corner() -> None:
    x, y = limits(ROOFLINE)
    corners = [1.0, 2.0, 10.0]
    for intensity in [point["intensity"] for point in ROOFLINE["points"]] + corners:
        assert x[0] < intensity < x[1]
    for gflops in [*(point["gflops"] for point in ROOFLINE["points"]), 200.0]:
        assert y[0] < gflops < y[1]


def test_labels_do_not_cover_each_other() -> None:
    marks = ROOFLINE["points"]
    places = label_places(marks)
    for a in range(len(marks)):
        assert places[a][1] <= marks[a]["gflops"] * 1.0001
        for b in range(a):
            if places[a][0] == places[b][0]:
                heights = sorted((places[a][1], places[b][1]))
                assert heights[1] / heights[0] >= GAP * 0.9999
    by_op = {point["op"]: place for point, place in zip(marks, places, strict=True)}
    assert by_op["qkv"][0] == by_op["output"][0] > 32.0  # one column, right of its points
    assert by_op["attention_output"][2]  # no room to the right
    assert by_op["attention_output"][0] < 12.0
    assert not by_op["output_norm"][2]


def draw(roofline: dict[str, Any]) -> tuple[Figure, Axes]:
    record = {
        "model": {"name": "a $model$", "layers": 2, "sparsity": {"encoder": 0.9}},
        "environment": {"cpu": "CPU <&>"},
    }
    entry = {"lengths": "task", "batch_size": 8, "seq_len": 64, "isa": "avx2", "num_threads": 2}
    figure = draw_roofline(record, entry | {"roofline": roofline})
    return figure, figure.axes[0]


def test_roofs_and_points_stand_where_they_belong() -> None:
    _, axes = draw(ROOFLINE)
    lines = lines_of(axes)
    assert list(lines) == [
        "L2: 200 GB/s",
        "L3: 100 GB/s",
        "memory: 20 GB/s",
        "FMA peak: 200 GFLOP/s",
        "generated kernel",
        "table kernel",
        "other operations",
    ]
    assert points_of(lines["FMA peak: 200 GFLOP/s"]) == [[0, 200], [1, 200]]  # the whole width
    for name, rate in (("L2", 200.0), ("L3", 100.0), ("memory", 20.0)):
        xy = points_of(lines[f"{name}: {rate:.0f} GB/s"])
        assert xy[1] == [200 / rate, 200.0]  # the corner
        assert xy[0][1] == pytest.approx(rate * xy[0][0])
    assert len({line.get_linestyle() for name, line in lines.items() if "GB/s" in name}) == 3
    drawn = {name: points_of(line) for name, line in lines.items()}
    assert drawn["generated kernel"] == [[27.0, 190.0], [12.0, 150.0]]
    assert drawn["table kernel"] == [[24.0, 185.0]]
    assert drawn["other operations"] == [[32.0, 180.0], [1.1, 90.0], [1.1, 89.0]]
    assert [to_hex(lines[name].get_color()) for name in list(lines)[4:]] == [
        colour.lower() for colour in (COLOURS[0], COLOURS[1], OTHER)
    ]
    assert axes.get_title() == (
        "a $model$, 2 layers, 90 % zeros, 8 × at most 64 tokens\nCPU <&>, avx2, 2 threads"
    )


def test_texts_name_every_point_and_lie_apart() -> None:
    figure, axes = draw(ROOFLINE)
    boxes = text_boxes(figure, axes)
    assert list(boxes) == [
        f"{point['op'].replace('_', ' ')} {point['peak_share']:.0%}" for point in ROOFLINE["points"]
    ]
    assert are_apart([box for found in boxes.values() for box in found])
    frame = axes.get_window_extent()
    assert all(frame.x0 < box.x0 < box.x1 < frame.x1 for (box,) in boxes.values())


def test_the_figure_is_800_pixels_wide_whatever_it_shows() -> None:
    few = {"fma_gflops": 5.0, "read_gb_per_s": {"memory": 3.0}, "points": ROOFLINE["points"][:1]}
    for shown in (ROOFLINE, few):
        figure, axes = draw(shown)
        assert (figure.get_size_inches() * figure.dpi).tolist() == pytest.approx([800, 560])
        assert len(axes.texts) == len(shown["points"])


def test_the_form_gives_the_colour() -> None:
    forms = [form_of(point) for point in ROOFLINE["points"]]
    assert forms == ["generated", "table", "avx512", "generated", "avx512", "avx512"]
    assert set(FORMS) == set(_kernels.FORMS)
