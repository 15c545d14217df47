"""Time engines in interleaved rounds, and compute speeds and ratios from the times.

The rounds go A B C A B C, so a drift of the machine hits all engines alike; ratios are taken within
a round. R: rounds.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifact.agreement import Batch
from toolkit.config import BenchRoot
from toolkit.progress import bar, warn
from toolkit.record import now

BUSY = 0.2  # share of the CPUs that others use, above which a measurement is doubtful
BUSY_SECONDS = 0.3  # to find that out
MIN_ROUNDS = 5  # fewer are too few for an interval
MAX_ROUNDS = 20  # more only switch more often
RESAMPLES = 2000  # the interval's ends then move by a few percent of its width

Ask = Callable[..., dict[str, Any]]


def time_rounds(
    asks: Mapping[str, Ask], seconds: float, min_iterations: int
) -> tuple[dict[str, list[list[float]]], dict[str, int]]:
    """Let the engines warm up, then time them in turn until each has had its time.

    Args:
        asks: `Worker.ask` of each engine.
        seconds: Measured time per engine, at least.
        min_iterations: Calls per engine, at least.

    Returns:
        Per engine the seconds of every call, one list per round; per engine the peak resident
        memory in bytes.
    """
    pass_s = {name: ask("warm_up", seconds=0.1 * seconds)["pass_s"] for name, ask in asks.items()}
    # A round gives every engine about the same time; one slow call may take longer than its share.
    round_s = min(max(seconds / MAX_ROUNDS, *pass_s.values()), seconds / MIN_ROUNDS)
    passes = {name: max(1, round(round_s / once)) for name, once in pass_s.items()}
    rounds: dict[str, list[list[float]]] = {name: [] for name in asks}
    peaks: dict[str, int] = {}

    def until_enough() -> Iterator[None]:
        while not all(_is_enough(calls, seconds, min_iterations) for calls in rounds.values()):
            yield

    expected = max(MIN_ROUNDS, math.ceil(seconds / round_s)) if round_s else MIN_ROUNDS
    for _ in bar(until_enough(), "measuring", expected):
        for name, ask in asks.items():
            answer = ask("time", passes=passes[name])
            rounds[name].append(answer["call_s"])
            peaks[name] = answer["peak_rss_bytes"]
    return rounds, peaks


def summarise_calls(
    rounds: Sequence[Sequence[float]], items_per_call: float, tokens_per_call: float
) -> dict[str, Any]:
    """Turn the times of one engine's calls into the figures of a `speed` entry.

    Args:
        rounds: Seconds of every call, per round; a round is whole passes over the batches.
        items_per_call: Texts, mean over the batches.
        tokens_per_call: Tokens without padding, mean over the batches.
    """
    calls = np.array([seconds for calls in rounds for seconds in calls])
    p50, p90, p99 = np.percentile(calls * 1e3, [50, 90, 99]).tolist()
    # the median over the rounds: a round in which the machine did something else does not count
    calls_per_s = float(np.median([1 / _mean(seconds) for seconds in rounds]))
    return {
        "items_per_s": items_per_call * calls_per_s,
        "tokens_per_s": tokens_per_call * calls_per_s,
        "latency_ms": {
            "p50": p50,
            "p90": p90,
            "p99": p99,
            "mean": float(calls.mean()) * 1e3,
            "std": float(calls.std()) * 1e3,
        },
        "iterations": len(calls),
    }


def warn_if_busy(stat: Path = Path("/proc/stat")) -> None:
    """Say so when other programs are using the CPUs right now.

    The load average would not do: it still counts a training that has just ended.

    Args:
        stat: Times that all CPUs have spent since the start, by kind; absent except on Linux.
    """
    if not stat.exists():
        return
    spent = []
    for _ in range(2):
        # user nice system idle iowait irq softirq steal; what follows is counted in these already
        spent.append([int(ticks) for ticks in stat.read_text().split("\n")[0].split()[1:9]])
        time.sleep(BUSY_SECONDS * (len(spent) == 1))
    ticks = [after - before for before, after in zip(*spent, strict=True)]
    busy = 1 - (ticks[3] + ticks[4]) / max(1, sum(ticks))
    if busy > BUSY:
        warn(f"other programs are using {busy:.0%} of the CPUs, which makes these figures worse")


def speed_ratio(
    rounds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], seed: int
) -> dict[str, float]:
    """Compare an engine's speed with the reference's, round by round.

    Args:
        rounds: Seconds of every call, per round; R rounds.
        reference: The same of the reference, in the same R rounds.
        seed: Of the bootstrap.

    Returns:
        `ratio`, the median over the rounds, above 1 if the engine is faster, and the ends `low` and
        `high` of its 95 % interval.

    Source: percentile bootstrap, Efron 1979, https://doi.org/10.1214/aos/1176344552.
    """
    ratios = np.array([_mean(b) / _mean(a) for a, b in zip(rounds, reference, strict=True)])  # (R,)
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5]).tolist()
    return {"ratio": float(np.median(ratios)), "low": low, "high": high}


def speed_entry(
    config: BenchRoot,
    batches: Sequence[Batch],
    rounds: Mapping[str, list[list[float]]],
    engine: str,
    reference: str,
) -> dict[str, Any]:
    """Make one entry of the record's `speed` from the times of all calls, by label."""
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return {
        "engine": engine,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "lengths": config.lengths.value,
        **summarise_calls(rounds[engine], config.batch_size, tokens / len(batches)),
        "ratio_to": {
            "engine": reference,
            **speed_ratio(rounds[engine], rounds[reference], config.seed),
        },
        "num_threads": config.engine.num_threads,
        "measured": now(),
    }


def _is_enough(calls: Sequence[Sequence[float]], seconds: float, min_iterations: int) -> bool:
    return (
        len(calls) >= MIN_ROUNDS
        and sum(map(sum, calls)) >= seconds
        and sum(map(len, calls)) >= min_iterations
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
