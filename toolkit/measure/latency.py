"""What encoder layers of any width cost in the sparse engine, on this machine.

One engine holds layers of all widths on a grid, so that a single profiled call times them all, and
of every operation the fastest of many calls counts: other programs can only make it slower. Runs in
a process of its own (`python -m toolkit.measure.latency`), which torch's threads do not disturb.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
ROUNDS, SECONDS = 7, 15.0  # as many as fit in, and at least these
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
            precision=config.engine.precision,
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


def rising(points: Sequence[int], widths: Sequence[int], times: Sequence[float]) -> list[float]:
    """Return the time at each point: what a layer that is at least as wide took at least.

    Something else that ran can only have made a layer slower, and a narrower one is no slower than
    a wider one.
    """
    return [
        min(spent for width, spent in zip(widths, times, strict=True) if width >= point)
        for point in points
    ]


def parts_of(profiles: Sequence[Sequence[Mapping[str, Any]]], layers: int) -> list[list[float]]:
    """Add up what `Engine.profile` returned for the same call several times.

    Returns:
        Milliseconds of attention and of the feed-forward part: first of what is no layer, which is
        counted as the latter, then of each layer. Of every operation its fastest run counts.
    """
    parts = [[0.0, 0.0] for _ in range(layers + 1)]
    for rows in zip(*profiles, strict=True):
        layer, dot, step = rows[0]["op"].partition(".")
        number = int(layer.removeprefix("layer")) + 1 if dot else 0
        parts[number][step not in ATTENTION] += min(row["time_ms"] for row in rows)
    return parts


def _load(
    state: dict[str, Any],
    *,
    onnx: str,
    num_threads: int,
    isa: str,
    kernel: str,
    precision: str,
    shape: Sequence[int],
) -> dict[str, Any]:
    plan = read_graph(Path(onnx))
    ids = np.random.default_rng(0).integers(1, len(plan.embeddings.word), size=shape)
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    state["inputs"] = {name: known[name] for name in plan.inputs}

    def engine(widths: Widths, layers: Sequence[Layer], threads: int = num_threads) -> Engine:
        cuts = [cut(layer, *width) for layer, width in zip(layers, widths, strict=True)]
        fresh = replace(plan, layers=cuts, linears=dict(plan.linears))  # an engine empties both
        return Engine(fresh, threads, "asked for", find_isa(isa), kernel, precision)

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
    big = engine([*grid, most], [widest] * (count + 1))
    # on one thread, whose own time can be taken: on a busy system calls mostly wait
    small = engine([[1, neurons[0]] for _ in whole], plan.layers, 1)
    inputs = state["inputs"]
    rows: dict[str, list[list[dict[str, Any]]]] = {"big": [], "small": []}
    _in_turn({"": lambda: rows["big"].append(big.profile(inputs))}, SECONDS)
    _in_turn({"": lambda: rows["small"].append(small.profile(inputs))}, SECONDS / 5)
    alone = {"run": lambda: small.run(inputs)}
    run_ms = _in_turn(alone, SECONDS / 5, time.process_time)["run"]
    parts = parts_of(rows["big"], count + 1)
    # what a call takes besides its operations: the model's head, and Python
    beside = max(run_ms - sum(map(sum, parts_of(rows["small"], len(whole)))), 0.0)
    heads_ms = rising(heads, [width[0] for width in grid], [ms[0] for ms in parts[1:-1]])
    neurons_ms = rising(neurons, [width[1] for width in grid], [ms[1] for ms in parts[1:-1]])
    table = CostTable(
        fixed_ms=sum(parts[0]) + beside,
        heads=heads,
        heads_ms=heads_ms,
        neurons=neurons,
        neurons_ms=neurons_ms,
        last_heads=min(parts[-1][0] / heads_ms[-1], 1.0),
        last_neurons=min(parts[-1][1] / neurons_ms[-1], 1.0),
    )
    return asdict(table)


def _compare(state: dict[str, Any], *, models: Sequence[Widths]) -> dict[str, Any]:
    engines = [state["engine"](widths, state["plan"].layers) for widths in models]
    calls = {
        str(i): lambda engine=engine: engine.run(state["inputs"])
        for i, engine in enumerate(engines)
    }
    return {"ms": list(_in_turn(calls, SECONDS).values())}


def _in_turn(
    calls: Mapping[str, Any], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Call in turn, after one round that does not count; return the least milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    number = 0
    while number <= ROUNDS or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            begin = clock()
            call()
            if number:
                times[name].append(1e3 * (clock() - begin))
        number += 1
    return {name: min(ms) for name, ms in times.items()}


if __name__ == "__main__":
    answer_requests({"load": _load, "table": _table, "compare": _compare})
