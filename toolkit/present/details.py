"""What the page shows of one run beyond its row: sparsity by layer, profile, roofline."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.families import LINEARS
from toolkit.present.roofline import roofline_chart


def details_of(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the details of each row that `make_rows` makes of a run, in the same order.

    Returns:
        `layers` (`parts` as headings, `zeros` by layer and part), `profile` (see `operations`) and
        `roofline` (see `roofline_chart`); each null where the record has none.
    """
    tensors = run["model"].get("sparsity", {}).get("tensors", [])
    layers = layer_table(tensors)
    return [
        {
            "layers": layers,
            "profile": operations(entry["profile"]) if entry.get("profile") else None,
            "roofline": roofline_chart(entry["roofline"]) if "roofline" in entry else None,
        }
        for entry in run["speed"] or [{}]
    ]


def layer_table(tensors: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Arrange the zeros of the prunable weights: a line per layer, a column per linear weight."""
    layers: dict[int, dict[str, float]] = {}
    for tensor in tensors:
        found = re.search(r"layers?\.(\d+)\.(.+?)(?:\.weight)?$", tensor["name"])
        if found is None:
            return None
        layers.setdefault(int(found[1]), {})[found[2]] = tensor["sparsity"]
    if not layers:
        return None
    names = list(dict.fromkeys(name for layer in layers.values() for name in layer))
    # the records of all families list them in the engine's order
    parts = LINEARS if len(names) == len(LINEARS) else names
    return {
        # a soft hyphen, for the one word that is wider than a phone's column
        "parts": [
            part.replace("_", " ").replace("intermediate", "inter\u00admediate") for part in parts
        ],
        "zeros": [
            {"layer": number, "values": [layer.get(name) for name in names]}
            for number, layer in sorted(layers.items())
        ],
    }


def operations(profile: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sum a profile over the layers, the longest operation first.

    Returns:
        `op`, `time_ms`, `share` (of the call), `gflops` and `peak_share` (null where nothing is
        computed), `kernels` and `notes`, each named once.
    """
    total = sum(row["time_ms"] for row in profile)
    by_op: dict[str, list[Mapping[str, Any]]] = {}
    for row in profile:
        by_op.setdefault(row["op"].rpartition(".")[2], []).append(row)
    found = []
    for op, rows in by_op.items():
        time_ms = sum(row["time_ms"] for row in rows)
        computing = [row for row in rows if row.get("gflops") is not None]
        spent = sum(row["time_ms"] for row in computing)
        means = {
            name: sum(row[name] * row["time_ms"] for row in computing) / spent
            if spent and all(row.get(name) is not None for row in computing)
            else None
            for name in ("gflops", "peak_share")
        }
        found.append(
            {
                "op": op.replace("_", " "),
                "time_ms": time_ms,
                "share": time_ms / total if total else 0.0,
                **means,
                "kernels": ", ".join(dict.fromkeys(str(row.get("kernel", "")) for row in rows)),
                "notes": "; ".join(
                    dict.fromkeys(str(row["note"]) for row in rows if row.get("note"))
                ),
            }
        )
    return sorted(found, key=lambda row: -row["time_ms"])
