"""Examples from files, features, batches, metrics; and the sentences about what is wrong."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import configs

from toolkit.config import TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.tasks import demo, encode, evaluate, load_examples
from toolkit.tasks.features import collate, load_tokenizer


def task(name: str = "sst2", **changes: Any) -> TaskConfig:
    return replace(configs.task(name), max_length=16, **changes)


def write_tsv(folder: Path, text: str, name: str = "dev.tsv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


def test_sst2(tmp_path: Path) -> None:
    # U+2028 and a lone quote are no line ends and no quoting
    folder = write_tsv(tmp_path, 'sentence\tlabel\nso "good\t1\nbad\u2028film \t0\n\n')
    assert [*load_examples(task(data_dir=folder), "eval", 0)] == [
        {"text": 'so "good', "text_pair": None, "label": 1},
        {"text": "bad\u2028film", "text_pair": None, "label": 0},
    ]
    assert len(load_examples(task(data_dir=folder, max_eval_samples=1), "eval", 0)) == 1


def test_mrpc(tmp_path: Path) -> None:
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    folder = write_tsv(tmp_path, header + '1\t7\t8\t"one" two\tthree\r\n', "train.tsv")
    assert [*load_examples(task("mrpc", data_dir=folder), "train", 0)] == [
        {"text": '"one" two', "text_pair": "three", "label": 1}
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\tlabel\n", r"dev\.tsv, line 1: expected the column 'sentence'"),
        ("sentence\tlabel\na\t1\nb\n", r"dev\.tsv, line 3: expected 2 tab-separated .* found 1"),
        (
            "sentence\tlabel\na\t2\n",
            r"dev\.tsv, line 2: .* label, negative or positive, .* '2'",
        ),
        ("sentence\tlabel\n", "has no examples in split 'eval'"),
    ],
)
def test_broken_tsv(tmp_path: Path, text: str, message: str) -> None:
    folder = write_tsv(tmp_path, text)
    with pytest.raises(InputError, match=message):
        load_examples(task(data_dir=folder), "eval", 0)


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expects the file .*dev\.tsv, but there is none"):
        load_examples(task(data_dir=str(tmp_path)), "eval", 0)
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\n\xff\t1\n")
    with pytest.raises(InputError, match=r"dev\.tsv, line 2: the byte 0xff at position 1 is"):
        load_examples(task(data_dir=str(tmp_path)), "eval", 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "cola"}, "task.kind must be one of embedding, question_answering, regression, t"),
        (
            {"metrics": ["rouge"]},
            "among accuracy, f1, f1_macro, f1_micro, mcc; got 'rouge'",
        ),
        ({"path": None}, "task=sst2 needs task.path"),
    ],
)
def test_impossible_tasks(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        load_examples(task(**changes), "eval", 0)


def test_hub_failure_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*path: str, split: str) -> None:
        assert (path, split) == (("nyu-mll/glue", "sst2"), "validation[:3]")
        raise ConnectionError("offline\nstack")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    offline = task(path=["nyu-mll/glue", "sst2"], max_eval_samples=3)
    with pytest.raises(InputError, match=r"nyu-mll/glue/sst2 .*ConnectionError: offline\): check"):
        load_examples(offline, "eval", 0)


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    row = {"sentence1": " a ", "sentence2": "b", "label": 1, "idx": 0}
    monkeypatch.setattr(datasets, "load_dataset", lambda *path, split: [row])
    mrpc = task("mrpc", path=["nyu-mll/glue", "mrpc"])
    assert [*load_examples(mrpc, "train", 0)] == [{"text": "a", "text_pair": "b", "label": 1}]


def test_encode_and_collate() -> None:
    tokenizer = demo.make_tokenizer()
    tokenizer.enable_padding(length=12)  # of no effect, and left as it is
    examples: list[dict[str, Any]] = [
        {"text": "the soup was good", "text_pair": None, "label": 1},
        {"text": "the soup was good " * 9, "text_pair": "the soup was bad", "label": 0},
    ]
    features = encode(examples, tokenizer, task(), training=True)
    assert [len(feature["input_ids"]) for feature in features] == [6, 16]
    assert features[0]["token_type_ids"] == [0] * 6
    assert features[1]["token_type_ids"][-5:] == [1] * 5
    assert [feature["labels"] for feature in features] == [1, 0]
    assert [feature["example_index"] for feature in features] == [0, 1]
    assert tokenizer.padding is not None
    assert tokenizer.padding["length"] == 12
    assert tokenizer.truncation is None

    batch = collate(features, pad_id=3, targets=["labels"])
    assert {name: array.shape for name, array in batch.items()} == {
        "input_ids": (2, 16),
        "attention_mask": (2, 16),
        "token_type_ids": (2, 16),
        "labels": (2,),
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    assert batch["input_ids"][0, 6:].tolist() == [3] * 10
    assert batch["attention_mask"].sum(axis=1).tolist() == [6, 16]
    assert collate(features[:1], 0, length=20)["input_ids"].shape == (1, 20)
    with pytest.raises(ValueError, match="length must be at least 16"):
        collate(features, 0, length=8)


def test_targets_may_be_floats_and_one_per_token() -> None:
    texts = [
        {"input_ids": [5, 6, 7], "labels": [0, 1, 2], "score": 0.5, "start": 1},
        {"input_ids": [5], "labels": [2], "score": 2.0, "start": 0},
    ]
    batch = collate(texts, pad_id=3, targets=["labels", "score", "start"])
    assert batch["labels"].tolist() == [[0, 1, 2], [2, -100, -100]]
    assert batch["labels"].dtype == batch["start"].dtype == np.int64
    assert batch["score"].tolist() == [0.5, 2.0]
    assert batch["score"].dtype == np.float32
    several = [text | {"labels": [1.0, 0.0]} for text in texts]
    assert collate(several, 3, ["labels"])["labels"].tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_metrics() -> None:
    examples = [{"label": label} for label in (1, 1, 1, 0, 0)]
    features = [
        {"example_index": index, "labels": example["label"]}
        for index, example in enumerate(examples)
    ]
    logits = [np.array(pair) for pair in ([0, 1], [0, 1], [1, 0], [0, 1], [1, 0])]
    assert evaluate(task(), examples, features, logits) == {"accuracy": pytest.approx(60.0)}
    # 2 true positives, 1 false positive, 1 false negative
    assert evaluate(task("mrpc"), examples, features, logits) == {
        "accuracy": pytest.approx(60.0),
        "f1": pytest.approx(200 / 3),
    }
    with pytest.raises(ValueError, match="expected 5 outputs"):
        evaluate(task(), examples, features, logits[:4])


def test_tokenizer_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a tokenizer at .*tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a readable tokenizer"):
        load_tokenizer(tmp_path)
    demo.make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).token_to_id("soup") == demo.make_tokenizer().token_to_id("soup")


def test_no_torch() -> None:
    code = "import toolkit.tasks, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "folder", "train", "evaluation"),
    [("sst2", "glue/SST-2", 67349, 872), ("mrpc", "glue/MRPC", 3668, 408)],
)
def test_real_files(data_dir: Path, name: str, folder: str, train: int, evaluation: int) -> None:
    real = task(name, data_dir=str(data_dir / folder))
    assert len(load_examples(real, "train", 0)) == train
    assert len(load_examples(real, "eval", 0)) == evaluation
