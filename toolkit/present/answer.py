"""What a reader wants to know first: which run to take, what it costs, how it was made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.present.results import (
    DENSE,
    Row,
    density_order,
    groups,
    is_plotted,
    panel_of,
    title_of,
)


@dataclass(frozen=True)
class Answer:
    """One sentence in parts, so that a page can set them apart.

    Attributes:
        title: What it is about: a task and its setting, or a task alone.
        lead: The question it answers, such as `Fastest within 1 % of the teacher`.
        name: The run and its engine.
        facts: What speaks for them.
        row: Their row.
    """

    title: str
    lead: str
    name: str
    facts: list[str]
    row: Row

    @property
    def rest(self) -> str:
        """The sentence behind the lead."""
        return f"{', '.join([self.name, *self.facts])}."

    def __str__(self) -> str:
        return f"{self.lead}: {self.rest}"


def answer(rows: Sequence[Row], within: float) -> list[Answer]:
    """Answer once per task and setting, and once for each task of which nothing was timed.

    Args:
        rows: With ratios, as `add_ratios` leaves them.
        within: How much of the reference's score a run may lose, as a fraction of it.
    """
    found = []
    for group in groups(rows, lambda row: row["group"]):
        measured = [row for row in group if row["items_per_s"] is not None]
        found += [_of_panel(panel, group, within) for panel in groups(measured, panel_of)]
        if not measured:
            found.append(_untimed(group))
    return found


def reference_of(group: Sequence[Row]) -> tuple[str, Row] | None:
    """Name what the scores of a task are compared with, and return its row.

    That is the teacher, if its run is among them; otherwise the densest run with a score.
    """
    scored = [row for row in group if row["score"] is not None]
    paths = {Path(row["teacher_path"]).resolve() for row in scored if row["teacher_path"]}
    teachers = [row for row in scored if (Path(row["folder"]) / "checkpoint").resolve() in paths]
    if teachers:
        return "the teacher", max(teachers, key=lambda row: row["score"])
    if not scored:
        return None
    best = min(scored, key=density_order)
    is_dense = (best["encoder_sparsity"] or 0.0) < DENSE
    return "the dense model" if is_dense else "the densest run", best


def selected(row: Row, wish: str) -> Answer:
    """Answer what `select` asked for."""
    found = _answer(title_of(row), f"The fastest run with {wish}", row, None)
    p99 = f"p99 {row['latency_p99_ms']:.2f} ms"
    return replace(found, facts=[*found.facts, p99, found.title])


def _of_panel(panel: Sequence[Row], group: Sequence[Row], within: float) -> Answer:
    """Name the fastest row of a setting that keeps the score, or what comes nearest to that."""
    title, reference = title_of(panel[0]), reference_of(group)
    scored = [row for row in panel if is_plotted(row)]
    if reference is None or not scored:
        best = max(panel, key=lambda row: row["items_per_s"])
        lead = "Fastest, by speed alone (accuracy was not measured)"
        return _answer(title, lead, best, None)
    kind, other = reference
    comparable = [row for row in scored if row["metric"] == other["metric"]] or scored
    floor = other["score"] - within * abs(other["score"])
    fits = [row for row in comparable if row["score"] >= floor]
    if {row["id"] for row in panel} == {other["id"]}:  # nothing to choose from but engines
        lead, fits = "Fastest engine for the only run measured", comparable
    elif fits:
        lead = f"Fastest within {100 * within:g} % of {kind}"
    else:
        lead = f"No run stays within {100 * within:g} % of {kind}; the nearest"
        nearest = max(row["score"] for row in comparable)
        fits = [row for row in comparable if row["score"] == nearest]
    best = max(fits, key=lambda row: row["items_per_s"])
    return _answer(title, lead, best, None if best["id"] == other["id"] else (kind, other))


def _untimed(group: Sequence[Row]) -> Answer:
    scored = [row for row in group if row["score"] is not None]
    best = max(scored, key=lambda row: row["score"]) if scored else group[0]
    lead = "Not timed yet (toolkit bench onnx=DIR does)"
    lead += "; the best score" if len(scored) > 1 else ""
    kind = reference_of(group)
    other = kind if kind and kind[1]["id"] != best["id"] else None
    return _answer(str(best["group"]), lead, best, other)


def _answer(title: str, lead: str, row: Row, other: tuple[str, Row] | None) -> Answer:
    facts = []
    if row["score"] is not None:
        scores = f"{row['metric']} {row['score']:.2f}"
        facts.append(scores + (f" ({other[0]} {other[1]['score']:.2f})" if other else ""))
    if row["items_per_s"] is not None:
        digits = 0 if row["items_per_s"] >= 100 else 1
        facts.append(f"{row['items_per_s']:,.{digits}f} texts/s")
    if row.get("speedup") is not None and not row["baseline"]:
        facts.append(f"{row['speedup']:.1f} × the speed of {row['compared_with']}")
    through = f" through {row['engine']}" if row["engine"] else ""
    return Answer(title, lead, f"{row['run']}{through}", facts, row)
