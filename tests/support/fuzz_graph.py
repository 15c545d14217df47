"""Damage ONNX or sparse files, run what still reads: `python fuzz_graph.py FILE SECONDS [SEED]`.

A file from a stranger may be refused with an InputError, or be a model; nothing else may happen.
Every mutation has its seed; the one that fails is named. `make fuzz` runs this under the address
and undefined-behaviour sanitizers.
"""

import json
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from toolkit.engine.engine import Engine, find_isa
from toolkit.engine.reader.graph import read_graph
from toolkit.engine.reader.sparse_file import SUFFIX
from toolkit.errors import InputError

# Sizes that overflow when multiplied or added to.
EXTREMES = [-(2**63), -(2**31), -1, 0, 1, 2, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1]


def damage(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes, cut some out, double some, or change a number that is a size."""
    return rng.choice([damage_bytes, damage_bytes, damage_bytes, resized, resized])(content, rng)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes, cut some out, or double some."""
    kind = rng.choice(["bytes", "cut", "double"])
    result = bytearray(content)
    # the graph lies between long runs of weights: half the time strike where names are
    text = [i for i in range(0, len(result), 7) if 0x5F <= result[i] <= 0x7A]
    at = rng.choice(text) if text and rng.random() < 0.5 else rng.randrange(len(result))
    length = rng.choice([1, 1, 2, 8, 100])
    if kind == "bytes":
        for _ in range(length):
            result[min(len(result) - 1, at + rng.randrange(16))] = rng.randrange(256)
    elif kind == "cut":
        del result[at : at + length]
    else:
        result[at:at] = result[at : at + length]
    return bytes(result)


def resized(content: bytes, rng: random.Random) -> bytes:
    """Change dimensions, types and integer attributes of a file that stays a protobuf."""
    model = onnx.load_from_string(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        tensors = list(model.graph.initializer)
        attributes = [a for node in model.graph.node for a in node.attribute]
        tensors += [a.t for a in attributes if a.HasField("t")]
        tensor, attribute = rng.choice(tensors), rng.choice(attributes)
        kind = rng.choice(["dim", "swap", "type", "values", "attribute", "retype", "reshape"])
        if kind == "dim" and tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(EXTREMES)
        elif kind == "swap":
            tensor.dims[:] = list(tensor.dims)[::-1]
        elif kind == "type":
            tensor.data_type = rng.choice([0, 1, 2, 6, 7, 9, 10, 11, 16, 99])
        elif kind == "values" and tensor.raw_data:
            data = bytearray(tensor.raw_data)
            value = rng.choice(EXTREMES).to_bytes(8, "little", signed=True)
            at = rng.randrange(len(data))
            data[at : at + 8] = value[: len(data) - at]
            tensor.raw_data = bytes(data)
        elif kind == "attribute":
            if attribute.type == attribute.INT:
                attribute.i = rng.choice(EXTREMES)
            elif attribute.type == attribute.FLOAT:
                attribute.f = rng.choice([0.0, -1.0, float("inf"), float("nan"), 1e-45])
            elif attribute.ints:
                attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(EXTREMES)
        elif kind == "retype":
            tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32))
            values: list[Any] = [1, 1.5, "text", [1, 2], [0.5], tensor]
            attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, rng.choice(values)))
        elif kind == "reshape" and len(tensor.dims) == 2:
            rows, columns = tensor.dims
            factor = rng.choice([f for f in (1, 2, 3, 4, 8) if columns % f == 0])
            tensor.dims[:] = [rows * factor, columns // factor]
    return bytes(model.SerializeToString())


def damage_sparse(content: bytes, rng: random.Random) -> bytes:
    """Change a sparse file: somewhere, or one of its parts with a checksum that fits, as forged."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__")
    data = content[8 + size :]
    parts = {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}
    name = rng.choice([*parts, *["graph"] * (len(parts) // 2)])
    kind = rng.choice(["part", "part", "shape", "dtype", "swap", "lost"])
    if kind == "part":
        parts[name] = (damage if name == "graph" else damage_bytes)(parts[name], rng)
        if header[name]["dtype"] in ("U8", "I8") and rng.random() < 0.5:
            header[name]["shape"] = [len(parts[name])]
    elif kind == "shape":
        header[name]["shape"] = [rng.choice(EXTREMES), *header[name]["shape"][1:]]
    elif kind == "dtype":
        header[name]["dtype"] = rng.choice(["F32", "F16", "I8", "U8", "I64", "BOOL", "BF16", 3])
    elif kind == "swap":
        other = rng.choice([*parts])
        parts[name], parts[other] = parts[other], parts[name]
    else:
        del parts[name], header[name]
    metadata["checksums"] = json.dumps({each: zlib.crc32(part) for each, part in parts.items()})
    at = 0
    for each, part in parts.items():
        header[each]["data_offsets"] = [at, at := at + len(part)]
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(parts.values())


def check(path: Path) -> str:
    """Read and run a file; return what came of it."""
    try:
        engine = Engine(read_graph(path), 2, "fuzzing", find_isa("auto"))
    except InputError as error:
        sentence = str(error)
    else:
        return run(engine)
    assert "\n" not in sentence, sentence
    return "refused"


def run(engine: Engine) -> str:
    """Run an engine on a small and a larger batch."""
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (3, 19)):
        inputs = {name: np.ones((batch, length), np.int64) for name in engine.inputs}
        inputs["input_ids"] = rng.integers(0, 40, (batch, length))
        try:
            with np.errstate(all="ignore"):
                engine.run(inputs)
        except (InputError, ValueError):
            return "read"
    return "run"


def main(file: Path, seconds: float, seed: int) -> None:
    content = file.read_bytes()
    first, end = seed, time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        damaged = damage_sparse if file.suffix == SUFFIX else damage
        while seed == first or time.monotonic() < end:
            path.write_bytes(damaged(content, random.Random(seed)))
            try:
                outcomes[check(path)] += 1
            except BaseException:
                print(f"failed: fuzz_graph.py {file} 0 {seed}", file=sys.stderr)
                raise
            seed += 1
    counts = ", ".join(f"{count} {name}" for name, count in outcomes.items())
    print(f"{file}: {counts} of {seed - first} from seed {first} on, no failure")


if __name__ == "__main__":
    number = int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns() % 2**32
    main(Path(sys.argv[1]), float(sys.argv[2]), number)
