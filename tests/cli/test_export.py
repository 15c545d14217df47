"""`toolkit export` as a process: files, exit codes, one sentence per error."""

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import COMMAND, Run
from support.graphs import Case, make_model
from transformers import BertForQuestionAnswering

from toolkit.engine.reader.graph import read_graph
from toolkit.record import read_record, write_record

LAYERS = ["depth.keep=[0,1]", "sparsity=prune80", "export.num_parity_examples=3"]


@pytest.fixture(scope="module")
def what_if(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Export an untrained model once; return its folder and what the command printed."""
    folder = tmp_path_factory.mktemp("what_if")
    command = [str(COMMAND), "export", "output_dir=out", "format=sparse", *LAYERS]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return folder / "out", run.stdout


def test_an_export_holds_all_that_is_needed_to_run_it(what_if: tuple[Path, str]) -> None:
    folder, said = what_if
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names >= {"model.onnx", "tokenizer.json", "config.json", "export.json", "record.json"}
    assert not list(folder.glob(".partial*"))
    assert "largest difference to torch, sparse: " in said
    assert "largest difference to torch, onnxruntime: " in said
    assert "compared on 3 texts of task=demo" in said
    assert "zeros in the encoder's weights: 80.00%" in said
    assert "8 layers table" in said
    assert len(said.splitlines()) < 10
    record = read_record(folder)
    assert record["model"]["random_weights"] is True
    assert record["model"]["layers"] == 2
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.8, abs=1e-3)
    assert record["size_bytes"]["onnx"] == (folder / "model.onnx").stat().st_size


def test_a_sparse_file_is_measured_in_its_onnx_files_place(
    what_if: tuple[Path, str], toolkit: Run, tmp_path: Path
) -> None:
    folder = what_if[0]
    assert f"{Path('out') / 'model.sparse'}: " in what_if[1]
    done = toolkit(
        *("bench", f"onnx={folder / 'model.sparse'}", "output_dir=run", "seconds=0"),
        *("min_iterations=1", "batch_size=2", "seq_len=16", f"against=[sparse@{folder}]"),
    )
    assert done.returncode == 0, done.stderr
    assert "onnxruntime reads no sparse file: outputs are checked against float64" in done.stdout
    record = read_record(tmp_path / "run")
    assert record["size_bytes"]["sparse"] == (folder / "model.sparse").stat().st_size
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.8, abs=1e-3)
    assert [entry["engine"] for entry in record["speed"]] == ["sparse", f"sparse@{folder}"]
    done = toolkit("bench", f"onnx={folder / 'model.sparse'}", "against=[onnxruntime]")
    assert done.returncode == 2
    assert "engine onnxruntime reads ONNX, and " in done.stderr


def test_a_what_if_model_is_dropped_pruned_and_has_its_checkpoint(
    what_if: tuple[Path, str],
) -> None:
    folder = what_if[0]
    facts = json.loads((folder / "export.json").read_text())
    assert facts["checkpoint"] == "checkpoint"
    model = BertForQuestionAnswering.from_pretrained(folder / "checkpoint")
    plan = read_graph(folder / "model.onnx")
    assert len(plan.layers) == model.config.num_hidden_layers == 2
    weight = plan.layers[1].intermediate.weight
    expected = model.get_parameter("bert.encoder.layer.1.intermediate.dense.weight")
    np.testing.assert_array_equal(weight, expected.detach())
    assert np.count_nonzero(weight) == round(0.2 * weight.size)


def test_an_export_tells_nothing_of_the_machine_it_was_made_on(
    what_if: tuple[Path, str],
) -> None:
    content = (what_if[0] / "model.onnx").read_bytes()
    assert str(what_if[0].parent).encode() not in content
    assert b".py" not in content
    model = onnx.load(what_if[0] / "model.onnx")
    graph = model.graph
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)
    assert not any(node.metadata_props or node.doc_string for node in graph.node)


def test_batch_and_length_are_dynamic(what_if: tuple[Path, str]) -> None:
    session = onnxruntime.InferenceSession(
        what_if[0] / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert [value.name for value in session.get_inputs()] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    for batch, length in ((1, 1), (5, 128)):
        ids = np.ones((batch, length), np.int64)
        inputs = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}
        start, end = session.run(None, inputs)
        assert start.shape == end.shape == (batch, length)


def test_a_checkpoint_is_exported_beside_itself_with_its_record(
    what_if: tuple[Path, str], tmp_path: Path, toolkit: Run
) -> None:
    """Twice: the second export replaces the first."""
    import shutil

    shutil.copytree(what_if[0] / "checkpoint", tmp_path / "run" / "checkpoint")
    trained = read_record(what_if[0])
    trained["run"]["verb"] = "train"
    trained["metrics"] = {"accuracy": 91.5, "task": "demo", "num_examples": 10}
    trained["model"]["name"] = "student"
    write_record(tmp_path / "run" / "record.json", trained)
    stale = tmp_path / "run" / "export"
    stale.mkdir()
    (stale / "model.onnx").write_text("old")
    (stale / "model.onnx.data").write_text("old")
    run = toolkit("export", "checkpoint=run/checkpoint", timeout=300)
    assert run.returncode == 0, run.stderr
    assert not (stale / "model.onnx.data").exists()
    record = read_record(stale)
    assert record["run"]["parent"] == trained["run"]["id"]
    assert record["metrics"] == trained["metrics"]
    assert record["model"]["name"] == "student"
    assert record["model"]["random_weights"] is False
    facts = json.loads((stale / "export.json").read_text())
    assert facts["checkpoint"] == "../checkpoint"
    same = (stale / "model.onnx").read_bytes() == (what_if[0] / "model.onnx").read_bytes()
    assert same, "the same checkpoint must give the same bytes"


def test_a_closed_gate_exits_3_and_leaves_no_model(
    what_if: tuple[Path, str], tmp_path: Path, toolkit: Run
) -> None:
    checkpoint = what_if[0] / "checkpoint"
    run = toolkit(
        "export", f"checkpoint={checkpoint}", "output_dir=out", "export.atol=1e-12", timeout=300
    )
    assert run.returncode == 3
    assert run.stderr.startswith("error: the outputs of engine sparse differ from torch's by")
    assert "more than export.atol=1e-12" in run.stderr
    assert run.stderr.count("\n") == 1
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left <= {".hydra", "export.log"}


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, toolkit: Run) -> None:
    checkpoint = tmp_path / "checkpoint"
    make_model(Case("bert", "seq")).save_pretrained(checkpoint)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    run = toolkit("export", f"checkpoint={checkpoint}", "output_dir=out")
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: cannot read the weights in {checkpoint} (")
    assert run.stderr.count("\n") == 1
