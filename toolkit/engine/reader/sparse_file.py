"""Read a sparse file: an ONNX graph whose large weights are stored without their zeros.

It is a safetensors file, so that any tool can look into it, and is mapped, not loaded. `graph`
(uint8) is the ONNX file without the data of large tensors. Each of these is there under its name,
as it is or, where that is smaller, as `NAME.bits` (a bit per element, the lowest of a byte first,
set where it is not zero) and `NAME.values` (the others, in order); either may be of a narrower type
than the graph says. The metadata hold `format`, `version` and `checksums`, the CRC-32 of every
part. `toolkit/artifact/sparse_writer.py` writes it.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_kernels._kernels import expand
from toolkit.engine.reader.onnx_file import DTYPES, Graph, map_file, parse_graph
from toolkit.errors import InputError

SUFFIX = ".sparse"
FORMAT, VERSION = "toolkit.sparse", 1
GRAPH = "graph"
# safetensors' names of what the file holds: https://github.com/huggingface/safetensors#format
TYPES: dict[str, Any] = {
    "F32": np.float32,
    "F64": np.float64,
    "F16": np.float16,
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "I64": np.int64,
    "BOOL": np.bool_,
}
MOST_HEADER = 100_000_000  # bytes, safetensors' own limit

Parts = Mapping[str, NDArray[Any]]


class _DamagedError(Exception):
    """What is wrong with the file."""


def read_sparse(path: Path) -> Graph:
    """Read a sparse file; the weights are expanded on all cores, or views of the mapped file.

    Raises:
        InputError: The file is missing, damaged, of another kind, or of a newer version.
    """
    content = map_file(path, "sparse")
    try:
        parts, metadata = _read_header(content)
        if metadata.get("format") != FORMAT:
            raise _DamagedError("its metadata name another format")
        if metadata.get("version") != str(VERSION):
            raise InputError(
                f"{path} is of version {metadata.get('version')} of the sparse format; this "
                f"toolkit reads version {VERSION}: export the model again"
            )
        if GRAPH not in parts:
            raise _DamagedError("it holds no graph")
        _check(parts, metadata)
        return parse_graph(parts[GRAPH].data, path, lambda shapes: _weights(parts, shapes))
    except _DamagedError as error:
        raise InputError(
            f"{path} is not a sparse file of this toolkit, or it is damaged ({error}): export the "
            "model again with export.format=sparse"
        ) from None


def _read_header(content: memoryview) -> tuple[Parts, dict[str, Any]]:
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(MOST_HEADER, len(content) - 8):
        raise _DamagedError("its header is not complete")
    try:
        header = json.loads(bytes(content[8 : 8 + size]))
    except (ValueError, RecursionError):
        raise _DamagedError("its header is no JSON") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise _DamagedError("its header is no object")
    metadata = header.pop("__metadata__", {})
    data = content[8 + size :]
    return {name: _part(name, entry, data) for name, entry in header.items()}, metadata


def _part(name: str, entry: Any, data: memoryview) -> NDArray[Any]:
    try:
        dtype = np.dtype(TYPES[entry["dtype"]]).newbyteorder("<")
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError
        count = math.prod(shape)
        if end > len(data) or end - start != count * dtype.itemsize:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _DamagedError(f"the place of {name!r} is impossible") from None
    return np.frombuffer(data[start:end], dtype).reshape(shape)


def _check(parts: Parts, metadata: Mapping[str, Any]) -> None:
    """Compare the checksum of every part."""
    try:
        checksums = json.loads(metadata["checksums"])
        expected = [checksums[name] for name in parts]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _DamagedError("it has no checksums") from None
    with ThreadPoolExecutor(_num_threads(), "checksums") as pool:
        found = pool.map(
            lambda part: zlib.crc32(part.reshape(-1).view(np.uint8).data), parts.values()
        )
        wrong = [name for name, a, b in zip(parts, expected, found, strict=True) if a != b]
    if wrong:
        raise _DamagedError(f"the checksum of {wrong[0]!r} is another")


def _weights(parts: Parts, tensors: Mapping[str, tuple[int, tuple[int, ...]]]) -> dict[str, Any]:
    """Make the data of the tensors that the graph lacks, by name.

    Args:
        tensors: ONNX type and shape of each, as the graph says.
    """

    def weight(name: str) -> memoryview:
        onnx_type, shape = tensors[name]
        if onnx_type not in DTYPES or any(size < 0 for size in shape):
            raise _DamagedError(f"the type or shape of {name!r} is impossible")
        values = parts.get(name)
        if values is None:
            try:
                bits, stored = parts[f"{name}.bits"], parts[f"{name}.values"]
                values = expand(bits, math.prod(shape), stored)
            except (KeyError, ValueError):
                raise _DamagedError(f"the data of {name!r} are missing or too few") from None
        if values.size != math.prod(shape):
            raise _DamagedError(f"{name!r} has another size than the graph says")
        return values.reshape(-1).astype(DTYPES[onnx_type], copy=False).view(np.uint8).data

    with ThreadPoolExecutor(_num_threads(), "expanding") as pool:
        return dict(zip(tensors, pool.map(weight, tensors), strict=True))


def _num_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
