"""Edits of ONNX graphs: chosen ones, and random ones."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

Edit = Callable[[onnx.ModelProto], None]


def edited(path: Path, folder: Path, edit: Edit) -> Path:
    model = onnx.load(path)
    edit(model)
    result = folder / "edited.onnx"
    result.write_bytes(model.SerializeToString())
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


def optimise(source: Path, path: Path, options: dict[str, Any]) -> None:
    """Fuse attention and more, as ONNX Runtime's optimiser for transformers does."""
    from onnxruntime.transformers.fusion_options import (
        FusionOptions,
    )
    from onnxruntime.transformers.optimizer import (
        optimize_model,
    )

    fusion = FusionOptions("bert")
    for name, value in options.items():
        setattr(fusion, name, value)
    model = optimize_model(
        str(source), "bert", num_heads=4, hidden_size=32, optimization_options=fusion, opt_level=1
    )
    model.save_model_to_file(str(path))
