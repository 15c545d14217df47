"""Fixtures of the unit tests."""

from pathlib import Path

import pytest
from support.graphs import Case, Export, write_case


@pytest.fixture(scope="session")
def export_case(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return the ONNX file of a case; each is exported once."""
    folder = tmp_path_factory.mktemp("graphs")

    def export(case: Case) -> Path:
        path = folder / f"{case}.onnx"
        if not path.exists():
            write_case(case, path)
        return path

    return export
