"""The ONNX operators behind the encoder: one plain NumPy function each, and their table."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Attributes = Mapping[str, Any]
Operator = Callable[[list[Any], Attributes], Array | list[Array]]

# A constant of a foreign file can ask for any size: 1 GiB of float32 is beyond every real head.
MAX_ELEMENTS = 2**28

# ONNX TensorProto.DataType numbers.
DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}


def erf(x: Array) -> Array:
    """Compute the error function by cubic Taylor expansion around 1/64-spaced points.

    The remainder is below max|erf''''|/24 · 2⁻²⁸ < 1e-9; float32 rounding adds about 1e-7.

    Args:
        x: Any shape, float32 or float64.

    Returns:
        Same shape and dtype.
    """
    clipped = np.clip(x, -_ERF_LIMIT, _ERF_LIMIT)
    with np.errstate(invalid="ignore"):  # NaN has no table row; it stays NaN through `step`
        row = np.rint(clipped * _ERF_STEPS).astype(np.int32)
    step = clipped - row.astype(x.dtype) / x.dtype.type(_ERF_STEPS)
    row = np.clip(row + _ERF_LIMIT * _ERF_STEPS, 0, len(_ERF_TABLE) - 1)
    c = _ERF_TABLE.astype(x.dtype)[row]  # (..., 4)
    return np.asarray(c[..., 0] + step * (c[..., 1] + step * (c[..., 2] + step * c[..., 3])))


def _erf_table() -> NDArray[np.float64]:
    points = np.arange(-_ERF_LIMIT * _ERF_STEPS, _ERF_LIMIT * _ERF_STEPS + 1) / _ERF_STEPS
    slope = 2.0 / math.sqrt(math.pi) * np.exp(-points * points)
    values = np.array([math.erf(point) for point in points])
    return np.stack(
        [values, slope, -points * slope, (2.0 * points * points - 1.0) * slope / 3.0], axis=-1
    )


_ERF_LIMIT = 6  # erf(6) = 1 - 2e-17
_ERF_STEPS = 64  # table rows per unit
_ERF_TABLE = _erf_table()


def _axes(inputs: list[Any], attributes: Attributes) -> tuple[int, ...] | None:
    """Axes are an attribute up to opset 12 (Reduce*: 17), an input since."""
    axes = inputs[1] if len(inputs) > 1 else attributes.get("axes")
    return None if axes is None else tuple(int(axis) for axis in np.asarray(axes).reshape(-1))


def _squeeze(inputs: list[Any], attributes: Attributes) -> Array:
    return np.asarray(np.squeeze(inputs[0], _axes(inputs, attributes)))


def _unsqueeze(inputs: list[Any], attributes: Attributes) -> Array:
    return np.expand_dims(inputs[0], _axes(inputs, attributes) or ())


def _reduce(function: Callable[..., Any]) -> Operator:
    def run(inputs: list[Any], attributes: Attributes) -> Array:
        axes = _axes(inputs, attributes)
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return np.asarray(inputs[0])
            axes = None
        keep = bool(attributes.get("keepdims", 1))
        return np.asarray(function(inputs[0], axis=axes, keepdims=keep))

    return run


def _l2(x: Array, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    return np.asarray(np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims)))


def _arg_max(inputs: list[Any], attributes: Attributes) -> Array:
    keep = bool(attributes.get("keepdims", 1))
    return np.asarray(np.argmax(inputs[0], axis=attributes.get("axis", 0), keepdims=keep))


def _slice(inputs: list[Any], attributes: Attributes) -> Array:
    x, starts, ends, axes, steps = [*inputs, None, None][:5]
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    return np.asarray(x[tuple(index)])


def _split(inputs: list[Any], attributes: Attributes) -> list[Array]:
    x, axis = inputs[0], attributes.get("axis", 0)
    sizes = inputs[1] if len(inputs) > 1 else attributes.get("split")
    if sizes is None:  # equal parts, the last one smaller
        count = attributes["num_outputs"]
        if not 1 <= count <= x.shape[axis]:
            raise ValueError(f"{x.shape[axis]} elements do not make {count} parts")
        return np.split(x, np.arange(1, count) * -(-x.shape[axis] // count), axis)
    if int(np.sum(sizes)) != x.shape[axis]:
        raise ValueError(f"parts {list(sizes)} do not add up to {x.shape[axis]}")
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _reshape(inputs: list[Any], attributes: Attributes) -> Array:
    x, shape = inputs[0], [int(size) for size in inputs[1]]
    if not attributes.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return np.asarray(x.reshape(shape))


def _flatten(inputs: list[Any], attributes: Attributes) -> Array:
    x = inputs[0]
    axis = attributes.get("axis", 1) % (x.ndim + 1)
    return np.asarray(x.reshape(math.prod(x.shape[:axis]), -1))


def _transpose(inputs: list[Any], attributes: Attributes) -> Array:
    return np.transpose(inputs[0], attributes.get("perm"))


def _sized(shape: Any) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in shape)
    if any(size < 0 for size in sizes) or math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError(f"shape {sizes} is not plausible")
    return sizes


def _expand(inputs: list[Any], attributes: Attributes) -> Array:
    x = inputs[0]
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, _sized(inputs[1])))


def _constant_of_shape(inputs: list[Any], attributes: Attributes) -> Array:
    value = attributes.get("value", np.zeros(1, np.float32))
    return np.broadcast_to(value.reshape(()), _sized(inputs[0]))


def _constant(inputs: list[Any], attributes: Attributes) -> Array:
    for kind, dtype in (("float", np.float32), ("int", np.int64)):
        for name in (f"value_{kind}", f"value_{kind}s"):
            if name in attributes:
                return np.array(attributes[name], dtype=dtype)
    return np.asarray(attributes["value"])


def _range(inputs: list[Any], attributes: Attributes) -> Array:
    start, limit, step = (x.reshape(()) for x in inputs)
    _sized([max(math.ceil((float(limit) - float(start)) / float(step)), 0)])
    return np.arange(start, limit, step, dtype=start.dtype)


def _cumulative_sum(inputs: list[Any], attributes: Attributes) -> Array:
    if attributes.get("exclusive", 0) or attributes.get("reverse", 0):
        raise ValueError("the engine sums upwards and includes the element itself")
    x, axis = inputs
    return np.asarray(np.cumsum(x, axis=int(axis.reshape(())), dtype=x.dtype))


def _gather_nd(inputs: list[Any], attributes: Attributes) -> Array:
    if attributes.get("batch_dims", 0):
        raise ValueError("the engine gathers without batch dimensions")
    x, indices = inputs
    return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])


def _shape(inputs: list[Any], attributes: Attributes) -> Array:
    end = attributes.get("end")
    return np.array(inputs[0].shape[attributes.get("start", 0) : end], dtype=np.int64)


def _cast(inputs: list[Any], attributes: Attributes) -> Array:
    if attributes["to"] not in DTYPES:
        raise ValueError(f"the engine casts to float, double, int and bool, not {attributes['to']}")
    return np.asarray(inputs[0].astype(DTYPES[attributes["to"]]))


def _divide(inputs: list[Any], attributes: Attributes) -> Array:
    a, b = inputs
    if np.issubdtype(np.result_type(a, b), np.integer):  # ONNX truncates
        return np.asarray(np.trunc(np.divide(a, b)).astype(np.result_type(a, b)))
    return np.asarray(np.divide(a, b))


def _power(inputs: list[Any], attributes: Attributes) -> Array:
    base, exponent = inputs
    return np.asarray(np.power(base, exponent).astype(base.dtype))  # ONNX: the type of the base


def _gelu(inputs: list[Any], attributes: Attributes) -> Array:
    x = inputs[0]
    if attributes.get("approximate", b"none") in (b"tanh", "tanh"):
        inner = np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))
    else:
        inner = erf(x * math.sqrt(0.5))
    return np.asarray(0.5 * x * (1.0 + inner))


def _sigmoid(inputs: list[Any], attributes: Attributes) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * inputs[0])))  # exp would overflow below -88


def _softmax(inputs: list[Any], attributes: Attributes) -> Array:
    return np.asarray(np.exp(_log_softmax(inputs, attributes)))


def _log_softmax(inputs: list[Any], attributes: Attributes) -> Array:
    x, axis = inputs[0], attributes.get("axis", -1)
    if attributes.get("coerced"):  # before opset 13: over all axes from `axis` on
        flat = x.reshape(math.prod(x.shape[: axis % x.ndim]), -1)
        return np.asarray(_log_softmax([flat], {}).reshape(x.shape))
    shifted = x - np.max(x, axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True)))


def _layer_normalization(inputs: list[Any], attributes: Attributes) -> Array:
    x, gamma, beta = [*inputs, None][:3]
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    centred = x - np.mean(x, axis=axes, keepdims=True)
    variance = np.mean(np.square(centred), axis=axes, keepdims=True)
    y = centred / np.sqrt(variance + x.dtype.type(attributes.get("epsilon", 1e-5))) * gamma
    return np.asarray(y if beta is None else y + beta)


def _lp_normalization(inputs: list[Any], attributes: Attributes) -> Array:
    x, axis = inputs[0], attributes.get("axis", -1)
    norm = np.linalg.norm(x, ord=attributes.get("p", 2), axis=axis, keepdims=True)
    return np.asarray(np.divide(x, norm, out=np.zeros_like(x), where=norm != 0))


def _clip(inputs: list[Any], attributes: Attributes) -> Array:
    x, low, high = [*inputs, None, None][:3]
    return np.asarray(x if low is None and high is None else np.clip(x, low, high))


def _fold(function: np.ufunc) -> Operator:
    def run(inputs: list[Any], attributes: Attributes) -> Array:
        result = inputs[0]
        for value in inputs[1:]:
            result = function(result, value)
        return np.asarray(result)

    return run


def _plain(function: Callable[..., Any]) -> Operator:
    return lambda inputs, attributes: np.asarray(function(*inputs))


# ONNX operator → function of its inputs (None where an optional one is left out) and attributes.
OPERATORS: dict[str, Operator] = {
    "Abs": _plain(np.abs),
    "Add": _plain(np.add),
    "And": _plain(np.logical_and),
    "ArgMax": _arg_max,
    "Cast": _cast,
    "CastLike": lambda inputs, attributes: inputs[0].astype(inputs[1].dtype),
    "Clip": _clip,
    "Concat": lambda inputs, attributes: np.concatenate(inputs, attributes["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumulative_sum,
    "Div": _divide,
    "Equal": _plain(np.equal),
    "Erf": _plain(erf),
    "Exp": _plain(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": lambda inputs, attributes: np.take(
        inputs[0], inputs[1], axis=attributes.get("axis", 0)
    ),
    "GatherElements": lambda inputs, attributes: np.take_along_axis(
        inputs[0], inputs[1], attributes.get("axis", 0)
    ),
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Dropout": lambda inputs, attributes: inputs[0],
    "Identity": _plain(np.asarray),
    "IsNaN": _plain(np.isnan),
    "LayerNormalization": _layer_normalization,
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Log": _plain(np.log),
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_normalization,
    "Max": _fold(np.maximum),
    "Min": _fold(np.minimum),
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Not": _plain(np.logical_not),
    "Or": _plain(np.logical_or),
    "Pow": _power,
    "Range": _range,
    "Reciprocal": _plain(np.reciprocal),
    "ReduceL2": _reduce(_l2),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
    "Relu": lambda inputs, attributes: np.maximum(inputs[0], inputs[0].dtype.type(0)),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _plain(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(np.subtract),
    "Tanh": _plain(np.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(np.where),
}
