"""An earlier record is compared with only where it says something about this run."""

from typing import Any

import pytest
from support.configs import compose

from toolkit.errors import UsageError
from toolkit.measure.baseline import check_comparable

MODEL: dict[str, Any] = {"name": "demo", "layers": 4, "sparsity": {"encoder": 0.9}}


@pytest.mark.parametrize(
    ("changes", "cpu", "says"),
    [
        ({}, "B", "with CPU A, this run has B"),
        ({"name": "bert"}, "A", "with model demo, this run has bert"),
        ({"layers": 2}, "A", "with layers 4, this run has 2"),
        (
            {"sparsity": {"encoder": 0.8}},
            "A",
            "encoder sparsity 0.9, this run has 0.8",
        ),
        ({"sparsity": {}}, "A", "encoder sparsity 0.9, this run has None"),
    ],
)
def test_a_foreign_baseline_is_refused(changes: dict[str, Any], cpu: str, says: str) -> None:
    config = compose("bench", "baseline=old.json")
    baseline = {"model": MODEL, "environment": {"cpu": "A"}}
    with pytest.raises(UsageError, match=f"baseline=old.json was .*{says}"):
        check_comparable(config, baseline, cpu, MODEL | changes)


def test_a_baseline_of_the_same_model_and_machine_is_taken() -> None:
    config = compose("bench", "baseline=old.json")
    baseline = {"model": MODEL, "environment": {"cpu": "A"}}
    # trained again, a model has not the very same number of zeros
    check_comparable(config, baseline, "A", MODEL | {"sparsity": {"encoder": 0.9001}})
    unknown = {"name": "model"}  # a graph that only other engines read
    check_comparable(config, {"model": unknown, "environment": {"cpu": "A"}}, "A", unknown)
