"""The question answering pipeline, against transformers' own search of spans, step by step."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.exports import DropIn
from transformers import PreTrainedTokenizerFast
from transformers.pipelines.document_question_answering import decode_spans

from toolkit import QuestionAnsweringPipeline, SparseModelForQuestionAnswering
from toolkit.errors import InputError

QUESTION = "what was said ?"
SHORT = "anna said the soup was good ."
LONG = " ".join(["the soup was good and the bread was bad .", "anna said not ."] * 5)


def expected_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    context: str,
    top_k: int,
    max_seq_len: int,
    doc_stride: int,
    max_answer_len: int = 15,
    handle_impossible_answer: bool = False,
) -> list[dict[str, Any]]:
    """Answer with torch and by tokens, as the pipeline did before version 5."""
    encoded = tokenizer(question, context, truncation="only_second", max_length=max_seq_len,
                        stride=doc_stride, return_overflowing_tokens=True,
                        return_offsets_mapping=True)  # fmt: skip
    answers: list[dict[str, Any]] = []
    null = 1.0
    for i, offsets in enumerate(encoded["offset_mapping"]):
        inputs = {
            name: torch.tensor([encoded[name][i]])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        with torch.inference_mode():
            logits = model(**inputs)
        wanted = np.array([sequence == 1 for sequence in encoded.sequence_ids(i)])
        wanted[0] = True
        start, end = (
            torch.softmax(torch.where(torch.from_numpy(wanted), found[0], -1e4), 0).numpy()[None]
            for found in (logits.start_logits, logits.end_logits)
        )
        null = min(null, float(start[0, 0] * end[0, 0]))
        start[0, 0] = end[0, 0] = 0.0
        spans = decode_spans(start, end, top_k, max_answer_len, wanted.astype(int))
        for first, last, score in zip(*spans, strict=True):
            if score == 0.0:  # `[CLS]`, or a span that ends before it begins
                continue
            begin, stop = offsets[first][0], offsets[last][1]
            text = context[begin:stop]
            same = [answer for answer in answers if answer["answer"].lower() == text.lower()]
            if same:
                same[0]["score"] += float(score)
            else:
                answers.append({"score": float(score), "start": begin, "end": stop, "answer": text})
    if handle_impossible_answer:
        answers.append({"score": null, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: -answer["score"])[:top_k]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert {**one, "score": 0} == {**other, "score": 0}
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)


@pytest.mark.parametrize("handle_impossible_answer", [False, True])
@pytest.mark.parametrize(
    ("context", "max_seq_len", "doc_stride", "max_answer_len"),
    [(SHORT, 42, 16, 15), (LONG, 42, 16, 15), (LONG, 24, 4, 3)],
)
def test_answers_are_those_of_transformers(
    context: str,
    max_seq_len: int,
    doc_stride: int,
    max_answer_len: int,
    handle_impossible_answer: bool,
    drop_in: DropIn,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model, folder = drop_in("qa")
    lengths = (max_seq_len, doc_stride, max_answer_len, handle_impossible_answer)
    expected = expected_answers(model, tokenizer, QUESTION, context, 5, *lengths)
    found = QuestionAnsweringPipeline(folder, num_threads=1)(
        question=QUESTION,
        context=context,
        top_k=5,
        max_seq_len=max_seq_len,
        doc_stride=doc_stride,
        max_answer_len=max_answer_len,
        handle_impossible_answer=handle_impossible_answer,
        align_to_words=False,
        batch_size=3,
    )
    assert len(found) == 5
    assert_same(found, expected)


def test_forms_of_questions(drop_in: DropIn, tokenizer: PreTrainedTokenizerFast) -> None:
    folder = drop_in("qa")[1]
    ask = QuestionAnsweringPipeline(folder, num_threads=1)
    one = ask(question=QUESTION, context=SHORT)
    assert set(one) == {"score", "start", "end", "answer"}
    assert one["answer"] == SHORT[one["start"] : one["end"]]
    assert ask({"question": QUESTION, "context": SHORT}) == one
    pairs = [{"question": QUESTION, "context": text} for text in (SHORT, LONG)]
    several = ask(pairs)
    assert len(several) == 2
    assert several[0]["answer"] == one["answer"]
    assert several[0]["score"] == pytest.approx(one["score"])
    assert ask(question=[QUESTION] * 2, context=[SHORT, LONG]) == several
    assert ask(question=[QUESTION] * 2, context=SHORT)[1]["answer"] == one["answer"]
    assert ask([]) == []
    # of a loaded model, with the tokenizer of transformers
    model = SparseModelForQuestionAnswering.from_pretrained(folder, num_threads=1)
    assert QuestionAnsweringPipeline(model, tokenizer)(question=QUESTION, context=SHORT) == one
    assert QuestionAnsweringPipeline(folder / "model.onnx", num_threads=1)(pairs) == several


def test_answers_are_whole_words(drop_in: DropIn) -> None:
    """`soups` is two tokens, `soup` and `##s`: of itself an answer may end between them."""
    ask = QuestionAnsweringPipeline(drop_in("qa")[1], num_threads=1)
    context = "soups soups breads"
    options: Any = {"question": QUESTION, "context": context, "top_k": 20}
    words = {answer["answer"] for answer in ask(**options)}
    pieces = {answer["answer"] for answer in ask(**options, align_to_words=False)}
    assert words == {"soups", "soups soups", "soups soups breads", "soups breads", "breads"}
    assert "soup" in pieces
    assert sum(answer["score"] for answer in ask(**options)) <= 1.0


def test_what_cannot_be_answered_is_refused(drop_in: DropIn) -> None:
    ask = QuestionAnsweringPipeline(drop_in("qa")[1], num_threads=1)
    for arguments, message in (
        ({"question": QUESTION}, "give a question and a context"),
        ({"question": "", "context": SHORT}, "every question must be a text of at least one char"),
        ({"question": [QUESTION], "context": [SHORT, None]}, "got 1 questions and 2 contexts"),
        ({"question": [QUESTION], "context": [None]}, "every context must be a text .* got None"),
        ({"question": QUESTION, "context": SHORT, "top_k": 0}, "top_k must be at least 1; got 0"),
        ({"question": QUESTION, "context": SHORT, "max_answer_len": 0}, "max_answer_len must be"),
        (
            {"question": QUESTION, "context": SHORT, "max_seq_len": 43},
            "max_seq_len must be at",
        ),
        ({"question": QUESTION, "context": LONG, "max_seq_len": 9}, "max_seq_len=9 leaves no room"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(**arguments)
    with pytest.raises(ValueError, match="give either dicts with question and context, or these"):
        ask([{"question": QUESTION}], question=QUESTION)
    with pytest.raises(InputError, match="holds no model that answers questions: its outputs are"):
        QuestionAnsweringPipeline(drop_in("seq")[1])
    with pytest.raises(TypeError, match="loaded already takes no num_threads"):
        QuestionAnsweringPipeline(ask, num_threads=1)  # type: ignore[arg-type]


def test_threads_share_one_pipeline(drop_in: DropIn) -> None:
    ask = QuestionAnsweringPipeline(drop_in("qa")[1], num_threads=2)
    contexts = [SHORT, LONG, LONG[:60]] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: ask(question=QUESTION, context=text), contexts))
    assert found == [ask(question=QUESTION, context=text) for text in contexts]


def test_torch_and_transformers_are_not_needed(drop_in: DropIn, tmp_path: Path) -> None:
    folder = drop_in("qa")[1]
    code = (
        "import sys, toolkit\n"
        "assert not [name for name in sys.modules if name.startswith('toolkit.')]\n"
        f"ask = toolkit.QuestionAnsweringPipeline({str(folder)!r}, num_threads=1)\n"
        f"assert ask(question={QUESTION!r}, context={SHORT!r})['score'] > 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "try: toolkit.SparseModel\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "module 'toolkit' has no attribute 'SparseModel'" in done.stdout
