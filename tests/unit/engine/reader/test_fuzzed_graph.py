"""Damaged files: refused with a sentence, or run; `make fuzz` looks further."""

import random
from pathlib import Path

import pytest
from support.fuzz_graph import check, damage
from support.graphs import Case, Export

pytestmark = pytest.mark.slow


def test_a_damaged_file_is_refused_or_runs(export_case: Export, tmp_path: Path) -> None:
    damaged_is_refused_or_runs(export_case(Case()).read_bytes(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "name", ["bert-text-classification-O2", "distilbert-question-answering-O3"]
)
def test_a_damaged_file_of_fused_operators_is_refused_or_runs(name: str, tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "data" / "optimum"
    damaged_is_refused_or_runs((folder / f"{name}.onnx").read_bytes(), tmp_path / "model.onnx")


def damaged_is_refused_or_runs(content: bytes, path: Path) -> None:
    outcomes = set()
    for seed in range(100):
        path.write_bytes(damage(content, random.Random(seed)))
        outcomes.add(check(path))
    assert {"refused", "run"} <= outcomes
