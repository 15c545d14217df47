"""`report.html`: one file that needs no network and no server."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from toolkit.present.chart import Panel
from toolkit.present.grid import grid_table, title_of_grid
from toolkit.present.results import Row
from toolkit.present.tables import COLUMNS, cells

TEMPLATE = Path(__file__).with_name("page.html")
SCRIPT = Path(__file__).with_name("page.js")


def page(
    rows: Sequence[Row],
    panels: Sequence[Panel],
    notes: Sequence[str],
    picture: bytes | None = None,
    grids: Sequence[dict[str, Any]] = (),
) -> str:
    """Put the results into the page.

    Its policy forbids the network, and any script but its own and plotly's: names of models and
    folders come from files that others may have written. Styles are free, because plotly adds some
    that differ from version to version, and plotly 6 tries an image of its own; neither can load
    anything from elsewhere.

    Args:
        rows: As in `results.csv`.
        panels: What `make_panels` says of them.
        notes: Sentences above the chart.
        picture: PNG of the grids.
        grids: As `toolkit.present.grid.merge_grids` returns them: their tables.
    """
    library, script = get_plotlyjs(), SCRIPT.read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    shown = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    data = {
        "rows": list(rows),
        "columns": [(name, COLUMNS[name][0]) for name in shown],
        "cells": cells(rows, shown),
        "panels": [asdict(panel) for panel in panels],
        "notes": list(notes),
    }
    values = {
        "@POLICY@": policy,
        "@LIBRARY@": library,
        # "</script>" in a name would end the element, "<!--" change how it is read
        "@DATA@": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "@SCRIPT@": script,
        "@GRIDS@": _grids(picture, grids),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    return re.sub("|".join(values), lambda match: values[match[0]], text)


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
