"""Servers of tiny models, one per kind for the whole room."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.serving import serving, write_export

HEADS = {
    "embedding": ("base", {}),
    "classifier": ("seq", {"num_labels": 3, "id2label": {"0": "bad", "1": "fair", "2": "good"}}),
    "reranker": ("seq", {"num_labels": 1}),
    "question_answering": ("qa", {}),
    "token_classifier": (
        "tok",
        {"num_labels": 3, "id2label": {"0": "O", "1": "B-FOOD", "2": "I-FOOD"}},
    ),
}


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the export folder of a kind; each is written once."""
    folder = tmp_path_factory.mktemp("exports")

    def export(kind: str) -> Path:
        head, facts = HEADS[kind]
        if not (folder / kind).exists():
            write_export(folder / kind, head, **facts)  # type: ignore[arg-type]
        return folder / kind

    return export


@pytest.fixture(scope="session")
def served(exports: Callable[[str], Path]) -> Iterator[Callable[[str], str]]:
    """Return the URL of a server of a kind; each is started once."""
    urls: dict[str, str] = {}
    with ExitStack() as stack:

        def url(kind: str) -> str:
            if kind not in urls:
                urls[kind] = stack.enter_context(serving(exports(kind)))
            return urls[kind]

        yield url
