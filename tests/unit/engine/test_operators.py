"""The operators, against ONNX's own reference implementation."""

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from support.plans import Array, ints, make_tail_plan, no_linear

from toolkit.engine.operators import OPERATORS, erf
from toolkit.engine.plan import Node
from toolkit.engine.tail import check_tail, run_tail

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
Y = RNG.standard_normal((2, 3, 4)).astype(np.float32)
V = RNG.standard_normal(4).astype(np.float32)
B = X > 0
I64 = np.int64


# operator, inputs (None: left out), attributes, opset
CASES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("Abs", [X], {}, 18),
    ("Add", [X, V], {}, 18),
    ("And", [B, ~B], {}, 18),
    ("ArgMax", [X], {"axis": 2, "keepdims": 0}, 18),
    ("Cast", [X], {"to": 7}, 18),
    ("Cast", [B], {"to": 1}, 18),
    ("CastLike", [ints(1, 2), X], {}, 18),
    ("Clip", [X, np.float32(-0.5), np.float32(0.5)], {}, 18),
    ("Clip", [X, None, np.float32(0.5)], {}, 18),
    ("Clip", [X], {}, 18),
    ("Concat", [X, Y], {"axis": -1}, 18),
    ("ConstantOfShape", [ints(2, 3)], {"value": np.array([7], I64)}, 18),
    ("ConstantOfShape", [ints(0)], {}, 18),
    ("CumSum", [X, np.array(1)], {}, 18),
    ("Div", [X, V], {}, 18),
    ("Div", [ints(7, -7, 7), ints(2, 2, -2)], {}, 18),
    ("Equal", [X, X], {}, 18),
    ("Erf", [X], {}, 18),
    ("Exp", [X], {}, 18),
    ("Expand", [V, ints(2, 1, 4)], {}, 18),
    ("Expand", [X, ints(1, 4)], {}, 18),
    ("Flatten", [X], {"axis": 2}, 18),
    ("Flatten", [X], {"axis": 0}, 18),
    ("Gather", [X, np.array(0)], {"axis": 1}, 18),
    ("Gather", [X, ints(-1, 0)], {"axis": 2}, 18),
    ("GatherElements", [X, np.zeros((2, 3, 1), I64)], {"axis": 2}, 18),
    ("GatherND", [X, ints(1, 2, 0, 1).reshape(2, 2)], {}, 18),
    ("Gelu", [X], {}, 20),
    ("Gelu", [X], {"approximate": "tanh"}, 20),
    ("Greater", [X, Y], {}, 18),
    ("GreaterOrEqual", [X, Y], {}, 18),
    ("Identity", [X], {}, 18),
    ("IsNaN", [np.array([1.0, np.nan], np.float32)], {}, 18),
    ("LayerNormalization", [X, V, V], {"epsilon": 1e-3}, 18),
    ("LayerNormalization", [X, np.ones((3, 4), np.float32)], {"axis": 1}, 18),
    ("Less", [X, Y], {}, 18),
    ("LessOrEqual", [X, X], {}, 18),
    ("Log", [np.abs(X)], {}, 18),
    ("LogSoftmax", [X], {"axis": 1}, 18),
    ("LpNormalization", [X], {"axis": 1, "p": 2}, 18),
    ("Max", [X, V, Y], {}, 18),
    ("Min", [X, V], {}, 18),
    ("Mul", [X, Y], {}, 18),
    ("Neg", [X], {}, 18),
    ("Not", [B], {}, 18),
    ("Or", [B, ~B], {}, 18),
    ("Pow", [np.abs(X), np.float32(1.5)], {}, 18),
    ("Pow", [X, np.array(2, I64)], {}, 18),
    ("Range", [np.array(1, I64), np.array(9, I64), np.array(3, I64)], {}, 18),
    ("Range", [np.array(5, I64), np.array(1, I64), np.array(1, I64)], {}, 18),
    ("Reciprocal", [X], {}, 18),
    ("ReduceL2", [X, ints(2)], {"keepdims": 1}, 18),
    ("ReduceL2", [X], {"axes": [1], "keepdims": 0}, 13),
    ("ReduceMax", [X, ints(0, 1)], {"keepdims": 0}, 18),
    ("ReduceMean", [X], {"axes": [-1]}, 13),
    ("ReduceMean", [X, ints(-1)], {}, 18),
    ("ReduceMean", [X], {}, 18),
    ("ReduceSum", [X, ints(1)], {"keepdims": 0}, 18),
    ("ReduceSum", [X], {"noop_with_empty_axes": 1}, 18),
    ("Relu", [X], {}, 18),
    ("Reshape", [X, ints(0, -1)], {}, 18),
    ("Reshape", [X, ints(4, 6)], {"allowzero": 1}, 18),
    ("Shape", [X], {}, 18),
    ("Shape", [X], {"start": -2, "end": 3}, 18),
    ("Sigmoid", [X], {}, 18),
    ("Slice", [X, ints(0), ints(1), ints(1)], {}, 18),
    ("Slice", [X, ints(1, -3), ints(2**62, -1), ints(0, 2), ints(1, 2)], {}, 18),
    ("Slice", [X, ints(1), ints(2)], {}, 18),
    ("Slice", [X, ints(-1, 2), ints(-(2**62), 0), ints(0, 2), ints(-1, -2)], {}, 18),
    ("Softmax", [X], {}, 18),
    ("Softmax", [X], {"axis": 0}, 18),
    ("Split", [X, ints(1, 3)], {"axis": 2}, 18),
    ("Split", [X], {"axis": 2, "num_outputs": 2}, 18),
    ("Split", [X], {"axis": 1, "num_outputs": 2}, 18),
    ("Split", [X], {"axis": 2, "split": [2, 2]}, 11),
    ("Sqrt", [np.abs(X)], {}, 18),
    ("Squeeze", [X[:, :1], ints(1)], {}, 18),
    ("Squeeze", [X[:, :1]], {"axes": [1]}, 11),
    ("Squeeze", [X[:, :1, :1]], {}, 18),
    ("Sub", [X, V], {}, 18),
    ("Tanh", [X], {}, 18),
    ("Transpose", [X], {"perm": [2, 0, 1]}, 18),
    ("Transpose", [X], {}, 18),
    ("Unsqueeze", [X, ints(0, -1)], {}, 18),
    ("Unsqueeze", [X], {"axes": [1, 3]}, 11),
    ("Where", [B, X, Y], {}, 18),
]


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "opset"), CASES, ids=[case[0] for case in CASES]
)
def test_operators_agree_with_onnx(
    operator: str, inputs: list[Any], attributes: dict[str, Any], opset: int
) -> None:
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(inputs)]
    feed = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
    outputs = ["y0", "y1"] if operator == "Split" else ["y0"]
    encoded = {
        name: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in attributes.items()
    }
    node = helper.make_node(operator, names, outputs, **encoded)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in feed.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    expected = ReferenceEvaluator(model).run(None, feed)
    plan = make_tail_plan([Node("n", operator, names, outputs, attributes)], outputs, feed)
    check_tail(plan)
    found = run_tail(plan, {}, no_linear)
    for name, value in zip(outputs, expected, strict=True):
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=3e-7)


def test_every_operator_is_tested() -> None:
    assert {case[0] for case in CASES} | {"Constant", "Dropout"} == set(OPERATORS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_is_accurate(dtype: type) -> None:
    points = np.concatenate([np.linspace(-8, 8, 100_001), np.logspace(-30, 0, 1000)])
    x: Array = points.astype(dtype)
    exact = np.array([math.erf(v) for v in x.astype(np.float64)])
    assert erf(x).dtype == dtype
    assert np.abs(erf(x) - exact).max() < (2e-7 if dtype is np.float32 else 1e-9)
    special = erf(np.array([np.inf, -np.inf, 0.0, np.nan], dtype))
    np.testing.assert_array_equal(special, np.array([1.0, -1.0, 0.0, np.nan], dtype))


def test_lp_normalization_by_the_sum_of_magnitudes() -> None:
    """ONNX's reference implementation forgets the magnitude where p is 1."""
    plan = make_tail_plan([Node("n", "LpNormalization", ["x"], ["y"], {"p": 1})], ["y"], {"x": X})
    found = run_tail(plan, {}, no_linear)["y"]
    np.testing.assert_allclose(found, X / np.abs(X).sum(-1, keepdims=True), rtol=1e-6)


def test_softmax_before_opset_13_is_over_all_later_axes() -> None:
    plan = make_tail_plan(
        [Node("n", "Softmax", ["x"], ["y"], {"axis": 1, "coerced": True})], ["y"], {"x": X}
    )
    found = run_tail(plan, {}, no_linear)["y"]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 1.0, rtol=1e-6)
