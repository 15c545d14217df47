"""Model cards: read back by the hub's own client, refreshed, and left alone if not ours."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from support import records

from toolkit.artifact.model_card import END, START, refresh_card, write_card

MODEL = {"parameters": 1000, "sparsity": {"encoder": 0.8, "whole_model": 0.6}}
MACHINE = {"cpu": "a CPU"}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export folder with nothing but a configuration."""
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    facts = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def trained(path: str | None = "google/bert_uncased", **model: Any) -> dict[str, Any]:
    record = records.record("tiny", layers=2, accuracy=81.314)
    record["model"] |= MODEL | model
    record["config"] = {"model": {"path": path}, "task": {"path": ["nyu-mll/glue", "sst2"]}}
    return record


def test_the_hub_reads_what_a_training_left(export: Path) -> None:
    run = export.parent
    (run / ".hydra").mkdir()
    overrides = ["recipe=sst2 'x'", "output_dir=/home/me/run", "teacher.path=/home/me/teacher"]
    (run / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    write_card(export, trained(), run, run / "checkpoint")
    card = ModelCard.load(export / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("toolkit", "text-classification")
    assert (data.base_model, data.datasets) == ("google/bert_uncased", ["nyu-mll/glue"])
    assert data.tags == ["onnx", "sparse", "cpu", "bert"]
    (result,) = data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("nyu-mll/glue", "demo")
    assert (result.metric_type, result.metric_value) == ("accuracy", 81.31)
    ours = data.toolkit
    assert ours["sparsity"] == {"encoder": 0.8, "whole_model": 0.6}
    assert (ours["precision"], ours["layers"]) == ("fp32", 2)
    assert ours["command"] == """toolkit train 'recipe=sst2 '"'"'x'"'"'' teacher.path=.../teacher"""
    assert "speed" not in ours
    assert "SparseModelForSequenceClassification.from_pretrained(folder)" in card.text
    assert "81.31 % on 9 examples" in card.text
    assert "/home/me" not in str(card)


def test_bench_adds_speed_to_what_is_there(export: Path) -> None:
    write_card(export, trained(), export.parent, export.parent)
    file = export / "README.md"
    text = (
        file.read_text()
        .replace("# tiny", "# My own words")
        .replace("tags:", "inference: false\ntags:")
    )
    file.write_text(text)
    sparse = records.speed("sparse", 640.0)
    foreign = records.speed("sparse", 1.0, onnx="else.onnx")
    first = {**trained()["metrics"], "accuracy": 90.0}
    refresh_card(export, first, [sparse, foreign, records.speed("onnxruntime", 64.0)], MACHINE)
    refresh_card(export, first, [records.speed("sparse", 320.0, isa="avx2")], {"cpu": "another"})
    card = ModelCard.load(file)
    speed = card.data.toolkit["speed"]
    assert [entry["items_per_s"] for entry in speed] == [640.0, 64.0, 320.0]
    assert speed[0]["machine"] == "a CPU, 2 threads"
    assert speed[2]["machine"] == "another, 2 threads, avx2"
    refresh_card(export, first, [records.speed("sparse", 650.0)], MACHINE)
    card = ModelCard.load(file)
    assert [entry["items_per_s"] for entry in card.data.toolkit["speed"]] == [650.0, 64.0, 320.0]
    assert card.data.eval_results[0].metric_value == 90.0
    assert card.data.inference is False
    assert "# My own words" in card.text
    assert "| sparse | None | 32 × 128 | 650.0 | 49.23 | a CPU, 2 threads |" in card.text
    assert card.text.count(START) == card.text.count(END) == card.text.count("## Measured") == 1


def test_a_card_of_ones_own_stays(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refresh_card(export, {}, [records.speed("sparse", 1.0)], MACHINE)
    assert not (export / "README.md").exists()
    (export / "README.md").write_text("mine")
    refresh_card(export, {}, [records.speed("sparse", 1.0)], MACHINE)
    assert (export / "README.md").read_text() == "mine"
    assert "what was measured is not added" in capsys.readouterr().out


def test_a_foreign_checkpoint_tells_by_its_own_card(export: Path, tmp_path: Path) -> None:
    origin = tmp_path / "checkpoint"
    origin.mkdir()
    head = {"license": "apache-2.0", "language": "en", "datasets": ["a/b"], "base_model": "c/d"}
    (origin / "README.md").write_text(f"---\n{json.dumps(head)}\n---\n\ntext\n")
    quantization = {"precision": "int8", "method": "mse", "layers": 12, "kept_float": []}
    write_card(export, trained(quantization=quantization), None, origin)
    data = ModelCard.load(export / "README.md").data
    assert (data.license, data.language) == ("apache-2.0", "en")
    assert (data.datasets, data.base_model) == (["a/b"], "c/d")
    assert data.toolkit["precision"] == "int8"
    assert "command" not in data.toolkit
    # trained here: by the card of what it was made from, which is no name on the hub
    write_card(export, trained(path=str(origin)), export.parent, export)
    data = ModelCard.load(export / "README.md").data
    assert (data.license, data.datasets) == ("apache-2.0", ["nyu-mll/glue"])
    assert data.base_model is None
    (origin / "README.md").write_text("---\n: [\n---\n")
    write_card(export, trained(), None, origin)
    assert ModelCard.load(export / "README.md").data.license is None
