"""Quantize the dense layers of an ONNX file, in each of the ways that exporters write them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]

X_SCALE = np.float32(0.05)  # of every activation: most lie within ±6.4, the rest is cut off
X_ZERO = np.uint8(117)


class Writer:
    """A graph being rewritten: constants and nodes are added, and named, as they come."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.nodes: list[NodeProto] = []
        self.zero_point: Array = np.asarray(X_ZERO)

    def constant(self, array: Any) -> str:
        name = f"constant{len(self.graph.initializer)}.{len(self.graph.node)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"quantized{len(self.nodes)}.{len(self.graph.initializer)}"
        node = helper.make_node(operator, inputs, [output], f"node_{output}", **attributes)
        self.nodes.append(node)
        return output

    def activation(self, x: str) -> tuple[str, str, str]:
        """Quantize; return the integers, their scale and their zero point."""
        scale, zero = self.constant(X_SCALE), self.constant(self.zero_point)
        return self.node("QuantizeLinear", x, scale, zero), scale, zero

    def rounded(self, x: str) -> str:
        return self.node("DequantizeLinear", *self.activation(x))


def per_output(weight: Array) -> tuple[Array, Array]:
    """Quantize (k, n) symmetrically; return the integers and one scale per output."""
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def qdq(writer: Writer, node: NodeProto, weight: Array) -> None:
    """As `toolkit export` writes it."""
    integers, scale = per_output(weight)
    zeros = writer.constant(np.zeros(len(scale), np.int8))
    parameters = writer.constant(integers), writer.constant(scale), zeros
    w = writer.node("DequantizeLinear", *parameters, axis=1)
    writer.node("MatMul", writer.rounded(node.input[0]), w, output=node.output[0])


def qat(writer: Writer, node: NodeProto, weight: Array) -> None:
    """As torch writes a model in quantization-aware training: float weights (n, k)."""
    scale = writer.constant(np.float32(np.abs(weight).max() / 127))
    zero = writer.constant(np.int8(0))
    integers = writer.node(
        "QuantizeLinear", writer.constant(np.ascontiguousarray(weight.T)), scale, zero
    )
    floats = writer.node("DequantizeLinear", integers, scale, zero)
    w = writer.node("Transpose", floats, perm=[1, 0])
    writer.node("MatMul", writer.rounded(node.input[0]), w, output=node.output[0])


def integer(writer: Writer, node: NodeProto, weight: Array) -> None:
    """As SparseML converts it: sums of integers, then one scale for all."""
    scale = np.float32(np.abs(weight).max() / 127)
    x, _, zero = writer.activation(node.input[0])
    w = writer.constant(np.rint(weight / scale).astype(np.int8))
    sums = writer.node("MatMulInteger", x, w, zero, writer.constant(np.int8(0)))
    # the bias is added in integers if an Add follows at once: see `quantize_dense`
    if node.HasField("doc_string"):
        bias = writer.arrays[node.doc_string]
        added = np.rint(bias / (X_SCALE * scale)).astype(np.int32)
        sums = writer.node("Add", sums, writer.constant(added))
    floats = writer.node("Cast", sums, to=TensorProto.FLOAT)
    writer.node("Mul", floats, writer.constant(X_SCALE * scale), output=node.output[0])


def integer_products(model: onnx.ModelProto) -> None:
    """Rewrite attention's products as SparseML does: both operands are rounded."""
    writer = Writer(model.graph)
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] in writer.arrays:
            writer.nodes.append(node)
            continue
        a, b = (writer.activation(name) for name in node.input)
        sums = writer.node("MatMulInteger", a[0], b[0], a[2], b[2], output=f"{node.name}.sums")
        floats = writer.node("Cast", sums, to=TensorProto.FLOAT, output=f"{node.name}.floats")
        scale = writer.constant(X_SCALE * X_SCALE)
        writer.node("Mul", floats, scale, output=node.output[0])
    del model.graph.node[:]
    model.graph.node.extend(writer.nodes)


Spelling = Callable[[Writer, NodeProto, Array], None]
SPELLINGS: dict[str, Spelling] = {"qdq": qdq, "qat": qat, "integer": integer}


def quantize_dense(
    path: Path,
    folder: Path,
    write: Spelling = qdq,
    only: str = "",
    zero_point: Any = X_ZERO,
    has_integer_bias: bool = False,
) -> Path:
    """Rewrite every MatMul with a constant weight whose output's name contains `only`."""
    model = onnx.load(path)
    writer = Writer(model.graph)
    writer.zero_point = np.asarray(zero_point)
    nodes = list(model.graph.node)
    skipped = None
    for position, node in enumerate(nodes):
        weight = writer.arrays.get(node.input[1]) if node.op_type == "MatMul" else None
        following = nodes[position + 1] if position + 1 < len(nodes) else node
        if node is skipped:
            continue
        if weight is None or weight.ndim != 2 or only not in f"{node.name} {node.output[0]}":
            writer.nodes.append(node)
            continue
        if has_integer_bias and following.op_type == "Add" and node.output[0] in following.input:
            node.doc_string = next(name for name in following.input if name in writer.arrays)
            node.output[0] = following.output[0]
            skipped = following
        write(writer, node, weight)
    del model.graph.node[:]
    model.graph.node.extend(writer.nodes)
    used = {name for node in writer.nodes for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    result = folder / "quantized.onnx"
    result.write_bytes(model.SerializeToString())
    return result
