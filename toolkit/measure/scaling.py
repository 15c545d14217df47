"""How the cost of a call grows with batch, length, depth, zeros and threads: cases and lines."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from toolkit.engine import Engine
from toolkit.engine.engine import find_isa
from toolkit.measure.random_plan import BERT_BASE, make_embeddings, make_layer, make_plan, prune
from toolkit.progress import bar

Key = TypeVar("Key")

BATCHES = [1, 2, 4, 8, 16, 32, 64]
LENGTHS = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
BATCH_LENGTH = 256  # a whole batch is measured up to here: beyond, one call takes seconds
DEPTHS = [1, 2, 3, 6, 9, 12]
ZEROS = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97]
CLIFF = 1.5  # neighbours whose costs differ by this factor against what was to be expected
CALLS_S = 0.03  # a point is called again within a round until so much time has passed


class Case(NamedTuple):
    """One measured point: a model and a call."""

    layers: int = 12
    zeros: float = 0.9
    threads: int = 2
    batch: int = 32
    length: int = 128


class Sweep(NamedTuple):
    """One line of a panel: cases that differ in `field`."""

    panel: str
    label: str
    field: str
    cases: list[Case]


def sweeps(threads: int, is_quick: bool) -> list[Sweep]:
    """List what is measured; `threads` is what the machine has."""
    base = Case(threads=threads)
    batches, lengths, depths, zeros = BATCHES, LENGTHS, DEPTHS, ZEROS
    if is_quick:
        base = base._replace(layers=2, batch=8)
        batches, lengths, depths, zeros = [1, 4, 8], [8, 32, 128], [1, 2], [0.0, 0.9]
    counts = sorted({threads, *(2**i for i in range(threads.bit_length()) if 2**i <= threads)})

    def vary(panel: str, case: Case, field: str, values: Sequence[float]) -> Sweep:
        of = {"batch": f"batch {case.batch}", "length": f"{case.length} tokens"}
        label = ", ".join(text for name, text in of.items() if name != field)
        changes: list[dict[str, Any]] = [{field: value} for value in values]
        return Sweep(panel, label, field, [case._replace(**change) for change in changes])

    alone = base._replace(batch=1)
    return [
        vary("batch", base, "batch", batches),
        vary("length, one text", alone, "length", lengths),
        vary("length, a batch", base, "length", [n for n in lengths if n <= BATCH_LENGTH]),
        *(vary("depth", case, "layers", depths) for case in (base, alone)),
        *(vary("zeros", case, "zeros", zeros) for case in (base, alone)),
        *(vary("threads", case, "threads", counts) for case in (base, alone)),
    ]


def measure_cases(
    cases: Sequence[Key], run: Callable[[Key], float], rounds: int
) -> dict[Key, list[float]]:
    """Measure every case once per round, in turn, after one round that does not count.

    Args:
        run: Runs a case once and returns its seconds.
        rounds: Rounds that count.

    Returns:
        Milliseconds per call, one mean per round.
    """
    found: dict[Key, list[float]] = {case: [] for case in cases}
    turns = [(number, case) for number in range(rounds + 1) for case in cases]
    for number, case in bar(turns, "measuring"):
        calls = [run(case)]
        while number and sum(calls) < CALLS_S:
            calls.append(run(case))
        if number:
            found[case].append(1e3 * sum(calls) / len(calls))
    return found


def summarise_sweep(sweep: Sweep, found: Mapping[Case, Sequence[float]]) -> dict[str, Any]:
    """Return one line as the JSON file keeps it: medians, and the best and worst round."""
    points = []
    for case in sweep.cases:
        middle = float(np.median(found[case]))
        cost = 1e3 * middle / (case.batch * case.length)
        band = {"ms": middle, "low_ms": min(found[case]), "high_ms": max(found[case])}
        points.append({"x": getattr(case, sweep.field), **band, "us_per_token": cost})
    return {**sweep._asdict(), "cases": [case._asdict() for case in sweep.cases], "points": points}


def cliffs(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name neighbouring batches and lengths where more work takes much less time, or a token of
    it much more (both by CLIFF or more)."""
    found = []
    for line in lines:
        if line["field"] not in ("batch", "length"):
            continue
        for a, b in zip(line["points"], line["points"][1:], strict=False):
            where = f"{line['panel']} ({line['label']}): {line['field']} {a['x']} → {b['x']}"
            if a["ms"] >= CLIFF * b["ms"]:
                found.append(f"{where} falls from {a['ms']:.3g} to {b['ms']:.3g} ms")
            if b["us_per_token"] >= CLIFF * a["us_per_token"]:
                found.append(
                    f"{where} costs {b['us_per_token']:.3g} instead of {a['us_per_token']:.3g} µs "
                    "per token"
                )
    return found


class Engines:
    """Makes engines when a case needs them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._embeddings = make_embeddings(rng, BERT_BASE)
        self._layer = make_layer(rng, BERT_BASE)
        self._engines: dict[tuple[int, float, int], Engine] = {}

    def get(self, case: Case) -> Engine:
        """Return the engine of a case."""
        key = case[:3]
        if key not in self._engines:
            plan = make_plan(self._embeddings, prune(self._layer, case.zeros), case.layers)
            self._engines[key] = Engine(plan, case.threads, "asked for", find_isa("auto"))
        return self._engines[key]

    def forget(self) -> None:
        """Free all engines."""
        self._engines.clear()

    def run(self, case: Case) -> float:
        """Run a case once and return its seconds."""
        return call_s(self.get(case), BERT_BASE.vocabulary, case.batch, case.length)


def call_s(engine: Engine, vocabulary: int, batch: int, length: int) -> float:
    """Run a batch of random words without padding once and return its seconds."""
    ids = np.random.default_rng(0).integers(2, vocabulary, size=(batch, length))
    known = {"input_ids": ids, "attention_mask": ids * 0 + 1}
    inputs = {name: known.get(name, ids * 0) for name in engine.inputs}
    start = time.perf_counter()
    engine.run(inputs)
    return time.perf_counter() - start
