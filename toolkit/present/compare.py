"""Two sets of runs side by side: what became better, what worse, and what is only noise."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from toolkit.present.details import details_of
from toolkit.present.results import Row, distinguish, groups, make_rows, merge_runs

Records = list[tuple[Path, dict[str, Any]]]  # with the files that hold them
Details = dict[int, dict[str, Any]]  # what `details_of` says, by the `id()` of the row

# What must agree for two measurements to be of the same thing. Zeros are rounded to percents:
# models pruned to one target differ by less.
SAME = (
    "group", "model", "layers", "parameters", "quantization", "engine", "batch_size", "seq_len",
    "lengths", "num_threads",
)  # fmt: skip
INTERVAL = 1.96  # standard errors on either side of a value that hold 95 % of a normal distribution
ROUNDS = 20  # calls of one round share the machine's mood: no more count as independent
DRIFT = 0.02  # a machine drifts by this much between two runs, whatever the calls of each say

BETTER, WORSE, NOISE, UNMEASURED = "better", "worse", "within noise", "not measured"


@dataclass(frozen=True)
class Change:
    """One measurement in both sets; what a set lacks is None.

    Attributes:
        before: Row of the first set.
        after: Row of the second.
        ratio: Speed after over speed before, with its 95 % interval.
        speed: `better`, `worse`, `within noise`, or why nothing can be said.
        gain: Score after minus score before, in percent points, with half its 95 % interval, None
            where the number of examples is unknown.
        score: As `speed`.
    """

    before: Row
    after: Row
    ratio: tuple[float, float, float] | None
    speed: str
    gain: tuple[float, float | None] | None
    score: str


def arrange(
    records: Mapping[str, Records],
) -> tuple[list[Row], Details, list[Change], list[str]]:
    """Turn records into rows, as two sets if there are two paths that can be compared.

    Returns:
        Rows; their details; what changed between two sets; what to say of that.
    """
    notes = []
    records = {  # grids have tables of their own
        path: [(file, record) for file, record in found if "grid" not in record]
        for path, found in records.items()
    }
    if len(records) == 2:
        sets = [_make_rows(merge_runs(found)) for found in records.values()]
        changes = compare(*(rows for rows, _ in sets))
        notes.append(summary(list(records), changes, [rows for rows, _ in sets]))
        if changes:
            for name, (rows, _) in zip(records, sets, strict=True):
                for row in rows:
                    row["set"] = name
            (before, one), (after, other) = sets
            return [*before, *after], one | other, changes, notes
    rows, details = _make_rows(merge_runs(chain.from_iterable(records.values())))
    return rows, details, [], notes


def compare(before: Sequence[Row], after: Sequence[Row]) -> list[Change]:
    """Compare what was measured in both sets, in the order of the second.

    Where a set holds several runs of one description (seeds, recipes), those in folders of one name
    belong together, and the rest is left alone.
    """
    earlier = {_key(same[0]): same for same in groups(before, _key)}
    changes = []
    for same in groups(after, _key):
        found = earlier.get(_key(same[0]), [])
        if len(found) == len(same) == 1:
            changes.append(_change(found[0], same[0]))
        else:
            folders = {Path(row["folder"]).name: row for row in found}
            names = ((Path(row["folder"]).name, row) for row in same)
            changes += [_change(folders[name], row) for name, row in names if name in folders]
    return [change for change in changes if change.gain or change.speed != UNMEASURED]


def summary(names: Sequence[str], changes: Sequence[Change], sets: Sequence[Sequence[Row]]) -> str:
    """Say in one sentence what the comparison found, and what it left out."""
    if not changes:
        return (
            f"{names[0]} and {names[1]} hold no measurement of the same model, engine and setting, "
            "so nothing is compared."
        )
    sentences = [
        f"{names[1]} against {names[0]}, {len(changes)} in common: "
        f"speed {_count(change.speed for change in changes)}; "
        f"score {_count(change.score for change in changes)}."
    ]
    for name, rows, used in (
        (names[0], sets[0], [change.before for change in changes]),
        (names[1], sets[1], [change.after for change in changes]),
    ):
        alone = len(rows) - sum(any(row is other for other in used) for row in rows)
        if alone:
            sentences.append(f"Only in {name}: {alone}.")
    return " ".join(sentences)


def change_cells(changes: Sequence[Change]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the table of changes; settings where they differ."""
    settings = {
        name: heading
        for name, heading in (
            ("batch_size", "batch"), ("seq_len", "length"), ("lengths", "lengths"),
            ("num_threads", "threads"),
        )
        if len({change.after[name] for change in changes}) > 1
    }  # fmt: skip
    has_scores = any(change.gain for change in changes)
    header = ["run", *settings.values(), "texts/s", "times as fast", "speed"]
    header += ["score %", "change", "score"] if has_scores else []
    body = []
    for change in changes:
        row = change.after
        through = f" through {row['engine']}" if row["engine"] else ""
        line = [f"{row['run']}{through}", *(str(row[name]) for name in settings)]
        line += [_both(change, "items_per_s", "{:.1f}"), _ratio(change.ratio), change.speed]
        if has_scores:
            line += [_both(change, "score", "{:.2f}"), _gain(change.gain), change.score]
        body.append(line)
    return header, body


def _make_rows(
    runs: Iterable[dict[str, Any]],
) -> tuple[list[Row], Details]:
    """Make the rows of runs, with names that differ, and their details."""
    pairs = [pair for run in runs for pair in zip(make_rows(run), details_of(run), strict=True)]
    rows = [row for row, _ in pairs]
    distinguish(rows)
    return rows, {id(row): details for row, details in pairs}


def _key(row: Row) -> tuple[Any, ...]:
    zeros = row["encoder_sparsity"]
    return (*(row[name] for name in SAME), None if zeros is None else round(100 * zeros))


def _change(before: Row, after: Row) -> Change:
    ratio, speed = _compare_speed(before, after)
    gain, score = _compare_scores(before, after)
    return Change(before, after, ratio, speed, gain, score)


def _compare_speed(before: Row, after: Row) -> tuple[tuple[float, float, float] | None, str]:
    """Compare by the spread of the calls that each was measured by."""
    if before["items_per_s"] is None:
        return None, UNMEASURED
    if before["cpu"] != after["cpu"]:
        return None, "another CPU"
    ratio = after["items_per_s"] / before["items_per_s"]
    variance = sum(
        (row["latency_std_ms"] / row["latency_mean_ms"]) ** 2 / min(row["iterations"], ROUNDS)
        for row in (before, after)
    )
    half = max(INTERVAL * math.sqrt(variance), math.log(1 + DRIFT))
    low, high = ratio * math.exp(-half), ratio * math.exp(half)
    return (ratio, low, high), _verdict(low - 1, high - 1)


def _compare_scores(before: Row, after: Row) -> tuple[tuple[float, float | None] | None, str]:
    """Compare by the number of examples that each score is a mean over.

    A mean of n values in [0, 1] has at most the variance p (1 - p) / n. Both sets saw the same
    examples, which makes differences less random than this says: it errs towards noise.
    """
    if before["score"] is None or after["score"] is None or before["metric"] != after["metric"]:
        return None, UNMEASURED
    gain = after["score"] - before["score"]
    counts = [row["num_examples"] for row in (before, after)]
    if not all(counts):
        return (gain, None), "noise unknown" if gain else NOISE
    shares = [min(max(row["score"] / 100, 0.0), 1.0) for row in (before, after)]
    variance = sum(p * (1 - p) / n for p, n in zip(shares, counts, strict=True))
    half = 100 * INTERVAL * math.sqrt(variance)
    return (gain, half), _verdict(gain - half, gain + half)


def _verdict(low: float, high: float) -> str:
    """Say which side of zero an interval lies on."""
    return BETTER if low > 0 else WORSE if high < 0 else NOISE


def _count(verdicts: Iterable[str]) -> str:
    found = list(verdicts)
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in dict.fromkeys(found))


def _both(change: Change, name: str, form: str) -> str:
    values = [row[name] for row in (change.before, change.after)]
    return " → ".join("–" if value is None else form.format(value) for value in values)


def _ratio(ratio: tuple[float, float, float] | None) -> str:
    return "" if ratio is None else "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)


def _gain(gain: tuple[float, float | None] | None) -> str:
    if gain is None:
        return ""
    return f"{gain[0]:+.2f}" + ("" if gain[1] is None else f" ± {gain[1]:.2f}")
