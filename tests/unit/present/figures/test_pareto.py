"""`pareto.png`: which lines are drawn where, and how."""

from itertools import chain

import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Annotation
from support.figures import are_apart, lines_of, points_of, text_boxes
from support.records import published_grid, record, rows_of, speed, sweep

from toolkit.measure.engines import ENGINES
from toolkit.present.chart import COLOURS, make_panels
from toolkit.present.figures.pareto import MARKERS, draw_pareto
from toolkit.present.results import Row


def panel_rows(name: str, count: int) -> list[Row]:
    records = [
        record(name, 3, i / 100, 90.0 - i, (speed("openvino", 10.0 + 30 * i, cpu=name),))
        for i in range(count)
    ]
    for one in records:
        one["environment"]["cpu"] = name
    return rows_of(records)


def test_what_is_drawn_of_a_sweep() -> None:
    rows = rows_of(sweep())
    figure = draw_pareto(make_panels(rows), rows)
    (axes,) = figure.axes
    text_boxes(figure, axes)  # draws, which sets the second axis
    lines = lines_of(axes)
    points = {name: points_of(line) for name, line in lines.items()}
    assert points == {
        "Pareto front": [[11, 96], [60, 95], [110, 93]],
        "12 layers, onnxruntime": [[10, 96], [10, 95]],
        "12 layers, sparse": [[11, 96], [60, 95]],
        "6 layers, sparse": [[50, 92], [110, 93]],
        "baseline": [[10, 96]],
    }
    assert lines["Pareto front"].get_drawstyle() == "steps-pre"
    assert lines["baseline"].get_marker() == "*"
    assert to_hex(lines["12 layers, sparse"].get_color()) == COLOURS[0].lower()
    assert to_hex(lines["6 layers, sparse"].get_color()) == COLOURS[1].lower()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(legend) == sorted(points)
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "texts per second (log)"
    assert axes.get_ylabel() == "accuracy, %"
    assert axes.get_title() == "demo: 32 texts of 128 tokens, 2 threads, a CPU"
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(low < x < high and bottom < y < top for x, y in chain(*points.values()))
    (baseline,) = [line for line in axes.get_lines() if points_of(line) == [[0, 96], [1, 96]]]
    assert baseline.get_linestyle() == "--"
    (top_axis,) = axes.child_axes
    assert top_axis.get_xlim() == pytest.approx((low / 10, high / 10))


def test_published_figures_are_drawn_where_there_is_no_score() -> None:
    rows = rows_of(published_grid())
    figure = draw_pareto(make_panels(rows), rows)
    (axes,) = figure.axes
    lines = {name: points_of(line) for name, line in lines_of(axes).items()}
    assert lines == {
        "12 layers, published F1": [[8.8, 88.44], [36, 88.62], [54, 87.23], [70, 83.93]],
        "6 layers, published F1": [[72, 85.92], [113, 83.6], [150, 80.48]],
        "3 layers, published F1": [[86, 80.0], [145, 78.7], [226, 76.1]],
        "baseline": [[6.4, 88.44]],
    }
    boxes = text_boxes(figure, axes)
    assert sum(map(len, boxes.values())) == 10
    assert are_apart(list(chain(*boxes.values())))


def test_every_engine_looks_different() -> None:
    engines = [*ENGINES, "newcomer"]
    rows = rows_of([record(accuracy=90.0, speeds=tuple(speed(name, 10.0) for name in engines))])
    (axes,) = draw_pareto(make_panels(rows), rows).axes
    lines = lines_of(axes)
    looks = {name: lines[f"12 layers, {name}"] for name in engines}
    assert len({line.get_marker() for line in looks.values()}) == len(engines)
    # get_linestyle() says "--" of all of them
    assert len({str(vars(line)["_dash_pattern"]) for line in looks.values()}) == len(engines)
    assert looks["sparse"].get_marker() == "o"
    assert looks["sparse"].get_linestyle() == "-"
    assert {entry.marker for entry in ENGINES.values()} < set(MARKERS)


def test_precisions_of_one_engine_look_different_in_the_legend_too() -> None:
    speeds = tuple(speed(f"sparse{end}", 9.0) for end in ("", ":bf16", ":int8"))
    rows = rows_of([record(accuracy=90.0, speeds=speeds)])
    figure = draw_pareto(make_panels(rows), rows)
    named = dict(zip(*figure.axes[0].get_legend_handles_labels()[::-1], strict=True))
    legend = figure.legends[0]
    shown = dict(zip([t.get_text() for t in legend.get_texts()], legend.get_lines(), strict=True))
    for lines in (named, shown):
        insides = [
            (to_hex(line.get_markerfacecolor()), line.get_fillstyle())
            for line in (lines[f"12 layers, {one['engine']}"] for one in speeds)
        ]
        colour = COLOURS[0].lower()
        assert insides == [(colour, "full"), ("#ffffff", "full"), (colour, "left")]
        assert {to_hex(line.get_markeredgecolor()) for line in lines.values()} >= {colour}


def test_labels_cover_neither_each_other_nor_points() -> None:
    models = [(layers, z) for layers in (12, 6, 3) for z in (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)]
    rows = rows_of(
        [
            record("crowded", layers, z, 90 - z + layers / 99, (speed("sparse", fast),))
            for layers, z in models
            for fast in [(90 - layers) / (1 - z) ** 0.8]
        ]
    )
    figure = draw_pareto(make_panels(rows), rows)
    (axes,) = figure.axes
    boxes = text_boxes(figure, axes)
    assert {text: len(found) for text, found in boxes.items()} == dict.fromkeys(
        ("dense", "50 %", "70 %", "80 %", "90 %", "95 %"), 3
    )
    labels = list(chain(*boxes.values()))
    assert are_apart(labels)
    frame = axes.get_window_extent()
    points = axes.transData.transform([(row["items_per_s"], row["score"]) for row in rows])
    for box in labels:
        assert frame.x0 < box.x0 < box.x1 < frame.x1
        assert frame.y0 < box.y0 < box.y1 < frame.y1
        assert not any(box.contains(x, y) for x, y in points)
    near = {text.xy: text.get_text() for text in axes.texts if isinstance(text, Annotation)}
    assert near == {
        (row["items_per_s"], row["score"]): "dense"
        if not row["encoder_sparsity"]
        else f"{100 * row['encoder_sparsity']:g} %"
        for row in rows
    }


def test_the_picture_takes_any_number_of_panels_and_odd_names() -> None:
    sizes = []
    for panels in ([("$x_{", 1)], [("a", 3), ("b", 1), ("c", 2)]):
        rows = [row for name, count in panels for row in panel_rows(name, count)]
        figure = draw_pareto(make_panels(rows), rows)
        text_boxes(figure, figure.axes[0])  # draws it
        titles = [axes.get_title().rpartition(", ")[2] for axes in figure.axes]
        assert titles == [name for name, _ in panels]
        sizes.append(figure.get_size_inches())
    assert sizes[1].tolist() == (2 * sizes[0]).tolist()


def test_an_unknown_depth_or_sparsity_is_drawn_without_a_label() -> None:
    one = record(accuracy=90.0, speeds=(speed("sparse", 5.0),))
    one["model"] = {"name": "foreign"}
    rows = rows_of([one])
    (axes,) = draw_pareto(make_panels(rows), rows).axes
    assert "? layers, sparse" in lines_of(axes)
    assert not axes.texts
