"""Recognise a BERT encoder by running its graph on symbols instead of numbers.

Exporters spell the same encoder in dozens of ways, so no sequence of nodes is compared: each node
makes a value of the values it reads. Two probe batches of different sizes are run along, so that
a size which the graph has fixed is noticed.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.engine.operators import OPERATORS
from toolkit.engine.plan import Node
from toolkit.engine.reader.integer_operators import MOVES
from toolkit.engine.reader.onnx_file import Graph
from toolkit.engine.reader.quantized import (
    MOVES_OF_CONSTANTS,
    QUANTIZING,
    dense_weight,
    plain,
    unrounded,
)
from toolkit.engine.reader.rules import DENSE, RULES, pointwise
from toolkit.engine.reader.symbols import (
    Context,
    Dequantized,
    Heads,
    Known,
    Lookups,
    MismatchError,
    Norming,
    Opaque,
    Probabilities,
    Probe,
    Residual,
    Rounded,
    Scores,
    Value,
)

PROBE_SHAPES = ((2, 5), (3, 7))  # (B, T), all different
LONGEST_PROBED = max(length for _, length in PROBE_SHAPES)
MAX_KNOWN = 2**20  # elements of a value computed at load; position buffers have some thousand


def make_probes(graph: Graph) -> list[Probe]:
    """Make small batches that tell the roles of values apart.

    Among the ids is every integer constant of the graph, at several places: one of them may be the
    padding id with which the graph compares the ids. Masks have holes; the first text is complete.
    """
    arrays = [*graph.constants.values()]
    arrays += [a for node in graph.nodes for a in node.attributes.values() if hasattr(a, "dtype")]
    special = {int(a.reshape(())) for a in arrays if a.size == 1 and a.dtype.kind == "i"}
    special |= {
        number
        for node in graph.nodes
        if node.operator == "Constant"
        and isinstance(number := node.attributes.get("value_int"), int)
    }
    ids = sorted(number for number in special if 0 <= number < 2**31) or [0]
    probes = []
    for batch, length in PROBE_SHAPES:
        batch = max(batch, -(-2 * len(ids) // length))  # every id at least twice
        text, token = np.indices((batch, length))
        row = np.arange(batch * length).reshape(batch, length)
        # The multiplier keeps ids from ascending like positions; every 11th is an ordinary id.
        picked = (
            np.array(ids)[row * 7 % len(ids)] if len(ids) % 7 else np.array(ids)[row % len(ids)]
        )
        probes.append(
            Probe(
                ids=np.where((row % 11 == 5), 1000003 + row, picked).astype(np.int64),
                mask=((text == 0) | ((text + 2 * token) % 5 < 3)).astype(np.int64),
                types=((text + token // 2) % 2).astype(np.int64),
            )
        )
    return probes


def interpret(graph: Graph, probes: Sequence[Probe]) -> dict[str, Value]:
    """Find out what every value of a graph is.

    Args:
        graph: The graph.
        probes: Small batches, from `make_probes`.

    Returns:
        The meaning of each value by name. One object under two names is one value.
    """
    # Integers that are only dequantized, such as int32 biases, are no index buffers.
    readers = {(name, node.operator) for node in graph.nodes for name in node.inputs}
    indices = {name for name, operator in readers if operator != "DequantizeLinear"}
    values: dict[str, Value] = {
        name: _constant(f"initializer {name!r}", array)
        if name in indices
        else Known((array,) * len(PROBE_SHAPES), True)
        for name, array in graph.constants.items()
    }
    fields = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types"}
    for name in graph.inputs:
        values[name] = Known(tuple(getattr(probe, fields[name]) for probe in probes), False)
    for node in graph.nodes:
        inputs = [values.get(name, Opaque(None)) if name else None for name in node.inputs]
        results = _apply(node, inputs, probes)
        for name, value in zip(node.outputs, results, strict=False):
            values[name] = value
        for name in node.outputs[len(results) :]:
            values[name] = Opaque(None)
    return values


def _apply(node: Node, inputs: list[Any], probes: Sequence[Probe]) -> list[Value]:
    """Run one node."""
    if node.operator in ("Identity", "Dropout") and inputs:
        return [inputs[0]]
    try:
        if node.operator in QUANTIZING:
            return QUANTIZING[node.operator](node, inputs)
        if inputs and isinstance(inputs[0], Rounded) and node.operator in MOVES:
            moved = _apply(node, [inputs[0].source, *inputs[1:]], probes)
            return [replace(inputs[0], source=value) for value in moved]
        if inputs and isinstance(inputs[0], Dequantized) and node.operator in MOVES_OF_CONSTANTS:
            return MOVES_OF_CONSTANTS[node.operator](node, inputs)
        for value in map(unrounded, inputs):
            if isinstance(value, Opaque):
                return [value] * max(len(node.outputs), 1)
        if not _is_dense(node, inputs):
            inputs = [plain(value) for value in inputs]
        if all(value is None or isinstance(value, Known) for value in inputs):
            lookup = _lookup(node, inputs)
            return _evaluate(node, inputs) if lookup is None else [lookup]
        rule = RULES.get(node.operator)
        result = rule(node, inputs, probes) if rule else None
        result = pointwise(node, inputs) if result is None else result
        if result is None:
            return [_explained(node, inputs)] * max(len(node.outputs), 1)
        return [result]
    except MismatchError as error:
        return [Opaque(f"{node}: expected {error}")]
    except Exception as error:  # an attribute or shape that the operator cannot have
        return [Opaque(f"{node}: cannot be understood: {error}")]


def _is_dense(node: Node, inputs: list[Any]) -> bool:
    """Tell whether this is a dense layer, which alone looks at how its operands are quantized."""
    return (
        node.operator in DENSE
        and len(inputs) == 2
        and dense_weight(inputs[1]) is not None
        and not isinstance(unrounded(inputs[0]), (Known, Dequantized))
    )


def _explained(node: Node, inputs: list[Any]) -> Opaque:
    """Say why a node breaks the pattern, if it reads what only an encoder's next step may read."""
    if node.operator not in OPERATORS and node.operator not in RULES:
        return Opaque(f"{node}: expected an operator that the engine knows")
    for value in inputs:
        if type(value) in NAMES:
            return Opaque(f"{node}: expected what BERT does with {NAMES[type(value)]}")
    return Opaque(None, str(node))


NAMES: dict[type, str] = {
    Context: "attention's result",
    Heads: "attention heads",
    Lookups: "embeddings",
    Norming: "a value inside of a LayerNorm",
    Probabilities: "attention probabilities",
    Residual: "a residual sum",
    Scores: "attention scores",
}


def _constant(where: str, array: np.ndarray) -> Known | Opaque:
    """A constant; probes read only the start of a long index buffer, so its rest must be alike."""
    if array.dtype in (np.bool_, np.int32, np.int64) and array.size > LONGEST_PROBED:
        steps = np.diff(array.reshape(-1).astype(np.int64))
        if (steps != steps[0]).any():
            return Opaque(f"{where}: expected an index buffer that counts up or is constant")
    return Known((array,) * len(PROBE_SHAPES), True)


def _lookup(node: Node, inputs: list[Any]) -> Lookups | None:
    """Gather rows of a constant table by numbers that depend on the input."""
    if node.operator != "Gather" or node.attributes.get("axis", 0) != 0:
        return None
    table, rows = inputs
    if not table.is_constant or table.arrays[0].ndim != 2 or table.arrays[0].dtype.kind == "b":
        return None
    if table.arrays[0].dtype in (np.int32, np.int64):  # an index buffer
        return None
    size = table.arrays[0].shape[1]
    shapes = tuple((*array.shape, size) for array in rows.arrays)
    return Lookups(((table.arrays[0], rows.arrays),), shapes)


def _evaluate(node: Node, inputs: list[Any]) -> list[Value]:
    """Compute a node on every probe (once if all is constant)."""
    known = [value for value in inputs if value is not None]
    is_constant = all(value.is_constant for value in known)
    count = 1 if is_constant else len(PROBE_SHAPES)
    if node.operator not in OPERATORS:
        raise MismatchError("an operator that the engine knows")
    runs = []
    for probe in range(count):
        arrays = [None if value is None else value.arrays[probe] for value in inputs]
        sizes = [array.size for array in arrays if array is not None]
        if (
            node.operator not in VIEWS
            and math.prod(max(size, 1) for size in sizes) > 64 * MAX_KNOWN
        ):
            raise MismatchError(f"small operands; their sizes are {sizes}")
        try:
            with np.errstate(all="ignore"):
                result = OPERATORS[node.operator](arrays, node.attributes)
        except Exception as error:  # a foreign graph can break an operator in any way
            raise MismatchError(f"operands that fit together: {error}") from error
        results = result if isinstance(result, list) else [result]
        if node.operator not in VIEWS and any(array.size > MAX_KNOWN for array in results):
            raise MismatchError("a small result")
        runs.append(results)
    if node.operator == "Constant":
        return [_constant(str(node), runs[0][0])]
    if is_constant:
        runs *= len(PROBE_SHAPES)
    return [Known(arrays, is_constant) for arrays in zip(*runs, strict=True)]


# Operators whose result shares the operand's memory, so that any size is fine.
VIEWS = {"Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Constant"}
