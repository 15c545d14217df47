"""The named tasks: every GLUE folder in its official layout, and SQuAD v2 by its script."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import configs

from toolkit.errors import InputError, UsageError
from toolkit.tasks import check_names, encode, evaluate, load_examples
from toolkit.tasks.demo import make_tokenizer
from toolkit.tasks.question_answering import scores_of_v2

MNLI = "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label"
PAIR = "index\tsentence1\tsentence2\tlabel"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
LAYOUTS = [
    # task, file, header and one row in the official layout, the label, the hub's spelling
    ("cola", "dev.tsv", "gj04\t0\t*\tThey made.", 0),
    ("sst2", "dev.tsv", "sentence\tlabel\nThey made.\t1", 1),
    ("mrpc", "dev.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\tThey made.\tb", 1),
    ("stsb", "dev.tsv", f"{STSB}\n0\tg\tf\t1\t2\tn\tn\tThey made.\tb\t2.400", 2.4),
    ("qqp", "dev.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
                       "0\t1\t2\tThey made.\tb\t0", 0),
    ("mnli", "dev_matched.tsv", f"{MNLI}\n0\t1\t2\tg\tThey made.\tb\tneutral\tcontradiction", 2),
    ("mnli_mismatched", "dev_mismatched.tsv", f"{MNLI}\n0\t1\t2\tg\tThey made.\tb\tx\tneutral", 1),
    ("qnli", "dev.tsv", "index\tquestion\tsentence\tlabel\n0\tThey made.\tb\tnot_entailment", 1),
    ("rte", "dev.tsv", f"{PAIR}\n0\tThey made.\tb\tentailment", 0),
    ("wnli", "dev.tsv", f"{PAIR}\n0\tThey made.\tb\t1", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "label"), LAYOUTS)
def test_glue_in_its_official_layout(
    tmp_path: Path, name: str, file: str, content: str, label: Any
) -> None:
    (tmp_path / file).write_text(content + "\n")
    task = configs.task(name, f"data_dir={tmp_path}")
    check_names(task)
    (example,) = load_examples(task, "eval", 0)
    pair = None if name in ("cola", "sst2") else "b"
    assert example == {"text": "They made.", "text_pair": pair, "label": label}
    features = encode([example], make_tokenizer(), task, training=True)
    assert features[0]["labels"] == label


@pytest.mark.parametrize("name", [layout[0] for layout in LAYOUTS])
def test_glue_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    task = configs.task(name)
    columns = task.columns
    row = {columns["text"]: " a ", columns.get("text_pair"): "b", columns["label"]: 1}

    def load(*path: str, split: str) -> list[Any]:
        assert path == ("nyu-mll/glue", "mnli" if name.startswith("mnli") else name)
        assert split.startswith("validation")
        return [row]

    monkeypatch.setattr(datasets, "load_dataset", load)
    (example,) = load_examples(task, "eval", 0)
    assert example["label"] == 1
    # a test split, whose labels are withheld
    row[columns["label"]] = -1
    if task.kind == "text_classification":
        with pytest.raises(InputError, match=rf"task={name}: expected a label.*found '-1'"):
            load_examples(task, "eval", 0)


def squad(folder: Path, *overrides: str) -> Any:
    return configs.task("squad_v2", f"data_dir={folder}", *overrides)


def test_squad_v2_is_read(tmp_path: Path) -> None:
    questions = [
        {"id": "1", "question": "What?", "answers": [{"text": "soup", "answer_start": 4}],
         "is_impossible": False},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True,
         "plausible_answers": [{"text": "good", "answer_start": 13}]},
    ]  # fmt: skip
    document = {"data": [{"paragraphs": [{"context": "the soup was good", "qas": questions}]}]}
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        (tmp_path / name).write_text(json.dumps(document))
    task = squad(tmp_path, "max_length=24", "doc_stride=4")
    examples = load_examples(task, "train", 0)
    assert [len(example["answers"]) for example in examples] == [1, 0]
    features = encode(examples, make_tokenizer(), task, training=True)
    assert [feature["start_positions"] for feature in features][1] == 0  # [CLS]
    assert features[0]["start_positions"] == features[0]["end_positions"] > 0
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"task\.has_unanswerable=true allows none"):
        load_examples(configs.task("squad", f"data_dir={tmp_path}"), "eval", 0)
    with pytest.raises(UsageError, match="the metric NoAns_f1 is about questions that may have no"):
        check_names(configs.task("squad", "metrics=[NoAns_f1]"))

    judged = encode(examples, make_tokenizer(), task, training=False)
    outputs = []
    for feature in judged:
        logits = np.full((2, len(feature["input_ids"])), -9.0)
        logits[:, 0] = 1.0  # no answer: 2
        place = next(i for i, span in enumerate(feature["offsets"]) if span and span[0] == 4)
        logits[:, place] = 1.5 if feature["example_index"] == 0 else 0.5  # soup: 3, and 1
        outputs.append(logits)
    scores = evaluate(task, examples, judged, outputs)
    assert list(scores) == task.metrics
    assert set(scores.values()) == {100.0}
    never = squad(tmp_path, "no_answer_threshold=5", "metrics=[exact,NoAns_exact,best_exact]")
    assert evaluate(never, examples, judged, outputs) == {
        "exact": 50.0, "NoAns_exact": 0.0, "best_exact": 100.0
    }  # fmt: skip


def test_scores_of_squad_v2_against_the_official_definitions() -> None:
    """Thresholds tried one by one, instead of in one pass over sorted margins."""
    rng = np.random.default_rng(0)
    examples = [
        {"answers": [{"text": "the red car"}, {"text": "car"}] if i % 3 else []} for i in range(40)
    ]
    answers = [["red car", "a blue car", "bus"][i] for i in rng.integers(0, 3, 40)]
    margins = rng.permutation(40).astype(float)
    tried = [scores_of_v2(examples, answers, margins, t) for t in np.arange(-1.0, 41)]
    for name in ("exact", "f1"):
        best = max(scores[name] for scores in tried)
        for scores in tried:
            assert scores[f"best_{name}"] == pytest.approx(best)
            shares = 26 * scores[f"HasAns_{name}"] + 14 * scores[f"NoAns_{name}"]
            assert scores[name] == pytest.approx(shares / 40)
    assert tried[0]["NoAns_f1"] == 100.0
    assert tried[0]["HasAns_f1"] == 0.0
    given = tried[-1]  # all answers: right are "red car", and "a blue car" shares a word of two
    right = [a == "red car" for a, e in zip(answers, examples, strict=True) if e["answers"]]
    assert given["HasAns_exact"] == pytest.approx(100 * np.mean(right))


@pytest.mark.parametrize("form", ["hub", "list", "text"])
def test_own_questions(tmp_path: Path, form: str) -> None:
    found: Any = {"text": ["soup"], "answer_start": [5]}
    answers = {"hub": found, "list": [{"text": "soup", "answer_start": 5}], "text": "soup"}[form]
    row = {"question": "What?", "context": " the soup", "answers": answers}
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"answers": None}))
    files = (f"train_file={path}", f"eval_file={path}")
    task = configs.task("question_answering", *files, "has_unanswerable=true")
    answered, unanswerable = load_examples(task, "train", 0)
    assert answered["answers"] == [{"text": "soup", "answer_start": 5}]
    assert answered["context"][5:9] == "soup"
    assert unanswerable["answers"] == []
    with pytest.raises(InputError, match=r"line 2: the question has no answer: set task\.has_una"):
        load_examples(configs.task("question_answering", *files), "train", 0)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ("bread", "expected an answer that the context has, in column 'answers'; found 'bread'"),
        ({"text": ["soup"], "answer_start": [2]}, "expected the answer 'soup' at character 2 of"),
        ({"text": ["soup"], "answer_start": [-4]}, "expected the answer 'soup' at character -4 of"),
        ({"text": ["soup"]}, "expected answers in column 'answers': a text of the context, or"),
        (5, "expected answers in column 'answers'"),
    ],
)
def test_answers_that_are_not_there(tmp_path: Path, answers: Any, says: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "What?", "context": "the soup", "answers": answers}))
    files = (f"train_file={path}", f"eval_file={path}")
    with pytest.raises(InputError) as caught:
        load_examples(configs.task("question_answering", *files), "train", 0)
    assert f"{path}, line 1: {says}" in str(caught.value)
