"""How the cost of a call grows with batch, length, depth, zeros and threads: cases and lines."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.engine import Engine
from toolkit.engine.engine import find_isa
from toolkit.engine.plan import Embeddings, Layer, LayerNorm, Linear, Node, Plan
from toolkit.families import LINEARS

HIDDEN, HEADS, INNER, VOCABULARY, POSITIONS = 768, 12, 3072, 30522, 512  # BERT-base
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
    cases: Sequence[Case], run: Callable[[Case], float], rounds: int
) -> dict[Case, list[float]]:
    """Measure every case once per round, in turn, after one round that does not count.

    Args:
        run: Runs a case once and returns its seconds.
        rounds: Rounds that count.

    Returns:
        Milliseconds per call, one mean per round.
    """
    found: dict[Case, list[float]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
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


def make_layer(rng: np.random.Generator) -> Layer:
    """Draw one dense encoder layer."""

    def linear(name: str, rows: int, columns: int) -> Linear:
        weight = rng.standard_normal((columns, rows), np.float32).T  # as ONNX stores it
        return Linear(name, weight / np.float32(columns**0.5), np.zeros(rows, np.float32))

    norm = LayerNorm(np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32), 1e-12)
    square = {
        name: linear(name, HIDDEN, HIDDEN) for name in ("query", "key", "value", "attention_output")
    }
    return Layer(
        **square,
        attention_norm=norm,
        intermediate=linear("intermediate", INNER, HIDDEN),
        output=linear("output", HIDDEN, INNER),
        output_norm=norm,
        num_heads=HEADS,
        scale=(HIDDEN // HEADS) ** -0.5,
        activation="gelu",
    )


def prune(layer: Layer, zeros: float) -> Layer:
    """Zero the smallest weights of every matrix; `zeros` is their fraction, in [0, 1)."""

    def pruned(linear: Linear) -> Linear:
        size = np.abs(linear.weight)
        threshold = np.quantile(size, zeros) if zeros else -1.0
        return replace(linear, weight=np.where(size > threshold, linear.weight, np.float32(0)))

    changes: dict[str, Any] = {name: pruned(getattr(layer, name)) for name in LINEARS}
    return replace(layer, **changes)


def make_embeddings(rng: np.random.Generator) -> Embeddings:
    """Draw BERT-base's tables."""

    def table(rows: int) -> NDArray[np.float32]:
        return rng.standard_normal((rows, HIDDEN), np.float32)

    norm = LayerNorm(np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32), 1e-12)
    return Embeddings(table(VOCABULARY), table(POSITIONS), table(2), norm, None, None)


class Engines:
    """Makes engines when a case needs them. All layers of one hold the same weights, packed one by
    one, and answer questions: two logits per token."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._embeddings = make_embeddings(rng)
        self._layer = make_layer(rng)
        self._head = rng.standard_normal((2, HIDDEN), np.float32)
        self._engines: dict[tuple[int, float, int], Engine] = {}
        self.inputs = ["input_ids", "attention_mask", "token_type_ids"]

    def get(self, case: Case) -> Engine:
        """Return the engine of a case."""
        key = case[:3]
        if key not in self._engines:
            layer = prune(self._layer, case.zeros)
            plan = Plan(
                inputs=self.inputs,
                outputs=["logits"],
                embeddings=self._embeddings,
                layers=[layer] * case.layers,
                hidden="hidden",
                first_token_only=False,
                tail=[Node("head", "Linear", ["hidden"], ["logits"])],
                constants={},
                linears={"head": Linear("head", self._head, np.zeros(2, np.float32))},
            )
            self._engines[key] = Engine(plan, case.threads, "asked for", find_isa("auto"))
        return self._engines[key]

    def forget(self) -> None:
        """Free all engines."""
        self._engines.clear()

    def run(self, case: Case) -> float:
        """Run a case once and return its seconds."""
        engine = self.get(case)
        ids = np.random.default_rng(0).integers(VOCABULARY, size=(case.batch, case.length))
        inputs = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
        start = time.perf_counter()
        engine.run(inputs)
        return time.perf_counter() - start
