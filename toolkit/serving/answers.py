"""From outputs to answers: vectors, scores, tags. T tokens, H hidden, C classes, D vector."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from toolkit.config import Pooling
from toolkit.tasks.embedding import pool

Aggregation = Literal["none", "simple"]


def pooled(hidden: NDArray[Any], pooling: Pooling) -> NDArray[np.float32]:
    """Make one vector (H,) float32 of a text's hidden states (T, H)."""
    return pool(hidden, len(hidden), pooling).astype(np.float32)


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors (B, D) to length 1; those of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))


def scores_of(
    logits: NDArray[Any], function: str | None, is_multi_label: bool
) -> NDArray[np.float32]:
    """Turn logits (…, C) into scores.

    Args:
        logits: float32.
        function: `softmax`, `sigmoid`, `none`; None takes the usual one: the sigmoid where there
            is one class, or several may hold at once.
        is_multi_label: Whether that is so.
    """
    usual = "sigmoid" if is_multi_label or logits.shape[-1] == 1 else "softmax"
    name = function or usual
    if name == "none":
        return np.asarray(logits, np.float32)
    if name == "sigmoid":
        # of a large negative number e^-x overflows to infinity, whose inverse is the right zero
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def tags(
    text: str,
    encoding: Encoding,
    scores: NDArray[np.float32],
    labels: Sequence[str],
    aggregation: Aggregation,
    ignored: Collection[str],
) -> list[dict[str, Any]]:
    """Name what stands where in a text, as transformers' pipeline for it does.

    Args:
        text: The text.
        encoding: Its tokens.
        scores: (T, C), in [0, 1].
        labels: Names of the classes.
        aggregation: `none`: one entry per token; `simple`: neighbours of one entity are one entry,
            `B-` begins a new one.
        ignored: Labels that are left out.
    """
    best = scores.argmax(axis=1)
    groups: list[list[int]] = []
    for token in range(len(encoding.ids)):
        if encoding.special_tokens_mask[token]:
            continue
        label = labels[best[token]]
        before = _entity(labels[best[groups[-1][-1]]]) if groups else None
        goes_on = before == _entity(label) and not label.startswith("B-")
        if aggregation == "simple" and goes_on:
            groups[-1].append(token)
        else:
            groups.append([token])
    found = []
    for group in groups:
        label = labels[best[group[0]]]
        name = label if aggregation == "none" else _entity(label)
        if name in ignored or label in ignored:
            continue
        start, end = encoding.offsets[group[0]][0], encoding.offsets[group[-1]][1]
        score = float(np.mean([scores[token, best[token]] for token in group]))
        key = "entity" if aggregation == "none" else "entity_group"
        found.append(
            {key: name, "score": score, "word": text[start:end], "start": start, "end": end}
        )
    return found


def _entity(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label
