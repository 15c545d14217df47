"""Fused operators as optimum and ONNX Runtime write them: equal to ONNX Runtime, or refused."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from support.edits import Edit, change, edited, optimise
from support.graphs import Case, Export
from support.reading import largest_error, refused, refused_or_equal, run_onnxruntime

from toolkit.engine import Engine
from toolkit.engine.reader.graph import read_graph

pytestmark = pytest.mark.slow

FILES = sorted((Path(__file__).parents[3] / "data" / "optimum").glob("*.onnx"))
BERT = next(path for path in FILES if path.stem == "bert-text-classification-O2")
DISTILBERT = next(path for path in FILES if path.stem == "distilbert-question-answering-O3")
SHAPES = ((1, 1), (2, 8), (4, 17), (4, 40))


def padded(batch: int, length: int, side: str) -> NDArray[np.int64]:
    """A complete text, then texts padded on one side, and for `left` one with holes."""
    mask = np.ones((batch, length), np.int64)
    for row, kept in ((1, (length + 1) // 2), (2, 1), (3, length - 1)):
        if side == "left":
            mask[row : row + 1, : length - kept] = 0
        else:
            mask[row : row + 1, kept:] = 0
    if side == "left":
        mask[3:, 1::3] = 0
    return mask


def worst_difference(path: Path, oracle: Path, mask: NDArray[np.int64]) -> float:
    """Compare the engine on one file with ONNX Runtime on another, at real tokens."""
    rng = np.random.default_rng(0)
    padding = 1 if "roberta" in path.stem else 0
    inputs = {
        "input_ids": np.where(mask != 0, rng.integers(5, 50, mask.shape), padding),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }
    engine = Engine.load(path, num_threads=1)
    found = engine.run({name: inputs[name] for name in engine.inputs})
    # what is pooled comes from the first token, which is computed even where it is padding
    return largest_error(found, run_onnxruntime(oracle, inputs), mask)


def unsummed(model: onnx.ModelProto) -> None:
    """Hand attention the mask itself, where the optimiser has replaced it by its sum."""
    summands = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "ReduceSum"}
    for node in model.graph.node:
        if node.op_type == "Attention" and node.input[3] in summands:
            node.input[3] = summands[node.input[3]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_optimum_compute_what_onnx_runtime_computes(path: Path, tmp_path: Path) -> None:
    # Given a sum, ONNX Runtime hides the last keys, wherever padding is; the engine hides padding.
    oracle = edited(path, tmp_path, unsummed)
    for batch, length in SHAPES:
        assert worst_difference(path, path, padded(batch, length, "right")) < 1e-5
        assert worst_difference(path, oracle, padded(batch, length, "left")) < 1e-5


def test_the_optimisation_is_read_and_not_undone() -> None:
    """O3 replaces GELU by its tanh form, which is another function."""
    assert read_graph(BERT).layers[1].activation == "gelu"
    assert read_graph(DISTILBERT).layers[1].activation == "gelu_tanh"
    assert read_graph(BERT).layers[0].num_heads == 2


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "raw mask": {"attention_mask_format": 2},
    "separate": {"use_multi_head_attention": True},
    "tanh": {"enable_gelu_approximation": True},
    "no embeddings": {"enable_embed_layer_norm": False},
}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("choice", OPTIONS)
def test_what_onnx_runtimes_optimiser_writes(
    family: str, choice: str, export_case: Export, tmp_path: Path
) -> None:
    path, oracle = tmp_path / f"{family}.onnx", tmp_path / "oracle.onnx"
    source = export_case(Case(family, "mlm" if family == "bert" else "seq", opset=17))
    optimise(source, path, OPTIONS[choice])
    expected = {"SkipLayerNormalization", "FastGelu" if choice == "tanh" else "BiasGelu"}
    expected.add("MultiHeadAttention" if choice == "separate" else "Attention")
    if choice != "no embeddings" and family != "roberta":
        expected.add("EmbedLayerNormalization")
    assert expected <= fused_operators(path)
    optimise(source, oracle, OPTIONS[choice] | {"attention_mask_format": 2})
    for batch, length in SHAPES:
        assert worst_difference(path, path, padded(batch, length, "right")) < 1e-5
        assert worst_difference(path, oracle, padded(batch, length, "left")) < 1e-5


def fused_operators(path: Path) -> set[str]:
    return {n.op_type for n in onnx.load(path).graph.node if n.domain == "com.microsoft"}


@pytest.mark.parametrize(
    "case",
    [
        Case("bert", "seq", opset=17),
        Case("bert", "seq", "sdpa", dynamo=True, opset=23),
        Case("bert", "seq", opset=17, is_shrunk=True),
    ],
    ids=str,
)
def test_what_onnx_runtime_saves_as_its_optimised_graph(
    case: Case, export_case: Export, tmp_path: Path
) -> None:
    path = tmp_path / "saved.onnx"
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # not that the file may fit this machine only
    onnxruntime.InferenceSession(export_case(case), options, providers=["CPUExecutionProvider"])
    assert {"FusedGemm", "SkipLayerNormalization" if case.dynamo else "FusedMatMul"} <= (
        fused_operators(path)
    )
    for batch, length in SHAPES:
        for side in ("right", "left"):
            assert worst_difference(path, path, padded(batch, length, side)) < 1e-5


def test_attention_of_joined_heads(export_case: Export, tmp_path: Path) -> None:
    """The operator of opset 23 also takes (B, T, N·D)."""
    source = export_case(Case("bert", "qa", "sdpa", dynamo=True, opset=23))
    path = edited(source, tmp_path, lambda model: join_heads(model, 4, 4))
    for batch, length in SHAPES:
        for side in ("right", "left"):
            assert worst_difference(path, source, padded(batch, length, side)) < 1e-5
            assert worst_difference(path, path, padded(batch, length, side)) < 1e-5
    for a, b in ((4, 2), (0, 4), (3, 3), (-4, -4), (2**62, 2**62)):
        odd = edited(source, tmp_path, partial(join_heads, query_heads=a, key_heads=b))
        refused(odd, r"\(Attention\): expected (as many heads|query, key and value \(B, T, H\))")
    cached = edited(source, tmp_path, lambda model: add_input(model, "Attention", 6))
    refused(cached, r"\(Attention\): expected attention without a cache")


def join_heads(model: onnx.ModelProto, query_heads: int, key_heads: int) -> None:
    """Let every Attention read the dense layers and feed the next one."""
    producers = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    for node in [node for node in model.graph.node if node.op_type == "Attention"]:
        for i in range(3):
            node.input[i] = producers[producers[node.input[i]].input[0]].input[0]
        node.attribute.append(helper.make_attribute("q_num_heads", query_heads))
        node.attribute.append(helper.make_attribute("kv_num_heads", key_heads))
        transpose = readers[node.output[0]]
        reshape = readers[transpose.output[0]]
        node.output[0] = reshape.output[0]
        model.graph.node.remove(transpose)
        model.graph.node.remove(reshape)


def add_input(model: onnx.ModelProto, operator: str, number: int) -> None:
    """Give the first node of a kind one more input, of any value."""
    node = next(node for node in model.graph.node if node.op_type == operator)
    node.input.extend([""] * (number + 1 - len(node.input)))
    node.input[number] = "attention_mask"


def set_attribute(model: onnx.ModelProto, operator: str, name: str, value: Any) -> None:
    node = next(node for node in model.graph.node if node.op_type == operator)
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def count_twice(model: onnx.ModelProto) -> None:
    """Make the mask's sum (2B,), which stands for ends and starts."""
    node = next(node for node in model.graph.node if node.op_type == "ReduceSum")
    name = node.output[0]
    node.output[0] = "sum"
    model.graph.node.insert(
        list(model.graph.node).index(node) + 1,
        helper.make_node("Concat", ["sum", "sum"], [name], "twice", axis=0),
    )


def add_mean(model: onnx.ModelProto) -> None:
    """Ask for the mean that a SkipLayerNormalization has on the way."""
    node = [n for n in model.graph.node if n.op_type == "SkipLayerNormalization"][-1]
    node.output.append("mean")
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))


def shorten_mask(model: onnx.ModelProto) -> None:
    """Read only the first half of the mask."""
    table = helper.make_node("Slice", ["attention_mask", "zero", "two", "one"], ["half"], "half")
    for name, value in (("zero", 0), ("one", 1), ("two", 2)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] == "attention_mask":
            node.input[0] = "half"
    model.graph.node.insert(0, table)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda m: set_attribute(m, "Attention", "unidirectional", 1),
            r"'Attention_0' \(com.microsoft.Attention\): .*without attribute unidirectional$",
        ),
        (lambda m: set_attribute(m, "Attention", "do_rotary", 1), r"without attribute do_rotary$"),
        (lambda m: set_attribute(m, "Attention", "num_heads", 3), r"\(B, T, H\) of 3 heads"),
        (lambda m: set_attribute(m, "Attention", "num_heads", 0), r"\(B, T, H\) of 0 heads"),
        (lambda m: set_attribute(m, "Attention", "num_heads", 2**62), r"\(B, T, H\) of 46\d+ head"),
        (lambda m: set_attribute(m, "Attention", "num_heads", "2"), r"'Attention_0'.*understood"),
        (
            lambda m: set_attribute(m, "Attention", "mask_filter_value", -1.0),
            r"attention that sees",
        ),
        (
            lambda m: set_attribute(m, "Attention", "qkv_hidden_sizes", [16, 32]),
            r"three qkv_hidden",
        ),
        (lambda m: set_attribute(m, "Attention", "qkv_hidden_sizes", [8, 8, 32]), r"expected"),
        (
            lambda m: set_attribute(m, "Attention", "qkv_hidden_sizes", [2**62, 2**62, 2**63 - 1]),
            r"'Attention_0' \(Split\): expected operands that fit together",
        ),
        (
            lambda m: add_input(m, "Attention", 4),
            r"\(com.microsoft.Attention\): .*without input 4$",
        ),
        (
            lambda m: add_input(m, "Attention", 7),
            r"\(com.microsoft.Attention\): .*without input 7$",
        ),
        (lambda m: add_input(m, "Attention", 5), r"fits \(B, N, T, T\)|attention that sees all"),
        (lambda m: change(m, "Attention", operator="QAttention"), r"'Attention_0' .*integers"),
        (lambda m: change(m, "BiasGelu", operator="QuickGelu"), r"\(com.microsoft.QuickGelu\):"),
        (lambda m: add_input(m, "BiasGelu", 2), r"\(com.microsoft.BiasGelu\): .*without input 2$"),
        (lambda m: add_input(m, "SkipLayerNormalization", 5), r"without input 5$"),
        (lambda m: count_twice(m), r"number of tokens \(B,\); got the shape \(\d+,\)"),
        (lambda m: shorten_mask(m), r"number of tokens \(B,\); got .* other numbers"),
        (lambda m: add_mean(m), r"cannot be run|needs a hidden state inside"),
    ],
)
def test_other_uses_of_fused_operators_are_refused(
    edit: Edit, message: str, tmp_path: Path
) -> None:
    refused(edited(BERT, tmp_path, edit), message)


@pytest.mark.parametrize("choice", ["raw mask", "separate"])
def test_a_changed_graph_is_refused_or_still_equal(
    choice: str, export_case: Export, tmp_path: Path
) -> None:
    source = tmp_path / "source.onnx"
    options = OPTIONS[choice] | OPTIONS["raw mask"]
    optimise(export_case(Case("bert", "mlm", opset=17)), source, options)
    refused_or_equal(onnx.load(source), random.Random(choice), 120, tmp_path)
