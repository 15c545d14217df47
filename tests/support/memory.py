"""Arrays between guard zones: who writes beside an output is caught without a sanitizer."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_kernels._kernels import aligned

GUARD = 256  # floats on either side; a whole number of 64-byte lines keeps the array aligned
CANARY = -12345.678


def guarded(*shape: int, fill: Any = np.nan) -> tuple[NDArray[np.float32], Callable[[], None]]:
    """Return a 64-byte aligned float32 array, and a function that asserts its surroundings intact.

    Args:
        shape: Of the array.
        fill: What it holds: a number or an array of that shape.
    """
    count = math.prod(shape)
    memory = aligned(count + 2 * GUARD)
    memory[:] = CANARY
    array = memory[GUARD : GUARD + count].reshape(shape)
    array[...] = fill

    def check() -> None:
        canary = np.float32(CANARY)
        assert (memory[:GUARD] == canary).all(), "written before the array"
        assert (memory[GUARD + count :] == canary).all(), "written behind the array"

    return array, check
