"""What `bench` feeds the engines: random tokens, or the texts of the task. B texts, T tokens.

A batch holds all of `toolkit.families.MODEL_INPUTS`; `feed` leaves what a graph takes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from toolkit.artifact.agreement import Batch
from toolkit.artifact.exported import Exported
from toolkit.config import BenchRoot, Lengths, TaskConfig
from toolkit.errors import UsageError
from toolkit.tasks import encode, load_examples
from toolkit.tasks.features import Example, Feature, collate, load_tokenizer

TASK_TEXTS = 128  # real texts in one pass with lengths=task


def make_batches(config: BenchRoot, model: Exported) -> list[Batch]:
    """Make what every engine is timed on: `MODEL_INPUTS`, each (B, T) int64.

    Returns:
        `lengths=fixed`: one batch of random tokens without padding. `lengths=task`: several, of
        the task's first texts with their real lengths, padded per batch to the longest.

    Raises:
        UsageError: The task has fewer texts than one batch needs.
    """
    if config.lengths is Lengths.fixed:
        return [random_batch(model, [config.seq_len] * config.batch_size, config.seed)]
    wanted = max(TASK_TEXTS // config.batch_size, 1) * config.batch_size
    task = replace(
        config.task,
        max_length=min(config.seq_len, config.task.max_length),
        max_eval_samples=min(config.task.max_eval_samples or wanted, wanted),
    )
    _, features = read_task(task, model, config.seed)
    whole = min(wanted, len(features) // config.batch_size * config.batch_size)
    if whole == 0:
        raise UsageError(
            f"batch_size must be at most {len(features)}, the texts that task={task.name} gives; "
            f"got {config.batch_size}"
        )
    return collate_batches(model, features[:whole], config.batch_size)


def feed(model: Exported, batch: Batch) -> Batch:
    """Keep of a batch what the graph takes, in its order."""
    return {name: batch[name] for name in model.inputs}


def random_batch(model: Exported, lengths: Sequence[int], seed: int) -> Batch:
    """Make texts of random tokens with these lengths, padded to the longest."""
    rng = np.random.default_rng(seed)
    # the first tokens are special, the padding's id among them, which RoBERTa's positions skip
    lowest = min(model.pad_id + 1, model.vocab_size - 1)
    features = [
        {
            "input_ids": rng.integers(lowest, model.vocab_size, size=length).tolist(),
            "attention_mask": [1] * length,
            "token_type_ids": [0] * length,
        }
        for length in lengths
    ]
    return collate(features, model.pad_id)


def read_task(
    task: TaskConfig, model: Exported, seed: int
) -> tuple[Sequence[Example], Sequence[Feature]]:
    """Read the evaluation examples and encode them with the tokenizer beside the ONNX file."""
    examples = load_examples(task, "eval", seed)
    tokenizer = load_tokenizer(model.onnx.parent)
    return examples, encode(examples, tokenizer, task, training=False)


def collate_batches(model: Exported, features: Sequence[Feature], batch_size: int) -> list[Batch]:
    """Make batches of consecutive features, each padded to its longest."""
    starts = range(0, len(features), batch_size)
    return [collate(features[i : i + batch_size], model.pad_id) for i in starts]
