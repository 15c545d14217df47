"""Damaged files: refused with a sentence, or run; `make fuzz` looks further."""

import random
from pathlib import Path

from .conftest import Case, Export
from .fuzz_graph import check, damage


def test_a_damaged_file_is_refused_or_runs(export_case: Export, tmp_path: Path) -> None:
    content = export_case(Case()).read_bytes()
    path = tmp_path / "model.onnx"
    outcomes = set()
    for seed in range(100):
        path.write_bytes(damage(content, random.Random(seed)))
        outcomes.add(check(path))
    assert {"refused", "run"} <= outcomes
