"""The drop-in classes against transformers' own models, through transformers' own pipelines."""

import asyncio
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from support.exports import DropIn
from support.graphs import Case, make_model
from transformers import PreTrainedTokenizerFast, pipeline
from transformers.modeling_outputs import SequenceClassifierOutput

import toolkit
from toolkit.errors import InputError

TEXTS = ["the soup was good", "anna said the bread was bad and the soup was not good ."]
CLASSES = {
    "seq": toolkit.SparseModelForSequenceClassification,
    "tok": toolkit.SparseModelForTokenClassification,
    "base": toolkit.SparseModelForFeatureExtraction,
    "mlm": toolkit.SparseModelForMaskedLM,
    "qa": toolkit.SparseModelForQuestionAnswering,
}
IDS = np.array([[2, 5, 6, 3], [2, 7, 3, 0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])


def numbers_of(answer: Any) -> list[float]:
    """Flatten what a pipeline answers: its numbers, in order."""
    if isinstance(answer, dict):
        return numbers_of(list(answer.values()))
    if isinstance(answer, list):
        return [number for item in answer for number in numbers_of(item)]
    return [] if answer is None or isinstance(answer, str) else [float(answer)]


def words_of(answer: Any) -> list[str]:
    """Flatten what a pipeline answers: its texts, in order."""
    if isinstance(answer, dict):
        return words_of(list(answer.values()))
    if isinstance(answer, list):
        return [word for item in answer for word in words_of(item)]
    return [answer] if isinstance(answer, str) else []


@pytest.mark.parametrize(
    ("head", "task", "options"),
    [
        ("seq", "text-classification", {"top_k": None}),
        ("tok", "token-classification", {"aggregation_strategy": "none"}),
        ("tok", "ner", {"aggregation_strategy": "simple"}),
        ("tok", "ner", {"aggregation_strategy": "max"}),
        ("base", "feature-extraction", {}),
        ("mlm", "fill-mask", {"top_k": 3}),
        ("seq", "zero-shot-classification", {"candidate_labels": ["soup", "bread"]}),
    ],
)
def test_stock_pipelines_answer_as_with_torch(
    head: str,
    task: Any,
    options: dict[str, Any],
    drop_in: DropIn,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, folder = drop_in(head)
    model.config.label2id = {"entailment": 0, "contradiction": 1}  # as zero-shot needs them
    ours: Any = CLASSES[head].from_pretrained(folder, num_threads=1)
    ours.config.label2id = model.config.label2id
    texts = [text.replace("soup", "[MASK]", 1) for text in TEXTS] if head == "mlm" else TEXTS
    logging.getLogger("transformers").propagate = True  # for caplog
    batch_size = 1 if head == "base" else 2  # hidden states of padding hold no information
    found, expected = (
        pipeline(task, model=one, tokenizer=tokenizer)(texts, batch_size=batch_size, **options)
        for one in (ours, model)
    )
    assert "not supported" not in caplog.text
    assert words_of(found) == words_of(expected)
    assert len(numbers_of(found)) > 3
    np.testing.assert_allclose(numbers_of(found), numbers_of(expected), atol=1e-4)


def test_torch_gives_torch_and_numpy_gives_numpy(drop_in: DropIn) -> None:
    model, folder = drop_in("seq")
    ours = CLASSES["seq"].from_pretrained(folder, num_threads=1)
    ids, mask = torch.from_numpy(IDS), torch.from_numpy(MASK)
    expected = model(input_ids=ids, attention_mask=mask).logits.detach().numpy()
    outputs = ours(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids))
    assert isinstance(outputs, SequenceClassifierOutput)
    assert isinstance(outputs.logits, torch.Tensor)
    np.testing.assert_allclose(outputs.logits, expected, atol=1e-5)
    arrays = ours(IDS, MASK)
    assert isinstance(arrays.logits, np.ndarray)
    np.testing.assert_array_equal(arrays["logits"], outputs.logits)
    (alone,) = ours(IDS[:1].tolist(), return_dict=False)  # a list, neither mask nor types, a tuple
    np.testing.assert_allclose(alone, expected[:1], atol=1e-5)


def test_what_an_export_cannot_do_is_refused(drop_in: DropIn) -> None:
    ours = CLASSES["seq"].from_pretrained(drop_in("seq")[1], num_threads=1)
    for name in ("labels", "output_hidden_states", "position_ids"):
        with pytest.raises(ValueError, match=f"{name} is nothing that an export knows: it takes"):
            ours(IDS, **{name: True})
    assert ours(IDS, output_attentions=False).logits.shape == (2, 2)
    with pytest.raises(ValueError, match="runs on the CPU, not on cuda"):
        ours.to("cuda")
    with pytest.raises(ValueError, match="choose a precision with from_pretrained"):
        ours.to(torch.bfloat16)
    assert ours.to("cpu").to(device=torch.device("cpu"), dtype=torch.float32).eval() is ours
    with pytest.raises(ValueError, match="isa 'neon' is not supported"):
        CLASSES["seq"].from_pretrained(drop_in("seq")[1], isa="neon")


def test_options_reach_the_engine(drop_in: DropIn) -> None:
    ours = CLASSES["qa"].from_pretrained(
        drop_in("qa")[1], num_threads=2, isa="generic", kernel="dense", keep_timings=False
    )
    assert (ours.engine.num_threads, ours.engine.isa) == (2, "generic")
    assert {weight.form for _, weight in ours.engine.weights()} == {"dense"}


def test_a_model_of_another_kind_is_refused(drop_in: DropIn, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BertForTokenClassification, but SparseModelForMaskedLM"):
        CLASSES["mlm"].from_pretrained(drop_in("tok")[1])
    with pytest.raises(InputError, match="there is no such folder"):
        CLASSES["mlm"].from_pretrained("./missing")
    shutil.copytree(drop_in("qa")[1], tmp_path / "foreign")
    config = json.loads((tmp_path / "foreign" / "config.json").read_text())
    (tmp_path / "foreign" / "config.json").write_text(json.dumps(config | {"architectures": None}))
    with pytest.raises(InputError, match="output 'start_logits', which a MaskedLMOutput has no"):
        CLASSES["mlm"].from_pretrained(tmp_path / "foreign")


def test_saved_and_loaded_again(drop_in: DropIn, tmp_path: Path) -> None:
    _, folder = drop_in("base")
    ours = CLASSES["base"].from_pretrained(folder, num_threads=1)
    (folder / "export.json").write_text('{"checkpoint": "../base"}')
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "mine.txt").touch()
    ours.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {path.name for path in folder.iterdir()} - {"model.onnx.kernels.json"} | {
        "mine.txt"
    }
    facts = json.loads((tmp_path / "saved" / "export.json").read_text())
    assert (tmp_path / "saved" / facts["checkpoint"]).resolve() == folder.resolve()
    again = CLASSES["base"].from_pretrained(tmp_path / "saved", num_threads=1)
    for one, other in zip(ours(IDS, MASK).to_tuple(), again(IDS, MASK).to_tuple(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_hub_id_is_found_in_its_cache(drop_in: DropIn, tmp_path: Path) -> None:
    repository = tmp_path / "models--me--tiny"
    shutil.copytree(drop_in("seq")[1], repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    ours = CLASSES["seq"].from_pretrained("me/tiny", cache_dir=tmp_path, local_files_only=True)
    assert ours.folder.name == "a" * 40
    with pytest.raises(InputError, match="cannot load me/other from the Hugging Face hub"):
        CLASSES["seq"].from_pretrained("me/other", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.slow
def test_a_checkpoint_is_exported_once_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        huggingface_hub.utils._cache_assets, "HF_ASSETS_CACHE", str(tmp_path / "assets")
    )
    model = make_model(Case("roberta", "seq"))
    model.save_pretrained(tmp_path / "it's mine")
    weights = tmp_path / "it's mine" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"cannot export .*the checkpoint is damaged or foreign"):
        CLASSES["seq"].from_pretrained(tmp_path / "it's mine")
    assert not list((tmp_path / "assets").rglob("*partial*"))
    weights.write_bytes(whole)
    caplog.clear()
    ours = CLASSES["seq"].from_pretrained(tmp_path / "it's mine", num_threads=1)
    assert "is a checkpoint: exporting it to" in caplog.text
    assert ours.folder.is_relative_to(tmp_path / "assets")
    expected = model(input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK)).logits
    # roberta has one type of token: zeros are as good as none
    found = ours(IDS, MASK, np.zeros_like(IDS)).logits
    np.testing.assert_allclose(found, expected.detach(), atol=1e-4)
    with pytest.raises(ValueError, match="token_type_ids must be zeros"):
        ours(IDS, MASK, MASK)
    caplog.clear()
    CLASSES["seq"].from_pretrained(tmp_path / "it's mine", num_threads=1)
    assert caplog.text == ""


def test_threads_and_tasks_share_one_model(
    drop_in: DropIn, tokenizer: PreTrainedTokenizerFast
) -> None:
    ours = CLASSES["seq"].from_pretrained(drop_in("seq")[1], num_threads=2)
    batches = [dict(tokenizer(text, return_tensors="np")) for text in [*TEXTS, "bread", "a b"] * 6]
    expected = [ours(**batch).logits for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: ours(**batch).logits, batches))

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(ours, **batch) for batch in batches))

    awaited = [outputs.logits for outputs in asyncio.run(all_at_once())]
    for one, other, alone in zip(found, awaited, expected, strict=True):
        np.testing.assert_array_equal(one, alone)
        np.testing.assert_array_equal(other, alone)
