"""What the fused operations must compute and move, and what the machine could do: the roofline.

An operation's arithmetic intensity is its useful operations per byte that it cannot avoid to move;
the machine allows `min(peak, intensity × bandwidth)` operations per second.

Source: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cython_kernels import _kernels
from toolkit.environment import cache_sizes

FLOAT = 4  # bytes
NORM_OPERATIONS = 9  # per element: add bias, sum; subtract, square, sum; subtract, ×, ×, + beta
SECONDS = 0.2  # per measured peak

# The roofs: memory, and every cache a thread reads through. Level → its name.
PEAKS = {
    "fp32": "fma_gflops",
    "fp16": "fp16_gflops",
    "bf16": "bf16_gflops",
    "int8": "int8_gops",
}
LEVELS = {1: "l1", 2: "l2", 3: "l3"}
MEMORY = "memory"
UNKNOWN_CACHES = {1: (32 << 10, 1), 2: (1 << 20, 1), 3: (32 << 20, 8)}  # those of a common server


class Weight(Protocol):
    """What is counted of a packed weight (rows, k)."""

    @property
    def rows(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def density(self) -> float: ...
    @property
    def nbytes(self) -> int: ...


class Call(NamedTuple):
    """What one layer is asked for.

    Attributes:
        hidden: Features of a hidden state.
        tokens: Tokens that come in.
        queries: Tokens whose new hidden state is wanted: all, or one per text.
        pairs: (query, key) pairs, over all texts.
    """

    hidden: int
    tokens: int
    queries: int
    pairs: int


def call_of(mask: NDArray[Any], hidden: int, first_only: bool = False) -> Call:
    """Count the tokens of a batch.

    Args:
        mask: (B, T), not 0 where there is a token. Position 0 is computed even where it is masked,
            but not attended to.
        hidden: Features of a hidden state.
        first_only: Only position 0 of each text is wanted.
    """
    keys = np.count_nonzero(mask, axis=1)  # (B,)
    tokens = keys + np.count_nonzero(mask[:, :1] == 0, axis=1)
    queries = np.ones_like(keys) if first_only else tokens
    return Call(hidden, int(tokens.sum()), int(queries.sum()), int((queries * keys).sum()))


def count(step: str, weight: Weight | None, call: Call) -> tuple[float, float]:
    """Count the useful operations of one step, and the bytes that it must move at least.

    Operations: two per nonzero weight and token, two per feature of a query and key and of a
    weight and value, nine per element of a LayerNorm, one per addition of embeddings; exponentials
    and activation functions count nothing, nor do padding and the zeros that a form multiplies.
    Bytes: packed weights once, every activation that comes in (the residual too) read once, every
    one that goes out written once, all per call. Of the embedding tables the word rows count.

    Args:
        step: One of `_kernels.STEPS`.
        weight: Its packed weight; of `embeddings` the projection, of `scatter` the head, of
            `attention` that of `attention_output`, which takes what all heads give; or None.
        call: What the layer is asked for.

    Returns:
        Operations and bytes.
    """
    hidden, tokens, queries, pairs = call
    if step == "attention":
        width = hidden if weight is None else weight.k
        moved = 2 * tokens * width + 2 * queries * width  # keys, values; queries, context
        return 4.0 * pairs * width, float(FLOAT * moved)
    if step in ("attention_norm", "output_norm"):
        return float(NORM_OPERATIONS * queries * hidden), float(FLOAT * 2 * queries * hidden)
    operations, moved, width = 0.0, 0, hidden
    rows = tokens if step in ("embeddings", "qkv") else queries
    if weight is not None:
        operations, width = 2.0 * rows * weight.density * weight.rows * weight.k, weight.k
    features = hidden if weight is None else weight.rows
    if step == "embeddings":
        operations += (NORM_OPERATIONS - 1 + 2) * tokens * width  # no bias; two additions
    if step in ("attention_output", "output"):
        moved = rows * hidden  # the residual
    moved += rows * (width + features)
    return operations, float(FLOAT * moved + (weight.nbytes if weight is not None else 0))


@cache
def fma_peak(isa: str, num_threads: int, precision: str) -> float:
    """Measure the peak of multiply-adds in GFLOP/s, in a precision of `PEAKS`, once per process."""
    return float(_kernels.fma_peak(isa, num_threads, SECONDS, precision))


def fma_peaks(isa: str, num_threads: int, precisions: Iterable[str]) -> dict[str, float]:
    """Measure the peaks of float32 and of `precisions`, by their names in `PEAKS`."""
    names = ("fp32", *precisions)
    return {PEAKS[name]: fma_peak(isa, num_threads, name) for name in names}


def measure_peaks(isa: str, num_threads: int, precisions: Iterable[str] = ()) -> dict[str, Any]:
    """Measure what the machine can do, in about a second.

    Returns:
        `fma_peaks`; `read_gb_per_s` and `read_bytes` (of each thread's buffer) by distance: every
        cache there is (`l1` …) and `memory`.
    """
    sizes = buffer_sizes(cache_sizes() or UNKNOWN_CACHES, num_threads)
    return {
        **fma_peaks(isa, num_threads, precisions),
        "read_gb_per_s": {
            name: float(_kernels.read_bandwidth(isa, num_threads, size, SECONDS))
            for name, size in sizes.items()
        },
        "read_bytes": sizes,
    }


def buffer_sizes(caches: Mapping[int, tuple[int, int]], num_threads: int) -> dict[str, int]:
    """Choose how much each thread reads to meet each cache, and memory.

    Half of a private cache; of a shared one at least twice the cache before it, but in all at most
    half of it, and no roof where that contradicts; four times the last cache for memory.

    Args:
        caches: Level → bytes, and how many CPUs share them.
        num_threads: Threads that read at the same time.

    Returns:
        Bytes per thread by name, multiples of `_kernels.READ_BYTES`.
    """
    sizes, before, last = {}, 0, 0
    for level, name in LEVELS.items():
        if level not in caches:
            continue
        total, sharing = caches[level]
        # hyper-threads share their core's first two caches, too, but the system fills whole cores
        # first
        last = total // (min(num_threads, sharing) if level == 3 else 1)
        size = last // 2
        if level == 3:
            size = max(min(size, 4 * before), 1)
        if size >= 2 * before:
            sizes[name] = size
        before = total
    sizes[MEMORY] = max(4 * last, 16 << 20)
    unit = _kernels.READ_BYTES
    return {name: max(1, size // unit) * unit for name, size in sizes.items()}


def peak_of(kernel: str, peaks: Mapping[str, float]) -> float:
    """Return the peak that bounds a kernel, of `measure_peaks`."""
    precisions = {"f16": "fp16", "bf16": "bf16", "s8": "int8"}
    return peaks[PEAKS[precisions.get(kernel.partition("_")[0], "fp32")]]


def points(
    profile: Sequence[Mapping[str, Any]], peaks: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Sum a profile over the layers: one point per fused operation and kernel that ran it.

    Args:
        profile: Rows of `Engine.profile`.
        peaks: Of `measure_peaks`, what the multipliers of all threads could do, GFLOP/s.

    Returns:
        In the order they run, dicts with `op`, `kernel`, `time_ms`, `operations`, `bytes`,
        `gflops`, `intensity` (operations per byte) and `peak_share`. Operations that compute
        nothing are left out: they have no place on logarithmic axes.
    """
    sums: dict[tuple[str, str], dict[str, float]] = {}
    for row in profile:
        key = (row["op"].rpartition(".")[2], row["kernel"])
        of = sums.setdefault(key, {"time_ms": 0.0, "operations": 0.0, "bytes": 0.0})
        for name in of:
            of[name] += row[name]
    found = []
    for (op, kernel), of in sums.items():
        if of["operations"] > 0:
            gflops = of["operations"] / of["time_ms"] / 1e6
            rates = {"gflops": gflops, "peak_share": gflops / peak_of(kernel, peaks)}
            intensity = of["operations"] / of["bytes"]
            found.append({"op": op, "kernel": kernel, **of, **rates, "intensity": intensity})
    return found
