"""The roofline: counts against brute force, buffers for each cache, and where the points go."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.plans import make_plan

from cython_kernels import _kernels
from cython_kernels._kernels import STEPS, PackedLinear
from toolkit.engine import roofline
from toolkit.engine.engine import Engine
from toolkit.engine.roofline import (
    UNKNOWN_CACHES,
    Call,
    buffer_sizes,
    call_of,
    count,
    fma_peak,
    measure_peaks,
    points,
)

HIDDEN, INNER, HEADS = 12, 20, 3
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 1]])  # the last: position 0 masked


def pack(rows: int, columns: int, zeros: float = 0.7) -> tuple[NDArray[np.float32], PackedLinear]:
    rng = np.random.default_rng(rows)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    weight[rng.random(weight.shape) < zeros] = 0.0
    return weight, PackedLinear.pack(
        weight, np.zeros(rows, np.float32), "table", "generic", rows, columns
    )


def tokens_of(mask: NDArray[Any], first_only: bool) -> list[list[int]]:
    """Per text the positions whose new hidden state is wanted."""
    return [[i for i in range(len(row)) if i == 0 or (row[i] and not first_only)] for row in mask]


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize(
    ("step", "rows", "columns"),
    [
        ("qkv", 3 * HIDDEN, HIDDEN),
        ("attention_output", HIDDEN, HIDDEN),
        ("intermediate", INNER, HIDDEN),
        ("output", HIDDEN, INNER),
        ("scatter", 2, HIDDEN),
    ],
)
def test_weights_count_their_nonzeros(step: str, rows: int, columns: int, first_only: bool) -> None:
    weight, packed = pack(rows, columns)
    wanted = tokens_of(MASK, first_only and step != "qkv")
    operations, moved = 0, packed.nbytes
    for text in wanted:
        for _ in text:
            for value in weight.ravel():
                operations += 2 * (value != 0)
            moved += np.zeros(columns, np.float32).nbytes  # comes in
            moved += np.zeros(rows, np.float32).nbytes  # goes out
            if step in ("attention_output", "output"):
                moved += np.zeros(HIDDEN, np.float32).nbytes  # the residual
    found = count(step, packed, call_of(MASK, HIDDEN, first_only))
    assert found[0] == pytest.approx(operations)
    assert found[1] == moved


@pytest.mark.parametrize("first_only", [False, True])
def test_attention_counts_pairs_that_are_attended(first_only: bool) -> None:
    operations = moved = 0
    for row, queries in zip(MASK, tokens_of(MASK, first_only), strict=True):
        present = tokens_of(row[None], False)[0]
        size = HIDDEN // HEADS
        for _ in range(HEADS):
            for _ in queries:
                for _ in np.flatnonzero(row):
                    operations += 2 * size + 2 * size  # q·k, and its weight × v
            moved += 2 * np.zeros((len(present), size), np.float32).nbytes  # keys, values
            moved += 2 * np.zeros((len(queries), size), np.float32).nbytes  # queries, context
    assert count("attention", None, call_of(MASK, HIDDEN, first_only)) == (operations, moved)


def test_what_has_no_weight_counts_elements() -> None:
    call = call_of(MASK, HIDDEN)
    assert call == Call(HIDDEN, tokens=11, queries=11, pairs=5 * 5 + 2 * 2 + 4 * 3)
    elements = 11 * HIDDEN
    assert count("attention_norm", None, call) == (9 * elements, 8 * elements)
    assert count("output_norm", None, call) == (9 * elements, 8 * elements)
    assert count("scatter", None, call) == (0, 8 * elements)
    assert count("embeddings", None, call) == (10 * elements, 8 * elements)
    weight, packed = pack(HIDDEN, 8)  # ELECTRA: 8 features come from the tables
    operations, moved = count("embeddings", packed, call)
    assert operations == pytest.approx(11 * (10 * 8 + 2 * np.count_nonzero(weight)))
    assert moved == packed.nbytes + 11 * 4 * (8 + HIDDEN)


def test_an_empty_batch_counts_nothing() -> None:
    for shape in ((0, 5), (0, 0), (3, 0)):
        call = call_of(np.zeros(shape, np.int32), HIDDEN)
        assert call == Call(HIDDEN, 0, 0, 0)
        assert all(count(step, None, call) == (0, 0) for step in STEPS if "norm" in step)


@pytest.mark.parametrize("first_only", [False, True])
def test_a_profile_sums_to_its_points(first_only: bool) -> None:
    plan = make_plan(num_layers=3, first_token_only=first_only)
    engine = Engine(plan, 2, "", _kernels.available_isas()[0])
    ids = np.ones((4, 20), np.int32)
    profile = engine.profile(dict.fromkeys(engine.inputs, ids))
    found = {point["op"]: point for point in points(profile, {"fma_gflops": 100.0})}
    assert set(found) == set(STEPS) - {"scatter"}  # no head is applied there
    for op, point in found.items():
        rows = [row for row in profile if row["op"].endswith(f".{op}") or row["op"] == op]
        assert len(rows) == (1 if op == "embeddings" else 3)
        for name in ("time_ms", "operations", "bytes"):
            assert point[name] == pytest.approx(sum(row[name] for row in rows))
        assert point["gflops"] == pytest.approx(point["operations"] / point["time_ms"] / 1e6)
        assert point["intensity"] == pytest.approx(point["operations"] / point["bytes"])
        assert point["peak_share"] == pytest.approx(point["gflops"] / 100.0)
    peak = fma_peak(engine.isa, 2, "fp32")
    shares = [row["peak_share"] for row in profile if row["gflops"] is not None]
    assert shares == pytest.approx([row["gflops"] / peak for row in profile if row["gflops"]])
    if first_only:  # one token of each text goes through the last layer
        by_op = {row["op"]: row["operations"] for row in profile}
        assert by_op["layer2.output_norm"] * 20 == by_op["layer1.output_norm"]
        assert by_op["layer2.attention"] * 20 == by_op["layer1.attention"]


def test_a_head_that_is_applied_in_cache_counts() -> None:
    plan = replace(make_plan(num_layers=1), outputs=["scores"])
    size = plan.linears["head"].weight.size
    engine = Engine(plan, 1, "", "generic")
    mask = np.ones((2, 20), np.int32)
    profile = engine.profile(dict.fromkeys(engine.inputs, mask))
    scatter = next(row for row in profile if row["op"] == "scatter")
    assert scatter["operations"] == 2 * 40 * size


def test_layers_that_run_other_kernels_are_other_points() -> None:
    def row(op: str, kernel: str, gflops: float | None) -> dict[str, Any]:
        operations = (gflops or 0.0) * 1e6
        return {"op": op, "kernel": kernel, "time_ms": 1.0, "operations": operations, "bytes": 10.0}

    rows = [row("layer0.qkv", "table_x", 1.0), row("layer1.qkv", "dense_x", 3.0)]
    rows += [row("layer2.qkv", "table_x", 2.0), row("scatter", "x", None)]
    found = [
        (point["op"], point["kernel"], point["gflops"])
        for point in points(rows, {"fma_gflops": 10.0})
    ]
    assert found == [("qkv", "table_x", pytest.approx(1.5)), ("qkv", "dense_x", pytest.approx(3))]


@pytest.mark.parametrize(
    ("caches", "num_threads", "expected"),
    [
        # one core of several: half of its own caches, four times the second of the shared third
        (
            UNKNOWN_CACHES,
            1,
            {"l1": 16 << 10, "l2": 512 << 10, "l3": 4 << 20, "memory": 128 << 20},
        ),
        # eight share the third cache: no room to miss the second and stay in half of it
        (
            {1: (32 << 10, 1), 2: (1 << 20, 1), 3: (16 << 20, 8)},
            8,
            {"l1": 16 << 10, "l2": 512 << 10, "memory": 16 << 20},
        ),
        ({1: (64 << 10, 1)}, 2, {"l1": 32 << 10, "memory": 16 << 20}),
        ({}, 2, {"memory": 16 << 20}),
    ],
)
def test_buffers_meet_the_cache_they_are_meant_for(
    caches: dict[int, tuple[int, int]], num_threads: int, expected: dict[str, int]
) -> None:
    assert buffer_sizes(caches, num_threads) == expected


@pytest.mark.parametrize(
    ("kernel", "peak"),
    [
        ("generated_avx512", 1.0),
        ("f16_table_avx512_fp16", 2.0),
        ("bf16_dense_amx_bf16", 3.0),
        ("s8_block_amx_bf16", 4.0),
        ("bf16_attention_avx512_bf16", 3.0),
        ("avx512_bf16", 1.0),
    ],
)
def test_a_kernel_is_measured_by_the_peak_of_its_precision(kernel: str, peak: float) -> None:
    peaks = {"fma_gflops": 1.0, "fp16_gflops": 2.0, "bf16_gflops": 3.0, "int8_gops": 4.0}
    assert roofline.peak_of(kernel, peaks) == peak


def test_peaks_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SECONDS", 0.01)
    monkeypatch.setattr(roofline, "cache_sizes", dict)  # as where the system does not say
    peaks = measure_peaks("generic", 1)
    assert set(peaks["read_gb_per_s"]) == {"l1", "l2", "l3", "memory"} == set(peaks["read_bytes"])
    assert all(rate > 0 for rate in (peaks["fma_gflops"], *peaks["read_gb_per_s"].values()))
