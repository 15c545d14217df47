"""Reading graphs: equal to ONNX Runtime wherever one is accepted, one sentence where it is not."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.edits import Edit, change, edited
from support.graphs import WIDTHS, Case, Export
from support.reading import difference, refused, refused_or_equal

from toolkit.engine.reader.graph import read_graph
from toolkit.errors import InputError
from toolkit.families import LINEARS

pytestmark = pytest.mark.slow

# Every family with every exporter; heads, opsets, attention and folding spread over them.
CASES = [
    Case("bert", "qa", dynamo=True, opset=18),
    Case("bert", "mlm", "sdpa", dynamo=True, opset=18, fold=False),
    Case("bert", "base", dynamo=True, opset=21, activation="relu", heads=1),
    Case("distilbert", "seq", "sdpa", dynamo=True, opset=23),
    Case("electra", "base", "sdpa", dynamo=True, opset=18),
    Case("roberta", "seq", dynamo=True, opset=20),
    *(
        Case(family, head, attention, opset=opset, fold=fold)
        for family, head in [
            ("bert", "base"),
            ("camembert", "qa"),
            ("distilbert", "tok"),
            ("electra", "seq"),
            ("roberta", "mlm"),
            ("xlm-roberta", "base"),
        ]
        for attention, opset, fold in [
            ("eager", 11, False),
            ("eager", 13, True),
            ("sdpa", 14, True),
            ("sdpa", 17, False),
            ("eager", 20, True),
        ]
    ),
    Case("bert", "qa", opset=17, activation="gelu_new"),
    Case("bert", "qa", opset=11, activation="gelu_pytorch_tanh"),
    Case("bert", "qa", "sdpa", opset=17, heads=1),
]
SIMPLE = Case("bert", "seq", opset=14)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_computes_what_the_graph_computes(case: Case, export_case: Export) -> None:
    path = export_case(case)
    plan = read_graph(path)
    assert len(plan.layers) == 2
    assert plan.layers[0].num_heads == case.heads
    expected = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    assert plan.layers[0].activation == expected.get(case.activation, case.activation)
    assert plan.layers[0].scale == pytest.approx((case.heads / 32) ** 0.5, rel=1e-6)
    assert (plan.embeddings.padding_id == 1) is ("roberta" in case.family or "cam" in case.family)
    assert (plan.embeddings.projection is not None) is (case.family == "electra")
    assert plan.first_token_only is (case.head == "seq")
    for batch, length in ((1, 1), (3, 9), (2, 40)):
        assert difference(path, plan, batch, length) < 1e-5


@pytest.mark.parametrize(
    "case",
    [
        Case("bert", "seq", dynamo=True, opset=18, is_shrunk=True),
        Case("roberta", "qa", "sdpa", dynamo=True, opset=23, is_shrunk=True),
        Case("distilbert", "tok", opset=13, is_shrunk=True),
        Case("electra", "base", "sdpa", opset=17, is_shrunk=True),
    ],
    ids=str,
)
def test_layers_of_different_widths(case: Case, export_case: Export) -> None:
    path = export_case(case)
    plan = read_graph(path)
    widths = [[layer.num_heads, len(layer.intermediate.bias)] for layer in plan.layers]
    assert widths == WIDTHS
    assert [layer.query.weight.shape for layer in plan.layers] == [(24, 32), (8, 32)]
    assert plan.layers[0].scale == pytest.approx(8**-0.5, rel=1e-6)
    for batch, length in ((1, 1), (3, 9), (2, 40)):
        assert difference(path, plan, batch, length) < 1e-5


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_rows_of_the_position_table_start_at_the_first_token(
    family: str, export_case: Export
) -> None:
    plan = read_graph(export_case(Case(family, "qa", opset=17)))
    # 42 rows; RoBERTa keeps those of the padding, which its rule counts from
    assert plan.embeddings.position.shape == (42, 32)
    assert plan.embeddings.word.flags.c_contiguous
    assert plan.embeddings.word.flags.aligned


def test_weights_are_views_of_the_file_or_aligned(export_case: Export) -> None:
    for fold in (True, False):
        plan = read_graph(export_case(Case("bert", "base", opset=17, fold=fold)))
        for layer in plan.layers:
            for name in LINEARS:
                linear = getattr(layer, name)
                assert np.ascontiguousarray(linear.weight).flags.aligned
                assert linear.bias.flags.aligned


def test_pooling_and_normalising_belong_to_the_tail(export_case: Export, tmp_path: Path) -> None:
    """What sentence-transformers puts behind the encoder: mean over real tokens, unit length."""

    def add_pooling(model: onnx.ModelProto) -> None:
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.array([2]), "pool.last"),
                numpy_helper.from_array(np.array([1]), "pool.tokens"),
                numpy_helper.from_array(np.array(1e-9, np.float32), "pool.least"),
            ]
        )
        hidden = "last_hidden_state"
        for operator, inputs, output in [
            ("Cast", ["attention_mask"], "pool.float"),
            ("Unsqueeze", ["pool.float", "pool.last"], "pool.column"),
            ("Shape", [hidden], "pool.shape"),
            ("Expand", ["pool.column", "pool.shape"], "pool.mask"),
            ("Mul", [hidden, "pool.mask"], "pool.masked"),
            ("ReduceSum", ["pool.masked", "pool.tokens"], "pool.sum"),
            ("ReduceSum", ["pool.mask", "pool.tokens"], "pool.count"),
            ("Clip", ["pool.count", "pool.least"], "pool.clipped"),
            ("Div", ["pool.sum", "pool.clipped"], "pool.mean"),
            ("ReduceL2", ["pool.mean"], "pool.norm"),
            ("Div", ["pool.mean", "pool.norm"], "embedding"),
        ]:
            attributes: dict[str, Any] = {}
            if operator == "Cast":
                attributes = {"to": TensorProto.FLOAT}
            elif operator == "ReduceSum":
                attributes = {"keepdims": 0}
            elif operator == "ReduceL2":
                attributes = {"axes": [-1], "keepdims": 1}
            node = helper.make_node(operator, inputs, [output], output, **attributes)
            model.graph.node.append(node)
        keep_outputs(model, "embedding")

    path = edited(export_case(Case("bert", "base", opset=17)), tmp_path, add_pooling)
    plan = read_graph(path)
    assert plan.first_token_only is False
    assert difference(path, plan, 3, 9) < 1e-5


def test_external_data(export_case: Export, tmp_path: Path) -> None:
    path = external(export_case(SIMPLE), tmp_path)
    assert path.with_name("weights.bin").stat().st_size > 10_000
    assert difference(path, read_graph(path), 3, 9) < 1e-5


def test_external_data_that_is_truncated_or_elsewhere(export_case: Export, tmp_path: Path) -> None:
    path = external(export_case(SIMPLE), tmp_path)
    data = path.with_name("weights.bin")
    whole = data.read_bytes()
    data.write_bytes(whole[:-100])
    refused(path, r"tensor .* points outside of its data file .*truncated")
    outside = tmp_path.parent / "outside.bin"
    shutil.move(data, outside)
    refused(path, r"'weights.bin', which is not in")
    data.symlink_to(outside)
    refused(path, r"'weights.bin', which is not in")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: change(m, "Erf", operator="Sin"), r"node '\S*Erf\S*' \(Sin\): expected"),
        (lambda m: change(m, "Erf", operator="Tanh"), r"\(MatMul\): expected GELU, its tanh form"),
        (lambda m: change(m, "Softmax", axis=2), r"\(Softmax\): .* attention scores"),
        (lambda m: change(m, "Erf", domain="com.acme"), r"\(com.acme.Erf\): expected an operator"),
        (lambda m: scalar(m, -3.4028234663852886e38, -1.0), r"\(Add\): expected attention that"),
        (lambda m: scalar(m, 1e-12, -1.0), r"expected gamma and beta .* small positive epsilon"),
        (lambda m: halve(m), r"a float32 .*, got float16: export the model as float32"),
        (lambda m: shuffle_positions(m), r"an index buffer that counts up or is constant"),
        (lambda m: fix_batch(m), r"input 'input_ids' has fixed sizes \[4\].*dynamic axes"),
        (lambda m: rename_input(m), r"inputs are \['pixel_values', .*expected input_ids"),
        (lambda m: lie_about_shape(m), r"shape \(1099511627776, 32\) needs \d+ bytes and has"),
        (lambda m: keep_outputs(m, inner_state(m)), r"output .* needs a hidden state inside"),
        (lambda m: keep_outputs(m, first_output(m, "Softmax")), r"hidden state inside|MatMul"),
        (lambda m: m.opset_import[0].ClearField("version"), r"uses ONNX opset 0; .* 11 and newer"),
        (lambda m: m.graph.node.add(op_type="Relu", input=["x"], output=["y"]), r"reads 'x'"),
        (lambda m: m.graph.node.append(m.graph.node[0]), r"computes .*, which exists already"),
        (lambda m: m.graph.ClearField("node"), r"it holds no node"),
        (lambda m: m.graph.sparse_initializer.add(), r"sparse initializers"),
        (lambda m: change(m, "MatMul", data_type=TensorProto.BFLOAT16), r"has the type BFLOAT16"),
    ],
)
def test_what_is_no_encoder_is_refused(
    edit: Edit, message: str, export_case: Export, tmp_path: Path
) -> None:
    refused(edited(export_case(SIMPLE), tmp_path, edit), message)


def test_a_head_of_another_width_is_refused(export_case: Export, tmp_path: Path) -> None:
    def reshape(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if list(t.dims) == [32, 2])
        tensor.dims[:] = [16, 4]

    path = edited(export_case(Case("bert", "qa", opset=17)), tmp_path, reshape)
    refused(path, r"\(MatMul\): expected weights \(k, n\) whose k is the operand's width")


@pytest.mark.parametrize("content", [b"", b"\0", b"{}\n", b"GGUF" * 100, bytes(range(256)) * 8])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path, r"model.onnx")
    refused(tmp_path / "missing.onnx", r"cannot read the ONNX file .*No such file")
    refused(tmp_path, r"cannot read the ONNX file .*Is a directory")


def test_a_truncated_file_is_refused(export_case: Export, tmp_path: Path) -> None:
    whole = export_case(SIMPLE).read_bytes()
    path = tmp_path / "model.onnx"
    for end in [*range(1, 60), *range(60, len(whole) - 1, len(whole) // 97)]:
        path.write_bytes(whole[:end])
        refused(path, r"model.onnx")


def test_damaged_bytes_never_crash(export_case: Export, tmp_path: Path) -> None:
    whole = export_case(SIMPLE).read_bytes()
    path = tmp_path / "model.onnx"
    rng = random.Random(0)
    outcomes = set()
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3, 30])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            read_graph(path)
            outcomes.add("read")  # a weight has changed, nothing else
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("case", [SIMPLE, CASES[0], CASES[3], CASES[4]], ids=str)
def test_a_changed_graph_is_refused_or_still_equal(
    case: Case, export_case: Export, tmp_path: Path
) -> None:
    """Nothing that is not this encoder may pass: edit at random, compare what is accepted."""
    refused_or_equal(onnx.load(export_case(case)), random.Random(str(case)), 100, tmp_path)


def external(path: Path, folder: Path) -> Path:
    """Save a graph with its weights in a second file."""
    result = folder / "external.onnx"
    onnx.save_model(
        onnx.load(path),
        result,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return result


def scalar(model: onnx.ModelProto, old: float, new: float) -> None:
    """Replace every constant of one value."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                array = numpy_helper.to_array(attribute.t)
                if array.dtype == np.float32 and array.size == 1 and np.isclose(array, old).all():
                    attribute.t.CopyFrom(numpy_helper.from_array(np.full_like(array, new)))


def halve(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))


def shuffle_positions(model: onnx.ModelProto) -> None:
    """Exchange two positions that lie beyond any probe."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "value" and list(attribute.t.dims) == [1, 42]:
                array = numpy_helper.to_array(attribute.t).copy()
                array[0, 30], array[0, 31] = 31, 30
                attribute.t.CopyFrom(numpy_helper.from_array(array))


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def rename_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "input_ids":
                node.input[i] = "pixel_values"
    model.graph.input[0].name = "pixel_values"


def lie_about_shape(model: onnx.ModelProto) -> None:
    """Claim 2⁴⁰ rows for a table: its size in bytes would overflow 32 bits."""
    table = next(t for t in model.graph.initializer if list(t.dims) == [50, 32])
    table.dims[0] = 2**40


def inner_state(model: onnx.ModelProto) -> str:
    """Name the first layer's result: what the second reads for its query."""
    products = [n for n in model.graph.node if n.op_type == "MatMul" and "query" in n.name]
    return str(products[1].input[0])


def first_output(model: onnx.ModelProto, kind: str) -> str:
    return str(next(node.output[0] for node in model.graph.node if node.op_type == kind))


def keep_outputs(model: onnx.ModelProto, extra: str) -> None:
    """Add an output."""
    model.graph.output.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, None))
