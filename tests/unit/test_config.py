"""Ranges: each error names field, range and value."""

import re
from typing import Any

import pytest

from toolkit.config import (
    BenchConfig,
    DepthConfig,
    EngineConfig,
    ExportConfig,
    Lengths,
    Scenario,
    SparsityConfig,
    TaskConfig,
    TeacherConfig,
    TeacherKind,
)

VALID: dict[type, dict[str, Any]] = {
    DepthConfig: {"name": "x", "num_layers": None, "keep": None},
    SparsityConfig: {
        "name": "x",
        "initial_sparsity": 0.0,
        "final_sparsity": 0.8,
        "start_epoch": 1.0,
        "end_epoch": 2.0,
        "update_frequency": 0.1,
        "block_shape": [1, 4],
    },
    TeacherConfig: {
        "name": "x",
        "kind": TeacherKind.none,
        "path": None,
        "hardness": 0.5,
        "temperature": 2.0,
    },
    TaskConfig: {
        "name": "x",
        "kind": "text_classification",
        "path": None,
        "data_dir": None,
        "splits": {},
        "files": {},
        "columns": {},
        "file_columns": {},
        "label_names": None,
        "metrics": ["accuracy"],
        "num_labels": 2,
        "max_length": 64,
        "doc_stride": 0,
        "max_train_samples": None,
        "max_eval_samples": None,
    },
    EngineConfig: {"name": "sparse", "num_threads": 0, "isa": "auto", "kernel": "auto"},
    ExportConfig: {"atol": 1e-4, "num_parity_examples": 4},
    BenchConfig: {
        "against": [],
        "batch_size": 1,
        "seq_len": 8,
        "seconds": 1.0,
        "min_iterations": 1,
        "scenario": Scenario.latency,
        "lengths": Lengths.fixed,
        "accuracy": False,
        "profile": False,
        "roofline": False,
        "baseline": None,
        "max_regression": 0.05,
    },
}


@pytest.mark.parametrize(
    ("kind", "field", "value", "says"),
    [
        (DepthConfig, "num_layers", 0, "depth.num_layers must be at least 1; got 0"),
        (DepthConfig, "keep", [], "depth.keep must list distinct layer numbers"),
        (DepthConfig, "keep", [3, 1], "got [3, 1]"),
        (DepthConfig, "keep", [1, 1], "got [1, 1]"),
        (DepthConfig, "keep", [-1, 1], "got [-1, 1]"),
        (SparsityConfig, "final_sparsity", 1.0, "sparsity.final_sparsity must be in [0, 1)"),
        (SparsityConfig, "final_sparsity", -0.1, "got -0.1"),
        (SparsityConfig, "initial_sparsity", 0.9, "initial_sparsity must not exceed"),
        (SparsityConfig, "start_epoch", -1.0, "sparsity.start_epoch must be at least 0"),
        (SparsityConfig, "end_epoch", 0.5, "sparsity.end_epoch must be at least 1.0; got 0.5"),
        (SparsityConfig, "update_frequency", 0.0, "sparsity.update_frequency must be > 0"),
        (SparsityConfig, "block_shape", [4], "sparsity.block_shape must be [rows, columns]"),
        (SparsityConfig, "block_shape", [0, 4], "got [0, 4]"),
        (TeacherConfig, "hardness", 1.1, "teacher.hardness must be in [0, 1]; got 1.1"),
        (TeacherConfig, "temperature", 0.0, "teacher.temperature must be > 0; got 0.0"),
        (TeacherConfig, "kind", TeacherKind.dense, "teacher=dense needs teacher.path=DIR"),
        (TaskConfig, "max_length", 7, "task.max_length must be at least 8; got 7"),
        (TaskConfig, "metrics", [], "task.metrics must name at least one metric"),
        (TaskConfig, "label_names", ["no"], "must name task.num_labels=2 labels; got 1"),
        (TaskConfig, "doc_stride", -1, "task.doc_stride must be at least 0"),
        (TaskConfig, "max_train_samples", 0, "task.max_train_samples must be at least 1"),
        (TaskConfig, "max_eval_samples", 0, "task.max_eval_samples must be at least 1"),
        (EngineConfig, "num_threads", -1, "engine.num_threads must be at least 0; got -1"),
        (EngineConfig, "isa", "sse", "engine.isa must be auto, avx512, avx2, neon or generic"),
        (EngineConfig, "kernel", "csr", "engine.kernel must be auto, dense, table or generated"),
        (ExportConfig, "atol", 0.0, "export.atol must be > 0; got 0.0"),
        (ExportConfig, "num_parity_examples", 0, "export.num_parity_examples must be at least 1"),
        (BenchConfig, "batch_size", 0, "batch_size must be at least 1; got 0"),
        (BenchConfig, "seq_len", 2, "seq_len must be at least 3; got 2"),
        (BenchConfig, "seconds", -1.0, "seconds must be at least 0"),
        (BenchConfig, "min_iterations", 0, "min_iterations must be at least 1"),
        (BenchConfig, "max_regression", 1.0, "max_regression must be in [0, 1); got 1.0"),
    ],
)
def test_values_out_of_range_are_named(kind: type, field: str, value: Any, says: str) -> None:
    kind(**VALID[kind])
    with pytest.raises(ValueError, match=re.escape(says)):
        kind(**VALID[kind] | {field: value})


def test_dense_with_a_schedule_left_over_is_valid() -> None:
    values = VALID[SparsityConfig] | {"final_sparsity": 0.0, "initial_sparsity": 0.5}
    assert SparsityConfig(**values).final_sparsity == 0.0
