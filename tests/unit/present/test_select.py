"""Conditions: what they are, and the fastest row that meets them."""

import re

import pytest
from support.records import record, rows_of, speed, sweep

from toolkit.errors import UsageError
from toolkit.present.select import parse_select, select, shortfall


@pytest.mark.parametrize(
    ("wish", "fastest"),
    [
        ("accuracy>=95", "demo 12 layers 90 %"),
        ("accuracy>95", "demo 12 layers dense"),
        (" accuracy >= 90 , encoder_sparsity<0.6", "demo 6 layers 50 %"),
        ("engine=onnxruntime,layers==12", "demo 12 layers dense"),
        ("latency_p99_ms<=300", "demo 6 layers 90 %"),
        ("engine!=onnxruntime,speedup>=2,speedup<=6", "demo 12 layers 90 %"),
        ("encoder_sparsity=0.5", "demo 6 layers 50 %"),  # which is 0.5000004
        ("pareto=true,engine=Sparse", "demo 6 layers 90 %"),
    ],
)
def test_select_names_the_fastest_that_qualifies(wish: str, fastest: str) -> None:
    rows = rows_of(sweep())
    for row in rows:
        row["encoder_sparsity"] += 4e-7
    chosen = select(parse_select(wish, rows), rows)
    assert chosen is not None
    assert chosen["run"] == fastest


@pytest.mark.parametrize("wish", ["", "f1", "accuracy=>3", "accuracy>=", ">=3", "a b>3", ","])
def test_what_is_no_condition_is_a_usage_error(wish: str) -> None:
    with pytest.raises(UsageError, match="select must be conditions such as"):
        parse_select(wish, rows_of(sweep()))


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (
            "recovery>=98%",
            "recovery is a number, such as 1; got '98%', without the sign of percent",
        ),
        ("layers=six", "layers is a number, such as 12; got 'six'"),
        ("engine>=sparse", "engine has no order; write engine=… or engine!=…"),
        ("f1", "in quotes, or the shell takes < and > for files"),
    ],
)
def test_what_can_never_hold_is_a_usage_error(wish: str, reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        parse_select(wish, rows_of(sweep()))


def test_what_nothing_meets_says_how_far_off_it_is() -> None:
    rows = rows_of(sweep())
    conditions = parse_select("accuracy>=99,latency_p99_ms<=300,load_s<=1", rows)
    assert shortfall(conditions, rows) == (
        "accuracy>=99 holds for 0 (the best has 96); latency_p99_ms<=300 holds for 1; "
        "load_s was never measured"
    )


def test_an_unknown_column_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match=r"'latency_99_ms'.*did you mean 'latency_p99_ms'"):
        parse_select("latency_99_ms<=1", rows_of(sweep()))


def test_a_row_without_the_value_does_not_qualify() -> None:
    rows = rows_of([record(speeds=(speed("sparse", 9.0),))])
    assert select([("score", "<", 100.0)], rows) is None
