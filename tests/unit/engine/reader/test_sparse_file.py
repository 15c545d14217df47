"""Sparse files: every bit comes back, and what is damaged or foreign is refused with a sentence."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file
from support.fuzz_graph import check, damage_sparse
from support.graphs import Case, make_model

from cython_kernels._kernels import expand
from toolkit.artifact.sparse_writer import write_sparse
from toolkit.compress.sparsity.masks import prune_once
from toolkit.config import Values, default_sparsity
from toolkit.engine import Engine
from toolkit.engine.reader.graph import read_file, read_graph
from toolkit.errors import InputError


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which nine of ten weights of the encoder are zero."""
    from toolkit.artifact.onnx_writer import quiet, write_onnx

    model = prune_once(make_model(Case("bert", "qa")), default_sparsity(final_sparsity=0.9))
    path = tmp_path_factory.mktemp("sparse") / "model.onnx"
    with quiet():
        write_onnx(model, path)
    return path


@pytest.fixture
def sparse_file(onnx_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.sparse"
    write_sparse(onnx_file, path, Values.fp32)
    return path


@pytest.mark.slow
def test_every_bit_comes_back(onnx_file: Path, sparse_file: Path) -> None:
    written, found = read_file(onnx_file), read_file(sparse_file)
    assert (written.inputs, written.outputs, written.opset) == (
        *(found.inputs, found.outputs, found.opset),
    )
    assert [*map(str, written.nodes)] == [*map(str, found.nodes)]
    assert written.constants.keys() == found.constants.keys()
    for name, array in written.constants.items():
        assert found.constants[name].dtype == array.dtype
        assert found.constants[name].tobytes() == array.tobytes(), name


def test_zeros_cost_a_bit_and_any_tool_can_look_into_it(onnx_file: Path, sparse_file: Path) -> None:
    """The encoder's weights take at most a fifth: 1 + 0.1 · 32 of 32 bits are 13 %."""
    arrays = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(onnx_file).graph.initializer
    }
    parts, stored = load_file(sparse_file), 0
    names = {name.removesuffix(".bits") for name in parts if name.endswith(".bits")}
    assert len(names) == 12  # six of each layer, and nothing else has zeros
    for name in names:
        bits, values = parts[f"{name}.bits"], parts[f"{name}.values"]
        stored += bits.nbytes + values.nbytes
        full = np.unpackbits(bits, count=arrays[name].size, bitorder="little")
        np.testing.assert_array_equal(full, arrays[name].reshape(-1) != 0)
    assert stored <= 0.2 * sum(arrays[name].nbytes for name in names)


def test_half_precision_rounds_to_nearest(onnx_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.sparse"
    write_sparse(onnx_file, path, Values.fp16)
    found = read_file(path).constants
    for name, array in read_file(onnx_file).constants.items():
        halves = array.dtype == np.float32 and array.nbytes > 1024
        expected = array.astype(np.float16).astype(np.float32) if halves else array
        np.testing.assert_array_equal(found[name], expected)


def test_a_weight_beyond_half_precision_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    large = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = numpy_helper.to_array(large).copy()
    array.reshape(-1)[7] = 1e6
    large.CopyFrom(numpy_helper.from_array(array, large.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(InputError, match=r"has a weight of 1e\+06, beyond the 65504"):
        write_sparse(tmp_path / "large.onnx", tmp_path / "model.sparse", Values.fp16)


def test_negative_zeros_and_numbers_that_are_none_survive(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    sparse = next(t for t in model.graph.initializer if t.dims == [32, 32])
    array = np.zeros((32, 32), np.float32)
    array[3, 4:8] = -0.0, np.nan, np.inf, 1e-45
    sparse.CopyFrom(numpy_helper.from_array(array, sparse.name))
    onnx.save(model, tmp_path / "odd.onnx")
    write_sparse(tmp_path / "odd.onnx", tmp_path / "model.sparse", Values.fp32)
    assert read_file(tmp_path / "model.sparse").constants[sparse.name].tobytes() == array.tobytes()


def test_the_engine_computes_the_same_bits(onnx_file: Path, sparse_file: Path) -> None:
    ids = np.random.default_rng(0).integers(1, 40, (3, 17))
    outputs = [
        Engine.load(path, num_threads=1).run(
            {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
        )
        for path in (onnx_file, sparse_file.parent)  # of a folder without model.onnx, the other
    ]
    for name, array in outputs[0].items():
        np.testing.assert_array_equal(outputs[1][name], array)


def header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """Make a function that changes a file's header."""

    def changed(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        values = json.loads(content[8 : 8 + size])
        change(values)
        text = json.dumps(values).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return changed


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: content[:6], r"damaged \(its header is not complete\)"),
        (lambda content: content[:-1], r"damaged \(the place of '.*' is impossible\)"),
        (lambda content: content[:-1] + b"?", r"damaged \(the checksum of '.*' is another\)"),
        (lambda content: b"\xff" * 8 + content[8:], r"damaged \(its header is not complete\)"),
        (header(lambda h: h.pop("__metadata__")), r"\(its metadata name another format\)"),
        (header(lambda h: h["__metadata__"].update(version="2")), "of version 2 of the sparse"),
        (header(lambda h: h["__metadata__"].pop("checksums")), r"\(it has no checksums\)"),
        (header(lambda h: h.pop("graph")), r"\(it holds no graph\)"),
        (
            header(lambda h: h["graph"].update(dtype="F8")),
            r"\(the place of 'graph' is impossible\)",
        ),
        (header(lambda h: h.pop(next(n for n in h if n.endswith(".bits")))), r"are missing or too"),
    ],
)
def test_damage_is_told(damaged: Callable[[bytes], bytes], message: str, sparse_file: Path) -> None:
    sparse_file.write_bytes(damaged(sparse_file.read_bytes()))
    with pytest.raises(InputError, match=message):
        read_graph(sparse_file)


def test_forged_files_are_refused_or_run(sparse_file: Path) -> None:
    content = sparse_file.read_bytes()
    outcomes = set()
    for seed in range(60):
        sparse_file.write_bytes(damage_sparse(content, random.Random(seed)))
        outcomes.add(check(sparse_file))
    assert outcomes >= {"refused", "run"}


@pytest.mark.parametrize("count", [0, 1, 7, 8, 63, 64, 65, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_expand(count: int, dtype: Any) -> None:
    rng = np.random.default_rng(count)
    full = (rng.integers(-5, 6, count) * (rng.random(count) < 0.3)).astype(dtype)
    bits = np.packbits(full != 0, bitorder="little")
    found = expand(bits, count, full[full != 0])
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, full)
    if count:
        with pytest.raises(ValueError, match="expected a bit for each of"):
            expand(bits, count, np.ones(np.count_nonzero(full) + 1, dtype))
    if count % 8:  # a bit behind the end
        bits[-1] |= 128
        with pytest.raises(ValueError, match="expected a bit for each of"):
            expand(bits, count, np.ones(np.count_nonzero(full) + 1, dtype))
    with pytest.raises(ValueError, match="bytes of bits; got"):
        expand(np.zeros(len(bits) + 1, np.uint8), count, full[:0])
