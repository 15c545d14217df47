"""Quantized graphs: the integers of the graph where a layer keeps them, else float32 and a note."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from support.edits import Edit, edited, optimise
from support.fuzz_graph import damage
from support.graphs import Case, Export
from support.quantizing import (
    SPELLINGS,
    X_SCALE,
    Writer,
    integer_products,
    per_output,
    qdq,
    quantize_dense,
)
from support.reading import (
    largest_error,
    refused,
    refused_or_equal,
    run_onnxruntime,
    sample,
)

from toolkit.artifact.exported import describe_onnx, read_exported
from toolkit.engine import reference
from toolkit.engine.plan import Linear, Plan
from toolkit.engine.reader.graph import read_graph
from toolkit.errors import InputError
from toolkit.families import LINEARS

pytestmark = pytest.mark.slow

Array = NDArray[Any]

CLASSIFIER = Case("bert", "seq", opset=17)
ENCODER = Case("bert", "base", opset=17)
HEAD_NOTE = "a head runs in float32"
ATTENTION = ("query", "key", "value")

# Where the oracle and ONNX Runtime round the same numbers to the same integers, float32 is left.
EXACT = 1e-4

# Where they do not - the engine leaves attention's products and the heads in float, ONNX Runtime
# chooses one dynamic scale for all tokens - both are a quantized model's error away from float32.
# Features of deviation 1 in ±6 make steps of 0.05, and so errors of 0.015, in each of the 12
# products that add up in both; the outputs' scale is 1, the largest of some hundred 3 deviations.
NOISE = 3 * 0.015 * (2 * 12) ** 0.5


def layers_of(plan: Plan) -> dict[str, Linear]:
    return {
        f"{i}.{name}": getattr(layer, name)
        for i, layer in enumerate(plan.layers)
        for name in LINEARS
    }


def notes_of(plan: Plan) -> set[str]:
    """Return the notes of the layers; those that have one run in float32, the others do not."""
    layers = layers_of(plan).values()
    for layer in layers:
        assert layer.weight.dtype == (np.float32 if layer.note else np.int8)
        assert (layer.quantization is None) == bool(layer.note)
    return {layer.note for layer in layers}


def error(
    path: Path, plan: Plan, batch: int = 3, length: int = 9, oracle: Path | None = None
) -> float:
    inputs = sample(plan, batch, length)
    expected = run_onnxruntime(oracle or path, inputs, is_literal=True)
    return largest_error(reference.run(plan, inputs), expected, inputs["attention_mask"])


@pytest.mark.parametrize("zero_point", [np.uint8(117), np.int8(-11)], ids=lambda z: str(z.dtype))
@pytest.mark.parametrize(
    ("spelling", "has_integer_bias"),
    [("qdq", False), ("qat", False), ("integer", False), ("integer", True)],
)
def test_integers_are_those_of_the_graph(
    spelling: str, has_integer_bias: bool, zero_point: Any, export_case: Export, tmp_path: Path
) -> None:
    source = export_case(ENCODER)
    path = quantize_dense(
        source,
        tmp_path,
        SPELLINGS[spelling],
        zero_point=zero_point,
        has_integer_bias=has_integer_bias,
    )
    plan = read_graph(path)
    assert notes_of(plan) == {""}
    for layer in layers_of(plan).values():
        assert layer.quantization is not None
        assert layer.quantization.x_scale == float(X_SCALE)
        assert layer.quantization.x_zero_point == 117
        assert layer.quantization.scale.shape == layer.bias.shape
        # a scale per tensor reaches 127 only once
        assert np.abs(layer.weight.astype(int)).max() <= 127
    for batch, length in ((1, 1), (3, 9), (2, 40)):
        assert error(path, plan, batch, length) < EXACT
    assert error(path, plan, oracle=source) > 100 * EXACT  # so it is not float32 that was compared


def test_products_of_integers_in_attention(export_case: Export, tmp_path: Path) -> None:
    """Of two rounded values, multiplied as SparseML does: these run in float."""
    source = quantize_dense(export_case(ENCODER), tmp_path, SPELLINGS["integer"])
    path = edited(source, tmp_path, integer_products)
    assert [n.op_type for n in onnx.load(path).graph.node].count("MatMulInteger") == 12 + 4
    plan = read_graph(path)
    assert notes_of(plan) == {""}
    assert error(path, plan, oracle=source) < EXACT


class Batches(CalibrationDataReader):  # type: ignore[misc]  # has no types
    """Four batches to calibrate with."""

    def __init__(self, plan: Plan) -> None:
        self.batches: Iterator[dict[str, Array]] = iter(sample(plan, 3, 9, i) for i in range(4))

    def get_next(self) -> dict[str, Array] | None:
        return next(self.batches, None)


def quantize_statically(source: Path, folder: Path, **options: Any) -> Path:
    path = folder / "static.onnx"
    quantize_static(source, path, Batches(read_graph(source)), **options)
    return path


U8, S8 = QuantType.QUInt8, QuantType.QInt8


@pytest.mark.parametrize("quant_format", list(QuantFormat), ids=lambda f: f.name)
@pytest.mark.parametrize(
    ("activation_type", "weight_type", "per_channel", "reduce_range"),
    [(U8, S8, True, False), (U8, S8, False, True), (S8, S8, True, False), (U8, U8, False, True)],
)
@pytest.mark.parametrize("case", [CLASSIFIER, Case("distilbert", "qa", "sdpa", opset=14)], ids=str)
def test_static_quantization_of_dense_layers(
    case: Case,
    activation_type: Any,
    weight_type: Any,
    per_channel: bool,
    reduce_range: bool,
    quant_format: Any,
    export_case: Export,
    tmp_path: Path,
) -> None:
    """Which quantizes attention's products and every result of a product, too."""
    path = quantize_statically(
        export_case(case),
        tmp_path,
        quant_format=quant_format,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=per_channel,
        reduce_range=reduce_range,
        activation_type=activation_type,
        weight_type=weight_type,
    )
    plan = read_graph(path)
    assert notes_of(plan) == {""}
    assert {head.note for head in plan.linears.values()} == {HEAD_NOTE}
    assert plan.first_token_only is (case.head == "seq")
    assert error(path, plan) < NOISE


EVERYTHING: dict[str, dict[str, Any]] = {
    "all": {},
    "symmetric": {"ActivationSymmetric": True, "WeightSymmetric": True},
    "dedicated": {"DedicatedQDQPair": True, "AddQDQPairToWeight": True},
    "contrib": {"UseQDQContribOps": True, "QuantizeBias": False},
}


@pytest.mark.parametrize("quant_format", list(QuantFormat), ids=lambda f: f.name)
@pytest.mark.parametrize("choice", EVERYTHING)
@pytest.mark.parametrize(
    "case",
    [CLASSIFIER, Case("electra", "tok", opset=17), Case("bert", "qa", dynamo=True, opset=18)],
    ids=str,
)
def test_static_quantization_of_everything(
    case: Case, choice: str, quant_format: Any, export_case: Export, tmp_path: Path
) -> None:
    """Sums, masks, GELU, LayerNorm, softmax, tables: read as float, so nearer to float32."""
    source = export_case(case)
    path = quantize_statically(
        source,
        tmp_path,
        quant_format=quant_format,
        per_channel=choice != "all",
        extra_options=EVERYTHING[choice],
    )
    plan = read_graph(path)
    assert notes_of(plan) == {""}
    assert error(path, plan, oracle=source) < NOISE


@pytest.mark.parametrize("quant_format", list(QuantFormat), ids=lambda f: f.name)
@pytest.mark.parametrize("activation_type", [U8, S8])
@pytest.mark.parametrize(
    "case",
    [Case("distilbert", "seq", opset=17), Case("bert", "qa", opset=17, activation="relu")],
    ids=str,
)
def test_a_relu_that_is_left_to_the_rounding(
    case: Case, activation_type: Any, quant_format: Any, export_case: Export, tmp_path: Path
) -> None:
    source = export_case(case)
    path = quantize_statically(
        source, tmp_path, quant_format=quant_format, activation_type=activation_type
    )
    assert "Relu" in operators_of(source)
    assert "Relu" not in operators_of(path)
    plan = read_graph(path)
    assert notes_of(plan) == {""}
    assert error(path, plan, oracle=source) < NOISE


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("weight_type", "reduce_range"), [(S8, False), (U8, True)])
@pytest.mark.parametrize("case", [CLASSIFIER, Case("roberta", "qa", "sdpa", opset=17)], ids=str)
def test_dynamic_quantization(
    case: Case,
    weight_type: Any,
    reduce_range: bool,
    per_channel: bool,
    export_case: Export,
    tmp_path: Path,
) -> None:
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(
        export_case(case),
        path,
        weight_type=weight_type,
        reduce_range=reduce_range,
        per_channel=per_channel,
        extra_options={"MatMulConstBOnly": not per_channel},  # else attention's products, too
    )
    plan = read_graph(path)
    assert notes_of(plan) == {""}
    quantizations = [layer.quantization for layer in layers_of(plan).values()]
    assert all(q is not None and q.x_scale is None for q in quantizations)
    assert error(path, plan) < NOISE


def test_dynamic_scales_of_one_token_are_those_of_the_batch(
    export_case: Export, tmp_path: Path
) -> None:
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(export_case(ENCODER), path, reduce_range=True, nodes_to_exclude=["/pooler"])
    plan = read_graph(path)
    inputs = sample(plan, 1, 1)
    expected = run_onnxruntime(path, inputs)["last_hidden_state"]
    found = reference.run(plan, inputs)["last_hidden_state"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)
    blocks = reference.run(plan, inputs, block=8)["last_hidden_state"]
    assert EXACT < np.abs(blocks - expected).max() < NOISE


def fused(source: Path, path: Path, level: Any) -> None:
    """Let ONNX Runtime optimise a graph and save it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def operators_of(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("per_channel", [False, True])
def test_fused_attention_quantized(per_channel: bool, export_case: Export, tmp_path: Path) -> None:
    source, path, saved = (tmp_path / f"{name}.onnx" for name in ("fused", "dynamic", "saved"))
    optimise(export_case(CLASSIFIER), source, {})
    options = {"DefaultTensorType": TensorProto.FLOAT}  # no shapes come out of fused nodes
    quantize_dynamic(source, path, per_channel=per_channel, extra_options=options)
    assert {"QAttention", "QEmbedLayerNormalization", "MatMulInteger"} <= operators_of(path)
    fused(path, saved, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    assert "DynamicQuantizeMatMul" in operators_of(saved)
    for file in (path, saved):
        plan = read_graph(file)
        assert notes_of(plan) == {""}
        # on the right only: given a sum, ONNX Runtime hides the last keys, wherever padding is
        assert error(file, plan, batch=2) < NOISE


@pytest.mark.parametrize("is_static", [False, True])
def test_quantized_graphs_that_onnx_runtime_has_optimised(
    is_static: bool, export_case: Export, tmp_path: Path
) -> None:
    path, saved = tmp_path / "quantized.onnx", tmp_path / "saved.onnx"
    if is_static:
        path = quantize_statically(export_case(CLASSIFIER), tmp_path, per_channel=True)
    else:
        quantize_dynamic(export_case(CLASSIFIER), path)
    fused(path, saved, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    expected = {"QGemm", "QLinearAdd"} if is_static else {"DynamicQuantizeMatMul"}
    assert expected <= operators_of(saved)
    plan = read_graph(saved)
    assert notes_of(plan) == {""}
    assert error(path, plan, oracle=export_case(CLASSIFIER)) < NOISE


# How a layer can be quantized that the engine cannot run in integers, and what it says.


def asymmetric(writer: Writer, node: NodeProto, weight: Array) -> None:
    scale = np.float32((weight.max() - weight.min()) / 255)
    zero = np.uint8(np.rint(-weight.min() / scale) + 20)  # no int8 holds all differences
    integers = np.clip(np.rint(weight / scale) + zero, 0, 255).astype(np.uint8)
    integers[0, 0], integers[1, 0] = 0, 255
    parameters = [writer.constant(array) for array in (integers, scale, zero)]
    w = writer.node("DequantizeLinear", *parameters)
    writer.node("MatMul", writer.rounded(node.input[0]), w, output=node.output[0])


def weight_only(writer: Writer, node: NodeProto, weight: Array) -> None:
    integers, scale = per_output(weight)
    w = writer.node("DequantizeLinear", writer.constant(integers), writer.constant(scale), axis=-1)
    writer.node("MatMul", node.input[0], w, output=node.output[0])


def activation_only(writer: Writer, node: NodeProto, weight: Array) -> None:
    x = writer.rounded(node.input[0])
    writer.node("MatMul", x, writer.constant(weight), output=node.output[0])


def per_input(writer: Writer, node: NodeProto, weight: Array) -> None:
    integers, scale = per_output(np.ascontiguousarray(weight.T))
    parameters = [writer.constant(array) for array in (integers.T, scale)]
    w = writer.node("DequantizeLinear", *parameters, axis=0)
    writer.node("MatMul", writer.rounded(node.input[0]), w, output=node.output[0])


def per_feature(writer: Writer, node: NodeProto, weight: Array) -> None:
    parameters = [np.full(len(weight), X_SCALE), np.full(len(weight), 117, np.uint8)]
    names = [writer.constant(array) for array in parameters]
    rounded = writer.node("QuantizeLinear", node.input[0], *names, axis=-1)
    x = writer.node("DequantizeLinear", rounded, *names, axis=-1)
    integers, scale = per_output(weight)
    w = writer.node("DequantizeLinear", writer.constant(integers), writer.constant(scale), axis=1)
    writer.node("MatMul", x, w, output=node.output[0])


def wide(writer: Writer, node: NodeProto, weight: Array) -> None:
    """Activations of 16 bits."""
    names = [writer.constant(array) for array in (np.float32(0.001), np.uint16(30000))]
    x = writer.node(
        "DequantizeLinear", writer.node("QuantizeLinear", node.input[0], *names), *names
    )
    integers, scale = per_output(weight)
    w = writer.node("DequantizeLinear", writer.constant(integers), writer.constant(scale), axis=1)
    writer.node("MatMul", x, w, output=node.output[0])


def wide_weight(writer: Writer, node: NodeProto, weight: Array) -> None:
    scale = np.float32(np.abs(weight).max() / 30000)
    parameters = [np.rint(weight / scale).astype(np.int16), scale]
    w = writer.node("DequantizeLinear", *(writer.constant(array) for array in parameters))
    writer.node("MatMul", writer.rounded(node.input[0]), w, output=node.output[0])


def in_blocks(writer: Writer, node: NodeProto, weight: Array) -> None:
    """Four bits with a scale for every 8 inputs."""
    k, n = weight.shape
    scale = np.abs(weight).reshape(k // 8, 8, n).max(axis=1) / 7
    integers = np.rint(weight / np.repeat(scale, 8, axis=0)).astype(np.int8)
    name = f"packed{len(writer.graph.initializer)}"
    tensor = helper.make_tensor(name, TensorProto.INT4, [k, n], integers.reshape(-1))
    writer.graph.initializer.append(tensor)
    w = writer.node(
        "DequantizeLinear", name, writer.constant(scale.astype(np.float32)), axis=0, block_size=8
    )
    writer.node("MatMul", writer.rounded(node.input[0]), w, output=node.output[0])


FALLBACKS: list[tuple[Callable[[Writer, NodeProto, Array], None], str]] = [
    (asymmetric, "its weight minus the zero point does not fit int8"),
    (weight_only, "only its weight is quantized, not its input"),
    (activation_only, "only its input is quantized, not its weight"),
    (per_input, "its weight has more than one scale for an output"),
    (per_feature, "its input has more than one scale"),
    (wide, "its input is quantized to uint16"),
    (wide_weight, "its weight is quantized to int16"),
    (in_blocks, "its weight has more than one scale for an output"),
]


@pytest.mark.parametrize(("write", "note"), FALLBACKS, ids=lambda v: getattr(v, "__name__", ""))
def test_what_runs_in_float_says_why(
    write: Callable[[Writer, NodeProto, Array], None],
    note: str,
    export_case: Export,
    tmp_path: Path,
) -> None:
    is_new = write in (wide, wide_weight, in_blocks)
    source = export_case(Case("bert", "base", opset=21) if is_new else ENCODER)
    path = quantize_dense(source, tmp_path, write)
    plan = read_graph(path)
    assert notes_of(plan) == {note}
    assert error(path, plan) < (EXACT if write is weight_only else NOISE)


def test_weights_of_four_bits_run_in_integers(export_case: Export, tmp_path: Path) -> None:
    def packed(writer: Writer, node: NodeProto, weight: Array) -> None:
        scale = (np.abs(weight).max(axis=0) / 7).astype(np.float32)
        integers = np.rint(weight / scale).astype(np.int8).reshape(-1)
        for kind, zero in ((TensorProto.INT4, 0), (TensorProto.UINT4, 8)):
            name = f"packed{len(writer.graph.initializer)}"
            tensor = helper.make_tensor(name, kind, weight.shape, integers + zero)
            zeros = helper.make_tensor(f"{name}.zero", kind, scale.shape, [zero] * len(scale))
            writer.graph.initializer.extend([tensor, zeros])
        if len(writer.nodes) % 2:  # the other one is not used
            name = f"packed{len(writer.graph.initializer) - 4}"
        w = writer.node("DequantizeLinear", name, writer.constant(scale), f"{name}.zero", axis=1)
        writer.node("MatMul", writer.rounded(node.input[0]), w, output=node.output[0])

    path = quantize_dense(export_case(Case("bert", "base", opset=21)), tmp_path, packed)
    plan = read_graph(path)
    assert notes_of(plan) == {""}
    assert error(path, plan) < EXACT


def test_activations_of_four_bits_are_refused(export_case: Export, tmp_path: Path) -> None:
    def narrow(writer: Writer, node: NodeProto, weight: Array) -> None:
        zero = f"zero{len(writer.graph.initializer)}"
        writer.graph.initializer.append(helper.make_tensor(zero, TensorProto.UINT4, [], [7]))
        x = writer.node("QuantizeLinear", node.input[0], writer.constant(np.float32(0.5)), zero)
        writer.node("MatMul", x, writer.constant(weight), output=node.output[0])

    path = quantize_dense(export_case(ENCODER), tmp_path, narrow)
    refused(path, r"expected 8 or 16 bits to round to")


def test_the_zero_point_of_a_weight_is_subtracted(export_case: Export, tmp_path: Path) -> None:
    """-128 among the results, which no symmetric quantizer writes but any file may hold."""

    def shifted(writer: Writer, node: NodeProto, weight: Array) -> None:
        integers, scale = per_output(weight)
        integers[0] = -128
        zeros = np.full(len(scale), 128, np.uint8)
        parameters = [(integers.astype(int) + 128).astype(np.uint8), scale, zeros]
        w = writer.node("DequantizeLinear", *(writer.constant(p) for p in parameters), axis=1)
        writer.node("MatMul", writer.rounded(node.input[0]), w, output=node.output[0])

    path = quantize_dense(export_case(ENCODER), tmp_path, shifted)
    plan = read_graph(path)
    assert notes_of(plan) == {""}
    assert all((layer.weight[:, 0] == -128).all() for layer in layers_of(plan).values())
    assert error(path, plan) < EXACT


def test_query_key_and_value_are_quantized_alike_or_not_at_all(
    export_case: Export, tmp_path: Path
) -> None:
    """The engine multiplies them at once."""
    path = quantize_dense(export_case(ENCODER), tmp_path, only="layer.0/attention/self/query")
    plan = read_graph(path)
    notes = {name: layer.note for name, layer in layers_of(plan).items() if layer.note}
    assert notes == {"0.query": "query, key and value are not quantized alike"}
    assert error(path, plan) < NOISE

    def other_scale(writer: Writer, node: NodeProto, weight: Array) -> None:
        writer.zero_point = np.array(117 + ("key" in node.output[0]), np.uint8)
        qdq(writer, node, weight)

    plan = read_graph(quantize_dense(export_case(ENCODER), tmp_path, other_scale))
    for name, layer in layers_of(plan).items():
        assert bool(layer.note) is (name.split(".")[1] in ATTENTION)
        assert (layer.weight.dtype == np.float32) is bool(layer.note)


def test_weights_stay_where_they_are(export_case: Export, tmp_path: Path) -> None:
    plan = read_graph(quantize_dense(export_case(ENCODER), tmp_path))
    for layer in layers_of(plan).values():
        assert not layer.weight.flags.owndata  # a view of the file


def change_constant(kind: str, number: int, new: Callable[[Array], Array]) -> Edit:
    """Replace a constant that the first node of a kind reads; `new` gets the old one."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == kind)
        (old,) = (t for t in model.graph.initializer if t.name == node.input[number])
        changed = numpy_helper.from_array(np.asarray(new(numpy_helper.to_array(old))), "changed")
        model.graph.initializer.append(changed)
        node.input[number] = "changed"

    return edit


def drop(kind: str) -> Edit:
    """Take the last node of a kind out: what read it reads its input."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in reversed(model.graph.node) if node.op_type == kind)
        for other in model.graph.node:
            for i, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[i] = node.input[0]
        model.graph.node.remove(node)

    return edit


def cut_inputs(kind: str, count: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == kind)
        del node.input[count:]

    return edit


POSITIVE = r"expected positive and finite scales"


@pytest.mark.parametrize(
    ("spelling", "edit", "message"),
    [
        ("qdq", change_constant("QuantizeLinear", 1, np.negative), POSITIVE),
        ("qdq", change_constant("QuantizeLinear", 1, lambda s: s * 0), POSITIVE),
        ("qdq", change_constant("DequantizeLinear", 1, lambda s: s * np.float32("nan")), POSITIVE),
        (
            "qdq",
            change_constant("DequantizeLinear", 1, lambda s: np.full_like(s, np.inf)),
            POSITIVE,
        ),
        ("qdq", change_constant("QuantizeLinear", 1, lambda s: s * np.float32(1e-40)), POSITIVE),
        ("qdq", change_constant("QuantizeLinear", 1, lambda s: s[None][:0]), POSITIVE),
        (
            "qdq",
            change_constant("QuantizeLinear", 1, lambda s: s.astype(np.float64)),
            r"a float32 scale and an integer zero point, got float64 and uint8",
        ),
        (
            "qdq",
            change_constant("QuantizeLinear", 2, lambda z: z.astype(np.float32)),
            r"a float32 scale and an integer zero point, got float32 and float32",
        ),
        (
            "qdq",
            change_constant("QuantizeLinear", 2, lambda z: np.full(3, z)),
            r"a zero point of the scale's shape \(\), got \(3,\)",
        ),
        (
            "qdq",
            change_constant("DequantizeLinear", 1, lambda s: s[:5]),
            r"(a zero point of the scale's shape|expected one scale, one per slice)",
        ),
        (
            "qdq",
            change_constant("DequantizeLinear", 0, lambda w: w.astype(np.int16)),
            r"a zero point of int16, got int8",
        ),
        (
            "qdq",
            change_constant("DequantizeLinear", 0, lambda w: w.astype(np.float32)),
            r"expected integers, got float32",
        ),
        ("qdq", drop("QuantizeLinear"), r"\(DequantizeLinear\): expected integers"),
        ("qdq", cut_inputs("QuantizeLinear", 1), r"cannot be understood|constant scale"),
        ("qdq", cut_inputs("DequantizeLinear", 1), r"cannot be understood|constant scale"),
        ("qdq", cut_inputs("DequantizeLinear", 0), r"cannot be understood"),
        ("integer", drop("Cast"), r"its sums cast to float and multiplied by a scale"),
        ("integer", drop("Mul"), r"its sums cast to float and multiplied by a scale"),
        ("integer", drop("QuantizeLinear"), r"integers of a QuantizeLinear as its first input"),
        ("integer", cut_inputs("MatMulInteger", 1), r"scale and zero point with which"),
        (
            "integer",
            change_constant("MatMulInteger", 2, lambda z: z + np.uint8(1)),
            r"scale and zero point with which its input was quantized",
        ),
        (
            "integer",
            change_constant("MatMulInteger", 1, lambda w: w.astype(np.float32)),
            r"expected integers, got float32",
        ),
    ],
)
def test_malformed_quantization_is_refused(
    spelling: str, edit: Edit, message: str, export_case: Export, tmp_path: Path
) -> None:
    quantized = quantize_dense(export_case(ENCODER), tmp_path, SPELLINGS[spelling])
    refused(edited(quantized, tmp_path, edit), message)


@pytest.mark.parametrize("spelling", ["qdq", "integer"])
def test_a_changed_graph_is_refused_or_still_equal(
    spelling: str, export_case: Export, tmp_path: Path
) -> None:
    """A changed scale may leave one number at the edge between two integers: steps, not ulps."""
    path = quantize_dense(export_case(ENCODER), tmp_path, SPELLINGS[spelling])
    refused_or_equal(onnx.load(path), random.Random(spelling), 100, tmp_path, NOISE)


@pytest.mark.parametrize("choice", ["qdq", "integer", "static", "dynamic"])
def test_a_damaged_file_is_refused_or_read(
    choice: str, export_case: Export, tmp_path: Path
) -> None:
    source, path = export_case(CLASSIFIER), tmp_path / "dynamic.onnx"
    if choice in SPELLINGS:
        path = quantize_dense(source, tmp_path, SPELLINGS[choice])
    elif choice == "static":
        path = quantize_statically(source, tmp_path, quant_format=QuantFormat.QOperator)
    else:
        optimise(source, tmp_path / "fused.onnx", {})
        options = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(tmp_path / "fused.onnx", path, extra_options=options)
    content = path.read_bytes()
    outcomes = set()
    for seed in range(100):
        path.write_bytes(damage(content, random.Random(seed)))
        try:
            notes_of(read_graph(path))
        except InputError as error:
            sentence = str(error)
            outcomes.add("refused")
        else:
            sentence = ""
            outcomes.add("read")
        assert "\n" not in sentence
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("choice", ["qdq", "qat", "static", "dynamic", "fused"])
def test_a_quantized_file_is_described(choice: str, export_case: Export, tmp_path: Path) -> None:
    """By `bench`: the rows of its word table, its parameters, and the zeros of its layers."""
    source, path = export_case(CLASSIFIER), tmp_path / "dynamic.onnx"
    if choice in SPELLINGS:
        path = quantize_dense(source, tmp_path, SPELLINGS[choice])
    elif choice == "static":
        path = quantize_statically(source, tmp_path)
    else:
        if choice == "fused":
            source = tmp_path / "fused.onnx"
            optimise(export_case(CLASSIFIER), source, {})
        quantize_dynamic(source, path, extra_options={"DefaultTensorType": TensorProto.FLOAT})
    assert read_exported(path).vocab_size == 50
    expected, found = describe_onnx(export_case(CLASSIFIER)), describe_onnx(path)
    assert found["layers"] == 2
    assert found["parameters"] == pytest.approx(expected["parameters"], rel=0.1)  # and scales
    shapes = [
        [(t["name"], t["shape"]) for t in model["sparsity"]["tensors"]]
        for model in (expected, found)
    ]
    assert shapes[0] == shapes[1]
    assert 0.0 < found["sparsity"]["encoder"] < 0.05  # small weights are rounded to zero


def test_words_of_8_bits_keep_a_scale_per_word(export_case: Export, tmp_path: Path) -> None:
    """Rows of int8 by Gather, made float by Cast and each row's own scale."""
    source = export_case(CLASSIFIER)
    expected = read_graph(source)
    model = onnx.load(source)
    graph = model.graph
    writer = Writer(graph)
    gather = next(
        node
        for node in graph.node
        if node.op_type == "Gather"
        and node.input[0] in writer.arrays
        and len(writer.arrays[node.input[0]]) == len(expected.embeddings.word)
    )
    table = writer.arrays[gather.input[0]]
    scale = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
    integers = np.rint(table / scale).astype(np.int8)
    rows = writer.node("Gather", writer.constant(integers), gather.input[1])
    floats = writer.node("Cast", rows, to=TensorProto.FLOAT)
    scales = writer.node("Gather", writer.constant(scale), gather.input[1])
    writer.node("Mul", floats, scales, output=gather.output[0])
    nodes = [other for node in graph.node for other in (writer.nodes if node == gather else [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    path = tmp_path / "words.onnx"
    onnx.save(model, path)
    plan = read_graph(path)
    np.testing.assert_array_equal(plan.embeddings.word, integers)
    assert plan.embeddings.word_scale is not None
    np.testing.assert_array_equal(plan.embeddings.word_scale, scale[:, 0])
    assert error(path, plan) < EXACT
    assert read_exported(path).vocab_size == len(table)


@pytest.mark.parametrize("is_quantized", [True, False])
def test_features_are_multiplied_before_they_are_rounded(
    is_quantized: bool, export_case: Export, tmp_path: Path
) -> None:
    """As moving outliers to weights does; a layer in float takes the factors into its weight."""
    model = onnx.load(export_case(CLASSIFIER))
    writer, expected = Writer(model.graph), read_graph(export_case(CLASSIFIER))
    weights = {id(layer): layer.weight for layer in layers_of(expected).values()}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        weight = writer.arrays.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "MatMul" and weight is not None and len(weight) in (32, 48, 64):
            writer.nodes.clear()
            factor = np.exp2(np.arange(len(weight)) % 3 - 1).astype(np.float32)
            x = writer.node("Mul", node.input[0], writer.constant(factor))
            w = node.input[1]
            if is_quantized:
                integers, scale = per_output(weight)
                parts = [
                    writer.constant(a) for a in (integers, scale, np.zeros_like(scale, np.int8))
                ]
                x, w = writer.rounded(x), writer.node("DequantizeLinear", *parts, axis=1)
            writer.node("MatMul", x, w, output=node.output[0])
            nodes += writer.nodes
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path = tmp_path / "scaled.onnx"
    onnx.save(model, path)
    plan = read_graph(path)
    factors = [
        layer.quantization and layer.quantization.x_factor for layer in layers_of(plan).values()
    ]
    assert all((factor is not None) == is_quantized for factor in factors)
    assert len(weights) == len(factors)
    assert error(path, plan) < EXACT
