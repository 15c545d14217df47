"""Texts and scored pairs of any file; pooling and rank correlation against other formulas."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import configs

from toolkit.config import Pooling, TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.tasks import demo, encode, evaluate, load_examples
from toolkit.tasks.embedding import TEACHER_VECTOR, cosine, pool, read_file
from toolkit.tasks.metrics import spearman


def task(*overrides: str) -> TaskConfig:
    return configs.task("embedding", *overrides)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_text_per_line(tmp_path: Path) -> None:
    path = write(tmp_path, "some.txt", 'the soup\n\n  "said, anna \nthe\u2028bread\n')
    texts = ["the soup", '"said, anna', "the\u2028bread"]
    assert [*read_file(path, task())] == [{"texts": [text], "score": None} for text in texts]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,sentence1,sentence2,score\n1,"a, b",c,0.5\n2,d,e,1\n'),
        ("a.tsv", "score\tsentence2\tsentence1\r\n0.5\tc\ta, b\r\n1\te\td\r\n"),
        ("a.jsonl", '{"sentence1": "a, b", "sentence2": "c", "score": 0.5}\n\n'
                    '{"sentence1": "d", "sentence2": "e", "score": "1"}\n'),
    ],
)  # fmt: skip
def test_scored_pairs(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    judged = [*read_file(path, task(f"eval_file={path}"))]
    assert judged == [
        {"texts": ["a, b", "c"], "score": 0.5},
        {"texts": ["d", "e"], "score": 1.0},
    ]
    learnt = [*read_file(path, task(f"train_file={path}"))]
    assert [example["texts"] for example in learnt] == [["a, b", "c"], ["d", "e"]]
    assert {example["score"] for example in learnt} == {None}


@pytest.mark.parametrize(
    ("name", "content", "overrides", "says"),
    [
        (
            "a.txt",
            "x\n",
            ("eval_file=PATH",),
            "scored pairs, in a file that ends in .csv",
        ),
        ("a.tsv", "text\nx\n", ("train_file=PATH",), "line 2: expected 1 or two of task.text_col"),
        ("a.tsv", "sentence1\tscore\nx\t1\n", ("eval_file=PATH",), "line 2: expected 2 or two of"),
        ("a.csv", "sentence1,sentence2\nx,y\n", ("eval_file=PATH",), "task.label_column=score; fo"),
        ("a.csv", "sentence1,sentence2,score\nx,y,good\n", ("eval_file=PATH",), "found 'good'"),
        ("a.jsonl", '{"sentence1": "x"}\n{"sent\n', ("train_file=PATH",), "line 2: not JSON"),
        ("a.jsonl", "[1]\n", ("train_file=PATH",), "line 1: expected a JSON object; found [1]"),
    ],
)
def test_what_a_file_lacks_is_named(
    tmp_path: Path, name: str, content: str, overrides: tuple[str, ...], says: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        [*read_file(path, task(*(override.replace("PATH", str(path)) for override in overrides)))]
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_texts_are_held_back_where_no_file_judges(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(50)]
    path = write(tmp_path, "a.txt", "\n".join(texts))
    own = task(f"train_file={path}")
    splits = {
        seed: [
            [example["texts"][0] for example in load_examples(own, split, seed)]
            for split in ("train", "eval")
        ]
        for seed in (0, 1)
    }
    for learnt, judged in splits.values():
        assert len(judged) == 5
        assert sorted(learnt + judged) == sorted(texts)
    assert splits[0] != splits[1]
    pairs = write(tmp_path, "p.csv", "sentence1,sentence2,score\na,b,1\n")
    both = task(f"train_file={path}", f"eval_file={pairs}")
    assert len(load_examples(both, "train", 0)) == 50
    assert len(load_examples(both, "eval", 0)) == 1
    assert len(load_examples(task(f"train_file={path}", "max_train_samples=7"), "train", 0)) == 7


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"files of your own: task.train_file=F"):
        load_examples(task(), "train", 0)
    with pytest.raises(UsageError, match="name what to learn from, too"):
        load_examples(task("eval_file=x.csv"), "train", 0)
    with pytest.raises(InputError, match="there is none"):
        load_examples(task("train_file=/no/such/file"), "train", 0)


def test_every_text_is_a_feature() -> None:
    examples: list[dict[str, Any]] = [{"texts": ["the soup was good", "bread"], "score": 1.0},
                {"texts": ["the bread"], "score": None}]  # fmt: skip
    features = encode(examples, demo.make_tokenizer(), task("max_length=8"), training=True)
    assert [feature["example_index"] for feature in features] == [0, 0, 1]
    assert [len(feature["input_ids"]) for feature in features] == [6, 3, 4]
    assert set(features[0]) == {"input_ids", "attention_mask", "token_type_ids", "example_index"}


def test_pooling_is_torchs() -> None:
    """The metric's pooling, and the one that is trained with, on padded texts."""
    import torch

    from toolkit.compress import distillation

    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((3, 7, 4)).astype(np.float32)
    lengths = [7, 1, 4]
    mask = np.arange(7)[None] < np.array(lengths)[:, None]
    for pooling in Pooling:
        theirs = distillation.pool(torch.tensor(hidden), torch.tensor(mask).long(), pooling)
        for i, length in enumerate(lengths):
            ours = pool(hidden[i], length, pooling)
            by_hand = hidden[i, 0] if pooling is Pooling.cls else sum(hidden[i, :length]) / length
            np.testing.assert_allclose(ours, by_hand, rtol=1e-5)
            np.testing.assert_allclose(ours, theirs[i], rtol=1e-5, atol=1e-7)


def test_spearman() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 21.0])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([9.0, 7.0, 5.0])) == pytest.approx(-1)
    # ranks 1 2.5 2.5 4 and 1 2 3 4: cov 4.5, variances 4.5 and 5
    found = spearman(np.array([0.0, 1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 0.0


def test_spearman_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is no dependency of ours")
    rng = np.random.default_rng(0)
    for ties in (1, 3):
        a, b = rng.standard_normal(50).round(ties), rng.integers(0, 5, 50)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_score() -> None:
    """Three pairs at 0, 90 and 180 degrees, the scores in another order; padding beyond a text."""
    examples: list[dict[str, Any]] = [{"texts": ["x", "x"], "score": s} for s in (0.9, 0.1, 0.5)]
    features = [{"input_ids": [1, 2], "example_index": i // 2} for i in range(6)]
    angles = [0.0, 0.0, 0.3, 0.3 + np.pi / 2, 1.0, 1.0 + np.pi]
    outputs = [
        np.array([[0.0, 0.0], [2 * np.cos(a), 2 * np.sin(a)], [np.nan, np.nan]]) for a in angles
    ]
    # cosines 1, 0, -1 and scores 0.9, 0.1, 0.5: ranks 3 2 1 and 3 1 2
    assert evaluate(task(), examples, features, outputs) == {"spearman": pytest.approx(50.0)}
    taught = [
        feature | {TEACHER_VECTOR: np.array([np.cos(a + 0.1), np.sin(a + 0.1)])}
        for feature, a in zip(features, angles, strict=True)
    ]
    found = evaluate(task(), examples, taught, outputs)
    assert list(found) == ["spearman", "similarity"]
    assert found["similarity"] == pytest.approx(100 * np.cos(0.1))
    unscored = [example | {"score": None} for example in examples]
    assert list(evaluate(task(), unscored, taught, outputs)) == ["similarity"]
    assert cosine(np.zeros(2), np.ones(2)) == 0.0
