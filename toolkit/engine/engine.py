"""Load an ONNX file, run it. B texts, T positions, H hidden."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cython_kernels import _kernels
from cython_kernels._kernels import Encoder, PackedLinear
from toolkit.engine.kernel_choice import (
    SMALL_TILES,
    choose,
    forms_of,
    is_16_bit_attention_faster,
    path_beside,
    weights_of,
)
from toolkit.engine.packing import STEPS, pack_embeddings, pack_layers, pack_linear
from toolkit.engine.plan import Plan
from toolkit.engine.profile import Timed, profile_rows
from toolkit.engine.reader.graph import find_file, read_graph
from toolkit.engine.roofline import call_of, fma_peaks
from toolkit.engine.schedule import Schedule
from toolkit.engine.tail import find_token_head, run_tail
from toolkit.engine.threads import run_on_cores
from toolkit.environment import decide_num_threads

T = TypeVar("T")
Array = NDArray[Any]
Int32 = NDArray[np.int32]

SMALL_CALLS = " (small calls)"
EXPLAINED_TOKENS = 64  # of the text by which `explain` compares precisions


class Tokens(NamedTuple):
    """What the encoder takes, each (B, T): see `Engine.run` and `positions_of`."""

    ids: Int32
    mask: Int32
    types: Int32
    positions: Int32


class Engine:
    """A BERT-family model, packed and ready; made by `Engine.load`.

    Attributes:
        inputs: Names of the inputs, in the order of the ONNX graph.
        outputs: Names of the outputs, in the order of the ONNX graph.
        isa: Instruction set in use.
        precision: As asked for; `explain` says what each weight runs in.
        num_threads: Threads that a call uses.
        threads_reason: Why it uses that many.
    """

    def __init__(
        self,
        plan: Plan,
        num_threads: int,
        threads_reason: str,
        isa: str,
        kernel: str = "auto",
        precision: str = "fp32",
        timings: Path | None = None,
        source: Path | None = None,
    ) -> None:
        self.inputs = plan.inputs
        self.outputs = plan.outputs
        self.isa = isa
        self.num_threads = num_threads
        self.threads_reason = threads_reason
        self._padding_id = plan.embeddings.padding_id
        self.precision = precision
        self._source = source  # the ONNX file, if there is one
        allowed = forms_of(kernel, isa, precision)
        self._allowed = allowed.layers
        self._choices = choose(plan, isa, allowed, num_threads, timings)
        forms = self._choices.forms
        weights = weights_of(plan).values()
        self._notes = [
            f"{part.name}: {part.note}" for parts, _ in weights for part in parts if part.note
        ]
        layers = self._layers = pack_layers(plan.layers, isa, forms, num_threads)
        self._heads = {
            key: pack_linear(linear, isa, forms[key])[0] for key, linear in plan.linears.items()
        }
        fused = find_token_head(plan)
        plan.linears.clear()
        embeddings = pack_embeddings(plan.embeddings, isa, forms)
        head = self._heads[fused.name] if fused else None
        self._ends = {"embeddings": embeddings.projection, "scatter": head}
        is_16_bit = "bf16_dense" in allowed.layers
        if is_16_bit and len(allowed.layers) > 1 and layers:  # nothing is pinned
            head_size = layers[0].qkv[0].rows // (3 * layers[0].num_heads)
            is_16_bit = is_16_bit_attention_faster(isa, head_size)
        self._encoder = Encoder(isa, embeddings, layers, num_threads, SMALL_TILES, head, is_16_bit)
        if fused:
            tail = [node for node in plan.tail if node is not fused]
            plan = replace(plan, tail=tail, hidden=fused.outputs[0])
        self._plan = plan
        self._lock = threading.Lock()
        _kernels.give_back_memory()

    @staticmethod
    def load(
        path: str | Path,
        num_threads: int = 0,
        isa: str = "auto",
        kernel: str = "auto",
        precision: str = "fp32",
        keep_timings: bool = True,
    ) -> "Engine":
        """Read an ONNX file, or a sparse file, and pack its weights.

        Args:
            path: `model.onnx`, `model.sparse`, or a folder that holds one of them.
            num_threads: Threads per call; 0 decides from affinity and cgroup quota.
            isa: `auto` takes the best this CPU runs, or what the environment variable
                TOOLKIT_ISA names.
            kernel: Form that all weights run in: `dense`, `table`, `generated`; `auto` times them
                for weights like the model's and takes the fastest. It changes no bit in float32.
            precision: What the encoder's weights may be multiplied in, sums always in float32:
                `fp32`; `bf16`, `fp16`: that, too, wherever it is faster; `auto`: whatever is. With
                `kernel="dense"`, `bf16` is bfloat16 everywhere; with `"table"` or `"generated"`,
                `fp16` is half.
            keep_timings: Keep what `auto` measured beside the file, in `model.onnx.kernels.json`,
                and use it at the next load (of `model.sparse` in
                `model.sparse.kernels.json`).

        Raises:
            InputError: The file is missing, damaged, or not a model the engine knows.
            ValueError: This CPU does not support `isa`, or this ISA or system not `kernel` or
                `precision`.
        """
        path = find_file(Path(path))
        number, reason = decide_num_threads(num_threads)
        timings = path_beside(path) if keep_timings else None
        isa = find_isa(isa)
        return Engine(read_graph(path), number, reason, isa, kernel, precision, timings, path)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, NDArray[np.float32]]:
        """Run one batch.

        Args:
            inputs: `input_ids`, `attention_mask`, `token_type_ids` as far as the graph has them;
                each (B, T), int32 or int64. Where the mask is 0, wherever that is in a row, the
                token is neither computed nor attended to.

        Returns:
            The outputs by name, float32. Hidden states and per-token logits of masked positions
            hold no information (a hidden state of zeros and what the head makes of it); position 0,
            which poolers read, is computed even where it is masked.

        Raises:
            ValueError: An input is missing, unknown, of another type, shape or range.
        """
        tokens = self._check(inputs)
        return self._call(lambda: self._run(tokens, inputs))

    def profile(self, inputs: Mapping[str, Array]) -> list[dict[str, Any]]:
        """Time every fused operation of one batch.

        Returns:
            One dict per layer and step: `op`, `time_ms` (per thread, mean), `gflops` (useful
            arithmetic, see `toolkit.engine.roofline.count`, all threads), `density`, `kernel`,
            `note`, `operations`, `bytes` (moved at least) and `peak_share` (of the FMA peak of as
            many threads, measured once per process).
        """
        tokens = self._check(inputs)
        first_only, last = self._plan.first_token_only, len(self._layers)
        schedule = Schedule(tokens.mask, self.num_threads, self._choices.group_tiles)
        _, seconds, num_threads, is_large = self._call(
            lambda: self._encoder.run(
                tokens.ids, tokens.types, tokens.positions, schedule, first_only, True
            )
        )
        timed = Timed(seconds, num_threads, is_large)
        peaks = self._call(lambda: fma_peaks(self.isa, num_threads, self.narrow))
        attention = f"bf16_{self.isa}" if self._encoder.is_16_bit else self.isa
        calls = [
            call_of(tokens.mask, self._encoder.hidden, first_only and i in (0, last))
            for i in range(last + 1)
        ]
        parts = [self._ends, *map(vars, self._layers)]
        return profile_rows(timed, parts, calls, self.isa, peaks, attention, self._why)

    @property
    def narrow(self) -> list[str]:
        """Name what is multiplied besides float32: `bf16`, `fp16`, `int8`."""
        forms = {weight.form.partition("_")[0] for _, weight in self.weights()}
        has_bf16 = self._encoder.is_16_bit or "bf16" in forms
        return ["bf16"] * has_bf16 + ["fp16"] * ("f16" in forms) + ["int8"] * ("s8" in forms)

    def explain(self) -> str:
        """Describe, per layer, the form it runs in, its density, its bytes, and why."""
        lines = [
            f"isa {self.isa} ({', '.join(self._allowed)}), precision {self.precision}, "
            f"{self.num_threads} threads: {self.threads_reason}",
            f"kernels: {self._choices.origin}; groups of {self._choices.group_tiles} tiles",
            *(["attention: in bfloat16"] if self._encoder.is_16_bit else []),
            *self._notes,
            *self._exactness(),
            f"{'layer':28} {'rows':>6} {'cols':>6} {'density':>8} {'MiB':>7}  kernel",
        ]
        for name, weight in self.weights():
            step = name.removesuffix(SMALL_CALLS)
            is_large = step == name and step not in self._heads
            lines.append(
                f"{name:28} {weight.rows:6d} {weight.k:6d} {weight.density:8.4f} "
                f"{weight.own_bytes / 2**20:7.2f}  {weight.form}_{self.isa}: "
                f"{self._why(step, weight, is_large)}"
            )
        for node in self._plan.tail:
            if node.operator != "Linear":
                lines.append(f"{node.name:28} {node.operator}: plain function behind the encoder")
        return "\n".join(lines)

    def _exactness(self) -> list[str]:
        """Tell what 16 bits cost: the outputs of one text against those of float32."""
        if self.precision == "fp32" or self._source is None:
            return []
        exact = Engine.load(self._source, self.num_threads, self.isa, keep_timings=False)
        tables = self._plan.embeddings
        length = min(EXPLAINED_TOKENS, len(tables.position) - 2)  # RoBERTa's begin at 2
        words = np.random.default_rng(0).integers(2, len(tables.word), (1, length))
        known = {"input_ids": words, "attention_mask": np.ones_like(words)}
        inputs = {name: known.get(name, np.zeros_like(words)) for name in self.inputs}
        ours, theirs = self.run(inputs), exact.run(inputs)
        difference = max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)
        largest = max(float(np.abs(value).max()) for value in theirs.values())
        return [
            f"exactness: outputs differ from float32 by at most {difference:.2g}, where they reach "
            f"{largest:.2g} (one text of {length} tokens drawn at random)"
        ]

    def weights(self) -> Iterator[tuple[str, PackedLinear]]:
        """Yield name and packed weight of every dense layer, in the order they run."""
        for i, layer in enumerate(self._layers):
            for step in STEPS:
                small, large = getattr(layer, step)
                yield f"layer{i}.{step}", large
                if small is not large:
                    yield f"layer{i}.{step}{SMALL_CALLS}", small
        yield from self._heads.items()

    @property
    def packed_bytes(self) -> int:
        """Bytes of all packed weights; of numbers that two forms read once."""
        return sum(weight.own_bytes for _, weight in self.weights())

    def _check(self, inputs: Mapping[str, Array]) -> Tokens:
        for name in inputs:
            if name not in self.inputs:
                raise ValueError(f"unknown input {name!r}: expected {', '.join(self.inputs)}")
        arrays = {}
        for name in self.inputs:
            if name not in inputs:
                raise ValueError(f"input {name!r} is missing: expected {', '.join(self.inputs)}")
            arrays[name] = _as_int32(name, inputs[name])
        ids = arrays["input_ids"]
        for name, array in arrays.items():
            if array.shape != ids.shape:
                raise ValueError(
                    f"{name} must have the shape of input_ids, {ids.shape}; got {array.shape}"
                )
        return Tokens(
            ids,
            arrays.get("attention_mask", np.ones_like(ids)),
            arrays.get("token_type_ids", np.zeros_like(ids)),
            positions_of(ids, self._padding_id),
        )

    def _call(self, work: Callable[[], T]) -> T:
        """Run `work` on the engine's threads; its workspaces serve one call at a time."""
        with self._lock:
            return run_on_cores(self.num_threads, work)

    def _run(self, tokens: Tokens, inputs: Mapping[str, Array]) -> dict[str, NDArray[np.float32]]:
        plan = self._plan
        schedule = Schedule(tokens.mask, self.num_threads, self._choices.group_tiles)
        hidden = self._encoder.run(
            tokens.ids, tokens.types, tokens.positions, schedule, plan.first_token_only
        )
        return run_tail(plan, {**inputs, plan.hidden: hidden}, self._linear)

    def _linear(self, key: str, x: Array) -> NDArray[np.float32]:
        return _kernels.linear(self._heads[key], x, self.num_threads)

    def _why(self, name: str, weight: PackedLinear, is_large: bool) -> str:
        return f"{1 - weight.density:.1%} zeros; {self._choices.by_weight[name][is_large].why}"


def find_isa(requested: str) -> str:
    """Return the instruction set to use.

    Raises:
        ValueError: This CPU does not support the one requested.
    """
    if requested == "auto":
        requested = os.environ.get("TOOLKIT_ISA") or "auto"
    available: list[str] = _kernels.available_isas()
    if requested == "auto":
        return available[0]
    if requested not in available:
        refused = "; ".join(filter(None, [", ".join(available), _kernels.refused_features()]))
        raise ValueError(f"isa {requested!r} is not supported on this CPU (available: {refused})")
    return requested


def positions_of(ids: Int32, padding_id: int | None) -> Int32:
    """Return the position-table row of every token (B, T), see `Embeddings.padding_id`."""
    if padding_id is None:
        row = np.arange(ids.shape[1], dtype=np.int32)
        return np.ascontiguousarray(np.broadcast_to(row, ids.shape))
    real = (ids != padding_id).astype(np.int32)
    positions: Int32 = np.cumsum(real, 1, dtype=np.int32) * real + np.int32(padding_id)
    return positions


def _as_int32(name: str, array: Array) -> Int32:
    array = np.asarray(array)
    if array.dtype not in (np.int32, np.int64) or array.ndim != 2:
        raise ValueError(
            f"{name} must be a (batch, length) array of int32 or int64; "
            f"got {array.dtype} of shape {array.shape}"
        )
    if (
        array.dtype == np.int64
        and array.size
        and not -(2**31) <= array.min() <= array.max() < 2**31
    ):
        raise ValueError(f"{name} must hold 32-bit numbers; got {array.min()}…{array.max()}")
    return np.ascontiguousarray(array, np.int32)
