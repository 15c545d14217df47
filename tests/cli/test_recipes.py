"""Every recipe opens with the command that runs it, and holds what others published for it."""

import shlex

import pytest
from conftest import REPO
from support.configs import compose

from toolkit.compress.depth import kept_layers
from toolkit.compress.quantization.callback import qat_steps
from toolkit.compress.trainer import check_training
from toolkit.config import TrainRoot

FOLDER = REPO / "conf" / "recipe"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# SQuAD v1.1 dev, exact match and F1; Neural Magic 2021. Of 3 layers only the recovery is published.
PUBLISHED = {
    "bert12_dense": (80.93, 88.44),
    "bert12_prune70": (None, None),
    "bert6_prune70": (None, None),
    "bert12_prune70_int8": (80.33, 87.54),
    "bert12_prune90_int8": (75.38, 83.92),
    "bert6_prune70_int8": (77.00, 85.25),
    "bert6_prune90_int8": (71.95, 81.06),
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
    layers, kind, *int8 = name.removeprefix("bert").split("_")
    assert kept_layers(12, config.depth) == LAYERS[int(layers)]
    percent = 0 if kind == "dense" else int(kind.removeprefix("prune"))
    assert config.sparsity.final_sparsity == percent / 100
    assert config.sparsity.block_shape == ([1, 4] if int8 else [1, 1])
    assert config.quantization.name == ("int8" if int8 else "none")
    assert tuple(config.published.values()) == PUBLISHED[name]
    assert list(config.published) == ["exact_match", "f1"]
    if kind != "dense":
        assert (config.sparsity.start_epoch, config.sparsity.end_epoch) == (2.0, 20.0)
        assert (config.teacher.hardness, config.teacher.temperature) == (1.0, 2.0)
        assert config.trainer["num_train_epochs"] == (40 if int8 else 30)
        assert config.trainer["learning_rate"] == 5e-5


def test_every_published_recipe_is_here() -> None:
    assert {name for name in RECIPES if name.startswith("bert")} == set(PUBLISHED)
    cells = {f"bert{layers}_prune{zeros}" for layers in LAYERS for zeros in (70, 80, 90, 95)}
    assert cells <= set(PUBLISHED)


@pytest.mark.parametrize(
    ("zeros", "published"), [(80, (None, 89.04)), (90, (None, 88.31)), (97, (78.11, 85.98))]
)
def test_second_order_cells(zeros: int, published: tuple[float | None, float]) -> None:
    """Kurtic et al. 2022, table 1, 30 epochs; the settings are those of their recipe files."""
    config = compose("train", f"recipe=obert12_prune{zeros}", "teacher.path=x")
    s = config.sparsity
    assert (s.method.value, s.ranking.value, s.schedule.value) == ("obert", "global", "cubic")
    assert (s.initial_sparsity, s.final_sparsity) == (0.7, zeros / 100)
    assert (s.start_epoch, s.end_epoch, s.update_frequency) == (2.0, 26.0, 4.0)
    fisher = s.fisher
    assert (fisher.block, fisher.num_gradients, fisher.batch_size) == (50, 1024, 8)
    assert fisher.damping == 1e-7
    assert (config.trainer["learning_rate"], s.rewind) == (8e-5, 0.1)  # down to 8e-6
    assert config.trainer["num_train_epochs"] == 30
    assert (config.teacher.hardness, config.teacher.temperature) == (1.0, 2.0)
    assert tuple(config.published.values()) == published


def test_sparse_transfer() -> None:
    config = compose("train", "recipe=obert12_prune90_transfer", "teacher.path=x")
    assert (config.sparsity.schedule.value, config.sparsity.rewind) == ("locked", 0.01)
    assert config.sparsity.is_on
    assert config.model.path == "neuralmagic/oBERT-12-upstream-pruned-unstructured-90-v2"
    assert (config.teacher.hardness, config.teacher.temperature) == (1.0, 5.5)
    assert config.trainer["num_train_epochs"] == 8
    assert config.trainer["learning_rate"] == 1.5e-4
    assert tuple(config.published.values()) == (81.31, 88.42)


@pytest.mark.parametrize(
    ("name", "published"), [("prunebert97", 79.9), ("prunebert97_distilled", 82.3)]
)
def test_movement_cells(name: str, published: float) -> None:
    """Sanh et al. 2020, table 2; warm-ups of 5,400 steps are about one epoch of 16 each."""
    is_distilled = name.endswith("distilled")
    config = compose("train", f"recipe={name}", *["teacher.path=x"][: int(is_distilled)])
    assert config.model.freeze_embeddings
    s = config.sparsity
    assert (s.method.value, s.ranking.value) == ("soft_movement", "uniform")
    assert (s.start_epoch, s.end_epoch, config.trainer["num_train_epochs"]) == (1.0, 8.0, 10)
    movement = s.movement
    assert (movement.learning_rate, movement.threshold, movement.regularization) == (0.01, 0.1, 400)
    assert config.trainer["learning_rate"] == 3e-5
    assert (config.teacher.name, config.teacher.hardness) == (
        ("dense", 0.9) if is_distilled else ("none", 1.0)
    )
    assert config.published["f1"] == published


def test_int8_cells_round_from_epoch_30_and_freeze_at_35() -> None:
    """Of 40, as published; the rate falls to 0 until 30, and once more from there."""
    config = compose("train", "recipe=bert6_prune90_int8", "teacher.path=x")
    assert config.quantization.is_on
    assert qat_steps(config.quantization, steps_per_epoch=100, max_steps=4000) == (3000, 3500)
    assert config.quantization.learning_rate is None
    assert config.quantization.final_learning_rate == 0.0
    check_training(config)
