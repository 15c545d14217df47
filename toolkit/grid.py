"""`toolkit grid`: how fast models would be, cell by cell, before any of them is trained."""

from pathlib import Path
from typing import Any

from toolkit.config import GridRoot
from toolkit.environment import decide_num_threads
from toolkit.measure.grid import cells_of, describe_cells, measure_cells, resolve_isa, sizes_of
from toolkit.measure.published import read_published
from toolkit.measure.timing import warn_if_busy
from toolkit.present.grid import answers, grid_table
from toolkit.progress import say, tell
from toolkit.record import new_record, write_record


def grid(config: GridRoot) -> dict[str, Any]:
    """Measure depth × sparsity × precision, print the table and write `record.json`.

    The weights are random, the engine is the sparse one, in this process; torch is not needed.

    Returns:
        The record that was written.

    Raises:
        UsageError: The model says no sizes, or a cell is impossible here.
    """
    sizes, isa = sizes_of(config.model), resolve_isa(config)
    cells = cells_of(config, sizes, isa)
    num_threads, _ = decide_num_threads(config.engine.num_threads)
    record = new_record("grid", config)
    published = read_published(config.model, sizes.layers)
    whole = [each for each in published if each.layers == sizes.layers and not each.zeros]
    say(
        f"{config.model.name}: {len(cells)} models, {config.rounds + 1} rounds, "
        f"{config.batch_size} texts of {config.seq_len} tokens per call, {num_threads} threads"
    )
    warn_if_busy()
    found = measure_cells(config, sizes, cells, num_threads, isa)
    record["model"] = {"name": config.model.name, "layers": sizes.layers, "random_weights": True}
    record["grid"] = {
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "num_threads": num_threads,
        "isa": isa,
        "rounds": config.rounds,
        "dense": {"recipe": whole[0].recipe, "metric": whole[0].metric, "score": whole[0].score}
        if whole
        else None,
        "cells": describe_cells(config, found, published),
    }
    write_record(Path(config.output_dir) / "record.json", record)
    say(grid_table(record["grid"]))
    for sentence in answers(record["grid"]):
        say(sentence)
    tell(f"record: {Path(config.output_dir) / 'record.json'}")
    return record
