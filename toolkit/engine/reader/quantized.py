"""Quantization in a graph: looked through but at dense layers, whose integers the engine keeps.

A QuantizeLinear makes `Rounded` of a value, a DequantizeLinear `Dequantized` of a constant.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.engine.operators import OPERATORS
from toolkit.engine.plan import Linear, Node, Quantization
from toolkit.engine.reader.symbols import (
    Affine,
    Array,
    Dequantized,
    Dynamic,
    Known,
    Lookups,
    MismatchError,
    Rounded,
    Value,
    weight_of,
)

# ONNX TensorProto.DataType numbers that the attribute output_dtype may have.
OUTPUT_TYPES = {2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16}


def quantize(node: Node, inputs: list[Any]) -> list[Value]:
    """QuantizeLinear: round constants, remember for everything else how it would be rounded."""
    x, scale, zero_point = [*inputs, None][:3]
    if zero_point is None:
        dtype = OUTPUT_TYPES[node.attributes.get("output_dtype", 0) or 2]
        zero_point = Known((np.zeros((), dtype),) * 2, True)
    scales, zeros = _parameters(scale, zero_point)
    if zeros.dtype.metadata:  # of 4 bits, see `onnx_file.py`
        raise MismatchError("8 or 16 bits to round to")
    if not isinstance(x, Known) or not x.is_constant:
        return [Rounded(unrounded(x), scale, zero_point, is_integer=True)]
    array = x.arrays[0]
    if array.dtype != np.float32:
        raise MismatchError(f"float32 to quantize, got {array.dtype}")
    scales, zeros = (_along(p, array, node) for p in (scales, zeros))
    limits = np.iinfo(zeros.dtype)
    with np.errstate(all="ignore"):  # what is infinite or no number becomes an integer, too
        rounded = np.rint(array / scales) + zeros.astype(np.float32)
        integers = np.clip(np.nan_to_num(rounded), limits.min, limits.max).astype(zeros.dtype)
    return [Known((np.asarray(integers),) * len(x.arrays), True)]


def dequantize(node: Node, inputs: list[Any]) -> list[Value]:
    """DequantizeLinear: of constants, of rows of an embedding table, or of what was quantized."""
    x, scale, zero_point = [*inputs, None][:3]
    if isinstance(x, Rounded) and x.is_integer:
        if zero_point is None and isinstance(x.zero_point, Known):
            zero_point = Known(tuple(np.zeros_like(a) for a in x.zero_point.arrays), True)
        if not (_is_same(scale, x.scale, 1e-6) and _is_same(zero_point, x.zero_point)):
            raise MismatchError("scale and zero point with which its input was quantized")
        return [replace(x, is_integer=False)]
    if isinstance(x, Lookups) and len(x.terms) == 1:
        ((table, rows),) = x.terms
        if isinstance(table, Dequantized):
            raise MismatchError("integers to dequantize")
        # Axis 1 of the table is the last one of its rows (B, T, E).
        node = replace(node, attributes={**node.attributes, "axis": 1})
        return [replace(x, terms=((_constant(node, table, scale, zero_point), rows),))]
    if not isinstance(x, Known) or not x.is_constant:
        raise MismatchError("integers: a constant, or what a QuantizeLinear makes")
    return [_constant(node, x.arrays[0], scale, zero_point)]


def quantize_dynamically(node: Node, inputs: list[Any]) -> list[Value]:
    """DynamicQuantizeLinear: scale and zero point are made while the model runs."""
    scale, zero_point = Dynamic(), Dynamic()
    return [Rounded(unrounded(inputs[0]), scale, zero_point, is_integer=True), scale, zero_point]


QUANTIZING = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": quantize_dynamically,
}


def _transpose(node: Node, inputs: list[Any]) -> list[Value]:
    return [inputs[0].map(lambda array: OPERATORS["Transpose"]([array], node.attributes))]


def _split(node: Node, inputs: list[Any]) -> list[Value]:
    """Split integers, and their scales where these are along the same axis."""
    x, *sizes = inputs
    axis, shape = node.attributes.get("axis", 0), x.integers.shape
    parts = []
    for array in (x.integers, x.scale, x.zero_point):
        whole = list(array.shape)
        whole[axis] = shape[axis]
        arguments = [np.broadcast_to(array, whole), *(size.arrays[0] for size in sizes)]
        parts.append(OPERATORS["Split"](arguments, node.attributes))
    return [Dequantized(*part) for part in zip(*parts, strict=True)]


MOVES_OF_CONSTANTS = {"Transpose": _transpose, "Split": _split}


def unrounded(value: Any) -> Any:
    """Look through a quantization."""
    return value.source if isinstance(value, Rounded) else value


def plain(value: Any) -> Any:
    """What a value is to everything but dense layers: float32."""
    if isinstance(value, Dequantized):
        return Known((value.floats(),) * 2, True)
    if isinstance(value, Rounded) and value.is_integer:
        raise MismatchError("a DequantizeLinear before it")
    return unrounded(value)


def is_relu(zero_point: Any) -> bool:
    """Tell whether 0 is the lowest number of a rounding: it cuts off what is negative.

    ONNX Runtime's quantizer leaves a ReLU out where such a rounding follows it.
    """
    if not isinstance(zero_point, Known):
        return False
    zeros = zero_point.arrays[0]
    return zeros.dtype.kind in "iu" and bool((zeros == np.iinfo(zeros.dtype).min).all())


def dense_weight(value: Any) -> Array | Dequantized | None:
    """The constant weight (k, n) of a dense layer."""
    if isinstance(value, Dequantized):
        return value if value.integers.ndim == 2 else None
    if isinstance(value, Known) and value.is_constant and value.arrays[0].ndim == 2:
        return value.arrays[0]
    return None


def float_weight(weight: Array | Dequantized) -> Array:
    return weight.floats() if isinstance(weight, Dequantized) else weight


def linear(name: str, affine: Affine) -> Linear:
    """Make a dense layer, in integers where the engine can, else with a note why it cannot."""
    weight, bias = affine.weight, affine.bias
    size = (weight.integers if isinstance(weight, Dequantized) else weight).shape[1]
    bias = np.zeros(size, np.float32) if bias is None else bias
    note = ""
    if affine.rounded is not None or isinstance(weight, Dequantized):
        try:
            integers, quantization = _quantized(weight, affine.rounded)
        except MismatchError as reason:
            note = str(reason)
        else:
            return Linear(name, integers.T, bias, replace(quantization, x_factor=affine.factor))
    floats = float_weight(weight)
    if affine.factor is not None:
        floats = floats * affine.factor[:, None]
    return Linear(name, weight_of(floats), bias, None, note)


def in_float(layer: Linear, note: str) -> Linear:
    """Dequantize a layer's weight."""
    if layer.quantization is None:
        return layer
    weight = layer.weight.astype(np.float32)
    weight *= layer.quantization.scale[:, None]
    if layer.quantization.x_factor is not None:
        weight *= layer.quantization.x_factor
    return replace(layer, weight=weight, quantization=None, note=note)


def _quantized(weight: Array | Dequantized, rounded: Rounded | None) -> tuple[Array, Quantization]:
    if not isinstance(weight, Dequantized):
        raise MismatchError("only its input is quantized, not its weight")
    if rounded is None:
        raise MismatchError("only its weight is quantized, not its input")
    x_scale, x_zero_point = None, 0
    if isinstance(rounded.scale, Known) and isinstance(rounded.zero_point, Known):
        scales, zeros = rounded.scale.arrays[0], rounded.zero_point.arrays[0]
        if scales.size != 1 or zeros.size != 1:
            raise MismatchError("its input has more than one scale")
        if zeros.dtype not in (np.int8, np.uint8):
            raise MismatchError(f"its input is quantized to {zeros.dtype}")
        # An int8 activation is a uint8 one whose numbers are all larger by 128.
        x_scale = float(scales.reshape(()))
        x_zero_point = int(zeros.reshape(())) + (128 if zeros.dtype == np.int8 else 0)
    if weight.scale.shape[0] != 1:
        raise MismatchError("its weight has more than one scale for an output")
    scale = np.broadcast_to(weight.scale[0], weight.integers.shape[1:])
    return _int8(weight), Quantization(np.array(scale), x_scale, x_zero_point)


def _int8(weight: Dequantized) -> Array:
    """Subtract the zero point, where the result is int8."""
    integers, zero_point = weight.integers, weight.zero_point
    if integers.dtype not in (np.int8, np.uint8):
        raise MismatchError(f"its weight is quantized to {integers.dtype}")
    if integers.dtype == np.int8 and not zero_point.any():
        return integers
    differences = np.subtract(integers, zero_point, dtype=np.int16)
    integers = differences.astype(np.int8)
    if not np.array_equal(integers, differences):
        raise MismatchError("its weight minus the zero point does not fit int8")
    return integers


def _constant(node: Node, array: Array, scale: Any, zero_point: Any) -> Dequantized:
    if array.dtype.kind not in "iu":
        raise MismatchError(f"integers, got {array.dtype}")
    if zero_point is None:
        zero_point = Known((np.zeros((), array.dtype),) * 2, True)
    if isinstance(zero_point, Known) and zero_point.arrays[0].dtype != array.dtype:
        raise MismatchError(f"a zero point of {array.dtype}, got {zero_point.arrays[0].dtype}")
    scales, zeros = _parameters(scale, zero_point)
    return Dequantized(array, _along(scales, array, node), _along(zeros, array, node))


def _parameters(scale: Any, zero_point: Any) -> tuple[Array, Array]:
    """Return a constant scale and zero point, which must be ones."""
    for value in (scale, zero_point):
        if not isinstance(value, Known) or not value.is_constant:
            raise MismatchError("a constant scale and zero point")
    scales, zeros = scale.arrays[0], zero_point.arrays[0]
    if scales.dtype != np.float32 or zeros.dtype.kind not in "iu":
        raise MismatchError(
            f"a float32 scale and an integer zero point, got {scales.dtype} and {zeros.dtype}"
        )
    if zeros.size != 1 and zeros.shape != scales.shape:
        raise MismatchError(f"a zero point of the scale's shape {scales.shape}, got {zeros.shape}")
    with np.errstate(all="ignore"):
        is_usable = (scales > 0.0) & np.isfinite(scales) & np.isfinite(np.float32(1.0) / scales)
    if not scales.size or not is_usable.all():
        raise MismatchError("positive and finite scales")
    return scales, zeros


def _along(parameter: Array, array: Array, node: Node) -> Array:
    """Give a parameter as many axes as the array: of one, of one per slice, or of one per block."""
    shape, axis = array.shape, node.attributes.get("axis", 1)
    if parameter.size == 1:
        return parameter.reshape((1,) * array.ndim)
    block = node.attributes.get("block_size", 0)
    if -array.ndim <= axis < array.ndim:
        if not block and parameter.shape == (shape[axis],):
            others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
            return np.expand_dims(parameter, others)
        if block > 0 and parameter.ndim == array.ndim:
            blocks: Array = np.take(parameter, np.arange(shape[axis]) // block, axis)
            if blocks.shape == shape:
                return blocks
    raise MismatchError(
        f"one scale, one per slice or one per block along axis {axis} of {shape}, "
        f"got {parameter.shape}"
    )


def _is_same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Compare; of a product of two scales, the quotient by one is the other but for rounding."""
    if isinstance(a, Known) and isinstance(b, Known):
        x, y = a.arrays[0].reshape(-1), b.arrays[0].reshape(-1)
        is_alike = x.dtype == y.dtype and x.shape == y.shape
        return is_alike and np.allclose(x, y, rtol=tolerance, atol=0.0)
    return a is b
