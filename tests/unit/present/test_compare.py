"""Two sets: what is the same measurement, and what is more than noise."""

from typing import Any

import pytest
from support.records import record, rows_of, speed, sweep

from toolkit.present.compare import Change, change_cells, compare, summary
from toolkit.present.results import Row


def measured(fast: float, spread: float = 0.02, **changes: Any) -> dict[str, Any]:
    mean = 32e3 / fast
    latency = {"p50": mean, "p90": mean, "p99": mean, "mean": mean, "std": spread * mean}
    return speed("sparse", fast, latency_ms=latency, iterations=20, **changes)


def one(fast: float, spread: float = 0.02, **changes: Any) -> list[Row]:
    return rows_of([record(speeds=(measured(fast, spread),), **changes)])


def only(changes: list[Change]) -> Change:
    (change,) = changes
    return change


@pytest.mark.parametrize(
    ("after", "spread", "verdict"),
    [
        (110.0, 0.02, "better"),
        (90.0, 0.02, "worse"),
        (101.0, 0.001, "within noise"),  # machines drift more than such calls say
        (110.0, 0.3, "within noise"),
    ],
)
def test_speed_is_judged_by_the_spread_of_its_calls(
    after: float, spread: float, verdict: str
) -> None:
    change = only(compare(one(100.0, spread), one(after, spread)))
    assert change.speed == verdict
    assert change.ratio is not None
    ratio, low, high = change.ratio
    assert ratio == pytest.approx(after / 100)
    assert low < ratio < high
    assert high / ratio == pytest.approx(ratio / low)


def test_the_interval_of_a_ratio() -> None:
    """1.96 × √(2 × 0.1² / 20) = 0.062."""
    change = only(compare(one(100.0, 0.1), one(100.0, 0.1)))
    assert change.ratio == pytest.approx((1.0, 0.9399, 1.0639), abs=1e-4)


def scored(accuracy: float, examples: int | None) -> list[Row]:
    found = record(accuracy=accuracy, speeds=(measured(9.0),))
    del found["metrics"]["num_examples"]
    found["metrics"] |= {} if examples is None else {"num_examples": examples}
    return rows_of([found])


@pytest.mark.parametrize(
    ("after", "examples", "verdict"),
    [
        (92.0, 100_000, "better"),
        (88.0, 100_000, "worse"),
        (92.0, 100, "within noise"),
        (92.0, None, "noise unknown"),
        (90.0, None, "within noise"),
    ],
)
def test_a_score_is_judged_by_the_number_of_its_examples(
    after: float, examples: int | None, verdict: str
) -> None:
    change = only(compare(scored(90.0, examples), scored(after, examples)))
    assert change.score == verdict
    assert change.gain is not None
    assert change.gain[0] == pytest.approx(after - 90)


def test_another_cpu_or_nothing_measured_is_said() -> None:
    elsewhere = record(accuracy=90.0, speeds=(measured(100.0),))
    elsewhere["environment"] = {"cpu": "another"}
    here = rows_of([record(accuracy=90.0, speeds=(measured(50.0),))])
    change = only(compare(here, rows_of([elsewhere])))
    assert (change.speed, change.ratio, change.score) == ("another CPU", None, "within noise")
    trained = rows_of([record(accuracy=90.0)])
    assert only(compare(trained, trained)).speed == "not measured"
    assert compare(rows_of([record()]), rows_of([record()])) == []


def test_what_differs_in_kind_is_not_compared() -> None:
    before = rows_of(sweep())
    others = [
        record(layers=6, zeros=0.8, speeds=(measured(1.0),)),
        record("other", zeros=0.9, speeds=(measured(1.0),)),
        record(zeros=0.9, speeds=(measured(1.0, batch_size=1), measured(1.0, num_threads=1))),
    ]
    after = rows_of(others)
    assert compare(before, after) == []
    assert "so nothing is compared" in summary(["a", "b"], [], [before, after])


def test_zeros_that_training_left_a_little_different_are_the_same() -> None:
    assert len(compare(one(9.0, zeros=0.89999), one(9.0, zeros=0.90002))) == 1


def test_several_runs_of_one_cell_are_told_apart_by_their_folders() -> None:
    rows = [one(fast, id=str(fast))[0] for fast in (10.0, 20.0, 30.0)]
    for row, folder in zip(rows, ("old/0", "old/1", "old/2"), strict=True):
        row["folder"] = folder
    again = [row | {"folder": row["folder"].replace("old", "new")} for row in rows[1:]]
    changes = compare(rows, again)
    assert [change.before["folder"] for change in changes] == ["old/1", "old/2"]
    assert summary(["old", "new"], changes, [rows, again]) == (
        "new against old, 2 in common: speed 2 within noise; score 2 not measured. Only in old: 1."
    )


def test_the_table_has_settings_only_where_they_differ() -> None:
    header, (line,) = change_cells(compare(one(10.0), one(20.0)))
    assert header == ["run", "texts/s", "times as fast", "speed"]
    assert line[:2] == ["demo 12 layers dense through sparse", "10.0 → 20.0"]
    both = rows_of([record(speeds=(measured(9.0), measured(9.0, batch_size=1)))])
    assert change_cells(compare(both, both))[0][1] == "batch"
