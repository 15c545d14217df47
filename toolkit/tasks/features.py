"""Model inputs: the tokenizer that makes them, and the batches they are padded to.

Letters: B features of a batch, T tokens of a feature.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from toolkit.errors import InputError
from toolkit.families import MODEL_INPUTS

IGNORED = -100  # the label of a token that has none, as torch's cross entropy has it
Example = dict[str, Any]
Feature = dict[str, Any]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `tokenizer.json` of a checkpoint or export folder.

    Raises:
        InputError: It is missing or damaged.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"expected a tokenizer at {path}, but there is none: name the folder of a checkpoint "
            "or export that holds one"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception for every kind of damage
        raise InputError(f"{path} is not a readable tokenizer: {error}") from None


def unset(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer, without its settings of padding: what is set on the copy stays there."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_padding()
    return tokenizer


def feature_of(encoding: Encoding, example_index: int, **more: Any) -> Feature:
    """Make a feature of one encoding of `tokenizers`."""
    return {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
        "example_index": example_index,
        **more,
    }


def collate(
    features: Sequence[Feature], pad_id: int, targets: Sequence[str] = (), length: int | None = None
) -> dict[str, NDArray[Any]]:
    """Pad features on the right to one batch.

    Args:
        features: At least one, as `toolkit.tasks.encode` returns them.
        pad_id: Id of the padding token; padding has attention mask 0 and token type 0.
        targets: What else to take along, a kind's `TARGETS`: of each feature an integer, a float,
            a list of one integer per token, or a list of C floats.
        length: Tokens per row; None takes the longest feature's. Not less than that.

    Returns:
        Those of `input_ids`, `attention_mask`, `token_type_ids` (B, T) and of `targets`, (B,) or
        (B, T) padded with `IGNORED` or (B, C), that the features have; int64, floats as float32.
    """
    longest = max(len(feature["input_ids"]) for feature in features)
    length = longest if length is None else length
    if length < longest:
        raise ValueError(f"length must be at least {longest}, the longest feature's; got {length}")
    batch: dict[str, NDArray[Any]] = {}
    for name in (*MODEL_INPUTS, *targets):
        if name not in features[0]:
            continue
        values = [feature[name] for feature in features]
        is_list = np.ndim(values[0]) == 1
        first = values[0][0] if is_list else values[0]
        is_float = name in targets and isinstance(first, float)
        if is_list and not is_float:
            fill = IGNORED if name in targets else pad_id if name == "input_ids" else 0
            batch[name] = np.full((len(values), length), fill, dtype=np.int64)
            for row, value in zip(batch[name], values, strict=True):
                row[: len(value)] = value
        else:
            batch[name] = np.array(values, dtype=np.float32 if is_float else np.int64)
    return batch
