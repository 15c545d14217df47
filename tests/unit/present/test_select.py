"""Conditions: what they are, and the fastest row that meets them."""

import pytest
from support.records import record, rows_of, speed, sweep

from toolkit.errors import UsageError
from toolkit.present.select import parse_select, select


@pytest.mark.parametrize(
    ("wish", "fastest"),
    [
        ("accuracy>=95", "demo 12 layers 90 %"),
        ("accuracy>95", "demo 12 layers dense"),
        (" accuracy >= 90 , encoder_sparsity<0.6", "demo 6 layers 50 %"),
        ("engine=onnxruntime,layers==12", "demo 12 layers dense"),
        ("latency_p99_ms<=300", "demo 6 layers 90 %"),
        ("engine!=onnxruntime,speedup>=2,speedup<=6", "demo 12 layers 90 %"),
    ],
)
def test_select_names_the_fastest_that_qualifies(wish: str, fastest: str) -> None:
    rows = rows_of(sweep())
    chosen = select(parse_select(wish, rows), rows)
    assert chosen is not None
    assert chosen["run"] == fastest


@pytest.mark.parametrize("wish", ["", "f1", "accuracy=>3", "accuracy>=", ">=3", "a b>3", ","])
def test_what_is_no_condition_is_a_usage_error(wish: str) -> None:
    with pytest.raises(UsageError, match="select must be conditions such as"):
        parse_select(wish, rows_of(sweep()))


def test_an_unknown_column_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match=r"'latency_99_ms'.*did you mean 'latency_p99_ms'"):
        parse_select("latency_99_ms<=1", rows_of(sweep()))


def test_a_row_without_the_value_does_not_qualify() -> None:
    rows = rows_of([record(speeds=(speed("sparse", 9.0),))])
    assert select([("score", "<", 100.0)], rows) is None
