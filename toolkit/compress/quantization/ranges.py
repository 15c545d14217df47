"""Which range of an input its 256 integers shall cover, chosen from a histogram.

A histogram is `counts`, (bins,) float64, over `edges`, (bins + 1,) ascending, of all numbers that
an input had on calibration texts.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from toolkit.compress.quantization.grids import INPUT_MAX
from toolkit.config import Calibration, QuantizationConfig

BINS = 4096  # 16 for each integer of the widest range
SHRINKING = np.geomspace(1.0, 1 / 16, 33)  # candidates: each end times each of these
LEVELS = INPUT_MAX + 1

Array = NDArray[np.float64]


def choose_range(counts: Array, edges: Array, options: QuantizationConfig) -> tuple[float, float]:
    """Choose by `options.calibration`; 0.0 is always inside.

    Returns:
        The smallest and the largest number of the range.
    """
    if options.calibration is Calibration.percentile:
        low, high = percentile_range(counts, edges, options.percentile)
    elif options.calibration is Calibration.mse:
        low, high = squared_error_range(counts, edges)
    elif options.calibration is Calibration.entropy:
        low, high = entropy_range(counts, edges)
    else:
        low, high = edges[0], edges[-1]
    return float(min(low, 0.0)), float(max(high, 0.0))


def percentile_range(counts: Array, edges: Array, percentile: float) -> tuple[float, float]:
    """Return the range beyond which 100 - `percentile` % of all numbers lie, at either end."""
    below = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    tail = 1.0 - percentile / 100.0
    low, high = np.interp([tail, 1.0 - tail], below, edges)
    return float(low), float(high)


def squared_error_range(counts: Array, edges: Array) -> tuple[float, float]:
    """Return the range with the least expected squared error.

    What lies inside is off by up to half a step, evenly, which is step² / 12 on the average; what
    lies outside is off by its distance from the end.
    """
    centers = (edges[:-1] + edges[1:]) / 2

    def error(low: float, high: float) -> float:
        step = (high - low) / INPUT_MAX
        outside = np.maximum(low - centers, 0.0) + np.maximum(centers - high, 0.0)
        inside = (counts * (outside == 0)).sum()
        return float((counts * outside**2).sum() + inside * step**2 / 12)

    return min(_candidates(edges), key=lambda ends: error(*ends))


def entropy_range(counts: Array, edges: Array) -> tuple[float, float]:
    """Return the range whose rounded histogram diverges least from the clipped one.

    Source: Migacz, "8-bit inference with TensorRT" (2017), with two ends instead of one.
    """

    def divergence(low: float, high: float) -> float:
        first, last = np.searchsorted(edges, [low, high], side="right") - 1
        inside = counts[first : last + 1]
        if len(inside) < LEVELS:  # too few bins to tell how they are rounded together
            return float("inf")
        clipped = inside.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last + 1 :].sum()
        # the bins of one integer share their numbers evenly, empty ones get none
        level = np.arange(len(inside)) * LEVELS // len(inside)
        filled = np.bincount(level, inside > 0, LEVELS)
        shares = np.bincount(level, inside, LEVELS) / np.maximum(filled, 1)
        rounded = np.where(inside > 0, shares[level], 0.0)
        p = clipped / clipped.sum()
        q = np.maximum(rounded / max(rounded.sum(), 1.0), np.finfo(np.float64).eps)
        is_there = p > 0
        return float((p[is_there] * np.log(p[is_there] / q[is_there])).sum())

    return min(_candidates(edges), key=lambda ends: divergence(*ends))


def _candidates(edges: Array) -> Iterator[tuple[float, float]]:
    """Shrink either end: the widest range comes first, which wins a draw."""
    low, high = min(float(edges[0]), 0.0), max(float(edges[-1]), 0.0)
    for a in SHRINKING if low < 0 else SHRINKING[:1]:
        for b in SHRINKING if high > 0 else SHRINKING[:1]:
            yield low * a, high * b
