"""Read an ONNX file into plain nodes and arrays; sizes that it states are checked first.

Large tensors are views of the mapped file, since protobuf would hold every byte three times (file,
message, copy). Therefore the file's outer levels are walked here and only the rest is given to
protobuf.
"""

import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from toolkit.engine.plan import Node
from toolkit.errors import InputError

Array = NDArray[Any]
# By name, of tensors whose data lie elsewhere: ONNX type and shape in, bytes out.
ReadOutside = Callable[[dict[str, tuple[int, tuple[int, ...]]]], dict[str, memoryview]]

OLDEST_OPSET = 11

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
SMALL = 1024  # bytes up to which a tensor goes through protobuf

DTYPES: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT16: np.int16,
    TensorProto.UINT16: np.uint16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.BOOL: np.bool_,
}
# Two numbers lie in a byte of these; read, each has its own, of a type that tells where from.
NIBBLES: dict[int, Any] = {
    TensorProto.INT4: np.dtype(np.int8, metadata={"bits": 4}),
    TensorProto.UINT4: np.dtype(np.uint8, metadata={"bits": 4}),
}


@dataclass(frozen=True)
class Graph:
    """An ONNX graph as plain values.

    Attributes:
        inputs: Names of the inputs, without those that have an initializer.
        outputs: Names of the outputs.
        nodes: In topological order; operators outside ONNX's own domain as `domain.operator`.
        constants: The initializers, read-only.
        opset: Version of ONNX's own operators.
    """

    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    constants: dict[str, Array]
    opset: int


def read_onnx(path: Path) -> Graph:
    """Read a file.

    Args:
        path: The `.onnx` file; external data lies beside it.

    Returns:
        The graph. Its large arrays are views of the mapped files, perhaps not aligned.

    Raises:
        InputError: The file is missing, truncated, not ONNX, or its parts contradict each other.
    """
    return parse_graph(map_file(path, "ONNX"), path)


def map_file(path: Path, kind: str) -> memoryview:
    """Map a whole file.

    Args:
        kind: What it is, for the message.

    Raises:
        InputError: It is missing or empty.
    """
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = getattr(error, "strerror", None) or "it is empty"
        raise InputError(f"cannot read the {kind} file {path}: {reason}") from error


def parse_graph(content: memoryview, path: Path, read_outside: ReadOutside | None = None) -> Graph:
    """Turn the content of an ONNX file into a graph.

    Args:
        content: All of it.
        path: Where it comes from, for messages; external data lies beside it.
        read_outside: Given type and shape of every tensor whose data are not in `content`, returns
            their bytes, by name; None: each has its data.

    Raises:
        InputError: It is truncated, not ONNX, or its parts contradict each other.
    """
    try:
        model, graph, initializers = _parse(content)
    except (DecodeError, _TruncatedError) as error:
        raise InputError(
            f"{path} is not a complete ONNX file: it is damaged, truncated or of another kind"
        ) from error
    if not graph.node:
        raise InputError(f"{path} is not an ONNX model: it holds no node")
    if graph.sparse_initializer:
        raise InputError(
            f"{path} stores sparse initializers, which the engine does not read: "
            "export the model with ordinary dense ones (zeros are found by the engine)"
        )
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise InputError(
            f"{path} uses ONNX opset {opset}; the engine reads {OLDEST_OPSET} and newer: "
            "export the model again"
        )
    if read_outside is not None:
        outside = read_outside(
            {
                tensor.name: (tensor.data_type, tuple(tensor.dims))
                for tensor, raw in initializers
                if raw is None
                and not tensor.HasField("raw_data")
                and not _typed(tensor)
                and math.prod(tensor.dims) != 0
            }
        )
        initializers = [(tensor, outside.get(tensor.name, raw)) for tensor, raw in initializers]
    constants = {tensor.name: _tensor(tensor, raw, path.parent) for tensor, raw in initializers}
    inputs = [value for value in graph.input if value.name not in constants]
    for value in inputs:
        _check_dynamic(value)
    return Graph(
        inputs=[value.name for value in inputs],
        outputs=[value.name for value in graph.output],
        nodes=[_node(node, path.parent) for node in graph.node],
        constants=constants,
        opset=opset,
    )


class _TruncatedError(Exception):
    """A length points behind the end."""


Initializers = list[tuple[TensorProto, memoryview | None]]


def _parse(content: memoryview) -> tuple[ModelProto, GraphProto, Initializers]:
    """Split off the initializers' raw data, and let protobuf parse what is left."""
    model_rest, graph_rest = bytearray(), bytearray()
    initializers: Initializers = []
    for number, field, payload in _fields(content):
        if number != GRAPH or payload is None:
            model_rest += field
            continue
        for inner_number, inner_field, inner_payload in _fields(payload):
            if inner_number == INITIALIZER and inner_payload is not None:
                initializers.append(_parse_tensor(inner_payload))
            else:
                graph_rest += inner_field
    return (
        ModelProto.FromString(bytes(model_rest)),
        GraphProto.FromString(bytes(graph_rest)),
        initializers,
    )


def _parse_tensor(content: memoryview) -> tuple[TensorProto, memoryview | None]:
    rest, raw = bytearray(), None
    for number, field, payload in _fields(content):
        if number == RAW_DATA and payload is not None and len(payload) > SMALL:
            raw = payload
        else:
            rest += field
    return TensorProto.FromString(bytes(rest)), raw


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
    """Walk one level of a protobuf message: (number, whole field, payload if it has a length).

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    position, end = 0, len(content)
    while position < end:
        start = position
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        payload = None
        if wire == 0:
            _, position = _varint(content, position)
        elif wire == 1:
            position += 8
        elif wire == 2:
            length, position = _varint(content, position)
            payload = content[position : position + length]
            position += length
        elif wire == 5:
            position += 4
        else:
            raise _TruncatedError
        if position > end:
            raise _TruncatedError
        yield number, content[start:position], payload


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):  # ten bytes at most
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _TruncatedError


def _tensor(tensor: TensorProto, raw: memoryview | None, folder: Path) -> Array:
    """Turn a tensor into an array after checking that its size is what its shape says."""
    name, shape = tensor.name, tuple(tensor.dims)
    is_packed = tensor.data_type in NIBBLES
    if not is_packed and tensor.data_type not in DTYPES:
        known = TensorProto.DataType.DESCRIPTOR.values_by_number.get(tensor.data_type)
        raise InputError(
            f"tensor {name!r} has the type {known.name if known else tensor.data_type}, "
            "which the engine does not read: export the model as float32"
        )
    dtype = np.dtype((NIBBLES if is_packed else DTYPES)[tensor.data_type])
    if any(size < 0 for size in shape):
        raise InputError(f"tensor {name!r} has the impossible shape {shape}")
    count = math.prod(shape)
    stored = -(-count // 2) if is_packed else count
    if tensor.data_location == TensorProto.EXTERNAL:
        raw = _external(tensor, folder)
    elif raw is None and tensor.HasField("raw_data"):
        raw = memoryview(tensor.raw_data)
    if raw is None:
        try:
            values = onnx.numpy_helper.to_array(tensor) if _typed(tensor) >= stored else None
        except (ValueError, TypeError) as error:
            raise InputError(f"tensor {name!r} cannot be read: {error}") from error
        if values is None or values.shape != shape:
            raise InputError(f"tensor {name!r} holds less data than its shape {shape} needs")
        return values.astype(dtype, copy=False)
    if len(raw) != stored * dtype.itemsize:
        raise InputError(
            f"tensor {name!r} of shape {shape} needs {stored * dtype.itemsize} bytes "
            f"and has {len(raw)}"
        )
    if is_packed:
        pairs = np.frombuffer(raw, np.uint8)
        halves = np.stack([pairs & 15, pairs >> 4], axis=-1)  # the lower one comes first
        if dtype.kind == "i":
            halves = (halves ^ 8) - 8  # modulo 256: the highest bit of four counts -8
        return halves.reshape(-1)[:count].reshape(shape).view(dtype)
    return np.frombuffer(raw, dtype.newbyteorder("<"), count).reshape(shape)


def _typed(tensor: TensorProto) -> int:
    """Count the values of a tensor that are not in raw form."""
    return max(
        len(tensor.float_data),
        len(tensor.double_data),
        len(tensor.int32_data),
        len(tensor.int64_data),
    )


def _external(tensor: TensorProto, folder: Path) -> memoryview:
    """Map a tensor's bytes in its data file, which must lie in the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = (folder / entries.get("location", "")).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise InputError(
            f"tensor {tensor.name!r} lies in the data file {entries.get('location')!r}, "
            f"which is not in {folder}"
        )
    try:
        offset, size = int(entries.get("offset", 0)), path.stat().st_size
        length = int(entries.get("length", size - offset))
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise InputError(
            f"tensor {tensor.name!r} points outside of its data file {path}: it is truncated"
        ) from error
    return content[offset : offset + length]


def _check_dynamic(value: onnx.ValueInfoProto) -> None:
    shape = value.type.tensor_type.shape
    fixed = [d.dim_value for d in shape.dim if d.HasField("dim_value")]
    if fixed:
        raise InputError(
            f"input {value.name!r} has fixed sizes {fixed}; the engine runs any batch and length: "
            "export the model with dynamic axes"
        )


def _node(node: onnx.NodeProto, folder: Path) -> Node:
    operator = node.op_type
    if node.domain not in ("", "ai.onnx"):
        operator = f"{node.domain}.{operator}"
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            attributes[attribute.name] = _tensor(attribute.t, None, folder)
        elif attribute.type in _ATTRIBUTES:
            attributes[attribute.name] = _ATTRIBUTES[attribute.type](attribute)
    name = node.name or (node.output[0] if node.output else operator)
    return Node(name, operator, list(node.input), list(node.output), attributes)


_ATTRIBUTES: dict[int, Callable[[Any], Any]] = {
    AttributeProto.FLOAT: lambda a: a.f,
    AttributeProto.INT: lambda a: a.i,
    AttributeProto.STRING: lambda a: a.s,
    AttributeProto.FLOATS: lambda a: list(a.floats),
    AttributeProto.INTS: lambda a: list(a.ints),
}
