"""Make a model from its description, untrained, to find out what it would cost to run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from toolkit.compress.depth import drop_layers, encoder_layers, kept_layers
from toolkit.compress.model import load_model, load_tokenizer
from toolkit.compress.sparsity.masks import prune_once
from toolkit.config import ExportRoot, ModelConfig, Weights
from toolkit.errors import UsageError


def make_checkpoint(config: ExportRoot, folder: Path) -> Path:
    """Write a what-if checkpoint: new weights, layers dropped, pruned at once, nothing trained.

    The head is question answering's, unless another task than the default was chosen. A tokenizer
    is written where one is at hand without the network.
    """
    if config.sparsity.is_structured:
        raise UsageError(
            "structured pruning chooses by a trained model's weights: use `toolkit train`; the "
            "speed of given widths shows +model.config.layer_widths=[[heads,neurons],…]"
        )
    torch.manual_seed(config.seed)
    task = config.task
    if task.name == "demo":
        task = replace(task, kind="question_answering")
    tokenizer = _find_tokenizer(config.model)
    # Only the stand-in's vocabulary size and padding id are used, and model.config overrides both.
    stand_in = load_tokenizer(replace(config.model, path=None))
    model = load_model(replace(config.model, weights=Weights.random), task, tokenizer or stand_in)
    model = drop_layers(model, kept_layers(len(encoder_layers(model)), config.depth))
    prune_once(model, config.sparsity).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def _find_tokenizer(model: ModelConfig) -> Any:
    """Load a what-if model's tokenizer if that takes no network."""
    if model.path is None:
        return load_tokenizer(model)
    try:
        return AutoTokenizer.from_pretrained(model.path, local_files_only=True)
    except Exception:  # it is not in the cache; the hub's client says so by errors of many types
        return None
