"""What encoder layers of any width cost in the sparse engine, on this machine.

One engine holds layers of all widths on a grid, so that a single profiled call times them all; the
whole model and the narrowest one, timed in turn with it, pin the ends. Runs in a process of its own
(`python -m toolkit.measure.latency`), which torch's threads do not disturb.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.config import TrainRoot
from toolkit.engine import Engine
from toolkit.engine.engine import find_isa
from toolkit.engine.plan import Layer, Linear
from toolkit.engine.reader.graph import read_graph
from toolkit.environment import decide_num_threads
from toolkit.measure.worker import Worker, answer_requests

NEURON_POINTS = 8  # equal steps at which the feed-forward part is timed; between them it is a line
HEAD_POINTS = 16  # more heads than this are timed at as many points only
ROUNDS, SECONDS = 7, 15.0  # as many as fit in, and at least these; the fastest of each counts
ATTENTION = ("qkv", "attention", "attention_output", "attention_norm")  # steps of a profile
Widths = Sequence[Sequence[int]]  # [heads, neurons] per layer


@dataclass(frozen=True)
class CostTable:
    """Milliseconds of one call, as predicted: `fixed_ms` and both parts of every layer.

    Attributes:
        fixed_ms: Embeddings, head, and what a call costs besides.
        heads: Points at which attention was timed, ascending.
        heads_ms: Of one layer's attention with its projections and LayerNorm, at these points.
        neurons: Points at which the feed-forward part was timed, ascending.
        neurons_ms: Of one layer's feed-forward part with its LayerNorm.
        last_heads: Share of this that attention of the last layer takes: below 1 where the head of
            the model reads only the first token, so that only its query is computed.
        last_neurons: The same of the feed-forward part.
    """

    fixed_ms: float
    heads: list[int]
    heads_ms: list[float]
    neurons: list[int]
    neurons_ms: list[float]
    last_heads: float
    last_neurons: float

    def attention_ms(self, heads: Sequence[int], is_last: bool) -> list[float]:
        """Return what these numbers of heads cost in one layer, between the points on lines."""
        share = self.last_heads if is_last else 1.0
        return [share * float(ms) for ms in np.interp(heads, self.heads, self.heads_ms)]

    def feed_forward_ms(self, neurons: Sequence[int], is_last: bool) -> list[float]:
        """Return what these numbers of neurons cost in one layer."""
        share = self.last_neurons if is_last else 1.0
        return [share * float(ms) for ms in np.interp(neurons, self.neurons, self.neurons_ms)]

    def model_ms(self, widths: Widths) -> float:
        """Predict the time of a whole model, [heads, neurons] per layer."""
        total = self.fixed_ms
        for number, (heads, neurons) in enumerate(widths):
            is_last = number == len(widths) - 1
            total += self.attention_ms([heads], is_last)[0]
            total += self.feed_forward_ms([neurons], is_last)[0]
        return total


class LatencyMeter:
    """Handle of the process that measures one model, cut to any widths; times are milliseconds."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def table(self, multiple: int) -> CostTable:
        """Measure the cost table; its narrowest layer has one head and `multiple` neurons."""
        return CostTable(**self._worker.ask("table", multiple=multiple))

    def compare(self, *models: Widths) -> list[float]:
        """Time whole models in turn; return the median of each."""
        times: list[float] = self._worker.ask("compare", models=models)["ms"]
        return times


@contextmanager
def latency_meter(config: TrainRoot, onnx: Path) -> Iterator[LatencyMeter]:
    """Start measuring the model in an ONNX file, at `bench.batch_size` and `bench.seq_len`."""
    num_threads, _ = decide_num_threads(config.engine.num_threads)
    log = onnx.with_name("latency.log")
    with Worker("engine sparse", log, num_threads, module="toolkit.measure.latency") as worker:
        worker.ask(
            "load",
            onnx=str(onnx),
            num_threads=num_threads,
            isa=config.engine.isa,
            kernel=config.engine.kernel,
            shape=[config.bench.batch_size, config.bench.seq_len],
        )
        yield LatencyMeter(worker)


def cut(layer: Layer, heads: int, neurons: int) -> Layer:
    """Keep the first heads and neurons of a layer; its weights are views of the whole ones."""
    rows = len(layer.query.bias) // layer.num_heads * heads

    def first(part: Linear, count: int) -> Linear:
        return Linear(part.name, part.weight[:count], part.bias[:count])

    attention_output, output = layer.attention_output, layer.output
    return replace(
        layer,
        query=first(layer.query, rows),
        key=first(layer.key, rows),
        value=first(layer.value, rows),
        attention_output=replace(attention_output, weight=attention_output.weight[:, :rows]),
        intermediate=first(layer.intermediate, neurons),
        output=replace(output, weight=output.weight[:, :neurons]),
        num_heads=heads,
    )


def grid_of(most: int, least: int, points: int) -> list[int]:
    """Return at most `points` + 1 whole numbers from `least` to `most`, evenly spaced."""
    return sorted({round(x) for x in np.linspace(least, most, min(points, most - least) + 1)})


def fit_ends(parts: tuple[float, float], whole: tuple[float, float]) -> tuple[float, float]:
    """Find factor and remainder with which the sum of parts gives the time of a whole model.

    Args:
        parts: Sum of the profiled parts of the widest and of the narrowest model.
        whole: Time of a call of each.

    Returns:
        `factor`, `fixed` with `whole = fixed + factor · parts` for both. `fixed` is 0 where both
        models are the same, and where noise would make it negative or the narrowest one slower.
    """
    if parts[0] <= parts[1] or whole[0] <= whole[1]:
        return whole[0] / parts[0], 0.0
    factor = (whole[0] - whole[1]) / (parts[0] - parts[1])
    fixed = whole[0] - factor * parts[0]
    return (factor, fixed) if fixed >= 0 else (whole[0] / parts[0], 0.0)


def _load(
    state: dict[str, Any],
    *,
    onnx: str,
    num_threads: int,
    isa: str,
    kernel: str,
    shape: Sequence[int],
) -> dict[str, Any]:
    plan = read_graph(Path(onnx))
    ids = np.random.default_rng(0).integers(1, len(plan.embeddings.word), size=shape)
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    state["inputs"] = {name: known[name] for name in plan.inputs}

    def engine(widths: Widths, layers: Sequence[Layer]) -> Engine:
        cuts = [cut(layer, *width) for layer, width in zip(layers, widths, strict=True)]
        fresh = replace(plan, layers=cuts, linears=dict(plan.linears))  # an engine empties both
        return Engine(fresh, num_threads, "asked for", find_isa(isa), kernel)

    state["engine"], state["plan"] = engine, plan
    return {}


def _table(state: dict[str, Any], *, multiple: int) -> dict[str, Any]:
    plan, engine = state["plan"], state["engine"]
    whole = [[layer.num_heads, len(layer.intermediate.bias)] for layer in plan.layers]
    most = [max(column) for column in zip(*whole, strict=True)]
    wide = max(plan.layers, key=lambda layer: layer.num_heads)
    attention = ("query", "key", "value", "attention_output", "num_heads")
    widest = replace(
        max(plan.layers, key=lambda layer: len(layer.intermediate.bias)),
        **{name: getattr(wide, name) for name in attention},
    )
    heads = grid_of(most[0], 1, HEAD_POINTS)
    neurons = grid_of(most[1], min(multiple, most[1]), NEURON_POINTS)
    count = max(len(heads), len(neurons))
    grid = [
        [heads[min(i, len(heads) - 1)], neurons[min(i, len(neurons) - 1)]] for i in range(count)
    ]
    # the last layer may do less than the others, so it is one more of full width
    grid = [*grid, most]
    narrow = [[1, neurons[0]] for _ in whole]
    engines = {
        "grid": engine(grid, [widest] * len(grid)),
        "whole": engine(whole, plan.layers),
        "narrow": engine(narrow, plan.layers),
    }
    inputs = state["inputs"]
    profiles: list[list[float]] = []
    rows: list[dict[str, Any]] = []

    def profiled() -> None:
        rows[:] = engines["grid"].profile(inputs)
        profiles.append([row["time_ms"] for row in rows])

    calls = {"grid": profiled} | {
        name: lambda name=name: engines[name].run(inputs) for name in ("whole", "narrow")
    }
    times = _in_turn(calls)
    fastest = np.array(profiles[1:]).min(axis=0)
    parts = np.zeros((len(grid), 2))  # ms of attention, of the feed-forward part
    for row, spent in zip(rows, fastest, strict=True):
        layer, dot, step = row["op"].partition(".")
        if dot:
            parts[int(layer.removeprefix("layer")), int(step not in ATTENTION)] += spent
    last = parts[-1] / parts[-2]
    table = CostTable(
        fixed_ms=0.0,
        heads=heads,
        heads_ms=parts[: len(heads), 0].tolist(),
        neurons=neurons,
        neurons_ms=parts[: len(neurons), 1].tolist(),
        last_heads=float(last[0]),
        last_neurons=float(last[1]),
    )
    sums = table.model_ms(whole), table.model_ms(narrow)
    factor, fixed = fit_ends(sums, (times["whole"], times["narrow"]))
    return asdict(
        replace(
            table,
            fixed_ms=fixed,
            heads_ms=[factor * ms for ms in table.heads_ms],
            neurons_ms=[factor * ms for ms in table.neurons_ms],
        )
    )


def _compare(state: dict[str, Any], *, models: Sequence[Widths]) -> dict[str, Any]:
    engines = [state["engine"](widths, state["plan"].layers) for widths in models]
    calls = {
        str(i): lambda engine=engine: engine.run(state["inputs"])
        for i, engine in enumerate(engines)
    }
    return {"ms": list(_in_turn(calls).values())}


def _in_turn(calls: Mapping[str, Any]) -> dict[str, float]:
    """Call in turn, after one round that does not count; return the least milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    number = 0
    while number <= ROUNDS or time.perf_counter() - start < SECONDS:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if number:
                times[name].append(1e3 * (time.perf_counter() - begin))
        number += 1
    return {name: min(ms) for name, ms in times.items()}


if __name__ == "__main__":
    answer_requests({"load": _load, "table": _table, "compare": _compare})
