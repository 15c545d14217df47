"""What a file must come to: a plan that computes what ONNX Runtime computes, or one sentence."""

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
)
from support.edits import mutate

from toolkit.engine import reference
from toolkit.engine.plan import Plan
from toolkit.engine.reader.graph import read_graph
from toolkit.errors import InputError
from toolkit.families import LINEARS

Array = NDArray[Any]
Batch = dict[str, Array]

# What ONNX Runtime makes of a graph that is no valid ONNX, or whose shapes never fit.
INVALID = (Fail, InvalidArgument, InvalidGraph)


def sample(plan: Plan, batch: int, length: int, seed: int = 0) -> Batch:
    """Make a batch with a complete text, one padded on the right and one with holes."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[1:2, (length + 1) // 2 :] = 0
    mask[2:, 1::3] = 0
    ids = rng.integers(5, 50, (batch, length))
    ids[mask == 0] = plan.embeddings.padding_id or 0
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (batch, length)),
    }
    return {name: inputs[name] for name in plan.inputs}


def run_onnxruntime(path: Path, inputs: Batch, is_literal: bool = False) -> Batch:
    """Run a file in ONNX Runtime; it is given those of the inputs that it has.

    `is_literal`: each node by itself. Otherwise dense layers between quantizations are fused, and
    without VNNI their sums of pairs saturate.
    """
    options = onnxruntime.SessionOptions()
    if is_literal:
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feed = {value.name: inputs[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))


def largest_error(found: Mapping[str, Array], expected: Mapping[str, Array], mask: Array) -> float:
    """Return the largest difference at real tokens, relative to what is above 1.

    Infinity where only one of both is a number.
    """
    assert list(found) == list(expected)
    worst = 0.0
    for name, theirs in expected.items():
        ours = found[name]
        assert ours.shape == theirs.shape, name
        with np.errstate(all="ignore"):
            error = np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1.0)
        error[(ours == theirs) | (np.isnan(ours) & np.isnan(theirs))] = 0.0
        if theirs.shape[:2] == mask.shape:
            error = error[mask != 0]
        worst = max(worst, float(np.nan_to_num(error, nan=np.inf).max()))
    return worst


def difference(path: Path, plan: Plan, batch: int, length: int) -> float:
    """Return the largest difference between ONNX Runtime and the oracle."""
    inputs = sample(plan, batch, length)
    expected = run_onnxruntime(path, inputs)
    return largest_error(reference.run(plan, inputs), expected, inputs["attention_mask"])


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_graph(path)
    assert "\n" not in str(caught.value)


def refused_or_equal(
    original: onnx.ModelProto,
    rng: random.Random,
    count: int,
    folder: Path,
    tolerance: float = 1e-3,
) -> None:
    """Change a graph at random `count` times: each is refused, or computes what it says.

    What ONNX Runtime computes, the oracle must compute, too: nothing that it raises is caught.
    """
    outcomes: Counter[str] = Counter()
    for number in range(count):
        model = onnx.ModelProto()
        model.CopyFrom(original)
        mutate(model.graph, rng)
        path = folder / f"{number}.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            plan = read_graph(path)
        except InputError:
            outcomes["refused"] += 1
            continue
        if any(getattr(layer, name).note for layer in plan.layers for name in LINEARS):
            outcomes["in float"] += 1  # where the graph has integers: another function
            continue
        inputs = sample(plan, 3, 9)
        try:
            expected = run_onnxruntime(path, inputs, tolerance > 1e-3)
        except INVALID:
            outcomes["invalid"] += 1
            continue
        with np.errstate(all="ignore"):
            found = reference.run(plan, inputs)
        assert largest_error(found, expected, inputs["attention_mask"]) < tolerance, path
        outcomes["equal"] += 1
    assert outcomes["refused"] >= count // 4, outcomes
    assert outcomes["equal"] >= count // 4, outcomes
    assert outcomes["invalid"] <= count // 10, outcomes  # nothing to compare with
