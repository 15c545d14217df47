"""The what-if grid: its cells, their speed, the figures published for them, the record."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.configs import compose

from cython_kernels import _kernels
from toolkit.errors import UsageError
from toolkit.grid import grid
from toolkit.measure.grid import (
    Cell,
    cells_of,
    describe_cells,
    make_engines,
    measure_cells,
    resolve_isa,
    sizes_of,
)
from toolkit.measure.published import read_published
from toolkit.measure.random_plan import Sizes
from toolkit.record import read_record

ISA = _kernels.available_isas()[0]
SMALL = ("model.config.hidden_size=32", "model.config.num_attention_heads=2",
         "model.config.intermediate_size=48", "batch_size=2", "seq_len=8")  # fmt: skip


def config_of(*overrides: str) -> Any:
    return compose("grid", *overrides)


def test_sizes_of_every_model(tmp_path: Path) -> None:
    assert sizes_of(config_of().model) == Sizes()
    assert sizes_of(config_of("model=distilbert_base").model) == Sizes(layers=6, types=1)
    minilm = sizes_of(config_of("model=minilm_l6").model)
    assert minilm == Sizes(layers=6, hidden=384, inner=1536)
    roberta = sizes_of(config_of("model=roberta_base").model)
    assert (roberta.positions, roberta.types, roberta.vocabulary) == (512, 1, 50265)
    local = ("model=local", f"model.path={tmp_path}")
    with pytest.raises(UsageError, match=r"must say its sizes, .*; got none"):
        sizes_of(config_of(*local).model)
    facts = {"model_type": "bert", "num_hidden_layers": 5, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert sizes_of(config_of(*local).model) == Sizes(layers=5, hidden=64)


def test_cells_are_depth_by_zeros_by_precision() -> None:
    config = config_of("sparsities=[0.9,0]", "precisions=[int8,fp32]")
    cells = cells_of(config, Sizes(), ISA)
    assert len(cells) == 3 * 2 * 2
    assert cells[:3] == [Cell(12, 0.0, "int8"), Cell(12, 0.0, "fp32"), Cell(12, 0.9, "int8")]
    assert {cell.layers for cell in cells} == {12, 6, 3}
    here = {*_kernels.precisions_of(ISA), "int8"}
    assert {cell.precision for cell in cells_of(config_of(), Sizes(), ISA)} == here
    assert {cell.layers for cell in cells_of(config_of(), Sizes(layers=1), ISA)} == {1}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["depths=[13]"], "depths must be at most 12, the model's layers; got 13"),
        (["seq_len=513"], "seq_len must be at most 512"),
        (["engine=onnxruntime"], "grid measures the sparse engine"),
        (["engine.precision=bf16"], "leave engine.name and engine.precision"),
        (["precisions=[fp8]"], r"precisions must be among .*; got 'fp8'"),
        (["sparsities=[1.0]"], r"sparsities must list numbers in \[0, 1\)"),
        (["blocks.int8=[4]"], r"blocks.int8 must be \[rows, columns\]"),
        (["depths=[0]"], "depths must list numbers of layers from 1"),
        (["rounds=0"], "rounds must be at least 1"),
    ],
)
def test_impossible_cells_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        cells_of(config_of(*overrides), Sizes(), ISA)


def test_a_precision_that_the_cpu_lacks() -> None:
    with pytest.raises(UsageError, match=r"among those of this CPU with isa generic, fp32, auto"):
        cells_of(config_of("precisions=[bf16]"), Sizes(), "generic")
    with pytest.raises(UsageError, match="not supported on this CPU"):
        resolve_isa(config_of("engine.isa=neon_dot"))


def test_engines_have_the_zeros_and_integers_of_their_cells() -> None:
    config = config_of(*SMALL, "engine.kernel=table")
    sizes = sizes_of(config.model)
    cells = [Cell(1, 0.9, "fp32"), Cell(2, 0.5, "int8")]
    engines = dict(make_engines(config, sizes, cells, 1, "generic"))
    fp32 = dict(engines[cells[0]].weights())
    assert fp32["layer0.intermediate"].density == pytest.approx(0.1, abs=0.01)
    assert "layer1.output" not in fp32
    int8 = dict(engines[cells[1]].weights())
    assert int8["layer1.output"].form.startswith("s8_")
    ids = np.full((2, 8), 3)
    for engine in engines.values():
        logits = engine.run({"input_ids": ids, "attention_mask": ids * 0 + 1,
                             "token_type_ids": ids * 0})["logits"]  # fmt: skip
        assert np.isfinite(logits).all()
        assert logits.std() > 0


@pytest.mark.slow
def test_published_figures_are_those_of_the_recipes() -> None:
    published = read_published(config_of().model, 12)
    cells = {each.recipe: each for each in published}
    assert cells["bert12_dense"][1:] == (12, 0.0, [1, 1], "float", "f1", 88.44)
    assert cells["bert6_prune90"][1:4] == (6, 0.9, [1, 1])
    assert cells["bert12_prune70_int8"][1:5] == (12, 0.7, [1, 4], "int8")
    assert cells["prunebert97"][1:3] == (12, 0.97)
    assert "bert12_prune70" not in cells  # nobody published it
    assert "obert12_prune90_transfer" not in cells  # whose zeros its recipe does not say
    assert read_published(config_of("model=minilm_l6").model, 6) == []


@pytest.mark.slow
def test_a_cell_carries_what_was_published_for_its_pattern() -> None:
    config = config_of("batch_size=10")
    cells = [Cell(12, 0.9, "fp32"), Cell(12, 0.9, "int8"), Cell(6, 0.7, "fp32"),
             Cell(12, 0.0, "fp32")]  # fmt: skip
    published = read_published(config.model, 12)
    found = {each: [200.0, 100.0, 50.0] for each in cells}
    fp32, int8, unknown, dense = describe_cells(config, found, published)
    assert fp32["items_per_s"] == 100.0
    assert fp32["latency_ms"] == {"p50": 100.0, "low": 50.0, "high": 200.0}
    assert {known["recipe"] for known in fp32["published"]} == {"bert12_prune90", "obert12_prune90"}
    assert int8["published"] == [{"recipe": "bert12_prune90_int8", "score": 83.92}]
    assert unknown["published"] == []
    assert [known["recipe"] for known in dense["published"]] == ["bert12_dense"]
    config.blocks["fp32"] = [1, 4]
    assert describe_cells(config, {cells[0]: [1.0]}, published)[0]["published"] == []


def test_all_cells_take_turns() -> None:
    config = config_of(*SMALL, "rounds=2", "sparsities=[0.5]", "precisions=[fp32]", "depths=[1,2]")
    sizes = sizes_of(config.model)
    cells = cells_of(config, sizes, ISA)
    found = measure_cells(config, sizes, cells, 1, ISA)
    assert list(found) == cells
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())


@pytest.mark.slow
def test_the_whole_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(*SMALL, "rounds=1", "sparsities=[0,0.9]", "precisions=[fp32]", "depths=[3]")
    config.output_dir = str(tmp_path)
    record = grid(config)
    assert read_record(tmp_path) == record
    assert record["run"]["verb"] == "grid"
    assert record["grid"]["dense"] is None  # no recipe has a model of these sizes
    assert len(record["grid"]["cells"]) == 2
    said = capsys.readouterr().out
    assert "3, 90 %" in said
    assert "No figure was published for any of these cells" in said
