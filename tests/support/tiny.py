"""Tiny models, a tiny task and a Trainer for them, shared by unit tests."""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)

from toolkit.compress.sparsity.callback import SparsificationCallback
from toolkit.compress.teacher import DistillationTrainer
from toolkit.config import Attention
from toolkit.tasks.features import collate

VOCAB_SIZE = 40
SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 24,
}
FAMILIES = {
    "bert": SMALL,
    "roberta": SMALL,
    "electra": SMALL | {"embedding_size": 16},
    "camembert": SMALL,
    "xlm-roberta": SMALL,
    "distilbert": {
        "vocab_size": VOCAB_SIZE,
        "dim": 16,
        "n_heads": 2,
        "hidden_dim": 32,
        "n_layers": 2,
        "max_position_embeddings": 24,
    },
}
DROPOUTS = {"hidden_dropout_prob", "attention_probs_dropout_prob"}


def make_model(
    family: str = "bert", seed: int = 0, dropout: float = 0.0, **changes: Any
) -> Any:  # whose parts have no types either
    """Make a classifier of 2 layers with 16 features, a PreTrainedModel."""
    torch.manual_seed(seed)
    dropouts = {"dropout", "attention_dropout"} if family == "distilbert" else DROPOUTS
    values = FAMILIES[family] | dict.fromkeys(dropouts, dropout) | changes
    auto_model: Any = AutoModelForSequenceClassification
    model = auto_model.from_config(AutoConfig.for_model(family, **values))
    assert isinstance(model, PreTrainedModel)
    return model


def examples_of(count: int, length: int = 8) -> list[dict[str, Any]]:
    """Make encoded features whose label is whether the first token is an even number."""
    generator = random.Random(0)
    features = []
    for _ in range(count):
        ids = [generator.randrange(5, VOCAB_SIZE) for _ in range(length)]
        features.append(
            {
                "input_ids": ids,
                "attention_mask": [1] * length,
                "token_type_ids": [0] * length,
                "labels": int(ids[0] % 2 == 0),
            }
        )
    return features


def pruning(final_sparsity: float, **changes: Any) -> SparsificationCallback:
    """Prune from epoch 0 to 1, with an update at every step."""
    values = {"start_epoch": 0.0, "end_epoch": 1.0, "update_frequency": 0.01}
    return SparsificationCallback(final_sparsity=final_sparsity, **(values | changes))


def trainer_for(
    model: PreTrainedModel,
    folder: Path,
    epochs: int = 1,
    callbacks: list[TrainerCallback] | None = None,
    teacher: PreTrainedModel | None = None,
    hardness: float = 1.0,
    temperature: float = 2.0,
    hidden_weight: float = 0.0,
    attention: Attention = Attention.none,
    attention_weight: float = 1.0,
    layer_map: list[int] | None = None,
    **arguments: Any,
) -> DistillationTrainer:
    """Make a Trainer over 64 examples, 8 per step."""
    values: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }

    def to_tensors(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(array)
            for name, array in collate(features, 0, ["labels"]).items()
        }

    return DistillationTrainer(
        model=model,
        args=TrainingArguments(
            str(folder), num_train_epochs=epochs, seed=1, **(values | arguments)
        ),
        train_dataset=examples_of(64),
        data_collator=to_tensors,
        callbacks=callbacks,
        teacher=teacher,
        hardness=hardness,
        temperature=temperature,
        hidden_weight=hidden_weight,
        attention=attention,
        attention_weight=attention_weight,
        layer_map=layer_map,
    )
