"""INT8 export: what the file says, and that engines compute what torch does with its integers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.configs import compose
from support.graphs import Case, make_model

from toolkit.artifact import parity
from toolkit.artifact.agreement import onnxruntime_run
from toolkit.compress.model import load_checkpoint
from toolkit.compress.quantization.layers import (
    GRIDS_FILE,
    encoder_linears,
    integers_of,
    quantize,
    quantized_linears,
    read_grids,
    write_grids,
)
from toolkit.compress.sparsity.masks import prune_once
from toolkit.config import ExportRoot, default_sparsity
from toolkit.engine.reader.graph import read_graph
from toolkit.errors import GateError, InputError, UsageError
from toolkit.export import export
from toolkit.families import LINEARS
from toolkit.record import read_record

pytestmark = pytest.mark.slow


def root_of(checkpoint: Path | None, output_dir: Path | None = None, *overrides: str) -> ExportRoot:
    small = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
    sizes = [f"model.config.{name}={size}" for name, size in small.items()]
    few = ("engine.num_threads=1", "export.num_parity_examples=4", "quantization=int8")
    config = compose("export", *sizes, *few, *overrides)
    assert isinstance(config, ExportRoot)
    return replace(
        config,
        checkpoint=None if checkpoint is None else str(checkpoint),
        output_dir=None if output_dir is None else str(output_dir),
    )


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_file_holds_integers_and_engines_agree(family: str, tmp_path: Path) -> None:
    model = make_model(Case(family, "seq"))
    prune_once(model, default_sparsity(final_sparsity=0.8, block_shape=[1, 4]))
    model.save_pretrained(tmp_path / "checkpoint")
    folder = export(root_of(tmp_path / "checkpoint"))
    graph = onnx.load(folder / "model.onnx").graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    count = len(encoder_linears(model))
    operators = [node.op_type for node in graph.node]
    # query, key and value share one
    assert operators.count("QuantizeLinear") == count // 6 * 4
    assert operators.count("DequantizeLinear") == count // 6 * 4 + count
    for name, linear in encoder_linears(model).items():
        weight, integers = linear.weight.detach().numpy(), arrays[f"{name}.weight_integers"]
        scale = arrays[f"{name}.weight_scale"]
        assert integers.dtype == np.int8
        assert integers.shape == weight.T.shape
        largest = np.abs(weight).max(axis=1)  # of some rows nothing is left
        np.testing.assert_allclose(scale, np.where(largest, largest / 127, 1), rtol=1e-6)
        assert (integers.T[weight == 0] == 0).all()
        assert (np.abs(integers.T * scale[:, None] - weight) <= 0.501 * scale[:, None]).all()
        assert not arrays[f"{name}.weight_zero_point"].any()
    facts = json.loads((folder / "export.json").read_text())
    assert 0 < facts["parity"]["max_difference"]["onnxruntime"] <= facts["parity"]["atol"]
    assert facts["zeros"]["encoder"] >= 0.8
    assert [layer["name"] for layer in facts["quantization"]["layers"]] == list(
        encoder_linears(model)
    )
    found = read_record(folder)["model"]["quantization"]
    assert found == {"precision": "int8", "method": "mse", "layers": count, "kept_float": []}


def test_openvino_agrees(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    folder = export(root_of(None, tmp_path / "x"))
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(folder / "model.onnx"), "CPU", hint)
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(5, 50, (3, 20)),
        "attention_mask": np.ones((3, 20), np.int64),
        "token_type_ids": np.zeros((3, 20), np.int64),
    }
    run = onnxruntime_run(folder / "model.onnx")
    assert run is not None
    facts = json.loads((folder / "export.json").read_text())
    for theirs, ours in zip(compiled(batch).values(), run(batch).values(), strict=True):
        assert np.abs(theirs - ours).max() <= facts["parity"]["atol"]


def test_layers_kept_in_float_and_outliers_moved(tmp_path: Path) -> None:
    model = make_model(Case("bert", "seq"))
    model.save_pretrained(tmp_path / "checkpoint")
    options = ("quantization.smooth=0.5", "quantization.keep_float=['layers.0.*','*.output']")
    folder = export(root_of(tmp_path / "checkpoint", None, *options))
    graph = onnx.load(folder / "model.onnx").graph
    names = list(encoder_linears(model))
    kept = [name for name in names if name.startswith("layers.0.") or name.endswith(".output")]
    layers = read_graph(folder / "model.onnx").layers
    arrays = [getattr(layer, name).weight for layer in layers for name in LINEARS]
    weights = dict(zip(names, arrays, strict=True))
    assert {name for name in names if weights[name].dtype == np.float32} == set(kept)
    for name in kept:
        np.testing.assert_array_equal(weights[name], encoder_linears(model)[name].weight.detach())
    assert {"layers.1.query.input_scaled", "layers.1.intermediate.input_scaled"} <= {
        node.name for node in graph.node if node.op_type == "Mul"
    }
    assert read_record(folder)["model"]["quantization"]["kept_float"] == kept
    with pytest.raises(UsageError, match=r"keep_float names 'layers\.9\.query', but no"):
        export(root_of(tmp_path / "checkpoint", None, "quantization.keep_float=[layers.9.query]"))


def test_the_ranges_of_a_checkpoint_are_used(tmp_path: Path, capsys: Any) -> None:
    """A trained model's, whatever the command asks for; also through the second file of weights."""
    model = make_model(Case("bert", "seq"))
    model.save_pretrained(tmp_path / "checkpoint")
    grids = {"scale": 0.03125, "zero_point": 117}
    layers = {name: grids for name in encoder_linears(model) if not name.endswith(".output")}
    (tmp_path / "checkpoint" / GRIDS_FILE).write_text(json.dumps({"layers": layers}))
    folder = export(root_of(tmp_path / "checkpoint", None, "quantization=none"))
    graph = onnx.load(folder / "model.onnx").graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = {name: a for name, a in arrays.items() if name.endswith(".input_scale")}
    assert len(scales) == 3 * 2
    assert {float(scale) for scale in scales.values()} == {0.03125}
    found = read_record(folder)["model"]["quantization"]
    assert found["method"] == "qat"
    assert found["kept_float"] == ["layers.0.output", "layers.1.output"]
    assert "INT8 as it was trained" in capsys.readouterr().out
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert read_grids(loaded, tmp_path / "checkpoint")
    write_grids(loaded, tmp_path)
    assert json.loads((tmp_path / GRIDS_FILE).read_text())["layers"] == layers
    assert integers_of(loaded)["layers.0.key"].x_zero_point == 117


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ('{"layers": {"layers.0.query": {"scale": 1}}}', r"is damaged \(KeyError: 'zero_point'\)"),
        ('{"layers": {"layers.0.query": {"scale": 0, "zero_point": 3}}}', "the scale 0 and the"),
        ('{"layers": {"layers.7.query": {"scale": 1, "zero_point": 3}}}', "of another model"),
    ],
)
def test_damaged_ranges_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / GRIDS_FILE).write_text(text)
    with pytest.raises(InputError, match=message):
        read_grids(make_model(Case("bert", "seq")), tmp_path)


def test_integers_that_lie_close_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any) -> Any:
        found = integers_of(model)
        return {name: replace(layer, x_zero_point=0) for name, layer in found.items()}

    monkeypatch.setattr("toolkit.export.integers_of", wrong)
    with pytest.raises(
        GateError, match=r"than export.atol=0.0001 and twice the .* rounding to INT8"
    ):
        export(root_of(None, tmp_path / "x"))
    assert list((tmp_path / "x").iterdir()) == []


def test_a_loss_needs_a_trained_model(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"quantization\.max_loss is measured by the task's metric"
    ):
        export(root_of(None, tmp_path / "x", "quantization.max_loss=0.5"))


def test_lost_zeros_close_the_gate(tmp_path: Path) -> None:
    folder = export(root_of(None, tmp_path / "x"))
    model = load_checkpoint(tmp_path / "x" / "checkpoint")
    quantize(model, encoder_linears(model))
    next(iter(quantized_linears(model).values())).weight.data[0, :5] = 0.0
    with torch.no_grad(), pytest.raises(GateError, match="zeros in the checkpoint, but"):
        parity.check_zeros(model, folder / "model.onnx")
