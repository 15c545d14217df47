"""Write a torch model as an ONNX file."""

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from toolkit.compress.model import input_names, longest_text_of
from toolkit.compress.quantization.layers import encoder_linears

OPSET = 18  # the oldest that torch's exporter writes correctly, so that most runtimes read it
IR_VERSION = 8  # the file format that came with opset 18, for the same reason
PROTOBUF_LIMIT = 2**31 - 2**24  # bytes of weights in one file; a protobuf message ends at 2 GiB


def write_onnx(model: PreTrainedModel, path: Path) -> list[str]:
    """Write an ONNX file with dynamic batch and length, free of local paths and stack traces.

    The MatMul of an encoder's linear layer gets its name, such as `layers.0.query`. Weights go into
    a second file `<name>.data` where protobuf's limit demands it.

    Returns:
        The names of its inputs.
    """
    inputs = input_names(model)
    # Two different sizes above 1, which the exporter would take for constants; a padded text, so
    # that the mask is not dropped for being all ones.
    example = {name: torch.ones(2, 7, dtype=torch.long) for name in inputs}
    example["attention_mask"][1, 5:] = 0
    with torch.inference_mode():
        outputs = list(model(**example).keys())
    dynamic = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", max=longest_text_of(model.config)),
    }
    program = torch.onnx.export(
        model,
        (),
        kwargs=example,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=dict.fromkeys(inputs, dynamic),
        verbose=False,
    )
    assert program is not None
    _name_linears(program.model, model)
    _strip_metadata(program.model)
    program.model.ir_version = IR_VERSION
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    program.save(path, external_data=size > PROTOBUF_LIMIT)
    return inputs


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' reports on export passes and deprecations, and their progress bars."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch|onnxscript|onnx_ir|copyreg")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        transformers.utils.logging.enable_progress_bar()


def _name_linears(graph_model: Any, model: PreTrainedModel) -> None:
    """Name the encoder's MatMul after the module that each was traced from."""
    modules = {id(module): name for name, module in model.named_modules()}
    names = {modules[id(linear)]: name for name, linear in encoder_linears(model).items()}
    for node in graph_model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        for scope in scopes[-2:]:
            if node.op_type == "MatMul" and scope in names:
                node.name = names.pop(scope)
    assert not names, f"no MatMul was traced from {', '.join(names)}"


def _strip_metadata(model: Any) -> None:
    """Drop what the exporter notes of this machine: source paths, stack traces, module scopes."""
    model.metadata_props.clear()
    graph = model.graph
    graph.metadata_props.clear()
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
