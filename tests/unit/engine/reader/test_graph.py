"""Reading graphs: equal to ONNX Runtime wherever one is accepted, one sentence where it is not."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import Case, Export

from toolkit.engine import reference
from toolkit.engine.plan import Plan
from toolkit.engine.reader.graph import read_graph
from toolkit.errors import InputError

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

Edit = Callable[[onnx.ModelProto], None]


def sample(plan: Plan, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Make a batch with a complete text, one padded on the right and one with holes."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[1:2, (length + 1) // 2 :] = 0
    mask[2:, 1::3] = 0
    ids = rng.integers(5, 50, (batch, length))
    ids[mask == 0] = plan.embeddings.padding_id or 0
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (batch, length)),
    }
    return {name: inputs[name] for name in plan.inputs}


def difference(path: Path, plan: Plan, batch: int, length: int) -> float:
    """Return the largest difference between ONNX Runtime and the oracle at real tokens."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = sample(plan, batch, length)
    found = reference.run(plan, inputs)
    worst = 0.0
    for output, theirs in zip(session.get_outputs(), session.run(None, inputs), strict=True):
        ours = found[output.name]
        assert ours.shape == theirs.shape
        error = np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1.0)
        error[np.isnan(ours) & np.isnan(theirs)] = 0.0
        if error.shape[:2] == (batch, length):
            error = error[inputs["attention_mask"] != 0]
        worst = max(worst, float(error.max()))
    return worst


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
            for name in ("query", "key", "value", "attention_output", "intermediate", "output"):
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


def test_a_quantised_graph_is_refused(export_case: Export, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    path = tmp_path / "model.onnx"
    quantize_dynamic(export_case(SIMPLE), path)
    refused(path, r"\(Gather\): expected a float32 embedding table, got u?int8")


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


def refused_or_equal(
    original: onnx.ModelProto, rng: random.Random, count: int, folder: Path
) -> None:
    """Change a graph at random `count` times: each is refused, or computes what it says."""
    outcomes = {"refused": 0, "equal": 0}
    for number in range(count):
        model = onnx.ModelProto()
        model.CopyFrom(original)
        mutate(model.graph, rng)
        path = folder / f"{number}.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            plan = read_graph(path)
        except InputError:
            outcomes["refused"] += 1
            continue
        try:
            with np.errstate(all="ignore"):
                error = difference(path, plan, 3, 9)
        except (InputError, onnxruntime_errors()):  # invalid ONNX, or shapes that never fit
            continue
        assert error < 1e-3, path
        outcomes["equal"] += 1
    assert outcomes["refused"] > 30
    assert outcomes["equal"] > 5


def onnxruntime_errors() -> type[Exception]:
    return onnxruntime.capi.onnxruntime_pybind11_state.Fail.__mro__[1]


def mutate(graph: onnx.GraphProto, rng: random.Random) -> None:
    """Swap two inputs, reconnect one, change a number, an attribute or an operator, or skip."""
    position = rng.randrange(len(graph.node))
    node = graph.node[position]
    kind = rng.choice(["swap", "rewire", "number", "attribute", "operator", "skip"])
    if kind == "swap" and len(node.input) > 1:
        i, j = rng.sample(range(len(node.input)), 2)
        node.input[i], node.input[j] = node.input[j], node.input[i]
    elif kind == "rewire" and node.input:
        earlier = [name for other in graph.node[:position] for name in other.output]
        earlier += [value.name for value in (*graph.initializer, *graph.input)]
        node.input[rng.randrange(len(node.input))] = rng.choice(earlier)
    elif kind == "number":
        tensors = [t for t in graph.initializer if t.dims in ([], [1])]
        tensors += [a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute]
        if not tensors:  # a graph whose every step is fused
            return
        tensor = rng.choice(tensors)
        array = numpy_helper.to_array(tensor).copy()
        if array.size and array.dtype != bool:
            array.flat[rng.randrange(array.size)] = rng.choice([0, 1, 2, 3, 5, 7])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    elif kind == "attribute" and any(a.type == a.INT for a in node.attribute):
        attribute = rng.choice([a for a in node.attribute if a.type == a.INT])
        attribute.i = rng.choice([0, 1, 2, 3, -1])
    elif kind == "operator":
        for group in (["Add", "Sub", "Mul", "Div", "Max"], ["Erf", "Tanh", "Sqrt", "Sigmoid"]):
            if node.op_type in group:
                node.op_type = rng.choice(group)
                break
    elif kind == "skip" and node.input:
        for other in graph.node:
            for i, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[i] = node.input[0]


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_graph(path)
    assert "\n" not in str(caught.value)


def edited(path: Path, folder: Path, edit: Edit) -> Path:
    model = onnx.load(path)
    edit(model)
    result = folder / "edited.onnx"
    result.write_bytes(model.SerializeToString())
    return result


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


def change(
    model: onnx.ModelProto,
    kind: str,
    operator: str | None = None,
    domain: str | None = None,
    axis: int | None = None,
    data_type: int | None = None,
) -> None:
    """Change the first node of a kind, or the type of its first initializer."""
    node = next(node for node in model.graph.node if node.op_type == kind)
    if operator is not None:
        node.op_type = operator
    if domain is not None:
        node.domain = domain
    if axis is not None:
        next(a for a in node.attribute if a.name == "axis").i = axis
    if data_type is not None:
        next(t for t in model.graph.initializer if t.name in node.input).data_type = data_type


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
