"""What is drawn, before anything draws it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import published_grid, record, rows_of, speed, sweep

from toolkit.measure.engines import ENGINES
from toolkit.present.chart import (
    COLOURS,
    FRAME,
    LABEL_POINTS,
    NEAR,
    UNKNOWN,
    make_panels,
    place_labels,
)


def test_curves_go_from_deep_to_shallow_and_from_dense_to_sparse() -> None:
    rows = rows_of(sweep()[::-1])
    (panel,) = make_panels(rows)
    assert [curve.name for curve in panel.curves] == [
        "12 layers, sparse",
        "12 layers, onnxruntime",
        "6 layers, sparse",
    ]
    for curve in panel.curves:
        zeros = [rows[i]["encoder_sparsity"] for i in curve.rows]
        assert zeros == sorted(zeros)
        assert {f"{rows[i]['layers']} layers, {rows[i]['engine']}" for i in curve.rows} == {
            curve.name
        }
    assert [curve.colour for curve in panel.curves] == [COLOURS[0], COLOURS[0], COLOURS[1]]
    speeds = [rows[i]["items_per_s"] for i in panel.front]
    assert speeds == [11.0, 60.0, 110.0]
    assert panel.baseline is not None
    assert rows[panel.baseline]["items_per_s"] == 10.0
    texts = {rows[label.row]["items_per_s"]: label.text for label in panel.labels}
    assert texts == {11.0: "dense", 10.0: "dense", 60.0: "90 %", 110.0: "90 %", 50.0: "50 %"}
    assert panel.is_log
    assert panel.metric == "accuracy"


def test_a_depth_has_one_colour_in_all_panels_and_an_engine_one_style() -> None:
    engines = [*ENGINES, "newcomer"]
    both = tuple(speed(name, 9.0 + i) for i, name in enumerate(engines))
    longer = tuple(entry | {"seq_len": 384} for entry in both)
    rows = rows_of(
        [record(accuracy=9.0, speeds=both), record(layers=3, accuracy=8.0, speeds=both + longer)]
    )
    short, long = make_panels(rows)
    assert {curve.colour for curve in long.curves} == {COLOURS[1]}
    styles = [(curve.marker, curve.dash) for curve in long.curves]
    assert styles == [(ENGINES[name].marker, ENGINES[name].dash) for name in ENGINES] + [UNKNOWN]
    assert styles == [(curve.marker, curve.dash) for curve in short.curves[: len(engines)]]
    assert len(set(styles)) == len(styles)
    assert not short.is_log


def test_precisions_of_one_engine_differ_in_the_inside_of_their_points() -> None:
    engines = ("sparse", "sparse:bf16", "sparse:fp16@a:b", "sparse:int8", "sparse:auto", "new:odd")
    speeds = tuple(speed(engine, 9.0 + i) for i, engine in enumerate(engines))
    (panel,) = make_panels(rows_of([record(accuracy=9.0, speeds=speeds)]))
    fills = [curve.fill for curve in panel.curves]
    assert fills == ["full", "hollow", "hollow", "half", "hollow", "hollow"]


def test_a_quantized_model_has_a_curve_of_its_own() -> None:
    models = [record(accuracy=9.0, speeds=(speed("sparse", 9.0),), id=name) for name in "ab"]
    quantization = {"precision": "int8", "method": "mse", "layers": 6, "kept_float": []}
    models[1]["model"]["quantization"] = quantization
    (panel,) = make_panels(rows_of(models))
    found = {curve.fill: "int8" in curve.name for curve in panel.curves}
    assert found == {"full": False, "half": True}


def test_a_panel_without_scores_has_no_metric() -> None:
    rows = rows_of([record(speeds=(speed("sparse", 3.0),)), record(zeros=0.5, accuracy=3.0)])
    (panel,) = make_panels(rows)
    assert panel.metric is None  # so that there is no picture
    assert [curve.rows for curve in panel.curves] == [[0]]
    assert not panel.front
    assert not panel.labels


def test_published_figures_stand_beside_ours_at_our_speed() -> None:
    speeds = (speed("sparse", 113.0), speed("onnxruntime", 12.0))
    ours = record("bert_base", 6, 0.9, 83.0, speeds, id="ours")
    ours["metrics"] = {"f1": 83.0, "task": "squad", "num_examples": 9}
    rows = rows_of([ours, *published_grid()])
    squad, what_if = make_panels(rows)
    shown = {curve.name: [rows[i]["items_per_s"] for i in curve.rows] for curve in squad.curves}
    assert shown == {
        "6 layers, onnxruntime": [12.0],
        "6 layers, sparse": [113.0],
        "6 layers, published F1": [113.0],  # once, at the better speed
    }
    assert [(label.text, label.y) for label in squad.labels] == [("90 %", "score")] * 2
    published = {
        curve.depth: [rows[i]["published"] for i in curve.rows]
        for curve in what_if.curves
        if curve.y == "published"
    }
    assert published == {
        "12 layers": [88.44, 88.62, 87.23, 83.93],
        "6 layers": [85.92, 83.6, 80.48],
        "3 layers": [80.0, 78.7, 76.1],
    }
    assert what_if.metric == "f1"
    assert {label.y for label in what_if.labels} == {"published"}
    assert len(what_if.labels) == 10


def test_the_earlier_of_two_sets_is_faint() -> None:
    rows = [row | {"set": name} for name in ("old", "new") for row in rows_of(sweep())]
    (panel,) = make_panels(rows, "old")
    assert {(curve.name.rpartition("(")[2], curve.is_faint) for curve in panel.curves} == {
        ("old)", True),
        ("new)", False),
    }


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(
        st.tuples(st.integers(20, 480), st.integers(20, 250)), min_size=1, max_size=8, unique=True
    )
)
def test_labels_stay_within_the_frame_and_near_their_points(places: list[tuple[int, int]]) -> None:
    points = np.array(places, float)
    found = place_labels(["90 %"] * len(places), points, points, [points])
    for (x, y), (dx, dy, is_far) in zip(places, found, strict=True):
        assert 0 < x + dx < FRAME[0]
        assert 0 < y + dy < FRAME[1]
        width, height = 4 * LABEL_POINTS * 0.3, LABEL_POINTS * 0.625
        gap = np.hypot(max(abs(dx) - width, 0), max(abs(dy) - height, 0))
        assert is_far == (gap > NEAR + 4)


def test_a_lonely_label_stands_beside_its_point() -> None:
    centre = np.array([[250.0, 100.0]])
    ((dx, dy, is_far),) = place_labels(["dense"], centre, centre, [centre])
    assert (dx > 9, dy, is_far) == (True, 0.0, False)
