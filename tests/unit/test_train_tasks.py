"""Every kind of task from own files, through everything: labels from the data, a teacher, pruning,
INT8, export, bench with accuracy, report.
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.configs import TINY_MODEL, compose
from transformers import pipeline

from toolkit.config import ReportRoot
from toolkit.errors import InputError, UsageError
from toolkit.record import read_record
from toolkit.report import report
from toolkit.tasks.demo import BAD, GOOD, NOUNS
from toolkit.train import train

pytestmark = pytest.mark.slow

TINY = (
    *TINY_MODEL,
    "trainer.num_train_epochs=6",
    "trainer.per_device_train_batch_size=16",
    "trainer.learning_rate=5e-3",
    "trainer.warmup_steps=0",
    "trainer.disable_tqdm=true",
    "trainer.use_cpu=true",
    "trainer.bf16=false",
    "task.max_length=16",
    "engine.num_threads=1",
)
STUDENT = (
    "sparsity=prune80_block4",
    "sparsity.start_epoch=0",
    "sparsity.end_epoch=2",
    "sparsity.final_sparsity=0.5",
    "depth.num_layers=1",
    "teacher=dense",
    "teacher.hardness=0.5",
)
INT8 = ("quantization=int8", "quantization.start_epoch=3")
BENCH = (
    "then=[export,bench]",
    "bench.accuracy=true",
    "bench.against=[onnxruntime]",
    "bench.batch_size=4",
    "bench.seq_len=16",
    "bench.seconds=0",
    "bench.min_iterations=1",
    "export.num_parity_examples=4",
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentences(count: int) -> list[tuple[str, str, str]]:
    """Make a sentence each, with its noun and its adjective."""
    generator = random.Random(0)
    pairs = [(generator.choice(NOUNS), generator.choice(GOOD + BAD)) for _ in range(count)]
    return [(f"the {noun} was {adjective}", noun, adjective) for noun, adjective in pairs]


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    tiny = [
        each for each in TINY if "model=local" not in overrides or not each.startswith("model.")
    ]
    train(replace(compose("train", *tiny, *overrides), output_dir=str(folder)))
    return read_record(folder)


def both(tmp_path: Path, *task: str, more: tuple[str, ...] = ()) -> tuple[dict[str, Any], Any]:
    """Train a teacher and a student of it, and put both in a report; return the student's."""
    run(tmp_path / "teacher", *task)
    teacher = f"teacher.path={tmp_path / 'teacher' / 'checkpoint'}"
    record = run(tmp_path / "student", *task, *STUDENT, teacher, *BENCH, *more)
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.5, abs=0.02)
    folder = str(tmp_path / "report")
    report(ReportRoot(paths=[str(tmp_path)], select=None, within=0.01, output_dir=folder))
    assert record["metrics"]["task"] in (tmp_path / "report" / "report.md").read_text()
    config = json.loads((tmp_path / "student" / "export" / "config.json").read_text())
    return record, config


def agree(record: dict[str, Any], within: float = 0.0) -> None:
    """The engines say of the exported file what the Trainer said of the model, in percent."""
    names = [name for name in record["metrics"] if name not in ("task", "num_examples")]
    assert len(record["speed"]) == 2
    for entry in record["speed"]:
        for name in names:
            assert entry["metrics"][name] == pytest.approx(
                record["metrics"][name], abs=within + 1e-3
            )


def test_words_for_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three labels, weighed; the names are in the checkpoint and the export."""
    rows = [
        {
            "id": i,
            "review": text,
            "opinion": "none" if noun < "d" else "good" if a in GOOD else "bad",
        }
        for i, (text, noun, a) in enumerate(sentences(300))
    ]
    file = write(tmp_path / "own.jsonl", rows)
    task = ("task=text_classification", f"task.train_file={file}", "task.text_columns=[review]",
            "task.label_column=opinion", "task.class_weights=balanced")  # fmt: skip
    record, config = both(tmp_path, *task)
    said = capsys.readouterr().out
    assert f"judged on 30 examples held out of {file} by seed=42, an equal share of each" in said
    assert "weights of the labels in the loss: bad " in said
    assert record["metrics"]["accuracy"] > 60
    agree(record)
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "none"}
    assert config["problem_type"] == "single_label_classification"
    checkpoint = str(tmp_path / "student" / "checkpoint")
    say = pipeline("text-classification", model=checkpoint, device="cpu")
    assert say("the wine was great")[0]["label"] in ("bad", "good", "none")

    # on from the checkpoint, with labels that its head has in another order than the alphabet's
    path = tmp_path / "student" / "checkpoint" / "config.json"
    names = {"0": "none", "1": "good", "2": "bad"}
    path.write_text(path.read_text().replace('"bad"', '"?"').replace('"none"', '"bad"').replace('"?"', '"none"'))  # fmt: skip # noqa: E501
    again = ("model=local", f"model.path={checkpoint}", "trainer.num_train_epochs=0")
    run(tmp_path / "again", *task[:4], *again)
    config = json.loads((tmp_path / "again" / "checkpoint" / "config.json").read_text())
    assert config["id2label"] == names
    # a teacher whose labels are others, or in another order
    teacher = ("teacher=dense", f"teacher.path={checkpoint}")
    with pytest.raises(InputError, match=r"for the labels none, good or bad, .* in another order"):
        run(tmp_path / "x", *task, *teacher)
    with pytest.raises(InputError, match=r"good or bad, but .* has a, b or c, which are others"):
        run(tmp_path / "x", *task, *teacher, "task.label_names=[a,b,c]")
    with pytest.raises(InputError, match=r"was made for 3 labels, but task=demo has 2"):
        run(tmp_path / "x", "task=demo", *teacher)
    with pytest.raises(UsageError, match=r"the metric f1 judges the second of two labels"):
        run(tmp_path / "x", *task, "task.metrics=[f1]")
    assert not (tmp_path / "x").exists()


def test_several_labels_each(tmp_path: Path) -> None:
    """In INT8."""
    rows = [
        {"sentence": text, "label": [*["early"] * (noun < "m"), *["good"] * (a in GOOD)]}
        for text, noun, a in sentences(300)
    ]
    file = write(tmp_path / "own.jsonl", rows)
    task = ("task=text_classification", f"task.train_file={file}", "task.multi_label=true",
            "task.metrics=[f1_micro,f1_macro,accuracy]")  # fmt: skip
    record, config = both(tmp_path, *task, more=INT8)
    assert record["metrics"]["f1_micro"] > 70
    agree(record, within=5)
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "early", "1": "good"}


def test_numbers(tmp_path: Path) -> None:
    rows = [
        {"one": text, "two": "the soup was good", "score": 2.5 * (a in GOOD) + (noun < "m")}
        for text, noun, a in sentences(300)
    ]
    files = (f"task.train_file={write(tmp_path / 'own.jsonl', rows)}",
             f"task.eval_file={write(tmp_path / 'eval.jsonl', rows[:40])}")  # fmt: skip
    columns = ("task.text_columns=[one,two]", "task.label_column=score")
    record, config = both(tmp_path, "task=regression", *files, *columns)
    assert record["metrics"]["pearson"] > 70
    agree(record, within=0.01)
    assert config["problem_type"] == "regression"


def test_words_with_tags(tmp_path: Path) -> None:
    """In columns, in INT8."""
    tags = {True: "B-GOOD", False: "B-BAD"}
    lines = [
        f"the DT O\n{noun} NN I-THING\nwas VB O\n{a} JJ {tags[a in GOOD]}\n"
        for _, noun, a in sentences(200)
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "eval.txt").write_text("\n".join(lines[:30]))
    task = ("task=token_classification", f"task.train_file={tmp_path / 'train.txt'}",
            f"task.eval_file={tmp_path / 'eval.txt'}", "task.class_weights=balanced")  # fmt: skip
    record, config = both(tmp_path, *task, more=INT8)
    assert record["metrics"]["f1"] > 80
    agree(record, within=5)
    assert list(config["id2label"].values()) == ["B-BAD", "B-GOOD", "I-THING", "O"]
    tagger = pipeline(
        "token-classification", model=str(tmp_path / "student" / "checkpoint"), device="cpu"
    )
    assert {found["entity"] for found in tagger("the soup was good")} <= {
        *config["id2label"].values()
    }


def test_questions_of_which_some_have_no_answer(tmp_path: Path) -> None:
    rows = []
    for number, (text, noun, a) in enumerate(sentences(200)):
        question = f"how was the {noun if number % 3 else 'radio and the piano'}"
        rows.append({"question": question, "context": text, "answers": a if number % 3 else None})
    files = (f"task.train_file={write(tmp_path / 'own.jsonl', rows)}",
             f"task.eval_file={write(tmp_path / 'eval.jsonl', rows[:30])}")  # fmt: skip
    task = ("task=question_answering", *files, "task.has_unanswerable=true", "task.doc_stride=4",
            "task.metrics=[f1,exact,HasAns_f1,NoAns_f1,best_f1]", "task.max_length=24")  # fmt: skip
    record, _ = both(tmp_path, *task, more=("bench.seq_len=24",))
    assert record["metrics"]["best_f1"] >= record["metrics"]["f1"] > 50
    agree(record, within=0.01)
