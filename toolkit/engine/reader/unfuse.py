"""ONNX Runtime's fused operators, spelled out in the steps that the reader knows.

`optimum` (O2, O3) and `onnxruntime.transformers.optimizer` write them, and ONNX Runtime itself when
it saves an optimised graph. Of attention only its core is left whole: `MultiHeadAttention` and
`FusedMatMul` have rules of their own.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Callable, Mapping
from typing import Any

from toolkit.engine.plan import Node
from toolkit.errors import InputError

DOMAIN = "com.microsoft."
EPSILON = 1e-12  # of both normalisations, where the attribute is left out


Spelling = Callable[[Node], list[Node]]


def spell_out(node: Node, table: Mapping[str, Spelling]) -> list[Node]:
    """Replace a fused node by the nodes that it stands for; any other stays as it is.

    Args:
        node: Any node.
        table: How to spell which operators, such as `FUSED`.

    Returns:
        The nodes in order. Values between them are named after the node's first output.

    Raises:
        InputError: The node asks for more than encoders do: a cache, a causal mask.
    """
    write = table.get(node.operator)
    if write is None:
        return [node]
    try:
        return write(node)
    except InputError:
        raise
    except Exception as error:  # inputs or outputs are missing, an attribute is of a wrong type
        raise InputError(f"{node}: cannot be understood: {error}") from error


def inputs_of(node: Node, understood: str, attributes: str = "") -> list[str]:
    """Return the inputs that are understood ("" where left out); make sure there is nothing else.

    Args:
        node: The node.
        understood: The operator's inputs in order; `-` stands for one that must be left out.
        attributes: The attributes that are understood; others must be 0.
    """
    names = understood.split()
    inputs = [*node.inputs, *[""] * (len(names) - len(node.inputs))]
    extra = [
        f"input {number}"
        for number, value in enumerate(inputs)
        if value and (number >= len(names) or names[number] == "-")
    ]
    extra += [
        f"attribute {name}"
        for name, value in node.attributes.items()
        if name not in attributes.split() and not (isinstance(value, (int, float)) and value == 0)
    ]
    if extra:
        raise InputError(f"{node}: expected it as encoders use it, without {', '.join(extra)}")
    return inputs


def step(
    node: Node, operator: str, inputs: list[str], outputs: list[str], **attributes: Any
) -> Node:
    return Node(node.name, operator, inputs, outputs, attributes)


def _gelu(node: Node) -> list[Node]:
    """GELU, exact or by tanh, of the sum of input and bias."""
    x, bias = inputs_of(node, "x -" if node.operator == f"{DOMAIN}Gelu" else "x bias")
    kind = b"tanh" if node.operator == f"{DOMAIN}FastGelu" else b"none"
    if not bias:
        return [step(node, "Gelu", [x], node.outputs, approximate=kind)]
    total = f"{node.outputs[0]}/sum"
    return [
        step(node, "Add", [x, bias], [total]),
        step(node, "Gelu", [total], node.outputs, approximate=kind),
    ]


def _skip_layer_normalization(node: Node) -> list[Node]:
    """LayerNorm of input + skip + bias; the fourth output is that sum."""
    x, skip, gamma, beta, bias = inputs_of(node, "x skip gamma beta bias", "epsilon")
    normed, mean, deviation, total = [*node.outputs, "", "", ""][:4]
    total = total or f"{normed}/sum"
    pair = f"{normed}/pair" if bias else total
    steps = [step(node, "Add", [x, skip], [pair])]
    if bias:
        steps.append(step(node, "Add", [pair, bias], [total]))
    return [*steps, _layer_norm(node, [total, gamma, beta], [normed, mean, deviation])]


def _layer_norm(node: Node, inputs: list[str], outputs: list[str]) -> Node:
    epsilon = node.attributes.get("epsilon", EPSILON)
    return step(node, "LayerNormalization", inputs, outputs, epsilon=epsilon)


def _embed_layer_normalization(node: Node) -> list[Node]:
    """LayerNorm of the sum of two or three tables' rows; the second output counts the mask's ones.

    Without a mask the count is left undefined here: nothing can use it.
    """
    ids, types, word, position, token_type, gamma, beta, mask, positions = inputs_of(
        node,
        "input_ids segment_ids word position segment gamma beta mask position_ids",
        "epsilon mask_index_type",
    )
    normed, count, total = [*node.outputs, "", ""][:3]
    total = total or f"{normed}/sum"
    steps = []
    if not positions:
        length, start, positions = (f"{normed}/{name}" for name in ("length", "0", "positions"))
        stride = f"{normed}/1"
        steps += [
            step(node, "Shape", [ids], [length], start=1),
            step(node, "Constant", [], [start], value_int=0),
            step(node, "Constant", [], [stride], value_int=1),
            step(node, "Range", [start, length, stride], [positions]),
        ]
    rows = [(word, ids), (position, positions), *([(token_type, types)] if token_type else [])]
    names = [f"{normed}/rows{number}" for number in range(len(rows))]
    for (table, numbers), name in zip(rows, names, strict=True):
        steps.append(step(node, "Gather", [table, numbers], [name]))
    sums = [f"{normed}/pair", total] if token_type else [total]
    for name, before, after in zip(names[1:], [names[0], *sums], sums, strict=False):
        steps.append(step(node, "Add", [before, name], [after]))
    steps.append(_layer_norm(node, [total, gamma, beta], [normed]))
    if mask and count:
        one, real, number = (f"{normed}/{name}" for name in ("one", "real", "number"))
        steps += [
            step(node, "Constant", [], [one], value_int=1),
            step(node, "Equal", [mask, one], [real]),
            step(node, "Cast", [real], [number], to=6),
            step(node, "ReduceSum", [number], [count], axes=[1], keepdims=0),
        ]
    return steps


def _attention(node: Node) -> list[Node]:
    """Dense layers for query, key and value from one packed weight, then their attention."""
    x, weight, bias, mask, _, added, _ = inputs_of(
        node,
        "x weight bias mask_index - attention_bias -",
        "num_heads qkv_hidden_sizes scale mask_filter_value",
    )
    sizes = node.attributes.get("qkv_hidden_sizes")
    dense, weights = _names(node, "dense"), _names(node, "weight")
    steps = [_split(node, weight, weights, sizes, axis=1)]
    steps += [
        step(node, "MatMul", [x, part], [name]) for part, name in zip(weights, dense, strict=True)
    ]
    attributes = {n: a for n, a in node.attributes.items() if n != "qkv_hidden_sizes"}
    whole = _multi_head_attention(
        Node(
            node.name,
            f"{DOMAIN}MultiHeadAttention",
            [*dense, bias, mask, added],
            node.outputs,
            attributes,
        ),
        sizes,
    )
    return [*steps, *whole]


def _multi_head_attention(node: Node, sizes: list[int] | None = None) -> list[Node]:
    """Add the packed bias; the rest has a rule: query, key, value, mask, added to the scores."""
    query, key, value, bias, mask, added = inputs_of(
        node,
        "query key value bias key_padding_mask attention_bias",
        "num_heads scale mask_filter_value",
    )
    parts, steps = [query, key, value], []
    if bias:
        biases, sums = _names(node, "bias"), _names(node, "sum")
        steps.append(_split(node, bias, biases, sizes, axis=0))
        steps += [
            step(node, "Add", [part, bias], [total])
            for part, bias, total in zip(parts, biases, sums, strict=True)
        ]
        parts = sums
    inputs = [*parts, mask, added]
    return [*steps, step(node, node.operator, inputs, node.outputs, **node.attributes)]


def _names(node: Node, what: str) -> list[str]:
    return [f"{node.outputs[0]}/{part}/{what}" for part in ("query", "key", "value")]


def _split(node: Node, packed: str, parts: list[str], sizes: list[int] | None, axis: int) -> Node:
    if sizes is None:
        return step(node, "Split", [packed], parts, axis=axis, num_outputs=3)
    if len(sizes) != 3:
        raise InputError(f"{node}: expected three qkv_hidden_sizes, got {len(sizes)}")
    return step(node, "Split", [packed], parts, axis=axis, split=sizes)


def _fused_matmul(node: Node) -> list[Node]:
    inputs_of(node, "a b", "alpha transB")
    return [node]


def _fused_gemm(node: Node) -> list[Node]:
    """Gemm, then an activation."""
    inputs = inputs_of(node, "a b c", "alpha beta transA transB activation")
    attributes = {name: a for name, a in node.attributes.items() if name != "activation"}
    activation = node.attributes["activation"].decode()
    if activation not in ("Relu", "Sigmoid", "Tanh"):
        raise InputError(
            f"{node}: expected the activation Relu, Sigmoid or Tanh, got {activation!r}"
        )
    product = f"{node.outputs[0]}/product"
    return [
        step(node, "Gemm", inputs, [product], **attributes),
        step(node, activation, [product], node.outputs),
    ]


FUSED: dict[str, Spelling] = {
    f"{DOMAIN}Attention": _attention,
    f"{DOMAIN}BiasGelu": _gelu,
    f"{DOMAIN}EmbedLayerNormalization": _embed_layer_normalization,
    f"{DOMAIN}FastGelu": _gelu,
    f"{DOMAIN}FusedGemm": _fused_gemm,
    f"{DOMAIN}FusedMatMul": _fused_matmul,
    f"{DOMAIN}Gelu": _gelu,
    f"{DOMAIN}MultiHeadAttention": _multi_head_attention,
    f"{DOMAIN}SkipLayerNormalization": _skip_layer_normalization,
}
