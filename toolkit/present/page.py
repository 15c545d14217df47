"""`report.html`: one file that needs no network and no server."""

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from toolkit.measure.contenders import engine_of
from toolkit.present.answer import Answer
from toolkit.present.chart import Panel
from toolkit.present.compare import Change, change_cells
from toolkit.present.grid import grid_table, title_of_grid
from toolkit.present.results import Row, title_of, zeros_label
from toolkit.present.tables import COLUMNS, cells

TEMPLATE = Path(__file__).with_name("page.html")
SCRIPT = Path(__file__).with_name("page.js")

# Columns of the table, the last one dropped first where the screen is too narrow for all.
PRIORITY = (
    "run", "score", "items_per_s", "speedup", "engine", "encoder_sparsity", "set", "precision",
    "latency_p50_ms", "batch_size", "seq_len", "lengths", "num_threads", "latency_p99_ms",
    "recovery", "published", "metric", "onnx_mb", "tokens_per_s", "speedup_same_engine", "teacher",
    "latency_p90_ms", "load_s", "peak_rss_mb", "seed", "folder",
)  # fmt: skip
ALWAYS = PRIORITY[:3]  # even if they are the same in all rows
# What an axis may show, and how it is called; the task's metrics come behind these.
AXES = {
    "items_per_s": "texts per second",
    "tokens_per_s": "tokens per second",
    "speedup": "times the baseline's speed",
    "score": "score, %",
    "recovery": "share of the baseline's score",
    "published": "published F1, %",
    "latency_p50_ms": "median latency, ms",
    "latency_p90_ms": "latency p90, ms",
    "latency_p99_ms": "latency p99, ms",
    "encoder_sparsity": "zeros in the encoder",
    "model_sparsity": "zeros in the model",
    "layers": "layers",
    "parameters": "parameters",
    "checkpoint_mb": "checkpoint, MB",
    "onnx_mb": "ONNX file, MB",
    "sparse_mb": "sparse file, MB",
    "packed_mb": "packed weights, MB",
    "peak_rss_mb": "peak memory, MB",
    "load_s": "load, s",
}


def page(
    rows: Sequence[Row],
    details: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
    answers: Sequence[Answer],
    changes: Sequence[Change],
    notes: Sequence[str],
    picture: bytes | None = None,
    grids: Sequence[dict[str, Any]] = (),
) -> str:
    """Put the results into the page.

    Its policy forbids the network, and any script but its own and plotly's: names of models and
    folders come from files that others may have written. Styles are free, because plotly adds some
    that differ from version to version, and plotly 6 tries an image of its own; neither can load
    anything from elsewhere. Plotly travels compressed, which makes 2 MB of 5.

    Args:
        rows: As in `results.csv`.
        details: As `details_of` returns them, one per row.
        panels: What `make_panels` says of them.
        answers: What comes first.
        changes: Between two sets; the first note then is their summary.
        notes: Sentences at the end.
        picture: PNG of the grids.
        grids: As `toolkit.present.grid.merge_grids` returns them: their tables.
    """
    packed, script = _library(), SCRIPT.read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(get_plotlyjs())} {_hash(script)}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    known = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    differing = [name for name in known if len({row.get(name) for row in rows}) > 1]
    shown = [name for name in known if name in differing or name in ALWAYS]
    index = {id(row): number for number, row in enumerate(rows)}
    titles = [panel.title for panel in panels]
    data = {
        "rows": list(rows),
        "details": list(details),
        "columns": [
            {"name": name, "text": COLUMNS[name][0], "priority": PRIORITY.index(name)}
            for name in shown
        ],
        "cells": cells(rows, shown),
        "facts": [(COLUMNS[name][0], name) for name in known if name not in ("run", "folder")],
        "told": cells(rows, known),
        "known": known,
        "same": [
            f"{COLUMNS[name][0]} {cells(rows[:1], [name])[0][0]}"
            for name in known
            if name not in shown and rows[0].get(name) is not None
        ],
        "panels": [asdict(panel) for panel in panels],
        "panel_of": [titles.index(title_of(row)) if row["engine"] else None for row in rows],
        "axes": _axes(rows),
        "facets": _facets(rows),
        "answers": [
            {
                "panel": titles.index(found.title) if found.title in titles else None,
                "lead": found.lead,
                "name": found.name,
                "facts": " · ".join(found.facts),
                "row": index[id(found.row)],
            }
            for found in answers
        ],
        "about": _about(rows),
        "changes": None if not changes else _changes(changes),
        "summary": notes[0] if changes else "",
        "notes": list(notes[1:] if changes else notes),
    }
    values = {
        "@POLICY@": policy,
        "@LIBRARY@": packed,
        # "</script>" in a name would end the element, "<!--" change how it is read
        "@DATA@": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "@SCRIPT@": script,
        "@GRIDS@": _grids(picture, grids),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    return re.sub("|".join(values), lambda match: values[match[0]], text)


def _axes(rows: Sequence[Row]) -> dict[str, str]:
    """Name what has numbers, and can be an axis."""
    metrics = {name: f"{name}, %" for row in rows for name in _metric_names(row)}
    known = {
        name: text
        for name, text in (AXES | metrics).items()
        if any(isinstance(row.get(name), (int, float)) for row in rows)
    }
    # published figures are drawn against the axis of scores
    return {"score": AXES["score"]} | known if "published" in known else known


def _metric_names(row: Row) -> list[str]:
    """Name the columns between the examples and the main metric: the task's own."""
    names = list(row)
    return names[names.index("num_examples") + 1 : names.index("metric")]


def _facets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Say by what rows can be chosen, and what each has; only what differs."""
    asked = {
        "task": [str(row["group"]) for row in rows],
        "set": [str(row.get("set") or "") for row in rows],
        "engine": [engine_of(row["engine"]) if row["engine"] else "not timed" for row in rows],
        "layers": ["?" if row["layers"] is None else str(row["layers"]) for row in rows],
        "zeros": [zeros_label(row) or "?" for row in rows],
        "precision": [str(row["precision"] or row["quantization"] or "?") for row in rows],
    }
    order = sorted(range(len(rows)), key=lambda i: rows[i]["encoder_sparsity"] or 0.0)
    sequences = {
        "zeros": [asked["zeros"][i] for i in order],
        "layers": sorted(asked["layers"], key=lambda text: -int(text) if text != "?" else 1),
    }
    return [
        {
            "name": name,
            "values": values,
            "options": list(dict.fromkeys(sequences.get(name, values))),
        }
        for name, values in asked.items()
        if len(set(values)) > 1
    ]


def _about(rows: Sequence[Row]) -> str:
    """Say how much there is, and on which machine."""
    runs = len({(row.get("set"), row["id"]) for row in rows})
    measured = [row for row in rows if row["items_per_s"] is not None]
    parts = [f"{runs} run{'s' * (runs != 1)}"]
    parts.append(f"{len(measured)} measurement{'s' * (len(measured) != 1)}")
    parts += dict.fromkeys(str(row["cpu"]) for row in measured if row["cpu"])
    return " · ".join(parts)


def _changes(changes: Sequence[Change]) -> dict[str, Any]:
    header, body = change_cells(changes)
    return {"header": header, "cells": body}


@cache
def _library() -> str:
    """Return plotly, compressed and in base64."""
    return base64.b64encode(zlib.compress(get_plotlyjs().encode(), 9)).decode()


def _grids(picture: bytes | None, grids: Sequence[dict[str, Any]]) -> str:
    """Return the picture and the tables as elements; nothing without a picture."""
    if picture is None:
        return ""
    address = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    tables = (
        f"<h2>{html.escape(title_of_grid(grid))}</h2><pre>{html.escape(grid_table(grid))}</pre>"
        for grid in grids
    )
    alt = "measured speed of untrained models against published scores"
    return f'<img id="grid" alt="{alt}" src="{address}">{"".join(tables)}'


def _hash(source: str) -> str:
    """Return the source's hash as a content security policy names it."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
