"""Export, function by function; tests/cli/test_export.py runs the command."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import configs
from support.configs import compose
from support.graphs import Case, make_model

from toolkit import export as exporting
from toolkit.artifact import onnx_writer, parity
from toolkit.compress.model import load_checkpoint
from toolkit.compress.sparsity.masks import prune_once
from toolkit.config import ExportRoot, Format, Values, default_sparsity
from toolkit.engine import Engine
from toolkit.engine.reader.graph import read_graph
from toolkit.errors import GateError, InputError, UsageError
from toolkit.record import read_record
from toolkit.tasks import demo

pytestmark = pytest.mark.slow


def root_of(checkpoint: Path | None, output_dir: Path | None = None, **changes: Any) -> ExportRoot:
    small = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
    sizes = [f"model.config.{name}={size}" for name, size in small.items()]
    few = ("engine.num_threads=1", "export.num_parity_examples=4", "seed=3")
    config = compose("export", *sizes, *few)
    assert isinstance(config, ExportRoot)
    changes["checkpoint"] = None if checkpoint is None else str(checkpoint)
    changes["output_dir"] = None if output_dir is None else str(output_dir)
    return replace(config, **changes)


def save(case: Case, folder: Path, sparsity: float = 0.0) -> Path:
    model = make_model(case)
    prune_once(model, default_sparsity(final_sparsity=sparsity)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", [Case("roberta", "seq"), Case("electra", "base")], ids=str)
def test_a_stock_checkpoint_is_exported_beside_itself(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if case.family == "electra":  # large models keep their weights in a second file
        monkeypatch.setattr(onnx_writer, "PROTOBUF_LIMIT", 0)
    checkpoint = save(case, tmp_path / "checkpoint", sparsity=0.8)
    folder = exporting.export(root_of(checkpoint))
    assert folder == tmp_path / "export"
    files = {"README.md", "config.json", "export.json", "model.onnx", "modules.json", "record.json"}
    if case.family == "electra":
        files |= {"model.onnx.data", "1_Pooling"}
    else:
        files |= {"config_sentence_transformers.json", "sentence_bert_config.json"}
    assert {path.name for path in folder.iterdir()} == files
    facts = json.loads((folder / "export.json").read_text())
    assert (folder / facts["checkpoint"]).resolve() == checkpoint.resolve()
    assert facts["zeros"]["encoder"] == pytest.approx(0.8, abs=1e-3)
    worst = facts["parity"]["max_difference"]
    assert 0.0 < worst["sparse"] < 1e-4
    assert 0.0 < worst["onnxruntime"] < 1e-4
    longest = 40 if case.family == "roberta" else 42
    shapes = [tuple(shape) for shape in facts["parity"]["batches"]]
    assert {(1, 1), (1, longest)} <= set(shapes)
    assert shapes[0][0] == 4
    assert "the checkpoint has no tokenizer" in facts["parity"]["texts"]
    assert "random ids" in capsys.readouterr().out
    plan = read_graph(folder / "model.onnx")
    assert plan.inputs == ["input_ids", "attention_mask"] + (
        ["token_type_ids"] if case.family == "electra" else []
    )


@pytest.mark.parametrize("engine", ["sparse", "onnxruntime"])
def test_an_engine_that_differs_closes_the_gate_and_nothing_is_left(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(Case("bert", "seq"), tmp_path / "checkpoint")

    model = load_checkpoint(checkpoint)

    def right(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return parity.torch_run(model)(batch)

    def wrong(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": right(batch)["logits"] + 0.01}

    class FakeEngine:
        run = staticmethod(wrong if engine == "sparse" else right)

    monkeypatch.setattr(exporting, "write_onnx", lambda *_: ["input_ids", "attention_mask"])
    monkeypatch.setattr(Engine, "load", lambda *_, **__: FakeEngine)
    monkeypatch.setattr(parity, "onnxruntime_run", lambda _: wrong)
    message = rf"outputs of engine {engine} differ from torch's by 0.01, more than export.atol"
    with pytest.raises(GateError, match=message):
        exporting.export(root_of(checkpoint))
    assert list((tmp_path / "export").iterdir()) == []


def test_lost_zeros_close_the_gate(export_case: Any, tmp_path: Path) -> None:
    model = make_model(Case("bert", "qa", dynamo=True, opset=18))
    path = export_case(Case("bert", "qa", opset=17))
    assert parity.check_zeros(model, path)["equal_to_checkpoint"]
    prune_once(model, default_sparsity(final_sparsity=0.5))
    with pytest.raises(GateError, match=r"encoder.layer.0.attention.self.query.weight of shape"):
        parity.check_zeros(model, path)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(Case("bert", "seq"), tmp_path / "checkpoint")
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.onnx").write_text("old")

    def full(model: Any, path: Path) -> list[str]:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_onnx", full)
    with pytest.raises(InputError, match=r"cannot write .*export: No space left on device"):
        exporting.export(root_of(checkpoint))
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert (folder / "model.onnx").read_text() == "old"


def test_a_mistyped_data_dir_is_no_reason_for_random_ids(tmp_path: Path) -> None:
    checkpoint = save(Case("bert", "seq"), tmp_path / "checkpoint")
    demo.make_tokenizer().save(str(checkpoint / "tokenizer.json"))
    task = replace(configs.task("sst2"), data_dir=str(tmp_path / "SST_2"))
    with pytest.raises(InputError, match=r"expects the file .*SST_2/dev.tsv, but there is none"):
        exporting.export(root_of(checkpoint, task=task))
    (tmp_path / "SST_2").mkdir()
    (tmp_path / "SST_2" / "dev.tsv").write_text("sentence\tlabel\nthe soup was good\t1\n")
    with pytest.raises(InputError, match=r"the tokenizer in .* has more tokens than its model"):
        exporting.export(root_of(checkpoint, task=task))
    assert list((tmp_path / "export").iterdir()) == []


def write_config(folder: Path, **values: Any) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))


def test_what_is_no_such_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        load_checkpoint(tmp_path / "missing")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "is a gpt2 model, but"),
        ({"model_type": "t5"}, "is a t5 model, but this toolkit takes encoders of the kinds bert"),
        ({"model_type": "bert", "is_decoder": True}, "is a bert decoder model"),
        ({"model_type": "bert", "architectures": ["BertForFun"]}, r"'BertForFun', which"),
        (
            {"model_type": "bert"},
            r"has no weights: expected model.safetensors or pytorch_model.bin",
        ),
        ({"model_type": "unheard-of"}, "cannot read the configuration"),
    ]
    for number, (values, message) in enumerate(cases):
        write_config(tmp_path / str(number), **values)
        with pytest.raises(InputError, match=message):
            load_checkpoint(tmp_path / str(number))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = save(Case("bert", "seq"), tmp_path / "checkpoint")
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read the weights in .*checkpoint is damaged"):
        load_checkpoint(checkpoint)
    weights.unlink()
    with pytest.raises(InputError, match=r"cannot read the weights in .*model.safetensors"):
        load_checkpoint(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot read the configuration in"):
        load_checkpoint(checkpoint)


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    """Transformers would quietly draw new weights for it."""
    checkpoint = save(Case("bert", "base"), tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lacks 2 weights of .*classifier.bias.*not fine-tuned"):
        load_checkpoint(checkpoint)


def test_half_precision_is_loaded_as_float32(tmp_path: Path) -> None:
    make_model(Case("bert", "seq")).half().save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path).dtype is torch.float32


def test_an_impossible_isa_is_a_usage_error(export_case: Any, tmp_path: Path) -> None:
    config = root_of(
        None,
        tmp_path,
        engine=compose("export", "engine.isa=neon").engine,
    )
    path = export_case(Case("bert", "qa", opset=17))
    with pytest.raises(UsageError, match="isa 'neon' is not supported on this CPU"):
        parity.check_parity(config, make_model(Case("bert", "qa")), path, [])
    with pytest.raises(UsageError, match="export needs checkpoint=DIR"):
        exporting.export(root_of(None))


@pytest.mark.parametrize("values", ["fp32", "fp16"])
def test_a_sparse_file_beside_the_onnx_file(values: str, tmp_path: Path, capsys: Any) -> None:
    checkpoint = save(Case("bert", "seq"), tmp_path / "checkpoint", sparsity=0.9)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.sparse.kernels.json").write_text("of an earlier export")
    root = root_of(checkpoint)
    root = replace(root, export=replace(root.export, format=Format.sparse, values=Values(values)))
    folder = exporting.export(root)
    facts = json.loads((folder / "export.json").read_text())["sparse"]
    assert facts["values"] == values
    assert facts["bytes"] == (folder / "model.sparse").stat().st_size
    assert facts["bytes"] < (folder / "model.onnx").stat().st_size
    assert facts["bytes"] == read_record(folder)["size_bytes"]["sparse"]
    assert not (folder / "model.sparse.kernels.json").exists()
    told = capsys.readouterr().out
    if values == "fp32":
        assert facts["max_difference"] == 0.0
        assert "it computes the same bits" in told
    else:
        assert 0.0 < facts["max_difference"] < 1e-2
        assert "rounded, which changes outputs by up to" in told
    exporting.export(root_of(checkpoint))  # without one: the old one does not stay
    assert not (folder / "model.sparse").exists()
