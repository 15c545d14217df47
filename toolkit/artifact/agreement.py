"""How far the outputs of two engines differ, and ONNX Runtime, with which others are compared.

B texts, T tokens. Runs in environments that have little but NumPy, so it imports nothing else.
"""

from collections.abc import Callable
from pathlib import Path
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


def onnxruntime_run(onnx: Path, num_threads: int = 0) -> Run | None:
    """Load a model into ONNX Runtime, on as many threads (0: as it likes), and return how it runs.

    None where ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(names, batch), strict=True))
