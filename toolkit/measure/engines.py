"""The engines that `bench` measures: what each needs, how it loads a model, how it is drawn.

A loader puts `run` into the worker's state (a function from a batch to outputs by name), and
returns the `version` of the engine, and `isa` and `packed_bytes` if it knows them. It runs in a
process of its own, in DeepSparse's case with an interpreter that has little but NumPy: this module
imports no engine before it is loaded.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifact.agreement import Batch, onnxruntime_run
from toolkit.errors import UsageError

# DeepSparse pins numpy and onnx to versions that nothing else here runs with: it lives in an
# environment of its own, whose interpreter this variable names.
DEEPSPARSE_PYTHON = "TOOLKIT_DEEPSPARSE_PYTHON"


def _load_sparse(
    state: dict[str, Any], path: str, num_threads: int, isa: str, kernel: str, precision: str
) -> dict[str, Any]:
    import toolkit
    from toolkit.engine import Engine

    try:
        engine = Engine.load(path, num_threads, isa, kernel, precision)
    except ValueError as error:  # no such ISA, kernel or precision here
        raise UsageError(str(error)) from error
    state["engine"], state["run"] = engine, engine.run
    facts = {"version": toolkit.__version__, "isa": engine.isa}
    return facts | {"packed_bytes": engine.packed_bytes}


def _load_onnxruntime(
    state: dict[str, Any], path: str, num_threads: int, **_: str
) -> dict[str, Any]:
    import onnxruntime

    state["run"] = onnxruntime_run(Path(path), num_threads)
    return {"version": onnxruntime.__version__}


def _load_openvino(
    state: dict[str, Any], path: str, num_threads: int, precision: str, **_: str
) -> dict[str, Any]:
    import openvino

    hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]

    compiled = openvino.Core().compile_model(
        path,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": num_threads,
            "PERFORMANCE_HINT": "LATENCY",  # one call uses all threads, as with the others
            "INFERENCE_PRECISION_HINT": hint,  # left out, it is bf16 where the CPU can
        },
    )
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != hint:
        raise UsageError(f"openvino computes in {used} on this CPU, not in {precision}")
    names = [output.any_name for output in compiled.outputs]

    def run(batch: Batch) -> Batch:
        return dict(zip(names, compiled(batch).values(), strict=True))

    state["run"] = run
    return {"version": openvino.__version__.split("-")[0]}


def _load_torch(
    state: dict[str, Any], path: str, num_threads: int, precision: str, **_: str
) -> dict[str, Any]:
    import torch

    from toolkit.artifact.parity import torch_run
    from toolkit.compress.model import load_checkpoint

    torch.set_num_threads(num_threads)
    state["run"] = torch_run(load_checkpoint(Path(path)), is_bf16=precision == "bf16")
    return {"version": torch.__version__}


def _load_deepsparse(
    state: dict[str, Any], path: str, num_threads: int, **_: str
) -> dict[str, Any]:
    import deepsparse
    from deepsparse.utils import override_onnx_input_shapes

    # It compiles a model for one shape: the timed texts are padded to the longest of them all.
    timed = [batch["input_ids"].shape for batch in state["batches"]]
    longest = max(length for _, length in timed)
    compiled: dict[tuple[int, int], Any] = {}

    def compile_for(batch_size: int, length: int) -> Any:
        shapes = [[batch_size, length]] * len(state["batches"][0])
        with override_onnx_input_shapes(path, shapes, inplace=False) as fixed:
            return deepsparse.compile_model(fixed, batch_size, num_cores=num_threads)

    def run(batch: Batch) -> Batch:
        batch_size, length = batch["input_ids"].shape
        shape = (batch_size, longest if (batch_size, length) in timed else length)
        if shape not in compiled:
            compiled[shape] = compile_for(*shape)
        engine = compiled[shape]
        padding = ((0, 0), (0, shape[1] - length))
        outputs = engine.run([np.pad(batch[name], padding) for name in engine.input_names])
        named = zip(engine.output_names, outputs, strict=True)
        return {
            name: array[:, :length] if array.shape[:2] == shape else array for name, array in named
        }

    state["run"] = run
    run(state["batches"][0])  # compiles; others do that while they load
    return {"version": deepsparse.__version__}


@dataclass(frozen=True)
class EngineEntry:
    """One engine.

    Attributes:
        load: Loads a model: `load(state, path, num_threads=…, isa=…, kernel=…, precision=…)`.
        module: The Python module it needs.
        remedy: How to get it.
        marker: Shape of its points in pictures: circle, square, diamond, triangle-up, …
        dash: Lengths of the dashes and gaps of its curves; empty: solid.
        reads_checkpoint: It runs the checkpoint that an ONNX file was made of, not the file.
        python: Environment variable that names its interpreter, if it has one of its own.
        precisions: Those of `engine.precision` that it can be asked for.
    """

    load: Callable[..., dict[str, Any]]
    module: str
    remedy: str
    marker: str
    dash: tuple[int, ...]
    reads_checkpoint: bool = False
    python: str | None = None
    precisions: tuple[str, ...] = ("fp32",)


# In the order in which they count as usual: the first of them that was measured is the baseline
# with which a report compares.
ENGINES = {
    "onnxruntime": EngineEntry(
        load=_load_onnxruntime,
        module="onnxruntime",
        remedy="pip install 'toolkit[bench]'",
        marker="square",
        dash=(5, 3),
    ),
    "torch": EngineEntry(
        load=_load_torch,
        module="torch",
        remedy="pip install torch transformers",
        marker="diamond",
        dash=(1, 2),
        reads_checkpoint=True,
        precisions=("fp32", "bf16"),
    ),
    "openvino": EngineEntry(
        load=_load_openvino,
        module="openvino",
        remedy="pip install 'toolkit[bench]'",
        marker="triangle-up",
        dash=(6, 2, 1, 2),
        precisions=("fp32", "bf16", "fp16"),
    ),
    "sparse": EngineEntry(
        load=_load_sparse,
        module="cython_kernels._kernels",
        remedy="its kernels are missing, so install toolkit again",
        marker="circle",
        dash=(),
        precisions=("fp32", "bf16", "fp16", "auto"),
    ),
    "deepsparse": EngineEntry(
        load=_load_deepsparse,
        module="deepsparse",
        remedy=f"set {DEEPSPARSE_PYTHON} to the Python of an environment that has "
        "deepsparse==1.8.0, onnx==1.14.1 and numpy==1.26.4",
        marker="triangle-down",
        dash=(10, 2),
        python=DEEPSPARSE_PYTHON,
    ),
}


def check_engine(name: str) -> None:
    """Refuse an engine whose package is not installed.

    Raises:
        UsageError: It is not.
    """
    engine = ENGINES[name]
    if not (is_installed(engine.module) or (engine.python and engine.python in os.environ)):
        raise UsageError(
            f"engine {name} needs {engine.module}, which is not installed: {engine.remedy}"
        )


def interpreter_of(name: str) -> str | None:
    """Return the interpreter of an engine that has one of its own."""
    variable = ENGINES[name].python
    return os.environ.get(variable) if variable else None


def is_installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False
