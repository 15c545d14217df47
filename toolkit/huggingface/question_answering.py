"""The question answering pipeline that transformers dropped, on tokenizers and NumPy alone.

T: tokens of a window.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from toolkit.artifact.exported import read_limits
from toolkit.engine import Engine
from toolkit.errors import InputError
from toolkit.tasks.answers import likely_answers
from toolkit.tasks.features import collate, feature_of, load_tokenizer
from toolkit.tasks.question_answering import OUTPUTS, window_cutter

MAX_SEQ_LEN = 384  # tokens of a window, as transformers' pipeline had it, …
DOC_STRIDE = 128  # … and this many shared by two of them, or half of a shorter one
MAX_ANSWER_LEN = 15  # tokens, likewise


class _OnEngine(Protocol):
    """What has an engine and its folder: `SparseModelForQuestionAnswering`."""

    engine: Engine
    folder: Path


class QuestionAnsweringPipeline:
    """Find answers to questions in texts; calls may come from several threads at once.

    Args:
        model: An export folder, or a `SparseModelForQuestionAnswering`.
        tokenizer: A tokenizer of `tokenizers`, or a fast one of transformers; None takes the one in
            the export folder.
        batch_size: Windows per call of the engine.
        options: `num_threads`, `isa`, `kernel`, `precision` and `keep_timings` of `Engine.load`,
            for a `model` that is a folder.

    Raises:
        InputError: The folder holds no model that answers questions, or no tokenizer.
        ValueError: This CPU lacks what an option asks for.
    """

    def __init__(
        self,
        model: "str | Path | _OnEngine",
        tokenizer: Any = None,
        *,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        if isinstance(model, (str, Path)):
            self.engine, folder = Engine.load(model, **options), Path(model)
            folder = folder if folder.is_dir() else folder.parent
        elif options:
            raise TypeError(f"a model that is loaded already takes no {', '.join(options)}")
        else:
            self.engine, folder = model.engine, Path(model.folder)
        if missing := [name for name in OUTPUTS if name not in self.engine.outputs]:
            raise InputError(
                f"{folder} holds no model that answers questions: its outputs are "
                f"{', '.join(self.engine.outputs)}, without {missing[0]}"
            )
        self.batch_size = batch_size
        self._tokenizer: Tokenizer = (
            load_tokenizer(folder)
            if tokenizer is None
            else getattr(tokenizer, "backend_tokenizer", tokenizer)
        )
        self._pad_id, self._max_tokens = read_limits(folder)
        self._cutters: dict[tuple[int, int], Any] = {}

    def __call__(
        self,
        data: Any = None,
        /,
        *,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = MAX_ANSWER_LEN,
        max_seq_len: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
        batch_size: int | None = None,
    ) -> Any:
        """Answer one question or several.

        Args:
            data: A dict with `question` and `context`, or several of them; instead of the next two.
            question: One or several.
            context: Where its answer is sought: one for all questions, or one for each.
            top_k: Answers per question at most.
            doc_stride: Tokens that two windows of a long context share; None: 128, or half of a
                window that is shorter than 256.
            max_answer_len: Tokens of an answer at most.
            max_seq_len: Tokens of a window, the question among them; None: 384, or as many as the
                model has positions for.
            handle_impossible_answer: Let "" be an answer.
            align_to_words: Widen answers to whole words.
            batch_size: Windows per call of the engine; None takes the pipeline's.

        Returns:
            Per question a dict with `score` (probability in [0, 1]; of an answer found in several
            windows or spellings, their sum), `start` and `end` (characters of the context) and
            `answer`, or a list of them where there are several answers. One question gives its own,
            several give a list.

        Raises:
            ValueError: An argument is out of its range, or a question or context is missing.
        """
        for name, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        pairs, is_single = _pairs(data, question, context)
        length = min(MAX_SEQ_LEN, self._max_tokens) if max_seq_len is None else max_seq_len
        if length > self._max_tokens:
            raise ValueError(
                f"max_seq_len must be at most {self._max_tokens}, the positions of the model; "
                f"got {length}"
            )
        stride = min(DOC_STRIDE, length // 2) if doc_stride is None else doc_stride
        windows = self._cut(pairs, length, stride)
        logits = self._run([window for of_pair in windows for window in of_pair], batch_size)
        answers = []
        for (_, text), of_pair in zip(pairs, windows, strict=True):
            scored = [(window, *next(logits)) for window in of_pair]
            found = likely_answers(
                text, scored, top_k, max_answer_len, handle_impossible_answer, align_to_words
            )
            answers.append(found[0] if len(found) == 1 else found)
        return answers[0] if is_single else answers

    def _cut(
        self, pairs: Sequence[tuple[str, str]], length: int, stride: int
    ) -> list[list[Encoding]]:
        """Cut contexts into windows; copying a tokenizer takes longer than a short text."""
        try:
            if (length, stride) not in self._cutters:
                self._cutters[length, stride] = window_cutter(self._tokenizer, length, stride)
            return cast(list[list[Encoding]], self._cutters[length, stride](pairs))
        except ValueError as error:
            raise ValueError(f"max_seq_len={length} {error}") from None

    def _run(
        self, windows: Sequence[Encoding], batch_size: int | None
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield start and end logits of each window, each (at least T,)."""
        size = self.batch_size if batch_size is None else batch_size
        for first in range(0, len(windows), size):
            features = [feature_of(window, 0) for window in windows[first : first + size]]
            batch = collate(features, self._pad_id)
            found = self.engine.run({name: batch[name] for name in self.engine.inputs})
            yield from zip(*(found[name] for name in OUTPUTS), strict=True)


def _pairs(
    data: Any, question: str | Sequence[str] | None, context: str | Sequence[str] | None
) -> tuple[list[tuple[str, str]], bool]:
    """Return questions with their contexts, and whether one was asked alone."""
    if data is not None:
        if question is not None or context is not None:
            raise ValueError("give either dicts with question and context, or these two by name")
        is_single = isinstance(data, Mapping)
        rows = [data] if is_single else list(data)
        pairs = [(row.get("question"), row.get("context")) for row in rows]
    elif question is None or context is None:
        raise ValueError("give a question and a context")
    else:
        is_single = isinstance(question, str)
        questions = [question] if isinstance(question, str) else list(question)
        contexts = [context] * len(questions) if isinstance(context, str) else list(context)
        if len(questions) != len(contexts):
            raise ValueError(
                f"give one context, or as many as questions; got {len(questions)} questions and "
                f"{len(contexts)} contexts"
            )
        pairs = list(zip(questions, contexts, strict=True))
    for name, texts in zip(("question", "context"), zip(*pairs, strict=True), strict=False):
        for text in texts:
            if not isinstance(text, str) or not text:
                raise ValueError(
                    f"every {name} must be a text of at least one character; got {text!r}"
                )
    return pairs, is_single
