"""Cells of depth × sparsity × precision: which there are, and how fast each is on this machine."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cython_kernels._kernels import precisions_of
from toolkit.config import GridRoot, ModelConfig
from toolkit.engine import Engine
from toolkit.engine.engine import find_isa
from toolkit.engine.plan import Layer
from toolkit.errors import UsageError
from toolkit.families import FAMILIES, longest_text
from toolkit.measure.published import Published
from toolkit.measure.random_plan import (
    BERT_BASE,
    Sizes,
    make_embeddings,
    make_layer,
    make_plan,
    prune,
    round_layer,
)
from toolkit.measure.scaling import call_s, measure_cases
from toolkit.progress import bar

# DistilBERT's words for what the others call so.
DISTILBERT = {
    "num_hidden_layers": "n_layers",
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}


class Cell(NamedTuple):
    """One model: encoder layers, fraction of zeros, `int8` or a precision of the engine."""

    layers: int
    zeros: float
    precision: str


def sizes_of(model: ModelConfig) -> Sizes:
    """Return the sizes that `model.config` says, or config.json in the folder `model.path`.

    Raises:
        UsageError: Neither does, or it is no model of the families that the engine runs.
    """
    values = dict(model.config)
    if not values and model.path is not None:
        file = Path(model.path) / "config.json"
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise UsageError(
            f"model={model.name} must say its sizes, in model.config or in config.json of the "
            f"folder model.path, as a model of the kinds {', '.join(FAMILIES)}; got "
            f"{kind or 'none'}"
        )

    def value(name: str, default: int) -> int:
        word = DISTILBERT.get(name, name) if kind == "distilbert" else name
        return int(values.get(word, default))

    usual = BERT_BASE
    positions = value("max_position_embeddings", usual.positions)
    return Sizes(
        layers=value("num_hidden_layers", usual.layers),
        hidden=value("hidden_size", usual.hidden),
        heads=value("num_attention_heads", usual.heads),
        inner=value("intermediate_size", usual.inner),
        vocabulary=value("vocab_size", usual.vocabulary),
        positions=longest_text(kind, positions, values.get("pad_token_id")),
        types=1 if kind == "distilbert" else value("type_vocab_size", usual.types),
    )


def cells_of(config: GridRoot, sizes: Sizes, isa: str) -> list[Cell]:
    """List what is measured, the deepest and densest first.

    Raises:
        UsageError: A depth, length or precision is none of the model's, or the CPU's.
    """
    whole = sizes.layers
    depths = config.depths or [whole, whole // 2, whole // 4]
    here = precisions_of(isa)
    precisions = config.precisions or [*here, "int8"]
    if max(depths) > whole:
        raise UsageError(f"depths must be at most {whole}, the model's layers; got {max(depths)}")
    if config.seq_len > sizes.positions:
        raise UsageError(
            f"seq_len must be at most {sizes.positions}, the model's positions; "
            f"got {config.seq_len}"
        )
    for precision in precisions:
        if precision not in (*here, "auto", "int8"):
            raise UsageError(
                f"precisions must be among those of this CPU with isa {isa}, "
                f"{', '.join(here)}, auto, int8; got {precision!r}"
            )
    if config.engine.name != "sparse" or config.engine.precision != "fp32":
        raise UsageError(
            "grid measures the sparse engine in all of precisions=[…]: leave engine.name and "
            "engine.precision as they are"
        )
    cells = itertools.product(
        sorted({depth for depth in depths if depth}, reverse=True),
        sorted({*config.sparsities}),
        dict.fromkeys(precisions),
    )
    return [Cell(*cell) for cell in cells]


def measure_cells(
    config: GridRoot, sizes: Sizes, cells: Sequence[Cell], num_threads: int, isa: str
) -> dict[Cell, list[float]]:
    """Time every cell once per round, in turn, so that a drift of the machine hits all alike.

    Returns:
        Milliseconds per call, one mean per round.
    """
    engines = dict(bar(make_engines(config, sizes, cells, num_threads, isa), "packing", len(cells)))

    def run(cell: Cell) -> float:
        return call_s(engines[cell], sizes.vocabulary, config.batch_size, config.seq_len)

    return measure_cases(cells, run, config.rounds)


def make_engines(
    config: GridRoot, sizes: Sizes, cells: Sequence[Cell], num_threads: int, isa: str
) -> Iterator[tuple[Cell, Engine]]:
    """Make an engine for each cell. All layers of a model hold the same weights."""
    rng = np.random.default_rng(config.seed)
    embeddings, dense = make_embeddings(rng, sizes), make_layer(rng, sizes)
    layers: dict[tuple[float, tuple[int, int], bool], Layer] = {}
    for cell in cells:
        is_integer = cell.precision == "int8"
        n, k = block_shape_of(config, cell)
        key = cell.zeros, (n, k), is_integer
        if key not in layers:
            layer = prune(dense, cell.zeros, (n, k))
            layers[key] = round_layer(layer) if is_integer else layer
        plan = make_plan(embeddings, layers[key], cell.layers)
        precision = "auto" if is_integer else cell.precision  # of what stays in float
        yield cell, Engine(plan, num_threads, "asked for", isa, config.engine.kernel, precision)


def block_shape_of(config: GridRoot, cell: Cell) -> list[int]:
    """Return the [rows, columns] that are zero together."""
    return list(config.blocks.get(cell.precision, [1, 1]))


def describe_cells(
    config: GridRoot, found: dict[Cell, list[float]], published: Sequence[Published]
) -> list[dict[str, Any]]:
    """Return the cells as a record keeps them: the median round, the best and the worst.

    A figure published for weights in float counts in every precision of 16 and 32 bits.
    """
    described = []
    for cell, times in found.items():
        kind = "int8" if cell.precision == "int8" else "float"
        shape = block_shape_of(config, cell) if cell.zeros else [1, 1]
        known = [
            {"recipe": each.recipe, "score": each.score}
            for each in published
            if (each.layers, each.precision) == (cell.layers, kind)
            and abs(each.zeros - cell.zeros) < 1e-6
            and (each.block_shape == shape or not cell.zeros)
        ]
        middle = float(np.median(times))
        described.append(
            {
                **cell._asdict(),
                "block_shape": shape,
                "items_per_s": 1e3 * config.batch_size / middle,
                "latency_ms": {"p50": middle, "low": min(times), "high": max(times)},
                "published": known,
            }
        )
    return described


def resolve_isa(config: GridRoot) -> str:
    """Return the instruction set to use.

    Raises:
        UsageError: This CPU does not support the one asked for.
    """
    try:
        return find_isa(config.engine.isa)
    except ValueError as error:
        raise UsageError(str(error)) from None
