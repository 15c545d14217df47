"""SQuAD: the official files, windows over long contexts, answers, and the official scores.

An example is a dict: `id`, `question`, `context` (str) and `answers`, a list of dicts `text` (str)
and `answer_start` (int, characters), empty where there is none. T: tokens of a window.
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
from toolkit.tasks.features import Example, Feature, feature_of, unset
from toolkit.tasks.rows import found, read_rows, text_of

AUTO_CLASS = "AutoModelForQuestionAnswering"
OUTPUTS = ("start_logits", "end_logits")
TARGETS = ("start_positions", "end_positions")
# Of SQuAD v1.1; then of v2: over all, over questions with an answer and without, and with the
# threshold of no answer at which they are best.
METRICS = (
    *("f1", "exact_match", "exact", "HasAns_f1", "HasAns_exact", "NoAns_f1", "NoAns_exact"),
    *("best_f1", "best_exact"),
)
N_BEST_SIZE = 20  # best starts and best ends combined with each other, as in HF's run_qa
MAX_ANSWER_LENGTH = 30  # tokens, as in HF's run_qa
# `[CLS] question [SEP] context [SEP]`, as BERT and `<s> question </s></s> context </s>`
CLS_POSITION = 0
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def check(task: TaskConfig) -> None:
    """Refuse to judge answers that are missing where there is always one.

    Raises:
        UsageError: `task.metrics` does.
    """
    wrong = [name for name in task.metrics if name not in ("f1", "exact_match")]
    if wrong and not task.has_unanswerable:
        raise UsageError(
            f"the metric {wrong[0]} is about questions that may have no answer: set "
            "task.has_unanswerable=true, or choose task.metrics among f1, exact_match"
        )


def read_file(path: Path, task: TaskConfig) -> Iterator[Example]:
    """Read questions.

    Args:
        path: `.json`: SQuAD's layout. Any other file has rows, as `toolkit.tasks.rows.read_rows`.
        task: `has_unanswerable` allows questions without an answer. Of rows, `text_columns` names
            question and context, `label_column` the answers: `{"text": […], "answer_start": […]}`
            as on the hub, a list of objects with `text` and `answer_start`, or one text, which is
            looked for in the context; null or empty where there is none.

    Raises:
        InputError: It is missing, is no JSON (naming the line), or lacks a field (naming where).
    """
    if path.suffix.lower() == ".json":
        yield from _read_squad(path, task)
        return
    names = [*(task.text_columns or ("question", "context")), task.label_column or "answers"]
    if len(names) != 3:
        raise UsageError(
            "question answering reads two texts, task.text_columns=[question,context]; got "
            f"{task.text_columns}"
        )
    question, context, label = names
    for number, (place, row) in enumerate(read_rows(path, task, names)):
        text = row[context] if isinstance(row[context], str) else ""
        example = {
            "id": str(row.get("id", number)),
            "question": text_of(place, row, question, task),
            "context": text if text.strip() else text_of(place, row, context, task),
            "answers": _answers(place, label, row[label], text),
        }
        _check_answers(place, example, task)
        yield example


def _read_squad(path: Path, task: TaskConfig) -> Iterator[Example]:
    text = read_text(path, f"task={task.name}")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); "
            "download the file again"
        ) from None
    place = "data"
    try:
        for a, article in enumerate(document["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                for q, question in enumerate(paragraph["qas"]):
                    place = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    # Those of v2's train set that are impossible have plausible answers elsewhere.
                    example = {
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
                    if not example["answers"] and not task.has_unanswerable:
                        raise KeyError("answers")
                    yield example
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not the SQuAD v1.1 layout: after {place}, {type(error).__name__} {error}; "
            "every question needs id, question and at least one answer with text and answer_start "
            "(task.has_unanswerable=true allows none, as in SQuAD v2)"
        ) from None


def from_hub(row: Mapping[str, Any], task: TaskConfig) -> Example:
    """Turn a row of a hub data set in the layout of `rajpurkar/squad` into an example."""
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
            answer, or of `[CLS]` where the window does not hold all of it or there is none.
            Otherwise add
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
                start, end = _answer_tokens(offsets, example["answers"])
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
            encodings = tokenizer.encode_batch(list(pairs))
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
    """Judge start and end logits (2, at least T) of every window by the official scripts."""
    if not task.has_unanswerable:
        return exact_match_and_f1(examples, best_answers(examples, features, outputs))
    answers, margins = answers_or_none(examples, features, outputs)
    return scores_of_v2(examples, answers, margins, task.no_answer_threshold)


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
    return answers_or_none(examples, features, outputs)[0]


def answers_or_none(
    examples: Sequence[Mapping[str, Any]],
    features: Sequence[Mapping[str, Any]],
    outputs: Sequence[NDArray[Any]],
) -> tuple[list[str], NDArray[np.float64]]:
    """Choose each question's answer, and tell how much more likely it is that there is none.

    Returns:
        As `best_answers`; and (B,) the logits of no answer, those of `[CLS]` in the window where
        they are lowest, less those of the answer.
    """
    best: dict[int, tuple[float, str]] = defaultdict(lambda: (-np.inf, "empty"))
    none: dict[int, float] = defaultdict(lambda: np.inf)
    contexts: dict[int, str] = {}
    for feature, logits in zip(features, outputs, strict=True):
        index = feature["example_index"]
        none[index] = min(none[index], float(logits[:, CLS_POSITION].sum()))
        span = best_span(feature["offsets"], logits[0], logits[1])
        if span is not None and span[0] > best[index][0]:
            score, start, end = span
            if index not in contexts:  # windows of a question stand together
                contexts = {index: examples[index]["context"]}
            best[index] = (score, contexts[index][start:end])
    margins = [none[index] - best[index][0] for index in range(len(examples))]
    return [best[index][1] for index in range(len(examples))], np.array(margins)


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


def scores_of_v2(
    examples: Sequence[Mapping[str, Any]],
    answers: Sequence[str],
    margins: NDArray[np.float64],
    threshold: float,
) -> dict[str, float]:
    """Compute what the official script for SQuAD v2 does.

    Args:
        examples: B questions.
        answers: B texts.
        margins: (B,), how much likelier no answer is.
        threshold: Above this margin no answer is given.

    Returns:
        `exact` and `f1` over all questions, `HasAns_…` and `NoAns_…` over those with an answer
        and without (left out where there are none), and `best_…` with the threshold that makes
        each largest, in percent.

    Source: evaluate-v2.0.py of https://rajpurkar.github.io/SQuAD-explorer/
    """
    has_answer, answered = [], []  # (B,) bool; (B, 2): exact and F1 if the answer is given
    for example, text in zip(examples, answers, strict=True):
        golds = [answer["text"] for answer in example["answers"] if normalize(answer["text"])]
        has_answer.append(bool(example["answers"]))
        if golds and normalize(text):
            exact = max(float(normalize(text) == normalize(gold)) for gold in golds)
            answered.append((exact, max(f1_score(text, gold) for gold in golds)))
        else:  # either is no answer: right if both are
            answered.append((float(not golds and not normalize(text)),) * 2)
    has, given, count = np.array(has_answer), np.array(answered), len(has_answer)
    withheld = np.repeat(~has[:, None], 2, axis=1).astype(float)  # (B, 2) if none is given
    scores = np.where((margins > threshold)[:, None], withheld, given)
    result: dict[str, float] = {}
    for name, which in (("", has | True), ("HasAns_", has), ("NoAns_", ~has)):
        if which.any():
            exact, f1 = 100.0 * scores[which].mean(axis=0)
            result |= {f"{name}exact": float(exact), f"{name}f1": float(f1)}
    # With an ever higher threshold, one question after the other gets its answer.
    order = np.argsort(margins, kind="stable")
    gains = np.cumsum(np.where(has[:, None], given, given - 1.0)[order], axis=0)
    best = 100.0 * (withheld.sum(axis=0) + np.maximum(gains.max(axis=0), 0.0)) / count
    return result | {"best_exact": float(best[0]), "best_f1": float(best[1])}


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
    offsets: Sequence[tuple[int, int] | None], answers: Sequence[Mapping[str, Any]]
) -> tuple[int, int]:
    """Return the first answer's first and last token, or `[CLS]` twice where it is not here."""
    if not answers:
        return CLS_POSITION, CLS_POSITION
    answer = answers[0]
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


def _answers(place: str, column: str, value: Any, context: str) -> list[dict[str, Any]]:
    """Read the answers of a row, in any of three forms."""
    try:
        if value is None or value == "":
            return []
        if isinstance(value, str):
            start = context.find(value.strip())
            if start < 0:
                raise InputError(
                    f"{place}: expected an answer that the context has, in column {column!r}; "
                    f"{found(value)}"
                )
            return [{"text": value.strip(), "answer_start": start}]
        if isinstance(value, Mapping):
            pairs: Any = zip(value["text"], value["answer_start"], strict=True)
        else:
            pairs = ((answer["text"], answer["answer_start"]) for answer in value)
        return [{"text": str(text), "answer_start": int(start)} for text, start in pairs]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{place}: expected answers in column {column!r}: a text of the context, or "
            f'{{"text": […], "answer_start": […]}}; {found(value)}'
        ) from None


def _check_answers(place: str, example: Example, task: TaskConfig) -> None:
    """Refuse answers that are not where they say, and none where there must be one."""
    if not example["answers"] and not task.has_unanswerable:
        raise InputError(
            f"{place}: the question has no answer: set task.has_unanswerable=true if some have none"
        )
    for answer in example["answers"]:
        start, text = answer["answer_start"], answer["text"]
        if start < 0 or not example["context"].startswith(text, start):
            there = example["context"][max(start, 0) : max(start, 0) + len(text)]
            raise InputError(
                f"{place}: expected the answer {text!r} at character {start} of the context "
                f"(answer_start counts characters from 0); found {there!r}"
            )
