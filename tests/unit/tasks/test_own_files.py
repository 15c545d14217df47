"""Own files of every kind and suffix, labels found in them, and a sentence for every fault."""

import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from support import configs

from toolkit.config import TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.tasks import check_names, encode, find_labels, load_examples
from toolkit.tasks.demo import make_tokenizer
from toolkit.tasks.labels import learnt
from toolkit.tasks.on_disk import OnDisk
from toolkit.tasks.rows import read_rows

ROWS = [
    {"text": 'so "good", it', "other": "b", "label": "yes"},
    {"text": "bad", "other": "d", "label": "no"},
    {"text": "fine", "other": "f", "label": "yes"},
]


def own(kind: str, *overrides: str) -> TaskConfig:
    return configs.task(kind, *overrides)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def save(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the form that a suffix says."""
    path = folder / f"own{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        write(path, "".join(json.dumps(row) + "\n\n" for row in rows))
    elif suffix == ".csv":
        quoted = [['"' + str(value).replace('"', '""') + '"' for value in r.values()] for r in rows]
        write(path, "\r\n".join(map(",".join, [[*rows[0]], *quoted])))
    else:
        lines = [[*rows[0]], *([str(value) for value in r.values()] for r in rows)]
        write(path, "\ufeff" + "\n".join(map("\t".join, lines)) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_suffix_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path, suffix, ROWS)
    files = (f"train_file={path}", f"eval_file={path}", "text_columns=[text,other]")
    task = find_labels(own("text_classification", *files), None)
    assert (task.label_names, task.num_labels) == (["no", "yes"], 2)
    assert [*load_examples(task, "eval", 0)] == [
        {"text": 'so "good", it', "text_pair": "b", "label": 1},
        {"text": "bad", "text_pair": "d", "label": 0},
        {"text": "fine", "text_pair": "f", "label": 1},
    ]
    assert len(load_examples(own(task.name, *files, "max_eval_samples=2"), "eval", 0)) == 2


@pytest.mark.parametrize(
    ("labels", "known", "names"),
    [
        (["b", "a", "c"], None, ["a", "b", "c"]),
        ([10, 9, 2], None, ["2", "9", "10"]),  # by their value
        ([1.0, 0, True], None, ["0", "1", "true"]),
        (["neg", "pos"], ["pos", "neg", "none"], ["pos", "neg", "none"]),  # the model's order
        ([1, 0], ["pos", "neg"], ["pos", "neg"]),
        (["neg", "pos"], ["dog", "cat"], ["neg", "pos"]),  # which was trained on something else
    ],
)
def test_labels_are_found_in_the_data(
    tmp_path: Path, labels: list[Any], known: list[str] | None, names: list[str]
) -> None:
    rows = [{"sentence": "x", "label": label} for label in labels]
    path = save(tmp_path, ".jsonl", rows)
    task = find_labels(own("text_classification", f"train_file={path}"), known)
    assert (task.label_names, task.num_labels) == (names, len(names))
    assert find_labels(task, None) is task
    stated = own("text_classification", f"train_file={path}", "label_names=[x,y]")
    assert find_labels(stated, known) is stated


def test_labels_of_a_model_that_has_learnt(tmp_path: Path) -> None:
    task = own("text_classification")
    assert learnt(task, {"1": "b", "0": "a"}).label_names == ["a", "b"]
    plain = learnt(task, {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    assert (plain.label_names, plain.num_labels) == (None, 3)
    with pytest.raises(UsageError, match=r"state them with task\.label_names"):
        learnt(task, {})
    assert learnt(own("demo"), {"0": "x"}).label_names is None
    stated = own("text_classification", "label_names=[a,b]")
    assert learnt(stated, {"0": "a", "1": "b"}) is stated
    with pytest.raises(UsageError, match=r"has the labels b, a in this order, .* has a, b: state"):
        learnt(stated, {"0": "b", "1": "a"})


TSV = "sentence\tlabel\n"
FAULTS = [
    # a broken row, more and fewer fields
    ("a.csv", "sentence,label\nx,1\ny\n", (), "a.csv, line 3: expected 2 comma-separated fields"),
    ("a.csv", 'sentence,label\n"x\ny",1\na,b,c\n', (), "a.csv, line 4: expected 2 comma-sep"),
    ("a.csv", 'sentence,label\nx,1\n"y\nz', (), "a.csv, line 3: the row that begins here is no"),
    ("a.csv", 'sentence,label\n"x"y,1\n', (), "a.csv, line 2: the row that begins here is no CSV"),
    ("a.tsv", TSV + "x\t1\t2\n", (), "line 2: expected 2 tab-separated fields as in the first"),
    ("a.tsv", "x\t1\t2\n", ("header=[sentence,label]",), "line 1: expected 2 tab-separated fields"),
    ("a.jsonl", '{"sentence": "x", "label": 1}\n{"sen\n', (), "a.jsonl, line 2: not JSON ("),
    ("a.json", '[\n{"sentence": "x"}]', (), "expected one object per line, not one array or obj"),
    ("a.jsonl", "[1]\n", (), "a.jsonl, line 1: expected a JSON object; found [1]"),
    ("a.jsonl", "[" * 100_000, (), "a.jsonl, line 1: JSON nested too deeply to be a row"),
    ("a.parquet", b"PAR1 no", (), "a.parquet as Parquet ("),
    # a missing value
    ("a.csv", "sentence,label\n,1\n", (), "line 2: expected a text in column 'sentence'; it is"),
    ("a.csv", "sentence,label\nx,\n", (), "line 2: expected a label in column 'label'; it is"),
    ("a.jsonl", '{"sentence": null, "label": 1}', (), "line 1: expected a text in column 'sente"),
    ("a.jsonl", '{"sentence": 5, "label": 1}', (), "in column 'sentence'; found 5"),
    ("a.jsonl", '{"sentence": "x", "label": NaN}', (), "expected a label in column 'label'; fou"),
    ("a.jsonl", '{"sentence": "x", "label": [1]}', (), "found [1]: several labels each need task"),
    # a column that is not there, or twice
    ("a.csv", "sentense,label\nx,1\n", (), "line 1: expected the column 'sentence' of task=text_c"),
    ("a.csv", "sentense,label\nx,1\n", (), "did you mean 'sentense'?"),
    ("a.jsonl", '{"sentence": "x", "lable": 1}', (), "did you mean 'lable'?"),
    ("a.tsv", "a\ta\n", (), "a.tsv, line 1: the column 'a' is there twice"),
    ("a.csv", "x\n", ("header=[text,label]",), "task.header: expected the column 'sentence'"),
    # the whole file
    ("a.csv", "", (), "a.csv is empty: task=text_classification expects at least one row there"),
    ("a.csv", "sentence,label\n", (), "a.csv has no rows: task=text_classification expects at lea"),
    ("a.csv", b"sentence,label\nx,1\ncaf\xe9,0\n", (), "line 3: the byte 0xe9 at position 4 is no"),
    ("a.csv", "sentence,label\n".encode("utf-16"), (), "a.csv is in UTF-16: save it as UTF-8"),
    ("a.xlsx", "x", (), "expected a file that ends in .csv, .tsv, .jsonl, .json, .parquet, by wh"),
    ("a", "x", (), "by which it is read; found 'no suffix'"),
    ("a.csv", "sentence,label\nx,1\ny,1\n", (), "all rows have the label '1', so that there is no"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "overrides", "says"), FAULTS)
def test_every_fault_has_its_sentence(
    tmp_path: Path, name: str, content: str | bytes, overrides: tuple[str, ...], says: str
) -> None:
    path = write(tmp_path / name, content)
    task = own("text_classification", f"train_file={path}", f"eval_file={path}", *overrides)
    with pytest.raises(InputError) as caught:
        find_labels(task, None)
    assert says in str(caught.value)
    assert name in str(caught.value) or "task.header" in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "but that is a folder"), (tmp_path / "no.csv", "there is none")):
        with pytest.raises(InputError, match=says):
            find_labels(own("text_classification", f"train_file={path}"), None)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # a hole of a gigabyte
    with pytest.raises(InputError, match=r"line 1: longer than 16 MiB"):
        next(iter(read_rows(path, own("text_classification"))))


def test_a_label_seen_in_evaluation_only(tmp_path: Path) -> None:
    learnt_from = write(tmp_path / "train.csv", "sentence,label\nx,good\ny,bad\n")
    judged_by = write(tmp_path / "eval.csv", "sentence,label\nx,good\ny,goood\n")
    files = (f"train_file={learnt_from}", f"eval_file={judged_by}")
    task = find_labels(own("text_classification", *files), None)
    says = (
        r"eval\.csv, line 3: .* bad or good, in column 'label'; found 'goood'; did you mean 'good'"
    )
    with pytest.raises(InputError, match=says + r".*add rows with this one there"):
        load_examples(task, "eval", 0)


def test_torn_rows_are_left_out_only_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    write(tmp_path / "dev.tsv", header + "1\t2\t3\ta\tb\t1\n4\t5\n6\t7\t8\tc\t\t0\n9\n")
    qqp = configs.task("qqp", f"data_dir={tmp_path}")
    for _ in range(2):
        assert [example["text_pair"] for example in load_examples(qqp, "eval", 0)] == ["b", ""]
    said = capsys.readouterr().out
    assert said.count("2 rows with another number of fields than 6 are left out") == 1
    assert "the first in line 3" in said


def test_too_many_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.tasks.MOST", 3)
    path = write(tmp_path / "a.csv", "sentence,label\n" + "".join(f"x,{i}\n" for i in range(5)))
    with pytest.raises(InputError, match=r"more than 3 different labels.*task=regression"):
        find_labels(own("text_classification", f"train_file={path}"), None)


def test_an_equal_share_of_each_label_is_held_out(tmp_path: Path) -> None:
    labels = ["often"] * 80 + ["seldom"] * 19 + ["once"]
    rows = [{"sentence": f"x{i}", "label": label} for i, label in enumerate(labels)]
    path = save(tmp_path, ".csv", rows)
    task = find_labels(own("text_classification", f"train_file={path}"), None)
    parts = {}
    for seed in (0, 1):
        train, judged = (load_examples(task, split, seed) for split in ("train", "eval"))
        texts = {example["text"] for example in judged}
        assert len(train) == 90
        assert texts.isdisjoint(example["text"] for example in train)
        counts = np.bincount([example["label"] for example in judged], minlength=3)
        assert counts.tolist() == [8, 0, 2]  # often, once, seldom
        parts[seed] = texts
    assert parts[0] != parts[1]
    few = save(tmp_path, ".tsv", rows[:5])
    with pytest.raises(InputError, match=r"has 5 rows, too few to judge"):
        load_examples(own("text_classification", f"train_file={few}"), "eval", 0)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_several_labels_each(tmp_path: Path, suffix: str) -> None:
    lists: list[Any] = [["b", "a"], ["c"], [], ["a"]]
    if suffix == ".csv":
        lists = ["|".join(labels) for labels in lists]
    rows = [{"sentence": f"x{i}", "label": labels} for i, labels in enumerate(lists)]
    path = save(tmp_path, suffix, rows)
    given = (f"train_file={path}", f"eval_file={path}", "multi_label=true", "metrics=[f1_micro]")
    task = find_labels(own("text_classification", *given), None)
    assert task.label_names == ["a", "b", "c"]
    examples = load_examples(task, "train", 0)
    assert [sorted(example["label"]) for example in examples] == [[0, 1], [2], [], [0]]
    features = encode(examples, make_tokenizer(), task, training=True)
    assert [feature["labels"] for feature in features] == [
        [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0],
    ]  # fmt: skip


def test_regression(tmp_path: Path) -> None:
    path = save(
        tmp_path, ".jsonl", [{"sentence": "x", "label": "2.5"}, {"sentence": "y", "label": 1}]
    )
    given = own("regression", f"train_file={path}", f"eval_file={path}")
    assert find_labels(given, None) is given
    features = encode(load_examples(given, "train", 0), make_tokenizer(), given, training=True)
    assert [feature["labels"] for feature in features] == [2.5, 1.0]
    for value in ('"much"', "null", "true", "NaN"):
        write(path, f'{{"sentence": "x", "label": {value}}}')
        with pytest.raises(InputError, match=r"line 1: expected a number in column 'label'"):
            load_examples(given, "eval", 0)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("multi_label=true",), "task.multi_label=true cannot be judged by"),
        (("label_names=[a,b,c]",), "the metric f1 judges the second of two labels"),
        (("label_names=[a,b]", "class_weights=[1,2,3]"), "must hold task.num_labels=2 numbers"),
    ],
)
def test_what_does_not_go_together(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_names(own("text_classification", "metrics=[f1,mcc]", *overrides))
    with pytest.raises(UsageError, match=r"kind regression|of kind regression"):
        check_names(own("regression", "class_weights=balanced"))
    with pytest.raises(UsageError, match=r"multi_label=true gives a text several labels"):
        check_names(own("regression", "multi_label=true"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("text_columns=[a,a]",), "task.text_columns must not name anything twice"),
        (("text_columns=[a,b,c]",), "must name one column, or two for pairs"),
        (("label_column=sentence",), "task.label_column=sentence is among task.text_columns"),
        (("metrics=[mcc,mcc]",), "task.metrics must not name anything twice"),
        (("label_names=[a,a]",), "task.label_names must not name anything twice"),
        (("data_dir=x", "train_file=y"), "give one of the two"),
        (("class_weights=equal",), "must be balanced, null, or a list of numbers >= 0"),
        (("class_weights=[1,-1]",), "must be balanced, null, or a list of numbers >= 0"),
        (("threshold=1",), "task.threshold must be in (0, 1); got 1"),
        (("label_separator=''",), "task.label_separator must be at least one character"),
    ],
)
def test_options_that_contradict_each_other(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        own("text_classification", *overrides)
    assert says in str(caught.value)


def test_on_disk(tmp_path: Path) -> None:
    items = OnDisk({"text": "x" * i} for i in range(5))
    assert [*items] == [{"text": "x" * i} for i in range(5)]
    assert (len(items), items[-1]) == (5, {"text": "xxxx"})
    part = items[1:4].pick(np.array([2, 0]))
    del items  # the file stays
    assert [*part] == [{"text": "xxx"}, {"text": "x"}]
    with pytest.raises(IndexError):
        part[2]
    assert not OnDisk([])


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        return Path("/dev/full").open("wb", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match=r"No space left on device.*TMPDIR=DIR"):
        OnDisk(["x"])


@pytest.mark.slow
def test_a_file_is_never_in_memory_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.tasks.ENCODED", 64)
    path, text, count = tmp_path / "a.csv", "the soup was good and the bread was bad " * 100, 2_000
    rows = (f"{text}{i},{i % 2}\n" for i in range(count))
    write(path, "sentence,label\n" + "".join(rows))
    task = own("text_classification", f"train_file={path}", "label_names=[a,b]", "max_length=512")
    tracemalloc.start()
    try:
        examples = load_examples(task, "train", 0)
        read = tracemalloc.get_traced_memory()[1]
        features = encode(examples, make_tokenizer(), task, training=True)
        encoded = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(features) == len(examples) == count * 9 // 10
    assert read < path.stat().st_size / 3  # 8 MB, two of them waiting to be written
    assert encoded < count * 512 * 3 * 8 / 3  # as lists of Python's integers
