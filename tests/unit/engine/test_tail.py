"""What lies behind the encoder: run node by node, or refused with the node's name."""

import numpy as np
import pytest
from support.plans import Array, ints, make_tail_plan, no_linear

from toolkit.engine.plan import Linear, Node
from toolkit.engine.tail import check_tail, run_tail
from toolkit.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)


def test_dense_layers_go_to_the_engine() -> None:
    weight = RNG.standard_normal((5, 4)).astype(np.float32)
    linears = {"head": Linear("head", weight, np.ones(5, np.float32))}
    plan = make_tail_plan([Node("head", "Linear", ["hidden"], ["y"])], ["y"], linears=linears)
    asked = []

    def linear(key: str, x: Array) -> Array:
        asked.append((key, x.shape, x.flags.c_contiguous))
        return np.asarray(x @ linears[key].weight.T + linears[key].bias)

    hidden = X.transpose(1, 0, 2)  # not contiguous
    found = run_tail(plan, {"hidden": hidden}, linear)["y"]
    np.testing.assert_allclose(found, hidden @ weight.T + 1.0, rtol=1e-5)
    assert asked == [("head", (6, 4), True)]


def test_outputs_share_no_memory() -> None:
    tail = [
        Node("i", "Identity", ["hidden"], ["same"]),
        Node("g", "Slice", ["hidden", "zero", "one", "one"], ["first"]),
        Node("r", "Relu", ["hidden"], ["positive"]),
    ]
    plan = make_tail_plan(
        tail, ["hidden", "same", "first", "positive"], {"zero": ints(0), "one": ints(1)}
    )
    found = run_tail(plan, {"hidden": X.copy()}, no_linear)
    assert list(found) == plan.outputs
    for value in found.values():  # one after the other: what is spoiled early must not show later
        assert np.isfinite(value).all()
        assert value.flags.c_contiguous
        value[:] = np.nan


def test_nan_and_infinity_pass_silently() -> None:
    tail = [Node("l", "Log", ["hidden"], ["l"]), Node("d", "Div", ["l", "zero"], ["y"])]
    plan = make_tail_plan(tail, ["y"], {"zero": np.array(0.0, np.float32)})
    found = run_tail(plan, {"hidden": np.array([-1.0, 0.0, 2.0], np.float32)}, no_linear)["y"]
    np.testing.assert_array_equal(found, np.array([np.nan, -np.inf, np.inf], np.float32))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("n", "Einsum", ["hidden"], ["y"]), r"node 'n' \(Einsum\): .*expected one of Abs"),
        (Node("n", "MatMul", ["hidden", "hidden"], ["y"]), r"\(MatMul\).*constant weights"),
        (Node("n", "Relu", ["nowhere"], ["y"]), r"\(Relu\): reads 'nowhere'"),
        (Node("n", "Relu", ["hidden"], ["z"]), r"output 'y' is not computed"),
    ],
)
def test_an_unknown_tail_is_refused(node: Node, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_tail(make_tail_plan([node], ["y"]))


@pytest.mark.parametrize(
    ("node", "constant"),
    [
        (Node("n", "Reshape", ["hidden", "c"], ["y"]), ints(5, 5)),
        (Node("n", "Gather", ["hidden", "c"], ["y"]), ints(9)),
        (Node("n", "Expand", ["hidden", "c"], ["y"]), ints(2**40, 1, 1, 1)),
        (Node("n", "ConstantOfShape", ["c"], ["y"]), ints(2**40, 2**40)),
        (Node("n", "Slice", ["hidden", "c", "c", "c", "c"], ["y"]), ints(0)),
        (Node("n", "Split", ["hidden", "c"], ["y"]), ints(1, 7)),
        (Node("n", "Cast", ["hidden"], ["y"], {"to": 10}), ints(0)),
        (Node("n", "Concat", ["hidden"], ["y"]), ints(0)),
        (Node("n", "Range", ["c", "c", "c"], ["y"]), ints(0)),
        (Node("n", "CumSum", ["hidden", "c"], ["y"], {"reverse": 1}), ints(0)),
        (Node("n", "Squeeze", ["hidden", "c"], ["y"]), ints(7)),
    ],
)
def test_shapes_that_do_not_fit_name_the_node(node: Node, constant: Array) -> None:
    plan = make_tail_plan([node], ["y"], {"c": constant})
    with pytest.raises(InputError, match=rf"node 'n' \({node.operator}\): cannot be computed"):
        run_tail(plan, {"hidden": X}, no_linear)
