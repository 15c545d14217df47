"""Ranges: each error names field, range and value."""

import re
from dataclasses import replace
from typing import Any

import pytest
from support.configs import compose

from toolkit.config import (
    BenchConfig,
    DepthConfig,
    EngineConfig,
    ExportConfig,
    QuantizationConfig,
    ServeConfig,
    SparsityConfig,
    TaskConfig,
    TeacherConfig,
    TeacherKind,
    default_serve,
)

# Each group as conf/ has it: a new field needs no entry here.
ROOTS = (compose("train", "sparsity=prune80"), compose("serve", "onnx=x"))
VALID = {type(part): part for root in ROOTS for part in vars(root).values()}


@pytest.mark.parametrize(
    ("kind", "field", "value", "says"),
    [
        (DepthConfig, "num_layers", 0, "depth.num_layers must be at least 1; got 0"),
        (DepthConfig, "keep", [], "depth.keep must list distinct layer numbers"),
        (DepthConfig, "keep", [3, 1], "got [3, 1]"),
        (DepthConfig, "drop", [3, 1], "depth.drop must list distinct layer numbers"),
        (DepthConfig, "keep", [1, 1], "got [1, 1]"),
        (DepthConfig, "keep", [-1, 1], "got [-1, 1]"),
        (SparsityConfig, "final_sparsity", 1.0, "sparsity.final_sparsity must be in [0, 1)"),
        (SparsityConfig, "final_sparsity", -0.1, "got -0.1"),
        (SparsityConfig, "initial_sparsity", 0.9, "initial_sparsity must not exceed"),
        (SparsityConfig, "start_epoch", -1.0, "sparsity.start_epoch must be at least 0"),
        (SparsityConfig, "end_epoch", 0.0, "sparsity.end_epoch must be at least 0.1; got 0.0"),
        (SparsityConfig, "update_frequency", 0.0, "sparsity.update_frequency must be > 0"),
        (SparsityConfig, "block_shape", [4], "sparsity.block_shape must be [rows, columns]"),
        (SparsityConfig, "block_shape", [0, 4], "got [0, 4]"),
        (TeacherConfig, "hardness", 1.1, "teacher.hardness must be in [0, 1]; got 1.1"),
        (TeacherConfig, "temperature", 0.0, "teacher.temperature must be > 0; got 0.0"),
        (TeacherConfig, "kind", TeacherKind.dense, "teacher=dense needs teacher.path=DIR"),
        (TeacherConfig, "hidden_weight", -1.0, "teacher.hidden_weight must be at least 0; got"),
        (TeacherConfig, "attention_weight", -1.0, "teacher.attention_weight must be at least 0"),
        (TeacherConfig, "layer_map", [-1, 2], "teacher.layer_map must list one layer of the"),
        (TeacherConfig, "layer_map", [], "got []"),
        (QuantizationConfig, "bits", 4, "quantization.bits must be 8, or null for float32; got 4"),
        (QuantizationConfig, "start_epoch", -1.0, "quantization.start_epoch must be at least 0"),
        (QuantizationConfig, "freeze_epoch", -1.0, "quantization.freeze_epoch must be at least"),
        (QuantizationConfig, "learning_rate", 0.0, "quantization.learning_rate must be > 0; got"),
        (QuantizationConfig, "final_learning_rate", -1.0, "final_learning_rate must be at least"),
        (QuantizationConfig, "percentile", 50.0, "quantization.percentile must be in (50, 100]"),
        (QuantizationConfig, "num_calibration_examples", 0, "calibration_examples must be at leas"),
        (QuantizationConfig, "smooth", 1.5, "quantization.smooth must be in [0, 1]; got 1.5"),
        (QuantizationConfig, "num_sensitivity_examples", -1, "sensitivity_examples must be at le"),
        (QuantizationConfig, "max_loss", -0.5, "quantization.max_loss must be at least 0; got -0"),
        (TaskConfig, "max_length", 7, "task.max_length must be at least 8; got 7"),
        (TaskConfig, "metrics", [], "task.metrics must name at least one metric"),
        (TaskConfig, "label_names", ["no"], "must name task.num_labels=2 labels; got 1"),
        (TaskConfig, "doc_stride", -1, "task.doc_stride must be at least 0"),
        (TaskConfig, "max_train_samples", 0, "task.max_train_samples must be at least 1"),
        (TaskConfig, "max_eval_samples", 0, "task.max_eval_samples must be at least 1"),
        (EngineConfig, "num_threads", -1, "engine.num_threads must be at least 0; got -1"),
        (EngineConfig, "isa", "sse", "engine.isa must be auto, amx_bf16, "),
        (EngineConfig, "kernel", "csr", "engine.kernel must be auto, dense, table or generated"),
        (ExportConfig, "atol", 0.0, "export.atol must be > 0; got 0.0"),
        (ExportConfig, "num_parity_examples", 0, "export.num_parity_examples must be at least 1"),
        (BenchConfig, "batch_size", 0, "batch_size must be at least 1; got 0"),
        (BenchConfig, "seq_len", 2, "seq_len must be at least 3; got 2"),
        (BenchConfig, "seconds", -1.0, "seconds must be at least 0"),
        (BenchConfig, "min_iterations", 0, "min_iterations must be at least 1"),
        (ServeConfig, "port", 2**16, "serve.port must be in [0, 65535]; got 65536"),
        (ServeConfig, "token", "", "serve.token must be printable ASCII characters, at least one"),
        (ServeConfig, "token", "a\nb", "serve.token must be printable ASCII characters"),
        (ServeConfig, "max_batch", 0, "serve.max_batch must be at least 1; got 0"),
        (ServeConfig, "max_wait_ms", -1.0, "serve.max_wait_ms must be at least 0; got -1"),
        (ServeConfig, "max_queue", 31, "serve.max_queue must be at least serve.max_texts=32"),
        (ServeConfig, "read_timeout_s", 0.0, "serve.read_timeout_s must be > 0; got 0.0"),
        (BenchConfig, "max_regression", 1.0, "max_regression must be in [0, 1); got 1.0"),
    ],
)
def test_values_out_of_range_are_named(kind: type, field: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        replace(VALID[kind], **{field: value})


def test_dense_with_a_schedule_left_over_is_valid() -> None:
    dense = replace(VALID[SparsityConfig], final_sparsity=0.0, initial_sparsity=0.5)
    assert dense.final_sparsity == 0.0


def test_a_server_without_the_command_line_has_the_same_values() -> None:
    found = default_serve("x", **{"serve.max_batch": 64, "engine.num_threads": "2"})
    composed = compose("serve", "onnx=x", "serve.max_batch=64", "engine.num_threads=2")
    assert replace(found, output_dir="x") == composed
    with pytest.raises(ValueError, match=r"serve: Key 'max_bach' not in 'ServeConfig'"):
        default_serve("x", **{"serve.max_bach": 64})
