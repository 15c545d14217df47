"""ONNX file → plan: recognise the encoder, take what lies behind it as the tail."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.engine.plan import Linear, Node, Plan
from toolkit.engine.reader.integer_operators import INTEGER, join_products
from toolkit.engine.reader.interpret import interpret, make_probes
from toolkit.engine.reader.onnx_file import Graph, read_onnx
from toolkit.engine.reader.quantized import QUANTIZING, is_relu, plain, unrounded
from toolkit.engine.reader.sparse_file import SUFFIX, read_sparse
from toolkit.engine.reader.symbols import (
    Dequantized,
    Dynamic,
    Hidden,
    Known,
    Opaque,
    Value,
    shapes_of,
    weight_of,
)
from toolkit.engine.reader.unfuse import DOMAIN, FUSED, spell_out
from toolkit.engine.tail import check_tail
from toolkit.errors import InputError

HEAD_NOTE = "a head runs in float32"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def read_graph(path: Path) -> Plan:
    """Turn an ONNX file, or a sparse file, into a plan.

    Args:
        path: A BERT-like encoder with any head, exported with dynamic batch and length.

    Returns:
        The plan. Its `weight` arrays may be views of the mapped file: pack them, then let go.

    Raises:
        InputError: The file is missing, damaged, no such encoder, or holds a node that the engine
            does not know; the sentence names node and operator.
    """
    graph = read_file(path)
    if "input_ids" not in graph.inputs or not set(graph.inputs) <= set(INPUTS):
        raise InputError(
            f"{path} is not a BERT encoder the engine can read: its inputs are {graph.inputs}; "
            f"expected input_ids and perhaps attention_mask and token_type_ids"
        )
    _check_order(graph)
    nodes = join_products(graph.nodes)
    for table in (INTEGER, FUSED):
        nodes = [step for node in nodes for step in spell_out(node, table)]
    graph = replace(graph, nodes=[_modernise(node, graph.opset) for node in nodes])
    _check_order(graph)
    values = interpret(graph, make_probes(graph))
    values = {name: unrounded(value) for name, value in values.items()}
    try:
        plan = _plan(graph, values)
        check_tail(plan)
    except (InputError, TypeError, ValueError) as error:  # the last two: odd attributes of a head
        raise InputError(f"{path} cannot be run: {_first_reason(values) or error}") from error
    return plan


def read_file(path: Path) -> Graph:
    """Read an ONNX file, or by its suffix a sparse file.

    Raises:
        InputError: It is missing, damaged or of another kind.
    """
    return read_sparse(path) if path.suffix == SUFFIX else read_onnx(path)


def find_file(place: Path) -> Path:
    """Return the file of an export folder that is run: `model.onnx`, else `model.sparse`."""
    if not place.is_dir():
        return place
    onnx, sparse = place / "model.onnx", place / f"model{SUFFIX}"
    return sparse if sparse.is_file() and not onnx.exists() else onnx


def _plan(graph: Graph, values: Mapping[str, Value]) -> Plan:
    births = {id(value): name for name, value in reversed(list(values.items()))}
    producers = {name: node for node in graph.nodes for name in node.outputs}
    hidden_name, needed = _cut(graph, values, births, producers)
    hidden = values[hidden_name]
    assert isinstance(hidden, Hidden)
    tail, constants, linears = _tail(graph, values, hidden_name, needed)
    return Plan(
        inputs=graph.inputs,
        outputs=graph.outputs,
        embeddings=hidden.embeddings,
        layers=list(hidden.layers),
        hidden=hidden_name,
        first_token_only=_is_first_token_only(graph.outputs, hidden_name, tail, constants),
        tail=tail,
        constants=constants,
        linears=linears,
    )


def _cut(
    graph: Graph,
    values: Mapping[str, Value],
    births: Mapping[int, str],
    producers: Mapping[str, Node],
) -> tuple[str, set[str]]:
    """Walk back from every output to the hidden state it needs.

    Returns:
        The name of the last hidden state, and the names of the values computed behind it.
    """
    needed: set[str] = set()
    found: dict[str, str] = {}  # hidden state → the output that needs it
    for output in graph.outputs:
        pending = [output]
        while pending:
            name = pending.pop()
            value = values.get(name)
            if isinstance(value, Hidden) and births[id(value)] == name:
                found.setdefault(name, output)
            elif name and name not in needed and name in producers and not _is_constant(value):
                needed.add(name)
                pending += _sources(producers[name], values)
    states = {name: values[name] for name in found}
    depths = {
        name: len(state.layers) if isinstance(state, Hidden) and state.attention is None else -1
        for name, state in states.items()
    }
    last = max(depths, key=lambda name: depths[name], default=None)
    if last is None or depths[last] < 1:
        nodes = [v.node for v in values.values() if isinstance(v, Opaque) and v.node]
        where = nodes[0] if nodes else "its outputs"
        raise InputError(f"{where}: expected an encoder layer of BERT's kind before it")
    for name, output in found.items():
        if name != last:
            raise InputError(
                f"output {output!r} needs a hidden state inside of the encoder "
                f"({producers[name]}); expected outputs that are computed from the last one: "
                "export the model without hidden_states and attentions"
            )
    return last, needed


def _sources(node: Node, values: Mapping[str, Value]) -> list[str]:
    """What a node of the tail reads; a shape of the encoder's is taken from the hidden state."""
    if node.operator == "Shape" and _is_inside(values.get(node.inputs[0])):
        return []
    return node.inputs


def _is_inside(value: Value | None) -> bool:
    return value is not None and not isinstance(value, (Dequantized, Dynamic, Known, Opaque))


def _tail(
    graph: Graph, values: Mapping[str, Value], hidden: str, needed: set[str]
) -> tuple[list[Node], dict[str, np.ndarray], dict[str, Linear]]:
    nodes = [node for node in graph.nodes if needed.intersection(node.outputs)]
    nodes = _look_through(nodes, values, graph.outputs)
    uses = [name for node in nodes for name in node.inputs] + graph.outputs
    tail: list[Node] = []
    linears: dict[str, Linear] = {}
    for node in nodes:
        if node.operator == "Shape":
            node = _ask_hidden(node, values, hidden)
        elif node.operator in ("MatMul", "Gemm", f"{DOMAIN}FusedMatMul"):
            node, linear = _dense(node, values, linears)
            if linear is not None:
                linears[node.name] = linear
        elif node.operator == "Add":
            bias = _bias(node, values, linears, tail, uses)
            if bias is not None:
                node = replace(tail.pop(), outputs=node.outputs)
                linears[node.name] = replace(linears[node.name], bias=bias)
        tail.append(node)
    constants = {
        name: np.array(plain(value).arrays[0])
        for name in {*graph.outputs, *(name for node in tail for name in node.inputs)}
        if _is_constant(value := values.get(name))
    }
    return tail, constants, linears


def _look_through(
    nodes: Sequence[Node], values: Mapping[str, Value], outputs: Sequence[str]
) -> list[Node]:
    """Leave out roundings that are not ReLUs, too: what reads one reads the value before it."""
    kept, names = [], dict[str, str]()
    for node in nodes:
        node = replace(node, inputs=[names.get(name, name) for name in node.inputs])
        if node.operator in QUANTIZING:
            source, result = node.inputs[0], node.outputs[0]
            value = values.get(result)
            if values.get(source) is not value:
                reason = value.reason if isinstance(value, Opaque) else None
                raise InputError(reason or f"{node}: expected floats that are rounded")
            cuts = node.operator == "QuantizeLinear" and (
                not node.inputs[2:] or is_relu(values.get(node.inputs[2]))
            )
            node = Node(node.name, "Relu" if cuts else "Identity", [source], [result])
            if not cuts:
                names[result] = source
                if result not in outputs:
                    continue
        kept.append(node)
    return kept


def _ask_hidden(node: Node, values: Mapping[str, Value], hidden: str) -> Node:
    """Ask the last hidden state for a shape that every one before it has too."""
    value = values[node.inputs[0]]
    if not _is_inside(value):
        return node
    if shapes_of(value) != shapes_of(values[hidden]):
        raise InputError(f"{node}: expected a value behind the encoder")
    return replace(node, inputs=[hidden])


def _dense(
    node: Node, values: Mapping[str, Value], linears: Mapping[str, Linear]
) -> tuple[Node, Linear | None]:
    """Turn a product with constant weights into a `Linear` node."""
    weights = values.get(node.inputs[1])
    attributes = node.attributes
    if not _is_constant(weights) or attributes.get("transA", 0):
        return node, None
    weight = plain(weights).arrays[0]
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise InputError(f"{node}: expected float32 weights (k, n), got {weight.dtype}")
    if attributes.get("transB", 0):
        weight = weight.T
    read = values.get(node.inputs[0])
    shapes = None if read is None else shapes_of(read)
    if shapes is not None and shapes[0][-1:] != weight.shape[:1]:
        raise InputError(f"{node}: expected weights (k, n) whose k is the operand's width")
    bias = np.zeros(weight.shape[1], np.float32)
    if len(node.inputs) > 2 and node.inputs[2]:
        added = values.get(node.inputs[2])
        if not _is_constant(added):
            return node, None
        try:
            added = plain(added).arrays[0].astype(np.float32)
            bias = bias + attributes.get("beta", 1.0) * added
        except ValueError:
            bias = np.zeros(0, np.float32)
        if bias.reshape(-1).shape != (weight.shape[1],):
            raise InputError(f"{node}: expected a bias of {weight.shape[1]} elements")
        bias = bias.reshape(-1)
    if attributes.get("alpha", 1.0) != 1.0:
        weight = weight * np.float32(attributes["alpha"])
    name = node.name if node.name not in linears else node.outputs[0]
    note = HEAD_NOTE if isinstance(weights, Dequantized) else ""
    linear = Linear(name, weight_of(weight), bias, None, note)
    return Node(name, "Linear", node.inputs[:1], node.outputs), linear


def _bias(
    node: Node,
    values: Mapping[str, Value],
    linears: Mapping[str, Linear],
    tail: Sequence[Node],
    uses: Sequence[str],
) -> np.ndarray | None:
    """Return the vector that an Add adds to the dense layer right before it, if it does that."""
    if not tail or tail[-1].operator != "Linear" or tail[-1].outputs[0] not in node.inputs:
        return None
    product = tail[-1].outputs[0]
    other = [values.get(name) for name in node.inputs if name != product]
    if uses.count(product) != 1 or len(other) != 1 or not _is_constant(other[0]):
        return None
    bias, linear = plain(other[0]).arrays[0], linears[tail[-1].name]
    fits = bias.dtype == np.float32 and bias.shape == linear.bias.shape
    return np.array(bias) if fits and not linear.bias.any() else None


def _is_first_token_only(
    outputs: Sequence[str],
    hidden: str,
    tail: Sequence[Node],
    constants: Mapping[str, np.ndarray],
) -> bool:
    """Tell whether every use of the hidden state takes token 0, from (B, 1, H) as well."""
    if hidden in outputs:
        return False
    return all(_takes_first(node, constants) for node in tail if hidden in node.inputs)


def _takes_first(node: Node, constants: Mapping[str, np.ndarray]) -> bool:
    parameters = [
        constants[name].reshape(-1).tolist() if name in constants else None
        for name in node.inputs[1:]
    ]
    if node.operator == "Gather":
        return node.attributes.get("axis", 0) == 1 and parameters == [[0]]
    if node.operator == "Slice":
        return parameters in ([[0], [1], [1]], [[0], [1], [1], [1]])
    return False


def _modernise(node: Node, opset: int) -> Node:
    """Write out what an older opset leaves implicit."""
    if opset < 13 and node.operator in ("Softmax", "LogSoftmax"):
        return replace(node, attributes={"axis": 1, **node.attributes, "coerced": True})
    return node


def _check_order(graph: Graph) -> None:
    """Refuse what computes a value twice or after it is read: walking back might not end."""
    known = {*graph.inputs, *graph.constants, ""}
    for node in graph.nodes:
        for name in node.inputs:
            if name not in known:
                raise InputError(f"{node}: reads {name!r}, which nothing before it computes")
        for name in node.outputs:
            if name and name in known:
                raise InputError(f"{node}: computes {name!r}, which exists already")
        known.update(node.outputs)


def _is_constant(value: Value | None) -> bool:
    return isinstance(value, Dequantized) or (isinstance(value, Known) and value.is_constant)


def _first_reason(values: Mapping[str, Value]) -> str | None:
    """Return what broke the pattern first; later reasons follow from it."""
    reasons = (value.reason for value in values.values() if isinstance(value, Opaque))
    return next((reason for reason in reasons if reason), None)
