"""How long a text may be, in every family: against what the model itself takes."""

import json
from pathlib import Path

import pytest
import torch
from support.graphs import Case, write_case
from support.tiny import FAMILIES as SIZES
from support.tiny import make_model

from toolkit.artifact.exported import read_exported
from toolkit.families import FAMILIES, longest_text

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_text_runs_and_one_token_more_does_not(family: str) -> None:
    model = make_model(family)
    config = model.config
    longest = longest_text(family, config.max_position_embeddings, config.pad_token_id)
    ids = torch.full((1, longest), 5)
    assert model(ids).logits.shape == (1, 2)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        model(torch.full((1, longest + 1), 5))
    assert set(SIZES) == set(FAMILIES)


def test_an_export_folder_knows_it_for_camembert_too(tmp_path: Path) -> None:
    write_case(Case("camembert", "seq"), tmp_path / "model.onnx")
    config = {"model_type": "camembert", "max_position_embeddings": 42, "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_exported(tmp_path).max_tokens == 40
