"""Configurations from the real YAML, as the command composes them, without its process."""

from copy import deepcopy
from functools import cache
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import toolkit.config
from toolkit.cli import COMMANDS
from toolkit.config import TaskConfig
from toolkit.overrides import convert, rewrite

# A model of 2 layers with 32 features, 64 examples, 8 steps of 8 in one epoch: a second or two.
TINY_MODEL = (
    "model.config.hidden_size=32",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2",
    "model.config.intermediate_size=64",
)
TINY = (
    *TINY_MODEL,
    "task.max_train_samples=64",
    "task.max_eval_samples=16",
    "trainer.num_train_epochs=1",
    "trainer.per_device_train_batch_size=8",
    "trainer.learning_rate=1e-3",
    "trainer.warmup_steps=0",
    "trainer.use_cpu=true",
    "trainer.disable_tqdm=true",
)
ROOTS = {verb: getattr(toolkit.config, f"{verb.capitalize()}Root") for verb in COMMANDS}


def compose(verb: str, *overrides: str) -> Any:
    """Compose and convert what the command line would, into `output_dir` x."""
    return convert(verb, ROOTS[verb], _composed(verb, *overrides))


def task(name: str, *overrides: str) -> TaskConfig:
    """Compose one task's options; `overrides` without their `task.`."""
    values = deepcopy(_task(name))  # composing takes a quarter of a second
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(values, override.key_or_group, override.value(), force_add=False)
    found = convert("train", TaskConfig, values)
    assert isinstance(found, TaskConfig)
    return found


@cache
def _task(name: str) -> DictConfig:
    found = _composed("train", f"task={name}").task
    assert isinstance(found, DictConfig)
    return found


def _composed(verb: str, *overrides: str) -> DictConfig:
    for name, root in ROOTS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=root)
    GlobalHydra.instance().clear()
    args = [arg for arg in rewrite(verb, overrides) if not arg.startswith("hydra.")]
    with hydra.initialize_config_module("toolkit.conf", version_base="1.3"):
        return hydra.compose(verb, [*args, "output_dir=x"])
