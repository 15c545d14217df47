"""A target of speed in several steps: the runs that one run is divided into."""

import re
from dataclasses import asdict
from typing import Any

import pytest
from support.configs import compose

from toolkit.compress.structured.steps import steps_of
from toolkit.compress.trainer import check_training
from toolkit.config import Schedule, SparsityConfig, from_plain
from toolkit.errors import UsageError
from toolkit.record import plain

START = ("model=local", "model.path=me/fine-tuned", "trainer.num_train_epochs=6")
STEPS = (*START, "sparsity.target_speedup=8", "sparsity.target_steps=3")


def differences(one: Any, other: Any, prefix: str = "") -> dict[str, Any]:
    """Return what the second has where the two differ, by dotted name."""
    found: dict[str, Any] = {}
    for key in one.keys() | other.keys():
        mine, yours = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(yours, dict):
            found |= differences(mine, yours, f"{prefix}{key}.")
        elif mine != yours:
            found[prefix + key] = yours
    return found


def test_one_step_is_the_run_itself() -> None:
    config = compose("train", *START, "sparsity.target_speedup=8")
    assert steps_of(config) == [config]


def test_three_steps() -> None:
    """Equal factors and epochs; depth in the first, zeros and gates in the last, one teacher."""
    config = compose(
        "train", *STEPS, "teacher=self", "depth=layers6", "then=[export]", "min_accuracy=80",
        "sparsity.final_sparsity=0.8", "sparsity.schedule=stepwise", "sparsity.steps=[0.5,0.8]",
        "sparsity.start_epoch=0", "sparsity.end_epoch=2", "sparsity.floor='accuracy>=80'",
        "+published={accuracy: 90.0}", "resume=true",
    )  # fmt: skip
    before = plain(asdict(config))
    steps = steps_of(config)
    assert plain(asdict(config)) == before
    of_all = {
        "sparsity.target_steps": 1,
        "sparsity.target_speedup": pytest.approx(2.0),
        "trainer.num_train_epochs": 2.0,
        "teacher.kind": "dense",
        "teacher.path": "me/fine-tuned",
    }
    of_earlier = of_all | {
        "sparsity.final_sparsity": 0.0,
        "sparsity.schedule": "cubic",
        "sparsity.steps": None,
        "sparsity.floor": None,
        "then": [],
        "min_accuracy": None,
        "published.accuracy": None,
    }
    later = {"depth.name": "full", "depth.num_layers": None}
    expected = [
        of_earlier | {"output_dir": "x/steps/1"},
        of_earlier | later | {"output_dir": "x/steps/2", "model.path": "x/steps/1/checkpoint"},
        of_all | later | {"model.path": "x/steps/2/checkpoint"},
    ]
    for step, changes in zip(steps, expected, strict=True):
        assert differences(before, plain(asdict(step))) == changes
        from_plain(SparsityConfig, plain(asdict(step.sparsity)))  # a record of it can be read


def test_zeros_that_are_kept_are_kept_in_every_step() -> None:
    steps = steps_of(compose("train", *STEPS, "sparsity=locked"))
    assert {step.sparsity.schedule for step in steps} == {Schedule.locked}


def test_a_model_with_new_weights_is_a_start_too() -> None:
    steps = steps_of(compose("train", *STEPS[2:], "teacher=dense", "teacher.path=T"))
    assert [step.model.weights.value for step in steps] == ["random", "pretrained", "pretrained"]
    assert {step.teacher.path for step in steps} == {"T"}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["trainer.num_train_epochs=0"],
            "must be above 0, without trainer.max_steps; got 0 epochs:",
        ),
        (["+trainer.max_steps=5"], "got 6 epochs and trainer.max_steps=5"),
        (["sparsity=prune80"], "has 2 epochs of its own; got sparsity.end_epoch=20"),
        (["model=demo", "model.path=null", "teacher=self"], "but model=demo has new weights"),
        (
            ["depth=layers6", "teacher=self", "teacher.hidden_weight=1"],
            "name the teacher's layer for each that stays with teacher.layer_map",
        ),
    ],
)
def test_refused_before_anything_is_loaded(overrides: list[str], sentence: str) -> None:
    replaced = {word.partition("=")[0] for word in overrides}
    kept = [word for word in STEPS if word.partition("=")[0] not in replaced]
    with pytest.raises(UsageError, match=r"sparsity\.target_steps=3") as caught:
        steps_of(compose("train", *kept, *overrides))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sparsity=once"],
        ["teacher=self", "teacher.hidden_weight=1"],
        ["depth=layers6", "teacher=self", "teacher.hidden_weight=1", "teacher.layer_map=[0,1]"],
        ["sparsity=prune80", "sparsity.start_epoch=0", "sparsity.end_epoch=2"],
    ],
)
def test_allowed(overrides: list[str]) -> None:
    assert len(steps_of(compose("train", *STEPS, *overrides))) == 3


@pytest.mark.parametrize("relation", ["maps", "values"])
def test_attention_of_heads_that_go_is_not_compared(relation: str) -> None:
    """Refused before a run is divided: `steps_of` need not know of it."""
    attention = f"teacher.attention={relation}"
    with pytest.raises(UsageError, match=rf"{re.escape(attention)} compares head by head"):
        check_training(compose("train", *STEPS, "teacher=self", attention))
