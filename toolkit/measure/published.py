"""What others published for the recipes in `conf/recipe/`: their `published` figures, by cell."""

from importlib.resources import files
from typing import Any, NamedTuple

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from toolkit.config import ModelConfig, Schedule, TrainRoot


class Published(NamedTuple):
    """A recipe's cell and figure.

    Attributes:
        recipe: Its name.
        layers: Encoder layers.
        zeros: Fraction of zeros in them.
        block_shape: [rows, columns] that are zero together.
        precision: `int8` or `float`.
        metric: Name of the figure.
        score: It, in percent.
    """

    recipe: str
    layers: int
    zeros: float
    block_shape: list[int]
    precision: str
    metric: str
    score: float


def read_published(model: ModelConfig, num_layers: int) -> list[Published]:
    """List the recipes of a model's architecture that have a published figure of their own.

    Args:
        model: `config` is compared: a recipe may start from other weights of the same sizes.
        num_layers: Encoder layers of the whole model.
    """
    ConfigStore.instance().store(name="train_schema", node=TrainRoot)
    if not GlobalHydra.instance().is_initialized():
        with initialize_config_module("toolkit.conf", version_base="1.3"):
            return read_published(model, num_layers)
    found = []
    for file in sorted((files("toolkit.conf") / "recipe").iterdir(), key=lambda file: file.name):
        name = file.name.removesuffix(".yaml")
        values: Any = OmegaConf.create(file.read_text(encoding="utf-8"))
        own = values.get("published") or {}
        scores = {key: value for key, value in own.items() if value is not None}
        if name == file.name or not scores:
            continue
        config: Any = compose("train", [f"recipe={name}", "output_dir=x"])
        is_locked = config.sparsity.schedule is Schedule.locked  # its zeros stand in its weights
        if is_locked or OmegaConf.to_container(config.model.config) != model.config:
            continue
        metric = "f1" if "f1" in scores else next(iter(scores))
        found.append(
            Published(
                recipe=name,
                layers=config.depth.num_layers or num_layers,
                zeros=config.sparsity.final_sparsity,
                block_shape=list(config.sparsity.block_shape),
                precision="float" if config.quantization.bits is None else "int8",
                metric=metric,
                score=scores[metric],
            )
        )
    return found
