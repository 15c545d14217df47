"""Operators on integers, spelled out as float ones between DequantizeLinear and QuantizeLinear.

ONNX Runtime's quantizer writes them in its operator format (`QuantFormat.QOperator`,
`quantize_dynamic`), its optimiser makes them of pairs, and SparseML's exporter MatMulInteger.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from toolkit.engine.plan import Node
from toolkit.engine.reader.unfuse import DOMAIN, Spelling, inputs_of, step
from toolkit.errors import InputError

FLOAT = 1  # ONNX TensorProto.DataType

MOVES = {  # what leaves every number as it is
    *("Expand", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
}


def _floats(node: Node, name: str, scale: str, zero_point: str, axis: int = -1) -> Node:
    """Dequantize an operand; a scale of several elements belongs to its last axis."""
    inputs = [name, scale, zero_point]
    return step(node, "DequantizeLinear", inputs, [f"{node.outputs[0]}/{name}"], axis=axis)


def _rounded(node: Node, operator: str, inputs: Sequence[Node | str], *to: str) -> list[Node]:
    """Run an operator on dequantized operands, and quantize its result by scale and zero point."""
    made = [value for value in inputs if isinstance(value, Node)]
    names = [value.outputs[0] if isinstance(value, Node) else value for value in inputs]
    attributes = {name: a for name, a in node.attributes.items() if name != "opset"}
    if not any(to):
        return [*made, step(node, operator, names, node.outputs, **attributes)]
    result = f"{node.outputs[0]}/float"
    return [
        *made,
        step(node, operator, names, [result], **attributes),
        step(node, "QuantizeLinear", [result, *to], node.outputs),
    ]


def _matmul(node: Node) -> list[Node]:
    a, a_scale, a_zero, b, b_scale, b_zero, *to = inputs_of(
        node, "a a_scale a_zero b b_scale b_zero y_scale y_zero"
    )
    operands = [_floats(node, a, a_scale, a_zero), _floats(node, b, b_scale, b_zero)]
    return _rounded(node, "MatMul", operands, *to)


def _gemm(node: Node) -> list[Node]:
    """The bias counts in the product of both scales."""
    a, a_scale, a_zero, b, b_scale, b_zero, bias, *to = inputs_of(
        node, "a a_scale a_zero b b_scale b_zero c y_scale y_zero", "alpha transB"
    )
    if node.attributes.get("alpha", 1.0) != 1.0:
        raise InputError(f"{node}: expected alpha 1, got {node.attributes['alpha']}")
    axis = 0 if node.attributes.get("transB", 0) else 1
    operands = [_floats(node, a, a_scale, a_zero), _floats(node, b, b_scale, b_zero, axis)]
    scales = []
    if bias:
        unit = f"{node.outputs[0]}/scale"
        scales = [step(node, "Mul", [a_scale, b_scale], [unit])]
        operands.append(_floats(node, bias, unit, ""))
    return [*scales, *_rounded(node, "Gemm", operands, *to)]


def _binary(node: Node) -> list[Node]:
    a, a_scale, a_zero, b, b_scale, b_zero, *to = inputs_of(
        node, "a a_scale a_zero b b_scale b_zero y_scale y_zero"
    )
    operands = [_floats(node, a, a_scale, a_zero), _floats(node, b, b_scale, b_zero)]
    operands[1].outputs[0] += "/right"  # a and b may be one value
    return _rounded(node, node.operator.removeprefix(f"{DOMAIN}QLinear"), operands, *to)


def _unary(node: Node) -> list[Node]:
    x, scale, zero, *to = inputs_of(node, "x x_scale x_zero y_scale y_zero", "axis opset")
    if node.attributes.get("opset", 13) < 13:  # Softmax then is over all axes from this one on
        node = replace(node, attributes={"axis": 1, **node.attributes, "coerced": True})
    operator = node.operator.removeprefix(f"{DOMAIN}QLinear")
    return _rounded(node, operator, [_floats(node, x, scale, zero)], *to)


def _concat(node: Node) -> list[Node]:
    to, parts = node.inputs[:2], node.inputs[2:]
    operands = []
    for i in range(0, len(parts), 3):
        x, scale, zero = parts[i : i + 3]
        operands.append(_floats(node, x, scale, zero))
        operands[-1].outputs[0] += f"/{i}"  # one value may be there twice
    return _rounded(node, "Concat", operands, *to)


def _where(node: Node) -> list[Node]:
    condition, a, a_scale, a_zero, b, b_scale, b_zero, *to = inputs_of(
        node, "condition a a_scale a_zero b b_scale b_zero y_scale y_zero"
    )
    operands = [_floats(node, a, a_scale, a_zero), _floats(node, b, b_scale, b_zero)]
    return _rounded(node, "Where", [condition, *operands], *to)


def _matmul_to_float(node: Node) -> list[Node]:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = inputs_of(
        node, "a b a_scale b_scale a_zero b_zero bias"
    )
    operands = [_floats(node, a, a_scale, a_zero), _floats(node, b, b_scale, b_zero)]
    return _biased(node, operands, bias)


def _dynamic_matmul(node: Node) -> list[Node]:
    a, b, scale, zero, bias = inputs_of(node, "a b b_scale b_zero bias")
    parts = [f"{node.outputs[0]}/{name}" for name in ("integers", "scale", "zero")]
    integers, a_scale, a_zero = parts
    operands = [_floats(node, integers, a_scale, a_zero), _floats(node, b, scale, zero)]
    return [step(node, "DynamicQuantizeLinear", [a], parts), *_biased(node, operands, bias)]


def _biased(node: Node, operands: list[Node], bias: str) -> list[Node]:
    if not bias:
        return _rounded(node, "MatMul", operands)
    product = f"{node.outputs[0]}/product"
    return [
        *_rounded(replace(node, outputs=[product]), "MatMul", operands),
        step(node, "Add", [product, bias], node.outputs),
    ]


def _attention(node: Node) -> list[Node]:
    x, weight, bias, x_scale, scale, mask, x_zero, zero, _ = inputs_of(
        node,
        "x weight bias x_scale weight_scale mask x_zero weight_zero -",
        "num_heads scale mask_filter_value",
    )
    operands = [_floats(node, x, x_scale, x_zero), _floats(node, weight, scale, zero)]
    return _rounded(node, f"{DOMAIN}Attention", [*operands, bias, mask])


def _embeddings(node: Node) -> list[Node]:
    """Three tables, gamma and beta, then all their scales, then all their zero points."""
    names = "word position segment gamma beta"
    scales, zeros = (" ".join(f"{n}_{what}" for n in names.split()) for what in ("scale", "zero"))
    ids, types, *rest = inputs_of(node, f"ids types {names} mask {scales} {zeros}", "epsilon")
    parts: list[Node | str] = [
        _floats(node, *of) if of[0] else ""
        for of in zip(rest[:5], rest[6:11], rest[11:], strict=True)
    ]
    return _rounded(node, f"{DOMAIN}EmbedLayerNormalization", [ids, types, *parts, rest[5]])


def _plain(node: Node) -> list[Node]:
    return [replace(node, operator=node.operator.removeprefix(DOMAIN))]


INTEGER: dict[str, Spelling] = {
    "QLinearMatMul": _matmul,
    f"{DOMAIN}DequantizeLinear": _plain,
    f"{DOMAIN}DynamicQuantizeMatMul": _dynamic_matmul,
    f"{DOMAIN}MatMulIntegerToFloat": _matmul_to_float,
    f"{DOMAIN}QAttention": _attention,
    f"{DOMAIN}QEmbedLayerNormalization": _embeddings,
    f"{DOMAIN}QGemm": _gemm,
    f"{DOMAIN}QLinearAdd": _binary,
    f"{DOMAIN}QLinearConcat": _concat,
    f"{DOMAIN}QLinearMul": _binary,
    f"{DOMAIN}QLinearSigmoid": _unary,
    f"{DOMAIN}QLinearSoftmax": _unary,
    f"{DOMAIN}QLinearWhere": _where,
    f"{DOMAIN}QuantizeLinear": _plain,
}


def join_products(nodes: Sequence[Node]) -> list[Node]:
    """Replace every MatMulInteger and what scales its sums by a float product.

    The sums may get a bias in int32; they are cast to float and multiplied by the scale of the
    input times those of the weight, which are one constant (SparseML) or a product of the scale
    that DynamicQuantizeLinear finds with a constant (ONNX Runtime).

    Raises:
        InputError: A MatMulInteger is followed by anything else.
    """
    producers = {name: node for node in nodes for name in node.outputs}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    joined: dict[int, list[Node]] = {}
    for node in nodes:
        if node.operator == "MatMulInteger":
            try:
                chain = _chain(node, readers)
                joined |= {id(link): [] for link in chain}
                joined[id(chain[-1])] = _product(chain, producers)
            except (IndexError, ValueError) as error:  # inputs or outputs are missing
                raise InputError(f"{node}: cannot be understood: {error}") from error
    return [kept for node in nodes for kept in joined.get(id(node), [node])]


def _chain(node: Node, readers: Mapping[str, Sequence[Node]]) -> list[Node]:
    """Follow the sums: an Add if there is a bias, a Cast, a Mul, and nothing else reads them."""
    chain = [node]
    for operator in ("Add", "Cast", "Mul"):
        following = readers.get(chain[-1].outputs[0], [])
        if len(following) == 1 and following[0].operator == operator:
            chain.append(following[0])
        elif operator != "Add":
            break
    if chain[-1].operator != "Mul" or chain[-2].attributes.get("to") != FLOAT:
        raise InputError(f"{node}: expected its sums cast to float and multiplied by a scale")
    return chain


def _product(chain: Sequence[Node], producers: Mapping[str, Node]) -> list[Node]:
    node, cast, last = chain[0], chain[-2], chain[-1]
    a, b, a_zero, b_zero = inputs_of(node, "a b a_zero b_zero")
    bias = _other(chain[1], node.outputs[0]) if len(chain) == 4 else ""
    scale = _other(last, cast.outputs[0])
    source = producers.get(a)
    while source is not None and source.operator in MOVES:
        source = producers.get(source.inputs[0])
    if source is None or source.operator not in ("DynamicQuantizeLinear", "QuantizeLinear"):
        raise InputError(f"{node}: expected integers of a QuantizeLinear as its first input")
    made = []
    if source.operator == "DynamicQuantizeLinear":
        x_scale = source.outputs[1]
        factors = producers.get(scale)
        if bias or factors is None or factors.operator != "Mul" or x_scale not in factors.inputs:
            raise InputError(f"{node}: expected its sums multiplied by its input's scale")
        weight_scale = _other(factors, x_scale)
    else:
        x_scale, weight_scale = source.inputs[1], f"{last.outputs[0]}/weight_scale"
        made = [step(last, "Div", [scale, x_scale], [weight_scale])]
    operands = [_floats(last, a, x_scale, a_zero), _floats(last, b, weight_scale, b_zero)]
    operands[1].outputs[0] += "/right"  # a and b may be one value
    if bias:
        made.append(_floats(last, bias, scale, ""))
        bias = made[-1].outputs[0]
    return [*made, *_biased(last, operands, bias)]


def _other(node: Node, name: str) -> str:
    """Return the operand of an Add or Mul that is not `name`."""
    a, b = node.inputs
    return b if a == name else a
