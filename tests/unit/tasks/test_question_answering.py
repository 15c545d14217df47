"""Windows, answers and the official score, checked against independent computations."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import configs
from tokenizers import Tokenizer

from toolkit.config import TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.tasks import demo
from toolkit.tasks.question_answering import (
    best_answers,
    best_span,
    encode,
    exact_match_and_f1,
    f1_score,
    from_hub,
    normalize,
    read_file,
)

CONTEXT = "so the soup was good and the bread was very bad but the fish is never dull"
EXAMPLE = {
    "id": "1",
    "question": "  was the fish dull ?",
    "context": CONTEXT,
    "answers": [{"text": "very bad", "answer_start": CONTEXT.index("very bad")}],
}


def task(max_length: int = 384, doc_stride: int = 128) -> TaskConfig:
    squad = configs.task("squad")
    return replace(squad, data_dir="here", max_length=max_length, doc_stride=doc_stride)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return demo.make_tokenizer()


def document(**changes: Any) -> dict[str, Any]:
    question = {"id": "1", "question": "why ?", "answers": [{"text": "so", "answer_start": 0}]}
    return {"data": [{"paragraphs": [{"context": "so", "qas": [question | changes]}]}]}


def test_read(tmp_path: Path) -> None:
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(document()))
    assert [*read_file(tmp_path / "dev-v1.1.json", task())] == [
        {
            "id": "1",
            "question": "why ?",
            "context": "so",
            "answers": [{"text": "so", "answer_start": 0}],
        }
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [\n{"paragraphs": [}', r"dev-v1\.1\.json, line 2, column 17: not valid JSON"),
        (json.dumps({"data": [{}]}), "after data, KeyError 'paragraphs'"),
        (json.dumps(document(answers=[])), r"after data\[0\]\.paragraphs\[0\]\.qas\[0\], KeyError"),
        (json.dumps(document(answers=[{"text": "so"}])), "KeyError 'answer_start'"),
        ("[]", "TypeError"),
    ],
)
def test_read_broken(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dev-v1.1.json").write_text(text)
    with pytest.raises(InputError, match=message):
        [*read_file(tmp_path / "dev-v1.1.json", task())]


def test_read_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expects the file .*train-v1\.1\.json"):
        [*read_file(tmp_path / "train-v1.1.json", task())]


def test_hub_row() -> None:
    row = {k: EXAMPLE[k] for k in ("id", "question", "context")}
    answers = {"text": ["a", "b"], "answer_start": [1, 2]}
    assert from_hub(row | {"answers": answers, "title": "t"}, task())["answers"] == [
        {"text": "a", "answer_start": 1},
        {"text": "b", "answer_start": 2},
    ]


def test_windows_cover_the_context(tokenizer: Tokenizer) -> None:
    """Each has the whole question; two neighbours share `doc_stride` tokens; nothing is lost."""
    windows = encode([EXAMPLE], tokenizer, task(16, 3), training=False)
    question = tokenizer.encode("was the fish dull ?").ids
    words = CONTEXT.split()
    seen: list[str] = []
    for number, window in enumerate(windows):
        assert window["input_ids"][: len(question)] == question
        assert len(window["input_ids"]) == len(window["offsets"]) <= 16
        assert sum(window["token_type_ids"]) == len(window["input_ids"]) - len(question)
        part = [CONTEXT[slice(*offset)] for offset in window["offsets"] if offset is not None]
        assert number == 0 or part[:3] == seen[-3:]
        seen += part if number == 0 else part[3:]
    assert seen == words
    assert len(windows) > 2


def test_answer_positions(tokenizer: Tokenizer) -> None:
    """A window that holds the whole answer points at it, any other at `[CLS]`."""
    windows = encode([EXAMPLE], tokenizer, task(16, 3), training=True)
    texts = [tokenizer.decode(window["input_ids"]) for window in windows]
    assert 0 < sum("very bad" in text for text in texts) < len(texts)
    for window, text in zip(windows, texts, strict=True):
        start, end = window["start_positions"], window["end_positions"]
        if "very bad" in text:
            assert tokenizer.decode(window["input_ids"][start : end + 1]) == "very bad"
        else:
            assert (start, end) == (0, 0)


def test_no_room_for_the_context(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="leaves no room for a context window"):
        encode([EXAMPLE], tokenizer, task(9, 8), training=True)


def one_hot(length: int, starts: dict[int, float], ends: dict[int, float]) -> Any:
    logits = np.zeros((2, length), dtype=np.float32)
    for row, values in enumerate((starts, ends)):
        for position, value in values.items():
            logits[row, position] = value
    return logits


def test_best_answer_over_windows(tokenizer: Tokenizer) -> None:
    examples = [EXAMPLE, EXAMPLE | {"id": "2"}]
    windows = encode(examples, tokenizer, task(16, 3), training=False)
    outputs = [np.zeros((2, 16), dtype=np.float32) for _ in windows]
    mine = [number for number, window in enumerate(windows) if window["example_index"] == 0]
    outputs[mine[0]] = one_hot(16, {8: 5.0}, {9: 5.0})
    outputs[mine[1]] = one_hot(16, {8: 9.0, 2: 99.0}, {7: 50.0, 9: 9.0})
    # the end 7 precedes the start 8, the start 2 lies in the question: neither counts
    offsets = windows[mine[1]]["offsets"]
    wanted = CONTEXT[offsets[7][0] : offsets[7][1]]
    assert offsets[7] is not None
    best = best_answers(examples, windows, outputs)
    assert best[0] in CONTEXT
    assert best[0].split()[-1] == wanted.split()[-1]


def test_span_rules() -> None:
    offsets = [None, (0, 1), (2, 3), *((i, i + 1) for i in range(4, 44)), None]
    length = len(offsets)
    logits = one_hot(length, {1: 9.0, 0: 90.0}, {length - 1: 90.0, length - 2: 9.0, 2: 8.0})
    # from 1 to the last context token would be longer than 30 tokens
    assert best_span(offsets, *logits) == (17.0, 0, 3)
    assert best_span([None, None], *np.ones((2, 2))) is None
    # columns behind the feature's tokens are padding
    padded = np.concatenate([logits, np.full((2, 5), 999.0, np.float32)], axis=1)
    assert best_span(offsets, *padded) == (17.0, 0, 3)


def test_best_span_equals_the_loops(tokenizer: Tokenizer) -> None:
    """The vectorised search finds what the published double loop finds."""
    random = np.random.default_rng(0)
    for _ in range(50):
        count = int(random.integers(3, 60))
        offsets: list[tuple[int, int] | None] = [
            None if random.random() < 0.3 else (i, i + 1) for i in range(count)
        ]
        start, end = random.normal(size=(2, count)).astype(np.float32)
        candidates = []
        for i in np.argsort(start)[-1:-21:-1].tolist():
            for j in np.argsort(end)[-1:-21:-1].tolist():
                if offsets[i] is None or offsets[j] is None or j < i or j - i + 1 > 30:
                    continue
                candidates.append((float(start[i] + end[j]), offsets[i][0], offsets[j][1]))
        expected = max(candidates, key=lambda candidate: candidate[0], default=None)
        assert best_span(offsets, start, end) == expected


def test_nothing_allowed_is_empty(tokenizer: Tokenizer) -> None:
    windows = encode([EXAMPLE], tokenizer, task(64, 3), training=False)
    logits = np.zeros((2, len(windows[0]["offsets"])), dtype=np.float32)
    logits[:, :7] = 9.0  # the question takes most places among the best
    logits[0, -2], logits[1, 8] = 8.0, 8.0
    assert best_answers([EXAMPLE], [windows[0] | {"offsets": [None] * 40}], [logits]) == ["empty"]


@pytest.mark.parametrize(
    ("prediction", "gold", "f1"),
    [
        ("The Soup!", "soup", 1.0),
        ("a good soup", "good bread", 0.5),
        ("soup", "bread", 0.0),
        ("good good soup", "good soup soup", 2 / 3),
        ("", "soup", 0.0),
    ],
)
def test_f1(prediction: str, gold: str, f1: float) -> None:
    assert f1_score(prediction, gold) == pytest.approx(f1)


def test_normalize() -> None:
    assert normalize("  The  U.S.-an\tapple, a  theatre ") == "usan apple theatre"


def test_score_takes_the_best_gold_and_counts_every_question() -> None:
    golds = [{"text": "good soup", "answer_start": 0}, {"text": "soup", "answer_start": 5}]
    examples = [{"answers": golds}, {"answers": golds[:1]}]
    assert exact_match_and_f1(examples, ["the soup", "empty"]) == {"exact_match": 50.0, "f1": 50.0}
    assert exact_match_and_f1(examples, ["soup", "soup"])["f1"] == pytest.approx(
        (100 + 200 / 3) / 2
    )


def test_real_dev_set(data_dir: Path) -> None:
    """All 10,570 questions; a gold answer scores 100, but for "The", of which nothing is left."""
    examples = [*read_file(data_dir / "squad" / "dev-v1.1.json", task())]
    assert len(examples) == 10_570
    golds = [example["answers"][-1]["text"] for example in examples]
    empty = sum(not normalize(gold) for gold in golds)
    found = exact_match_and_f1(examples, golds)
    assert found["exact_match"] == 100.0
    assert found["f1"] == pytest.approx(100 * (1 - empty / 10_570))
    for example in examples[::500]:
        for answer in example["answers"]:
            start = answer["answer_start"]
            assert example["context"][start : start + len(answer["text"])] == answer["text"]
