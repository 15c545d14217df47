"""Fixtures of the unit tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Browser, find_browser
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


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser with one tab; its problems are those of all pages so far."""
    program = find_browser()
    if program is None:
        pytest.skip("needs chromium or google-chrome")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found
