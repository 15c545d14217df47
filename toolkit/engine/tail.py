"""What lies behind the encoder - heads, pooling, normalisation - run node by node.

The tail is a thousandth of the work, so it is NumPy; its dense layers go to the engine's kernels,
since NumPy's BLAS threads would spin beside the engine's own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engine.operators import OPERATORS
from toolkit.engine.plan import Node, Plan
from toolkit.errors import InputError

Array = NDArray[Any]


def run_tail(
    plan: Plan, values: Mapping[str, Array], linear: Callable[[str, Array], Array]
) -> dict[str, Array]:
    """Compute the graph's outputs from the last hidden state.

    Args:
        plan: The model.
        values: `plan.hidden` (B, T, H) - (B, 1, H) with `plan.first_token_only` - and the graph's
            inputs by name.
        linear: Maps a key of `plan.linears` and x (N, k) to (N, n), bias added.

    Returns:
        The outputs by name, in the order of `plan.outputs`. They share no memory with each other
        or with `values`, but for the hidden state, which becomes an output where it is asked for.

    Raises:
        InputError: A node cannot take the shapes it is given.
    """
    known: dict[str, Array] = {**plan.constants, **values}
    taken = {id(array) for name, array in known.items() if name != plan.hidden}
    for node in plan.tail:
        try:
            arguments = [known[name] if name else None for name in node.inputs]
            with np.errstate(all="ignore"):  # infinity and NaN pass silently, as in other runtimes
                results = _run_node(node, arguments, linear)
        except (
            ValueError,
            IndexError,
            TypeError,
            KeyError,
            AttributeError,
            ArithmeticError,
            MemoryError,
        ) as error:
            raise InputError(f"{node}: cannot be computed: {error}") from error
        known.update(zip(node.outputs, results, strict=False))
    outputs: dict[str, Array] = {}
    for name in plan.outputs:
        outputs[name] = _own(known[name], id(known[name]) in taken)
        taken.add(id(known[name]))
    return outputs


def check_tail(plan: Plan) -> None:
    """Refuse a tail that `run_tail` cannot run.

    Raises:
        InputError: An operator is unknown, or a value is read that nothing computes.
    """
    known = {"", plan.hidden, *plan.inputs, *plan.constants}
    for node in plan.tail:
        if node.operator not in OPERATORS and node.operator != "Linear":
            hint = (
                "a product with constant weights"
                if node.operator in ("MatMul", "Gemm")
                else f"one of {', '.join(sorted(OPERATORS))}"
            )
            raise InputError(f"{node}: behind the encoder the engine expected {hint}")
        for name in node.inputs:
            if name not in known:
                raise InputError(f"{node}: reads {name!r}, which nothing computes")
        known.update(node.outputs)
    for name in plan.outputs:
        if name not in known:
            raise InputError(f"output {name!r} is not computed by any node the engine knows")


def find_token_head(plan: Plan) -> Node | None:
    """Return the dense layer that alone reads the hidden states of all tokens, if it narrows them.

    Question answering and token classification have one; the encoder applies it while a text's
    hidden states are in cache, and they are never written out.
    """
    readers = [node for node in plan.tail if plan.hidden in node.inputs]
    if plan.first_token_only or plan.hidden in plan.outputs or len(readers) != 1:
        return None
    weight = plan.linears.get(readers[0].name)
    if weight is None or len(weight.bias) > weight.weight.shape[1]:
        return None
    return readers[0]


def _run_node(
    node: Node, arguments: list[Any], linear: Callable[[str, Array], Array]
) -> list[Array]:
    if node.operator == "Linear":
        x = arguments[0]
        y = linear(node.name, np.ascontiguousarray(x.reshape(-1, x.shape[-1])))
        return [y.reshape(*x.shape[:-1], y.shape[-1])]
    result = OPERATORS[node.operator](arguments, node.attributes)
    return result if isinstance(result, list) else [np.asarray(result)]


def _own(value: Array, is_taken: bool) -> Array:
    """Copy what is not a contiguous array of its own: a caller keeps it beyond the next run."""
    if is_taken or value.base is not None or not value.flags.c_contiguous:
        return np.array(value, order="C")
    return value
