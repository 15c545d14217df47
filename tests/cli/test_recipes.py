"""Every recipe opens with the command that runs it, and holds what others published for it."""

import shlex

import pytest
from conftest import REPO
from support.configs import compose

from toolkit.compress.depth import kept_layers
from toolkit.config import TrainRoot

FOLDER = REPO / "conf" / "recipe"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# SQuAD v1.1 dev, exact match and F1; Neural Magic 2021. Of 3 layers only the recovery is published.
PUBLISHED = {
    "bert12_dense": (80.93, 88.44),
    "bert12_prune80": (81.37, 88.62),
    "bert12_prune90": (79.38, 87.23),
    "bert12_prune95": (74.94, 83.93),
    "bert6_prune80": (78.04, 85.92),
    "bert6_prune90": (75.08, 83.60),
    "bert6_prune95": (70.95, 80.48),
    "bert3_prune70": (None, 80.0),
    "bert3_prune80": (None, 78.7),
    "bert3_prune90": (None, 76.1),
    "bert3_prune95": (None, 73.4),
}
LAYERS = {12: list(range(12)), 6: [0, 2, 4, 6, 8, 11], 3: [0, 6, 11]}  # as published


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_command(name: str) -> None:
    command = shlex.split(
        (FOLDER / f"{name}.yaml").read_text().splitlines()[1], comments=False, posix=True
    )
    assert command[:4] == ["#", "toolkit", "train", f"recipe={name}"]
    config = compose("train", *command[3:])
    assert isinstance(config, TrainRoot)
    # what the command asks for is all that the recipe needs
    assert (config.teacher.path == "DIR") == ("teacher.path=DIR" in command)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_cells(name: str) -> None:
    config = compose("train", f"recipe={name}", "teacher.path=x")
    layers, _, kind = name.removeprefix("bert").partition("_")
    assert kept_layers(12, config.depth) == LAYERS[int(layers)]
    percent = 0 if kind == "dense" else int(kind.removeprefix("prune"))
    assert config.sparsity.final_sparsity == percent / 100
    assert tuple(config.published.values()) == PUBLISHED[name]
    assert list(config.published) == ["exact_match", "f1"]
    if kind != "dense":
        assert (config.sparsity.start_epoch, config.sparsity.end_epoch) == (2.0, 20.0)
        assert (config.teacher.hardness, config.teacher.temperature) == (1.0, 2.0)
        assert config.trainer["num_train_epochs"] == 30
        assert config.trainer["learning_rate"] == 5e-5


def test_every_published_recipe_is_here() -> None:
    assert {name for name in RECIPES if name.startswith("bert")} == set(PUBLISHED)
