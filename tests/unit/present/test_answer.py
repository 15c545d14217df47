"""The sentence on top: for every kind of records there is one that is true."""

from typing import Any

import pytest
from support.records import published_grid, record, rows_of, speed, sweep

from toolkit.present.answer import answer


def said(records: list[dict[str, Any]], within: float = 0.01) -> list[str]:
    return [str(found) for found in answer(rows_of(records), within)]


def taught(**changes: Any) -> dict[str, Any]:
    student = record(**changes)
    student["config"] = {"teacher": {"name": "dense", "path": "runs/0/checkpoint"}}
    return student


def test_the_fastest_that_keeps_the_teachers_score() -> None:
    teacher = record(name="t", accuracy=95.5)  # trained, never timed
    students = [
        taught(zeros=0.5, accuracy=95.4, speeds=(speed("sparse", 20.0),)),
        taught(zeros=0.8, accuracy=95.0, speeds=(speed("sparse", 40.0),)),
        taught(zeros=0.9, accuracy=94.0, speeds=(speed("sparse", 400.0),)),
    ]
    assert said([teacher, *students]) == [
        "Fastest within 1 % of the teacher: demo 12 layers 80 % through sparse, accuracy 95.00 "
        "(the teacher 95.50), 40.0 texts/s, 2.0 × the speed of demo 12 layers 50 % through sparse."
    ]
    (loose,) = said([teacher, *students], within=0.02)
    assert "within 2 % of the teacher: demo 12 layers 90 % through sparse" in loose
    (strict,) = said([teacher, *students], within=0.0)
    assert strict.startswith(
        "No run stays within 0 % of the teacher; the nearest: demo 12 layers 50 % through sparse"
    )


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (  # no teacher: the dense model
            sweep(),
            "Fastest within 1 % of the dense model: demo 12 layers dense through sparse, accuracy "
            "96.00, 11.0 texts/s, 1.1 × the speed of demo 12 layers dense through onnxruntime.",
        ),
        (  # neither
            sweep()[2:],
            "Fastest within 1 % of the densest run: demo 6 layers 90 % through sparse, accuracy "
            "93.00 (the densest run 92.00), 110 texts/s, 2.2 × the speed of demo 6 layers 50 % "
            "through sparse.",
        ),
        (  # one run
            [record(accuracy=90.0, speeds=(speed("sparse", 5.0),))],
            "Fastest engine for the only run measured: demo 12 layers dense through sparse, "
            "accuracy 90.00, 5.0 texts/s.",
        ),
        (  # no accuracy
            published_grid()[:2],
            "Fastest, by speed alone (accuracy was not measured): bert_base 12 layers 80 % through "
            "sparse, 36.0 texts/s, 5.6 × the speed of bert_base 12 layers dense through "
            "onnxruntime.",
        ),
        (  # no speed
            [record(accuracy=90.0), record(zeros=0.8, accuracy=91.0)],
            "Not timed yet (toolkit bench onnx=DIR does); the best score: demo 12 layers 80 %, "
            "accuracy 91.00 (the dense model 90.00).",
        ),
        ([record()], "Not timed yet (toolkit bench onnx=DIR does): demo 12 layers dense."),
    ],
    ids=["dense", "densest", "one", "no accuracy", "no speed", "nothing"],
)
def test_other_records(records: list[dict[str, Any]], sentence: str) -> None:
    assert said(records) == [sentence]


def test_every_setting_has_an_answer() -> None:
    both = (speed("sparse", 5.0), speed("sparse", 30.0, batch_size=1))
    found = answer(rows_of([record(accuracy=90.0, speeds=both)]), 0.01)
    assert [each.title.split(",")[0] for each in found] == [
        "demo: 32 texts of 128 tokens",
        "demo: 1 texts of 128 tokens",
    ]
