"""Turn layers of an ONNX file into INT8: QuantizeLinear and DequantizeLinear around their MatMul.

Words may be rows of int8, too: Gather takes rows and their scales, and Mul makes floats of them.

An input becomes uint8 with one scale and one zero point, once for all layers that read it. A weight
is kept as int8 with one scale per output. Engines see the pattern and multiply integers; the bias
stays a float addition behind it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from toolkit.compress.quantization.layers import Integers

Words = tuple[NDArray[np.int8], NDArray[np.float32]]


def write_qdq(path: Path, layers: Mapping[str, Integers], words: Words | None = None) -> None:
    """Rewrite an ONNX file in place.

    Args:
        path: As `write_onnx` wrote it: the MatMul of an encoder's linear layer has its name.
        layers: Those that are quantized, by name.
        words: The word embeddings (V, E) int8 and their scales (V, 1); None leaves them.
    """
    model = onnx.load(path)
    graph = model.graph
    tables = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    rounded: dict[str, str] = {}  # an input's name, and its name behind the rounding
    missing = set(layers)

    def constant(name: str, array: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    for node in graph.node:
        is_lookup = node.op_type == "Gather" and "input_ids" in node.input[1]
        if words is not None and is_lookup and tables.get(node.input[0]) == words[0].shape:
            table = constant("words.integers", words[0])
            scale = constant("words.scale", words[1])
            integers = add("Gather", [table, node.input[1]], "words.row_integers")
            row = add("Cast", [integers], "words.row", to=onnx.TensorProto.FLOAT)
            factor = add("Gather", [scale, node.input[1]], "words.row_scale")
            add("Mul", [row, factor], node.output[0])
            words = None
            continue
        if node.name in missing:
            missing.remove(node.name)
            of, name = layers[node.name], node.name
            x = node.input[0]
            if x not in rounded:
                scaled = x
                if of.factor is not None:
                    factor = constant(f"{name}.input_factor", of.factor)
                    scaled = add("Mul", [x, factor], f"{name}.input_scaled")
                grid = [
                    constant(f"{name}.input_scale", np.array(of.x_scale, np.float32)),
                    constant(f"{name}.input_zero_point", np.array(of.x_zero_point, np.uint8)),
                ]
                integers = add("QuantizeLinear", [scaled, *grid], f"{name}.input_integers")
                rounded[x] = add("DequantizeLinear", [integers, *grid], f"{name}.input_rounded")
            # axis 1: a MatMul's weight is (K, N)
            parts = [
                constant(f"{name}.weight_integers", np.ascontiguousarray(of.weight.T)),
                constant(f"{name}.weight_scale", of.scale),
                constant(f"{name}.weight_zero_point", np.zeros(len(of.scale), np.int8)),
            ]
            kept = add("DequantizeLinear", parts, f"{name}.weight_rounded", axis=1)
            node.input[:] = [rounded[x], kept]
        nodes.append(node)
    assert words is None, "no Gather of words by input_ids"
    assert not missing, f"no MatMul is called {', '.join(sorted(missing))}"
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    needed = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(needed)
    outside = path.with_name(f"{path.name}.data")
    has_outside = outside.exists()
    outside.unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=has_outside, location=outside.name)
