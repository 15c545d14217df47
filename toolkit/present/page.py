"""`report.html`: one file that needs no network and no server."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from toolkit.present.results import Row

TEMPLATE = Path(__file__).with_name("page.html")


def page(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Put the results into the page.

    Its policy forbids the network, and any script or style but its own: names of models and folders
    come from files that others may have written.

    Args:
        rows: As in `results.csv`, with `panel`: the title under which a row is plotted, or None.
        notes: Sentences above the chart.
    """
    text = TEMPLATE.read_text(encoding="utf-8")
    script = _between(text, "<script>", "</script>")
    style = _between(text, "<style>", "</style>")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # "</script>" in a name would end the element, "<!--" change how it is read
    data = json.dumps({"rows": list(rows), "notes": list(notes)}, allow_nan=False)
    values = {"@POLICY@": policy, "@DATA@": data.replace("<", "\\u003c")}
    return re.sub("|".join(values), lambda match: values[match[0]], text)


def _between(text: str, start: str, end: str) -> str:
    return text.split(start, 1)[1].split(end, 1)[0]


def _hash(source: str) -> str:
    """Return the source's hash as a content security policy names it."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
