"""What CONTRIBUTING promises: a data set is one YAML file, an engine one entry, a kind one module.

Real processes; what a contributor would write into the package stands in a folder of its own, and
`sitecustomize` puts it into the tables of every process, those of the engines included.
"""

import csv
import os
from pathlib import Path

import pytest
from conftest import Run
from support.configs import TINY_MODEL

from toolkit.record import read_record

TINY = (
    *TINY_MODEL,
    "trainer.num_train_epochs=1",
    "trainer.per_device_train_batch_size=8",
    "trainer.use_cpu=true",
    "export.num_parity_examples=2",
)
QUICK = ("batch_size=2", "seq_len=16", "seconds=0", "min_iterations=1")
THEN = ("then=[export,bench]", "bench.accuracy=true", *(f"bench.{setting}" for setting in QUICK))
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # tests share the machine

ANSWERS = """\
# Does the sentence answer the question?
defaults:
  - demo
  - _self_

name: answers
path: [mine/answers]
columns: {text: question, text_pair: sentence, label: label}
label_names: [entailment, not_entailment]
metrics: [mcc, f1, accuracy]
max_length: 48
"""


def test_a_data_set_is_one_yaml_file(toolkit: Run, tmp_path: Path) -> None:
    write(tmp_path / "mine" / "task" / "answers.yaml", ANSWERS)
    for split, count in (("train", 32), ("dev", 8)):
        lines = ["index\tquestion\tsentence\tlabel"]
        for number in range(count):
            answer = ("It was good.", "entailment") if number % 2 else ("Rain.", "not_entailment")
            lines.append(f'{number}\tHow was the "film"?\t{answer[0]}\t{answer[1]}')
        write(tmp_path / "data" / f"{split}.tsv", "\n".join(lines) + "\n")
    done = toolkit(
        *("train", "hydra.searchpath=[file://mine]", "task=answers", "task.data_dir=data"),
        *(*TINY, *THEN, "output_dir=run"),
        **ONE_THREAD,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run")
    assert list(record["metrics"]) == ["task", "num_examples", "mcc", "f1", "accuracy"]
    assert (record["metrics"]["task"], record["metrics"]["num_examples"]) == ("answers", 8)
    (entry,) = record["speed"]
    assert [*entry["metrics"]][:3] == ["mcc", "f1", "accuracy"]
    for metric in ("mcc", "f1", "accuracy"):  # the engine's file and the Trainer's model agree
        assert entry["metrics"][metric] == pytest.approx(record["metrics"][metric])


TAGGING = '''\
"""Which of C classes each word belongs to. An example: `words`, `labels` (lists of one length)."""

import numpy as np

from toolkit.files import read_text
from toolkit.tasks.features import IGNORED, feature_of, unset

AUTO_CLASS = "AutoModelForTokenClassification"
OUTPUTS = ("logits",)
TARGETS = ("labels",)


def read_file(path, task):
    lines = read_text(path, f"task={task.name}").splitlines()
    pairs = [[word.split("/") for word in line.split()] for line in lines]
    return [
        {"words": [word for word, _ in line], "labels": [int(label) for _, label in line]}
        for line in pairs
    ]


def encode(examples, tokenizer, task, training):
    tokenizer = unset(tokenizer)
    tokenizer.enable_truncation(task.max_length)
    features = []
    for index, example in enumerate(examples):
        encoding = tokenizer.encode(example["words"], is_pretokenized=True)
        before, labels = None, []
        for word in encoding.word_ids:
            is_first = word is not None and word != before
            labels.append(example["labels"][word] if is_first else IGNORED)
            before = word
        features.append(feature_of(encoding, index, labels=labels))
    return features


def score(examples, features, outputs, task):
    right = []
    for feature, logits in zip(features, outputs, strict=True):
        labels = np.array(feature["labels"])
        is_judged = labels != IGNORED
        found = np.argmax(logits[: len(labels)], axis=1)
        right += list(found[is_judged] == labels[is_judged])
    return {"word_accuracy": 100.0 * np.mean(right)}


METRICS = {"word_accuracy": score}
'''


def test_a_kind_of_task_is_one_module(toolkit: Run, tmp_path: Path) -> None:
    write(tmp_path / "site" / "tagging.py", TAGGING)
    write(
        tmp_path / "site" / "sitecustomize.py",
        "import tagging, toolkit.tasks\ntoolkit.tasks.KINDS['tagging'] = tagging\n",
    )
    write(
        tmp_path / "mine" / "task" / "tags.yaml",
        "defaults: [demo, _self_]\nname: tags\nkind: tagging\nfiles: {train: t.txt, eval: e.txt}\n"
        "metrics: [word_accuracy]\nnum_labels: 3\nmax_length: 32\n",
    )
    lines = ["the/0 film/1 was/2 good/1", "unknownword/1 was/2 never/0 bad/1 ,/0"]
    write(tmp_path / "data" / "t.txt", "\n".join(lines * 16))
    write(tmp_path / "data" / "e.txt", "\n".join(lines * 3))
    environment = ONE_THREAD | on_path(tmp_path / "site")
    done = toolkit(
        *("train", "hydra.searchpath=[file://mine]", "task=tags", "task.data_dir=data"),
        *(*TINY, *THEN, "bench.against=[torch]", "trainer.learning_rate=1e-2", "output_dir=run"),
        **environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run")
    assert record["metrics"]["word_accuracy"] > 80  # each word has one tag
    for entry in record["speed"]:
        assert entry["metrics"]["word_accuracy"] == record["metrics"]["word_accuracy"]


ENGINE = """\
from pathlib import Path

import numpy

from toolkit.measure import engines


def load(state, path, num_threads, **_):
    run = engines.onnxruntime_run(Path(path), num_threads)
    state["run"] = run
    return {"version": numpy.__version__}


engines.ENGINES["mine"] = engines.EngineEntry(
    load=load, module="numpy", remedy="pip install numpy", marker="square", dash=(2, 2)
)
"""


def test_an_engine_is_one_entry(toolkit: Run, tmp_path: Path) -> None:
    environment = ONE_THREAD | on_path(tmp_path / "site")
    made = toolkit("export", *TINY[:4], "output_dir=made", **ONE_THREAD, timeout=300)
    assert made.returncode == 0, made.stderr
    write(tmp_path / "site" / "sitecustomize.py", ENGINE)
    write(tmp_path / "mine" / "engine" / "mine.yaml", "defaults: [sparse, _self_]\nname: mine\n")
    option = ["engine=mine", "hydra.searchpath=[file://mine]"]
    run = toolkit(
        *("bench", "onnx=made", *option, "against=[sparse]", *QUICK, "output_dir=run"),
        **environment,
    )
    assert run.returncode == 0, run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()[2:4]] == ["mine", "sparse"]
    entry = read_record(tmp_path / "run")["speed"][0]
    assert (entry["engine"], entry["ratio_to"]["ratio"]) == ("mine", 1)
    typed = toolkit("bench", "onnx=made", "against=[mien]", **environment)
    assert typed.returncode == 2
    assert "'mien' is no engine; did you mean 'mine'?" in typed.stderr
    report = toolkit("report", "run", "output_dir=report", **environment)
    assert report.returncode == 0, report.stderr
    with (tmp_path / "report" / "results.csv").open() as file:
        assert {row["engine"] for row in csv.DictReader(file)} == {"mine", "sparse"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def on_path(folder: Path) -> dict[str, str]:
    """The environment in which every interpreter finds a folder's modules."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}
