"""Each head once: a torch model and its export."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.exports import DropIn, make_tokenizer
from support.graphs import Case, Export, make_model
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of all these models; tests leave it as it is."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def drop_in(export_case: Export, tmp_path_factory: pytest.TempPathFactory) -> DropIn:
    """Return the torch model with one of the heads of `support.graphs`, and its export folder."""
    root = tmp_path_factory.mktemp("exports")

    def make(head: str) -> tuple[Any, Path]:
        case, folder = Case("bert", head), root / head
        model = make_model(case)
        if not folder.exists():
            model.config.save_pretrained(folder)
            config = json.loads((folder / "config.json").read_text())
            config["architectures"] = [type(model).__name__]
            (folder / "config.json").write_text(json.dumps(config))
            make_tokenizer().save_pretrained(folder)
            (folder / "model.onnx").write_bytes(export_case(case).read_bytes())
        return model, folder

    return make
