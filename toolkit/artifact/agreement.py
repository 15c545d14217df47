"""What it means that two engines compute the same. B texts, T tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[Any]]  # a model's inputs, or its outputs, by name
Run = Callable[[Batch], Batch]


def largest_difference(found: Batch, expected: Batch, mask: NDArray[Any]) -> float:
    """Return the largest absolute difference of any output, padding left out.

    Args:
        found: Outputs by name.
        expected: Outputs by name; each (B, …), or (B, T, …) if its second axis is the mask's.
        mask: (B, T), 1 where there is a token.

    Returns:
        Infinity if an output is missing, has another shape, or a number is not finite in one only.
    """
    largest = 0.0
    for name, theirs in expected.items():
        if name not in found or found[name].shape != theirs.shape:
            return float("inf")
        difference = np.abs(found[name].astype(np.float64) - theirs)
        if difference.shape[:2] == mask.shape:
            difference = difference[mask != 0]
        largest = max(largest, float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0)))
    return largest
