"""Read an ONNX file into plain nodes and arrays; sizes that it states are checked first.

Large tensors are views of the mapped file. The few messages that matter here are walked by hand:
protobuf would hold every byte three times (file, message, copy), and the package `onnx`, which
brings it, 16 MB in each process that loads a model.

Source: https://protobuf.dev/programming-guides/encoding/ and onnx.proto, whose field numbers these
are.
"""

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.engine.plan import Node
from toolkit.errors import InputError

Array = NDArray[Any]
# By name, of tensors whose data lie elsewhere: ONNX type and shape in, bytes out.
ReadOutside = Callable[[dict[str, tuple[int, tuple[int, ...]]]], dict[str, memoryview]]

OLDEST_OPSET = 11

SMALL = 1024  # bytes up to which a tensor is copied: a view would keep the whole file mapped

# Of TensorProto.DataType.
DTYPES: dict[int, Any] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}
# Two numbers lie in a byte of these; read, each has its own, of a type that tells where from.
NIBBLES: dict[int, Any] = {
    21: np.dtype(np.uint8, metadata={"bits": 4}),
    22: np.dtype(np.int8, metadata={"bits": 4}),
}
OTHER_TYPES = {8: "STRING", 12: "UINT32", 13: "UINT64", 16: "BFLOAT16", 17: "FLOAT8E4M3FN"}

# A message by field number: a varint is an int, what has a length a view, a fixed number its bytes.
Message = dict[int, list[int | bytes | memoryview]]


class Tensor(NamedTuple):
    """A TensorProto.

    Attributes:
        raw: Its bytes, if they are there in raw form.
        typed: Its numbers, if they are there one by one.
        outside: Where its bytes lie, by `location`, `offset` and `length`; None: they are here.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    raw: bytes | memoryview | None
    typed: Array
    outside: dict[str, str] | None


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
        return _read_graph(_message(content), path, read_outside)
    except (_TruncatedError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a complete ONNX file: it is damaged, truncated or of another kind"
        ) from error


def _read_graph(model: Message, path: Path, read_outside: ReadOutside | None) -> Graph:
    graph: Message = {}
    for part in _payloads(model, 7):
        for number, values in _message(part).items():
            graph.setdefault(number, []).extend(values)
    nodes, initializers, sparse = (_payloads(graph, number) for number in (1, 5, 15))
    if not nodes:
        raise InputError(f"{path} is not an ONNX model: it holds no node")
    if sparse:
        raise InputError(
            f"{path} stores sparse initializers, which the engine does not read: "
            "export the model with ordinary dense ones (zeros are found by the engine)"
        )
    sets = [_message(payload) for payload in _payloads(model, 8)]
    opset = max((_int(o, 2) for o in sets if _text(o, 1) in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise InputError(
            f"{path} uses ONNX opset {opset}; the engine reads {OLDEST_OPSET} and newer: "
            "export the model again"
        )
    tensors = [_tensor(payload) for payload in initializers]
    if read_outside is not None:
        outside = read_outside(
            {
                tensor.name: (tensor.data_type, tensor.shape)
                for tensor in tensors
                if tensor.raw is None and not tensor.typed.size and math.prod(tensor.shape) != 0
            }
        )
        tensors = [tensor._replace(raw=outside.get(tensor.name, tensor.raw)) for tensor in tensors]
    constants = {tensor.name: _array(tensor, path.parent) for tensor in tensors}
    inputs = [_message(payload) for payload in _payloads(graph, 11)]
    inputs = [value for value in inputs if _text(value, 1) not in constants]
    for value in inputs:
        _check_dynamic(value)
    return Graph(
        inputs=[_text(value, 1) for value in inputs],
        outputs=[_text(_message(payload), 1) for payload in _payloads(graph, 12)],
        nodes=[_node(_message(payload), path.parent) for payload in nodes],
        constants=constants,
        opset=opset,
    )


class _TruncatedError(Exception):
    """A length points behind the end."""


def _message(content: memoryview) -> Message:
    """Walk one level of a message."""
    message: Message = {}
    position, end = 0, len(content)
    while position < end:
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        value: int | bytes | memoryview
        if wire == 0:
            value, position = _varint(content, position)
        elif wire == 2:
            length, position = _varint(content, position)
            value = content[position : position + length]
            position += length
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            value = bytes(content[position : position + length])
            position += length
        else:
            raise _TruncatedError
        if position > end or number == 0:
            raise _TruncatedError
        message.setdefault(number, []).append(value)
    return message


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


# Fields of a message. One of another kind than is asked for is none, as for protobuf.


def _payloads(message: Message, number: int) -> list[memoryview]:
    return [value for value in message.get(number, []) if isinstance(value, memoryview)]


def _text(message: Message, number: int) -> str:
    return bytes(([b"", *_payloads(message, number)])[-1]).decode()


def _int(message: Message, number: int) -> int:
    return int(([0, *_ints(message, number)])[-1])


def _ints(message: Message, number: int) -> Array:
    """Return a repeated field (n,), int64: the numbers of varints, alone or packed."""
    found = []
    for value in message.get(number, []):
        if isinstance(value, int):
            found.append(np.array([value & (1 << 64) - 1], np.uint64))
        elif isinstance(value, memoryview) and len(value):
            data = np.frombuffer(value, np.uint8)
            last = np.flatnonzero(data < 0x80)
            first = np.concatenate([[0], last[:-1] + 1])
            if not len(last) or last[-1] != len(data) - 1 or (last - first).max() > 9:
                raise _TruncatedError
            shift = 7 * (np.arange(len(data)) - np.repeat(first, last - first + 1))
            parts = (data & 0x7F).astype(np.uint64) << shift.astype(np.uint64)
            found.append(np.add.reduceat(parts, first))
    return np.concatenate([np.empty(0, np.uint64), *found]).view(np.int64)


def _fixed(message: Message, number: int, dtype: str) -> Array:
    """Return a repeated field (n,) of fixed numbers, alone or packed."""
    size = np.dtype(dtype).itemsize
    found = []
    for value in message.get(number, []):
        if isinstance(value, memoryview) or (isinstance(value, bytes) and len(value) == size):
            if len(value) % size:
                raise _TruncatedError
            found.append(np.frombuffer(value, dtype))
    return found[0] if len(found) == 1 else np.concatenate([np.empty(0, dtype), *found])


def _tensor(content: memoryview) -> Tensor:
    message = _message(content)
    data_type, raw = _int(message, 2), ([None, *_payloads(message, 9)])[-1]
    if data_type in (1, 11):
        typed = _fixed(message, *((4, "<f4") if data_type == 1 else (10, "<f8")))
    else:
        typed = _ints(message, 7 if data_type == 7 else 5)
    entries = [_message(payload) for payload in _payloads(message, 13)]
    return Tensor(
        name=_text(message, 8),
        data_type=data_type,
        shape=tuple(_ints(message, 1).tolist()),
        raw=bytes(raw) if raw is not None and len(raw) <= SMALL else raw,
        typed=typed,
        outside={_text(e, 1): _text(e, 2) for e in entries} if _int(message, 14) == 1 else None,
    )


def _array(tensor: Tensor, folder: Path) -> Array:
    """Turn a tensor into an array after checking that its size is what its shape says."""
    name, shape, raw = tensor.name, tensor.shape, tensor.raw
    is_packed = tensor.data_type in NIBBLES
    if not is_packed and tensor.data_type not in DTYPES:
        raise InputError(
            f"tensor {name!r} has the type "
            f"{OTHER_TYPES.get(tensor.data_type, tensor.data_type)}, "
            "which the engine does not read: export the model as float32"
        )
    dtype = np.dtype((NIBBLES if is_packed else DTYPES)[tensor.data_type])
    if any(size < 0 for size in shape):
        raise InputError(f"tensor {name!r} has the impossible shape {shape}")
    count = math.prod(shape)
    stored = -(-count // 2) if is_packed else count
    if tensor.outside is not None:
        raw = _external(tensor, folder)
    values: Array
    if raw is None:
        if len(tensor.typed) != stored:
            found = len(tensor.typed)
            raise InputError(
                f"tensor {name!r} of shape {shape} needs {stored} numbers and has {found}"
            )
        if dtype == np.float16:
            values = tensor.typed.astype(np.uint16).view(np.float16)
        else:
            values = tensor.typed.astype(np.uint8 if is_packed else dtype)
    elif len(raw) != stored * dtype.itemsize:
        raise InputError(
            f"tensor {name!r} of shape {shape} needs {stored * dtype.itemsize} bytes "
            f"and has {len(raw)}"
        )
    else:
        values = np.frombuffer(raw, np.uint8 if is_packed else dtype.newbyteorder("<"))
    if is_packed:
        halves = np.stack([values & 15, values >> 4], axis=-1)  # the lower one comes first
        if dtype.kind == "i":
            halves = (halves ^ 8) - 8  # modulo 256: the highest bit of four counts -8
        values = halves.reshape(-1)[:count].view(dtype)
    return values.reshape(shape)


def _external(tensor: Tensor, folder: Path) -> memoryview:
    """Map a tensor's bytes in its data file, which must lie in the model's folder."""
    entries = tensor.outside or {}
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


def _check_dynamic(value: Message) -> None:
    fixed = [
        dim
        for kind in _payloads(value, 2)
        for tensor in _payloads(_message(kind), 1)
        for shape in _payloads(_message(tensor), 2)
        for size in _payloads(_message(shape), 1)
        for dim in _ints(_message(size), 1).tolist()
    ]
    if fixed:
        raise InputError(
            f"input {_text(value, 1)!r} has fixed sizes {fixed}; the engine runs any batch and "
            "length: export the model with dynamic axes"
        )


def _node(node: Message, folder: Path) -> Node:
    operator, domain = _text(node, 4), _text(node, 7)
    if domain not in ("", "ai.onnx"):
        operator = f"{domain}.{operator}"
    attributes: dict[str, Any] = {}
    for attribute in map(_message, _payloads(node, 5)):
        kind = _int(attribute, 20)
        if kind in _ATTRIBUTES:
            attributes[_text(attribute, 1)] = _ATTRIBUTES[kind](attribute, folder)
    inputs, outputs = ([bytes(n).decode() for n in _payloads(node, field)] for field in (1, 2))
    return Node(
        _text(node, 3) or (outputs[0] if outputs else operator),
        operator,
        inputs,
        outputs,
        attributes,
    )


# Of AttributeProto.AttributeType: float, int, string, tensor, floats, ints.
_ATTRIBUTES: dict[int, Callable[[Message, Path], Any]] = {
    1: lambda a, _: ([0.0, *_fixed(a, 2, "<f4").tolist()])[-1],
    2: lambda a, _: _int(a, 3),
    3: lambda a, _: bytes(([b"", *_payloads(a, 4)])[-1]),
    4: lambda a, folder: _array(_tensor(([memoryview(b""), *_payloads(a, 5)])[-1]), folder),
    6: lambda a, _: _fixed(a, 7, "<f4").tolist(),
    7: lambda a, _: _ints(a, 8).tolist(),
}
