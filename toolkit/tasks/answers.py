"""The answers to a question with their probabilities, as transformers' pipeline gave them.

T: tokens of a window.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from toolkit.tasks.question_answering import CLS_POSITION, best_spans, context_offsets

Answer = dict[str, Any]


def likely_answers(
    context: str,
    windows: Sequence[tuple[Encoding, NDArray[Any], NDArray[Any]]],
    top_k: int,
    max_answer_len: int,
    handle_impossible_answer: bool,
    align_to_words: bool,
) -> list[Answer]:
    """Choose the answers to one question.

    A window's probabilities are shared out among the tokens of its context and `[CLS]`, which
    stands for no answer. That there is none is as likely as the window says that doubts it most.

    Args:
        context: The text.
        windows: Those of `window_cutter`, each with its start and end logits, (at least T,).
        top_k: Answers at most.
        max_answer_len: Tokens of an answer at most.
        handle_impossible_answer: Let "" be an answer.
        align_to_words: Widen answers to whole words.

    Returns:
        At least one answer, the most likely first: `score` (probability in [0, 1]; of one text
        found several times the sum), `start`, `end` (characters of the context), `answer`. Where
        there is no span, "" of score 0.
    """
    # different spans become one answer when they are widened to words
    count = 2 * top_k + 10 if align_to_words else top_k
    answers: dict[str, Answer] = {}
    no_answer = 1.0
    for window, *logits in windows:
        offsets = context_offsets(window)
        is_open = np.array([offset is not None for offset in offsets])
        is_open[CLS_POSITION] = True
        starts, ends = (_log_softmax(array[: len(offsets)], is_open) for array in logits)
        no_answer = min(no_answer, float(np.exp(starts[CLS_POSITION] + ends[CLS_POSITION])))
        spans = best_spans(offsets, starts, ends, count, max_answer_len, len(offsets))
        for score, start, end in spans:
            first, last = _characters(window, start, end, align_to_words)
            text, probability = context[first:last], float(np.exp(score))
            answer = {"score": 0.0, "start": first, "end": last, "answer": text}
            answers.setdefault(text.lower(), answer)["score"] += probability
    found = list(answers.values())
    if handle_impossible_answer or not found:
        score = no_answer if handle_impossible_answer else 0.0
        found.append({"score": score, "start": 0, "end": 0, "answer": ""})
    return sorted(found, key=lambda answer: -answer["score"])[:top_k]


def _log_softmax(logits: NDArray[Any], is_open: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the logarithms of probabilities (T,) in float64, shared by the open positions."""
    values = np.where(is_open, logits.astype(np.float64), -np.inf)
    values -= values.max()
    result: NDArray[Any] = values - np.log(np.exp(values).sum())
    return result


def _characters(window: Encoding, start: int, end: int, align_to_words: bool) -> tuple[int, int]:
    """Return the first and past-the-end character of a span of tokens."""
    if align_to_words:
        spans = [window.token_to_word(token) for token in (start, end)]
        words = [
            window.word_to_chars(word, sequence_index=1) if word is not None else None
            for word in spans
        ]
        if words[0] is not None and words[1] is not None:  # not every tokenizer knows words
            return words[0][0], words[1][1]
    return window.offsets[start][0], window.offsets[end][1]
