"""Write a sparse file: the weights of an ONNX file without their zeros, for the engine alone.

Its format is told where it is read, in `toolkit/engine/reader/sparse_file.py`.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from toolkit.config import Values
from toolkit.engine.reader.onnx_file import DTYPES, SMALL
from toolkit.engine.reader.sparse_file import FORMAT, GRAPH, VERSION
from toolkit.errors import InputError
from toolkit.files import new_file


def write_sparse(source: Path, path: Path, values: Values) -> None:
    """Write an ONNX file's weights without their zeros.

    Args:
        source: The ONNX file.
        path: The sparse file.
        values: What float32 weights are stored as: themselves, or rounded to half precision.

    Raises:
        InputError: A weight is beyond the range of half precision.
    """
    from safetensors.numpy import save_file  # reading does without

    model = onnx.load(source)
    parts: dict[str, NDArray[Any]] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type not in DTYPES or len(tensor.raw_data) <= SMALL:
            continue
        array = onnx.numpy_helper.to_array(tensor)
        if values is Values.fp16 and array.dtype == np.float32:
            array = _halved(array, tensor.name)
        parts |= _parts_of(tensor.name, array)
        tensor.ClearField("raw_data")
    parts[GRAPH] = np.frombuffer(model.SerializeToString(), np.uint8)
    checksums = {
        name: zlib.crc32(part.reshape(-1).view(np.uint8).data) for name, part in parts.items()
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "checksums": json.dumps(checksums)}
    with new_file(path) as temporary:  # safetensors makes a file that only its owner may read
        save_file(parts, temporary, metadata)


def _parts_of(name: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Store an array as it is, or as bits and values if that is smaller; all its bits survive."""
    flat = np.ascontiguousarray(array).reshape(-1)
    is_stored = flat.view(f"u{flat.itemsize}") != 0  # -0.0 is no zero
    stored = flat[is_stored]
    bits = np.packbits(is_stored, bitorder="little")
    if flat.itemsize > 4 or bits.nbytes + stored.nbytes >= flat.nbytes:
        return {name: np.ascontiguousarray(array)}
    return {f"{name}.bits": bits, f"{name}.values": stored}


def _halved(array: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = array.astype(np.float16)
    if np.isinf(halves).any() and not np.isinf(array).any():
        raise InputError(
            f"{name} has a weight of {np.abs(array).max():.3g}, beyond the 65504 of half "
            "precision: use export.values=fp32"
        )
    return halves
