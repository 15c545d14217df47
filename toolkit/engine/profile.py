"""The rows of `Engine.profile`: what every fused operation took, computed and moved."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from cython_kernels._kernels import STEPS, PackedLinear
from toolkit.engine.roofline import Call, Weight, count, peak_of


class Timed(NamedTuple):
    """A timed call, as `Encoder.run` reports it.

    Attributes:
        seconds: By part (first the embeddings and the head, then the layers) and by step of
            `STEPS`, summed over the threads; 0 where a part has no such step.
        num_threads: Threads that ran.
        is_large: Whether the forms for large calls ran.
    """

    seconds: NDArray[Any]
    num_threads: int
    is_large: bool


def profile_rows(
    timed: Timed,
    parts: Sequence[Mapping[str, Any]],
    calls: Sequence[Call],
    isa: str,
    peaks: Mapping[str, float],
    attention: str,
    why: Callable[[str, PackedLinear, bool], str],
) -> list[dict[str, Any]]:
    """Make one row per part and step that took time, as `Engine.profile` returns them.

    Args:
        timed: The call.
        parts: What each part has packed, by step.
        calls: What each part was asked for.
        isa: Instruction set that ran.
        peaks: Of `fma_peaks`: what the multipliers of all threads could do.
        attention: Its kernel.
        why: Gives the note on a layer's weight, of its name, itself and `timed.is_large`.
    """
    rows = []
    for number, steps in enumerate(timed.seconds):
        for step, spent in zip(STEPS, steps, strict=True):
            if spent == 0.0:
                continue
            seconds = spent / timed.num_threads
            weight = _packed(parts[number], step, timed.is_large)
            row: dict[str, Any] = {"op": step, "time_ms": seconds * 1e3, "gflops": None}
            row |= {"density": None, "kernel": isa, "note": ""}
            counted = weight
            if step == "attention":  # as wide as what the next step takes
                counted = _packed(parts[number], "attention_output", timed.is_large)
                row["kernel"] = attention
            if number:
                row["op"] = name = f"layer{number - 1}.{step}"
                if weight is not None:
                    row["density"], row["kernel"] = weight.density, f"{weight.form}_{isa}"
                    row["note"] = why(name, weight, timed.is_large)
            peak = peak_of(row["kernel"], peaks)
            row |= rates_of(step, counted, calls[number], seconds, peak)
            rows.append(row)
    return rows


def rates_of(
    step: str, weight: Weight | None, call: Call, seconds: float, peak: float
) -> dict[str, float | None]:
    """Return `gflops`, `operations`, `bytes` and `peak_share` of a step that took `seconds`.

    Args:
        peak: What the FMA units of all threads could do, GFLOP/s. Where nothing is computed, the
            rate and its share are None.
    """
    operations, moved = count(step, weight, call)
    rate = operations / seconds / 1e9 if operations else None
    return {
        "gflops": rate,
        "operations": operations,
        "bytes": moved,
        "peak_share": None if rate is None else rate / peak,
    }


def _packed(part: Mapping[str, Any], step: str, is_large: bool) -> PackedLinear | None:
    """Return the weight that ran: layers hold one for small and one for large calls."""
    weight = part.get(step)
    if isinstance(weight, tuple):
        weight = weight[is_large]
    return weight if isinstance(weight, PackedLinear) else None  # a norm has no such weight
