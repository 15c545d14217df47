"""`eval(…)` of recipes: arithmetic, and nothing else."""

import time

import pytest

from toolkit.recipes.arithmetic import evaluate

VARIABLES = {"epochs": 30, "share": 0.1}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("epochs", 30),
        ("epochs * 0.2 + 1", 7.0),
        ("(epochs - 2) // 5", 5),
        ("epochs % 7", 2),
        ("-epochs / 4", -7.5),
        ("+2 ** 10", 1024),
        ("2 ** -1", 0.5),
        ("min(epochs, 3, 8) + max(1, 2)", 5),
        ("round(2.6)", 3),
        ("round(epochs / 7, 2)", 4.29),
        ("int(7.9) + float(1)", 8.0),
        (" 1e-5 ", 1e-5),
    ],
)
def test_arithmetic(expression: str, result: float) -> None:
    found = evaluate(expression, VARIABLES.__getitem__)
    assert found == pytest.approx(result)
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("__import__('os').system('true')", "only numbers"),
        ("(1).__class__", "only numbers"),
        ("(lambda: 1)()", "only numbers"),
        ("max([x for x in (1, 2)])", "only numbers"),
        ("max(1, key=2)", "only numbers"),
        ("'a' * 9", "only numbers"),
        ("True + 1", "only numbers"),
        ("1 if 2 else 3", "only numbers"),
        ("1 << 99", "only numbers"),
        ("1; 2", "no arithmetic"),
        ("", "no arithmetic"),
        ("(" * 150, "no arithmetic"),
        ("1 + " * 60 + "1", "more than 200"),
        ("1 / 0", "division by zero"),
        ("min()", "no result"),
        ("9 ** 9 ** 9", "above 1e"),
        ("9999999999 * 9999999999", "above 1e"),
        ("(-8) ** 0.5", "is none"),
        ("9" * 150, "above 1e"),
    ],
)
def test_everything_else_is_refused_at_once(expression: str, reason: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=reason):
        evaluate(expression, VARIABLES.__getitem__)
    assert time.process_time() - start < 1
