"""Read what lies in an export folder: the ONNX file, its checkpoint's place, its record."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engine.reader.graph import find_file, read_file, read_graph
from toolkit.engine.reader.onnx_file import Graph
from toolkit.errors import InputError, UsageError
from toolkit.families import LINEARS, MODEL_INPUTS, longest_text
from toolkit.record import describe_model, read_record

EMBEDDINGS = ("EmbedLayerNormalization", "QEmbedLayerNormalization")  # of com.microsoft


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        onnx: The ONNX file.
        inputs: Names of the graph's inputs, in its order.
        vocab_size: Rows of the word embedding.
        pad_id: Id of the padding token.
        max_tokens: Longest text that the position embeddings allow, where it is known.
        record: The record beside the ONNX file, if there is one.
        is_quantized: Whether the graph computes with integers of 8 bits.
        id2label: Its labels by their numbers, of config.json; empty where that is missing.
    """

    onnx: Path
    inputs: list[str]
    vocab_size: int
    pad_id: int
    max_tokens: int
    record: dict[str, Any] | None
    is_quantized: bool = False
    id2label: Mapping[str, str] = field(default_factory=dict)


def read_exported(place: Path) -> Exported:
    """Read an export folder, or a single ONNX file with what lies beside it.

    Raises:
        InputError: There is no ONNX file, it is damaged, or it is not a BERT; or a file beside it
            is damaged.
    """
    file = find_file(place)
    if not file.is_file():
        raise InputError(
            f"expected an ONNX file, or an export folder that holds model.onnx, at {place}, but "
            "there is none: `toolkit export checkpoint=DIR` makes one"
        )
    graph = read_file(file)
    pad_id, max_tokens = read_limits(file.parent)
    return Exported(
        onnx=file,
        inputs=graph.inputs,
        vocab_size=_vocab_size(file, graph),
        pad_id=pad_id,
        max_tokens=max_tokens,
        record=read_record(file.parent) if file.with_name("record.json").exists() else None,
        is_quantized=any("Quantize" in node.operator for node in graph.nodes),
        id2label=read_json(file.with_name("config.json")).get("id2label") or {},
    )


def read_limits(folder: Path) -> tuple[int, int]:
    """Return the id of the padding token, and the tokens of the longest text, by `config.json`.

    Without one the padding is 0 and texts may have any length.

    Raises:
        InputError: The file is damaged.
    """
    facts = read_json(folder / "config.json")
    pad_id = facts.get("pad_token_id") or 0
    positions = facts.get("max_position_embeddings", sys.maxsize)
    return pad_id, longest_text(facts.get("model_type", ""), positions, pad_id)


def find_checkpoint(onnx: Path) -> Path:
    """Find the checkpoint that `export.json` beside an ONNX file names.

    Raises:
        UsageError: There is no such file or folder.
    """
    name = read_json(onnx.with_name("export.json")).get("checkpoint")
    checkpoint = onnx.parent / str(name)
    if name is None or not (checkpoint / "config.json").is_file():
        found = "names none" if name is None else f"names {checkpoint}, which is not there"
        raise UsageError(
            "engine torch runs the checkpoint that export.json beside the ONNX file names, but "
            f"{onnx.parent} {found}: give the folder that `toolkit export` wrote, or leave torch "
            "out"
        )
    return checkpoint


def size_bytes(onnx: Path) -> int:
    """Add up an ONNX file and the weights it keeps outside."""
    return sum(
        file.stat().st_size for file in (onnx, onnx.with_name(f"{onnx.name}.data")) if file.exists()
    )


def describe_onnx(onnx: Path) -> dict[str, Any]:
    """Count layers, parameters and zeros: the `model` of a record, where no record tells them.

    Returns:
        Only the name if the sparse engine cannot read the graph; other engines may run it.
    """
    try:
        plan = read_graph(onnx)
    except (InputError, ValueError):
        return {"name": onnx.stem}
    weights = {
        f"layers.{number}.{name}": getattr(layer, name).weight
        for number, layer in enumerate(plan.layers)
        for name in LINEARS
    }
    counted = {name: (weight.shape, _zeros(weight)) for name, weight in weights.items()}
    constants = read_file(onnx).constants.values()
    floats = [array for array in constants if array.dtype.kind == "f"]
    integers = [array for array in constants if array.dtype.itemsize == 1 and array.ndim == 2]
    # Integers that stand for zero need not be 0: of a quantized model only the layers' are counted.
    known = sum(zeros for _, zeros in counted.values())
    return describe_model(
        onnx.stem,
        layers=len(plan.layers),
        weights=counted,
        parameters=sum(array.size for array in (*floats, *integers)),
        zeros=known if integers else sum(map(_zeros, floats)),
    )


def _zeros(array: NDArray[Any]) -> int:
    return array.size - int(np.count_nonzero(array))


def _vocab_size(file: Path, graph: Graph) -> int:
    """Find the rows of the table that is indexed by `input_ids`."""
    wrong = f"its inputs are {', '.join(graph.inputs) or 'none'}"
    if "input_ids" in graph.inputs and set(graph.inputs) <= set(MODEL_INPUTS):
        wrong = "it has no embedding table indexed by input_ids"
        ids = {"input_ids"}  # … and what is only another type or name of it
        tables = dict(graph.constants)  # … those that are dequantized too
        for node in graph.nodes:
            operator = node.operator.removeprefix("com.microsoft.")
            if operator in ("Cast", "Identity") and node.inputs[0] in ids:
                ids.update(node.outputs)
            if operator in ("QuantizeLinear", "DequantizeLinear") and node.inputs[0] in tables:
                tables[node.outputs[0]] = tables[node.inputs[0]]
            row, table_input = (0, 2) if operator in EMBEDDINGS else (1, 0)
            if operator in ("Gather", *EMBEDDINGS) and node.inputs[row] in ids:
                table = tables.get(node.inputs[table_input])
                if table is not None and table.ndim == 2:
                    return len(table)
    raise InputError(f"{file} is not a BERT with the inputs {', '.join(MODEL_INPUTS)}: {wrong}")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file counts as empty."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid JSON ({error}): export the model again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} does not hold a JSON object: export the model again")
    return content
