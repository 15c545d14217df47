"""Words with tags: rows and columns, first tokens, whole entities, and what is cut off."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import configs
from tokenizers import Tokenizer, models, pre_tokenizers

from toolkit.errors import InputError, UsageError
from toolkit.tasks import encode, evaluate, find_labels, load_examples
from toolkit.tasks.demo import make_tokenizer
from toolkit.tasks.features import IGNORED

COLUMNS = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""
TEXTS = [
    {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
    {"words": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]},
]


def own(path: Path, *overrides: str) -> Any:
    files = (f"train_file={path}", f"eval_file={path}")
    return configs.task("token_classification", *files, *overrides)


@pytest.mark.parametrize("name", ["a.conll", "a.jsonl", "a.tsv", "a.txt"])
def test_rows_and_columns_give_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_text("\n".join(map(json.dumps, TEXTS)))
    elif name == "a.tsv":  # with blanks between the words
        lines = ["\t".join(" ".join(values) for values in text.values()) for text in TEXTS]
        path.write_text("\n".join(["words\ttags", *lines]))
    else:
        path.write_text(COLUMNS)
    task = find_labels(own(path), None)
    assert task.label_names == ["B-ORG", "B-PER", "I-PER", "O"]
    assert [*load_examples(task, "train", 0)] == [
        {"words": ["EU", "rejects"], "labels": [0, 3]},
        {"words": ["Peter", "Blackburn"], "labels": [1, 2]},
    ]


def test_conll2003(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "valid.txt").write_text(COLUMNS)
    local = configs.task("conll2003", f"data_dir={tmp_path}")
    assert [e["labels"] for e in load_examples(local, "eval", 0)] == [[3, 0], [1, 2]]
    import datasets

    row = {"id": "0", "tokens": ["EU", "rejects"], "ner_tags": [3, 0]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *path, split: [row])
    assert [*load_examples(configs.task("conll2003"), "eval", 0)] == [
        {"words": ["EU", "rejects"], "labels": [3, 0]}
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "EU B-ORG\nrejects\n", "a.txt, line 2: expected 2 columns as before, with bla"),
        ("a.txt", "EU\n", "a.txt, line 1: expected a word and its tag, with blanks between; foun"),
        ("a.doc", "EU O\n", "expected a file that ends in"),
        ("a.jsonl", '{"words": ["a", "b"], "tags": ["O"]}', "line 1: expected one tag per word; f"),
        ("a.jsonl", '{"words": [], "tags": []}', "line 1: expected a list in column 'words'"),
        ("a.jsonl", '{"words": ["a", null], "tags": ["O", "O"]}', "words in column 'words'; it is"),
        ("a.jsonl", '{"words": ["a"], "tags": [null]}', "line 1: expected a label in column 'ta"),
        ("a.txt", "a O\n\nb O\nc O\n", "all rows have the label 'O'"),
    ],
)
def test_every_fault_has_its_sentence(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        find_labels(own(tmp_path / name), None)
    assert says in str(caught.value)


def test_labels_that_mark_no_entities(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the DET\nsoup NOUN\n")
    with pytest.raises(UsageError, match=r"labels such as 'DET': choose task.metrics=\[accuracy\]"):
        find_labels(own(tmp_path / "a.txt"), None)
    plain = find_labels(own(tmp_path / "a.txt", "metrics=[accuracy]"), None)
    examples = load_examples(plain, "eval", 0)
    features = encode(examples, make_tokenizer(), plain, training=False)
    right = logits(features[0], {0: 0, 1: 1})
    assert evaluate(plain, examples, features, [right]) == {"accuracy": 100.0}


def logits(feature: dict[str, Any], labels: dict[int, int]) -> NDArray[Any]:
    """Make logits (T, 4) by which the words have these labels, on their first token alone."""
    found = np.zeros((len(feature["input_ids"]), 4))
    firsts = [i for i, label in enumerate(feature["labels"]) if label != IGNORED]
    for word, token in zip(feature["words"], firsts, strict=True):
        found[token, labels[word]] = 1.0
        found[token + 1 :, 2] = 0.5  # whatever other tokens say
    return found


def test_the_first_token_of_a_word_speaks_for_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("soup B-PER\nxyz I-PER\nbread O\n\nbread O\nsoup B-ORG\n")
    task = find_labels(own(tmp_path / "a.txt", "max_length=8"), None)
    assert task.label_names == ["B-ORG", "B-PER", "I-PER", "O"]
    examples = load_examples(task, "eval", 0)
    features = encode(examples, make_tokenizer(), task, training=False)
    # [CLS] soup x ##y ##z bread [SEP]
    assert features[0]["labels"] == [IGNORED, 1, 2, IGNORED, IGNORED, 3, IGNORED]
    outputs = [
        logits(features[0], {0: 1, 1: 3, 2: 3}),  # the entity found too short
        logits(features[1], {0: 3, 1: 0}),
    ]
    assert evaluate(task, examples, features, outputs) == {
        "f1": pytest.approx(50.0),
        "precision": pytest.approx(50.0),
        "recall": pytest.approx(50.0),
        "accuracy": pytest.approx(80.0),
    }


def test_a_word_that_is_cut_off_counts_as_found_in_no_entity(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(["soup O"] * 7 + ["bread B-PER"]))
    task = find_labels(own(tmp_path / "a.txt", "max_length=8"), None)
    examples = load_examples(task, "eval", 0)
    features = encode(examples, make_tokenizer(), task, training=False)
    assert features[0]["is_cut"]
    assert features[0]["words"] == [0, 1, 2, 3, 4, 5]
    scores = evaluate(task, examples, features, [logits(features[0], dict.fromkeys(range(8), 1))])
    assert scores["recall"] == 0.0
    right = np.zeros((8, 4))
    right[:, 1] = 1.0
    scores = evaluate(task, examples, features, [right])
    assert scores["recall"] == 0.0
    assert scores["accuracy"] == pytest.approx(100 / 8 * 7)


def test_words_behind_blanks_have_the_tokens_that_they_have_in_a_sentence() -> None:
    """As RoBERTa's, which tell `good` at the start of a text from ` good` within it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    task = configs.task("token_classification", "label_names=[O,B-X]", "max_length=32")
    examples = [{"words": ["so", "good"], "labels": [0, 1]}]
    (feature,) = encode(examples, tokenizer, task, training=True)
    assert feature["input_ids"] == tokenizer.encode("so good").ids
    assert feature["labels"] == [0, IGNORED, 1, IGNORED, IGNORED, IGNORED, IGNORED]
