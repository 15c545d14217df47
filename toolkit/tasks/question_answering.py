"""SQuAD v1.1: the official file, windows over long contexts, answers, and the official score.

An example is a dict: `id`, `question`, `context` (str) and `answers`, a list of dicts `text` (str)
and `answer_start` (int, characters). T: tokens of a window.
"""

import json
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from toolkit.config import TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.files import read_text
from toolkit.tasks.features import Example, Feature, encode_texts, feature_of, unset

AUTO_CLASS = "AutoModelForQuestionAnswering"
OUTPUTS = ("start_logits", "end_logits")
TARGETS = ("start_positions", "end_positions")
METRICS = ("f1", "exact_match")
N_BEST_SIZE = 20  # best starts and best ends combined with each other, as in HF's run_qa
MAX_ANSWER_LENGTH = 30  # tokens, as in HF's run_qa
# `[CLS] question [SEP] context [SEP]`, as BERT and `<s> question </s></s> context </s>`
CLS_POSITION = 0
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read_file(path: Path, task: TaskConfig) -> list[Example]:
    """Read an official JSON file.

    Raises:
        InputError: It is missing, is no JSON (naming the line), or lacks a field (naming where).
    """
    text = read_text(path, f"task={task.name} with task.data_dir={task.data_dir}")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); "
            "download the file again"
        ) from None
    examples = []
    place = "data"
    try:
        for a, article in enumerate(document["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                for q, question in enumerate(paragraph["qas"]):
                    place = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    examples.append(
                        {
                            "id": str(question["id"]),
                            "question": str(question["question"]),
                            "context": str(paragraph["context"]),
                            "answers": [
                                {
                                    "text": str(answer["text"]),
                                    "answer_start": int(answer["answer_start"]),
                                }
                                for answer in question["answers"]
                            ],
                        }
                    )
                    if not examples[-1]["answers"]:
                        raise KeyError("answers")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not the SQuAD v1.1 layout: after {place}, {type(error).__name__} {error}; "
            "every question needs id, question and at least one answer with text and answer_start"
        ) from None
    return examples


def from_hub(row: Mapping[str, Any], task: TaskConfig) -> Example:
    """Turn a row of the hub data set `rajpurkar/squad` into an example."""
    answers = row["answers"]
    return {
        "id": row["id"],
        "question": row["question"],
        "context": row["context"],
        "answers": [
            {"text": text, "answer_start": start}
            for text, start in zip(answers["text"], answers["answer_start"], strict=True)
        ],
    }


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskConfig, training: bool
) -> list[Feature]:
    """Cut question and context into windows of at most `task.max_length` tokens.

    Only the context is truncated; two neighbouring windows share `task.doc_stride` tokens of it.

    Args:
        examples: As `read_file` returns them.
        tokenizer: Left as it is.
        task: `max_length` counts the question and special tokens, too.
        training: Add `start_positions` and `end_positions`: first and last token of the first
            answer, or of `[CLS]` where the window does not hold all of it. Otherwise add
            `offsets`: per token the (first, past-the-end) characters of the context, None for
            tokens outside it.

    Returns:
        All windows, those of one example together and in order.

    Raises:
        UsageError: A question leaves no room for the stride within `max_length`.
    """
    try:
        # leading blanks of a question would count as tokens that are never cut off
        cut = window_cutter(tokenizer, task.max_length, task.doc_stride)
        windows = cut([(example["question"].lstrip(), example["context"]) for example in examples])
    except ValueError as error:
        raise UsageError(f"task.max_length={task.max_length} {error}") from None
    features = []
    for index, (example, of_example) in enumerate(zip(examples, windows, strict=True)):
        for window in of_example:
            offsets = context_offsets(window)
            if training:
                start, end = _answer_tokens(offsets, example["answers"][0])
                targets = {"start_positions": start, "end_positions": end}
                features.append(feature_of(window, index, **targets))
            else:
                features.append(feature_of(window, index, offsets=offsets))
    return features


def window_cutter(
    tokenizer: Tokenizer, max_length: int, doc_stride: int
) -> Callable[[Sequence[tuple[str, str]]], list[list[Encoding]]]:
    """Return a function from pairs of question and context to the windows of each pair.

    Args:
        tokenizer: Left as it is; what is returned has a copy, and may be called by several threads.
        max_length: Tokens of a window, the question and special tokens among them.
        doc_stride: Tokens of the context that two neighbouring windows share.

    Raises:
        ValueError: There is no room for the stride beside the longest question; also when called.
    """
    tokenizer = unset(tokenizer)

    def cut(pairs: Sequence[tuple[str, str]]) -> list[list[Encoding]]:
        with _telling_room(doc_stride):
            encodings = encode_texts(tokenizer, pairs)
        return [[first, *first.overflowing] for first in encodings]

    with _telling_room(doc_stride):
        tokenizer.enable_truncation(max_length, stride=doc_stride, strategy="only_second")
    return cut


def score(
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Sequence[NDArray[Any]],
    task: TaskConfig,
) -> dict[str, float]:
    """Judge start and end logits (2, at least T) of every window; as `exact_match_and_f1`."""
    return exact_match_and_f1(examples, best_answers(examples, features, outputs))


def best_answers(
    examples: Sequence[Mapping[str, Any]],
    features: Sequence[Mapping[str, Any]],
    outputs: Sequence[NDArray[Any]],
) -> list[str]:
    """Choose each question's answer among all of its windows.

    Args:
        examples: B questions.
        features: Their windows, from `encode(…, training=False)`.
        outputs: Per window start and end logits (2, at least T).

    Returns:
        B texts, each the span with the highest sum of start and end logit; "empty" where no
        window allows one.

    Source: postprocess_qa_predictions of transformers' examples/pytorch/question-answering.
    """
    best: dict[int, tuple[float, str]] = defaultdict(lambda: (-np.inf, "empty"))
    for feature, logits in zip(features, outputs, strict=True):
        index = feature["example_index"]
        span = best_span(feature["offsets"], logits[0], logits[1])
        if span is not None and span[0] > best[index][0]:
            score, start, end = span
            best[index] = (score, examples[index]["context"][start:end])
    return [best[index][1] for index in range(len(examples))]


def best_span(
    offsets: Sequence[tuple[int, int] | None],
    start_logits: NDArray[Any],
    end_logits: NDArray[Any],
) -> tuple[float, int, int] | None:
    """Find the best span of one window.

    Args:
        offsets: T entries of `encode`.
        start_logits: (at least T,)
        end_logits: (at least T,)

    Returns:
        Score, first character and past-the-end character in the context; None if there is none.
    """
    found = best_spans(offsets, start_logits, end_logits, 1, MAX_ANSWER_LENGTH, N_BEST_SIZE)
    if not found:
        return None
    ((score, start, end),) = found
    first, last = offsets[start], offsets[end]
    assert first is not None
    assert last is not None
    return score, first[0], last[1]


def best_spans(
    offsets: Sequence[tuple[int, int] | None],
    start_scores: NDArray[Any],
    end_scores: NDArray[Any],
    count: int,
    max_length: int,
    num_candidates: int,
) -> list[tuple[float, int, int]]:
    """Find the spans of one window with the largest sums of start and end score.

    Args:
        offsets: T entries of `context_offsets`.
        start_scores: (at least T,)
        end_scores: (at least T,)
        count: Spans wanted at most.
        max_length: Tokens of a span at most.
        num_candidates: Best starts and best ends that are combined; T combines them all.

    Returns:
        Score, first token and last token, best first.
    """
    starts = _largest(start_scores[: len(offsets)], num_candidates)
    ends = _largest(end_scores[: len(offsets)], num_candidates)
    in_context = np.array([offset is not None for offset in offsets])
    length = ends[None, :] - starts[:, None] + 1  # (starts, ends), in tokens
    allowed = (length >= 1) & (length <= max_length)
    allowed &= in_context[starts][:, None] & in_context[ends][None, :]
    rows, columns = np.nonzero(allowed)
    scores = start_scores[starts[rows]] + end_scores[ends[columns]]
    best = np.argsort(-scores, kind="stable")[:count]
    return [(float(scores[i]), int(starts[rows[i]]), int(ends[columns[i]])) for i in best]


def exact_match_and_f1(
    examples: Sequence[Mapping[str, Any]], predictions: Sequence[str]
) -> dict[str, float]:
    """Compute exact match and F1 as the official script does.

    Args:
        examples: Every question of the data set.
        predictions: One text per example.

    Returns:
        `exact_match` and `f1`, means over all questions, in percent.

    Source: evaluate-v1.1.py of https://rajpurkar.github.io/SQuAD-explorer/
    """
    exact = f1 = 0.0
    for example, prediction in zip(examples, predictions, strict=True):
        golds = [answer["text"] for answer in example["answers"]]
        exact += max(normalize(prediction) == normalize(gold) for gold in golds)
        f1 += max(f1_score(prediction, gold) for gold in golds)
    return {"exact_match": 100.0 * exact / len(examples), "f1": 100.0 * f1 / len(examples)}


def f1_score(prediction: str, gold: str) -> float:
    """Compute the harmonic mean of token precision and recall, in [0, 1]."""
    predicted, expected = normalize(prediction).split(), normalize(gold).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def normalize(answer: str) -> str:
    """Lower the case, then drop punctuation, articles and superfluous blanks, in this order."""
    text = answer.lower().translate(NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def context_offsets(window: Encoding) -> list[tuple[int, int] | None]:
    """Return each token's (first, past-the-end) characters of the context, None outside of it."""
    return [
        offset if sequence == 1 else None
        for offset, sequence in zip(window.offsets, window.sequence_ids, strict=True)
    ]


@contextmanager
def _telling_room(doc_stride: int) -> Iterator[None]:
    """Say what is wrong with a length, whose name and number the caller puts in front."""
    try:
        yield
    except BaseException as error:  # tokenizers panics with a BaseException of its own
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise ValueError(
            "leaves no room for a context window beside the longest question with a stride of "
            f"{doc_stride} ({error}): raise the first or lower the second"
        ) from None


def _answer_tokens(
    offsets: Sequence[tuple[int, int] | None], answer: Mapping[str, Any]
) -> tuple[int, int]:
    """Return the first and last token of the answer, or `[CLS]` twice where it is not all here."""
    first, last = answer["answer_start"], answer["answer_start"] + len(answer["text"])
    context = [token for token, offset in enumerate(offsets) if offset is not None]
    spans = [offset for offset in offsets if offset is not None]
    if not spans or spans[0][0] > first or spans[-1][1] < last:
        return CLS_POSITION, CLS_POSITION
    start = max(i for i, span in enumerate(spans) if span[0] <= first)
    end = min(i for i, span in enumerate(spans) if span[1] >= last)
    return context[start], context[end]


def _largest(scores: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Return the positions of the `count` largest scores, best first."""
    return np.argsort(scores)[-1 : -count - 1 : -1]
