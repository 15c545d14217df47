"""Which form every weight runs in: timed on this machine, remembered beside the model.

All float32 forms of a weight give the same bits, so that among them the choice changes speed only;
forms with other products are candidates if `engine.precision` allows them. What is remembered is a
small JSON file of seconds: numbers that are checked and compared, nothing that is run. Neither
code nor packed weights are ever loaded from disk: both are made from the model at each load.
"""

import hashlib
import json
import math
import time
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cython_kernels import _kernels
from cython_kernels._kernels import (
    CodeMemory,
    PackedLinear,
    aligned,
    count_nonzeros,
    precisions_of,
    time_gemm,
)
from toolkit.engine.packing import (
    INTEGERS,
    KBLOCK,
    S8_KBLOCK,
    SMALL_BLOCKS,
    check_qkv,
    density,
    pack_form,
    panel_rows,
    why_not_generate,
)
from toolkit.engine.plan import Linear, Plan, Quantization
from toolkit.environment import cpu_model
from toolkit.errors import InputError
from toolkit.files import write_text

Array = NDArray[Any]

# A call of at most this many tiles of 16 tokens is small: it reads every weight for few tokens, so
# that the form with the fewest bytes tends to win. This is where the table form and generated code
# take equally long at 90 % zeros, with weights out of cache.
SMALL_TILES = 8
CALL_SIZES = ("small", "large")

# Tiles that a thread takes through the encoder together: many enough to read a block of weights
# rarely, few enough that their activations stay in cache (docs/engine.md). Smaller groups are timed
# and taken where they are faster by more than GROUP_TIE: the clock sees one thread, to which memory
# belongs alone, and small groups ask more of memory. Where nothing was timed, tile registers
# take the smaller group, since they need x from the second-level cache: measured with a prototype
# on an Intel CPU with AMX and 2 MB of it, x, y and the weights at work had to stay below 1.5 MB,
# and groups of 8 to 16 tiles were the fastest.
GROUP_TILES, TILE_REGISTER_GROUP = 32, 16
GROUPS = (GROUP_TILES, 16, 8)
GROUP_TIE = 1.08
TIMED_TILES = {"small": 4, "large": GROUP_TILES}
TILE_REGISTER_FORMS = {"bf16_dense", "bf16_block", "bf16_compressed", "s8_dense", "s8_block"}

SIXTEEN_BITS = {
    "bf16": ("bf16_block", "bf16_compressed", "bf16_dense"),
    "fp16": ("f16_table", "f16_generated"),
}

# The order in which forms are preferred where they differ by less than TIE: the first ones were
# the fastest more often.
PREFERRED: dict[str, tuple[str, ...]] = {
    "small": ("table", "generated", SMALL_BLOCKS, "dense"),
    "large": ("generated", SMALL_BLOCKS, "table", "dense"),
}
PREFERRED["small"] += (*SIXTEEN_BITS["bf16"], "f16_table", "f16_generated")
PREFERRED["large"] += (*SIXTEEN_BITS["bf16"], "f16_generated", "f16_table")
PREFERRED["small"] += ("s8_block", "s8_table", "s8_generated", "s8_dense")
PREFERRED["large"] += ("s8_block", "s8_generated", "s8_table", "s8_dense")
TIE = 1.03

# Weights whose density lies between the same two of these numbers are timed once; round numbers,
# which people prune to, are in the middle.
DENSITIES = (
    *(0.005, 0.015, 0.025, 0.04, 0.06, 0.085, 0.125, 0.175, 0.25, 0.35),
    *(0.45, 0.55, 0.65, 0.75, 0.85, 0.93, 0.98),
)
# Below the one density a dense form is not timed, above the other `table` and `generated` are not:
# they would lose.
DENSE_FROM, BF16_DENSE_FROM, SPARSE_TO = 0.35, 0.06, 0.98
S8_DENSE_FROM = 0.06  # of quads that are not four zeros: tile registers are that much faster
COMPRESSED = (0.02, 0.6)  # what `bf16_compressed` is timed between: its arithmetic is dense
SMALL_BLOCKS_TO = 0.25  # with more nonzeros per block its code is fetched for more of them
# A block form is timed up to this share of lines of x that 32 rows have a nonzero for: random zeros
# leave hardly any pair without one, zeros in blocks do.
LIVE_TO, LIVE_ROWS = 0.75, 32

PROJECTION = "projection"  # of embeddings that are narrower than hidden states
SAMPLE_ROWS = 384  # of a weight that are timed, in columns of two k-blocks
QUAD = 4  # columns of integers that are multiplied at once
REPEATS = 6  # runs of each form, of which the fastest counts

MAX_FILE_BYTES = 1 << 20
MAX_ENTRIES = 16

Seconds = dict[str, dict[str, float]]  # call size → form → seconds


class Forms(NamedTuple):
    """The forms that may be used."""

    layers: tuple[str, ...]  # by weights of the encoder's layers
    others: tuple[str, ...]  # by float32 weights around them: there is next to nothing to gain
    integers: tuple[str, ...]  # by quantized weights


class WeightKind(NamedTuple):
    """What the speed of a weight depends on.

    Attributes:
        bucket: Counts the `DENSITIES` up to its own; of integers up to that of its quads.
        live: Likewise, up to its `live_share`.
    """

    rows: int
    columns: int
    bucket: int
    is_residual: bool
    is_layer: bool
    live: int = len(DENSITIES)
    is_integer: bool = False

    def __str__(self) -> str:
        start = "residual" if self.is_residual else "bias"
        where = "integers" if self.is_integer else "layer" if self.is_layer else "other"
        zeros = f"density {self.bucket} live {self.live}"
        return f"{where} {self.rows}x{self.columns} {zeros} from {start}"


class Timing(NamedTuple):
    """How long each candidate took with a sample of `nonzeros` nonzeros.

    Attributes:
        groups: By tiles of a group the seconds per tile, of the form picked for large calls.
    """

    nonzeros: int
    seconds: Seconds
    groups: dict[int, float]


class Choice(NamedTuple):
    """The form that a weight runs in at one call size, and why."""

    form: str
    why: str


@dataclass(frozen=True)
class Choices:
    """What was chosen for a model.

    Attributes:
        by_weight: By name of a weight its choices for small and for large calls.
        origin: Where they come from.
        group_tiles: Tiles that a thread takes through the encoder together.
    """

    by_weight: dict[str, tuple[Choice, Choice]]
    origin: str
    group_tiles: int

    @property
    def forms(self) -> dict[str, tuple[str, str]]:
        """By name of a weight its forms for small and for large calls."""
        return {name: (small.form, large.form) for name, (small, large) in self.by_weight.items()}


def forms_of(kernel: str, isa: str, precision: str) -> Forms:
    """Return the forms that may be used; warn where code could be generated and may not.

    Args:
        kernel: The option `engine.kernel`: `auto`, or the form that every weight shall have.
        isa: One of `available_isas()`.
        precision: The option `engine.precision`: `fp32`, `bf16`, `fp16`, or `auto`.

    Raises:
        ValueError: `kernel` or `precision` is unknown, or cannot be had here.
    """
    kernels = ("auto", "generated", "table", "dense")
    if kernel not in kernels:
        raise ValueError(f"kernel must be one of {', '.join(kernels)}; got {kernel!r}")
    reason = why_not_generate(isa)
    if kernel == "generated" and reason:
        raise ValueError(f"kernel=generated is not possible here: {reason}; use auto or table")
    if kernel == "auto" and "forbids" in reason:
        warnings.warn(f"{reason}: sparse layers run more slowly, in the table form", stacklevel=4)
    here = precisions_of(isa)
    if precision not in (*here, "auto"):
        raise ValueError(
            f"precision must be one that this CPU computes in with isa {isa}: "
            f"{', '.join(here)}, or auto; got {precision!r}"
        )
    exact: tuple[str, ...] = ("table", "dense")
    if not reason:
        exact = ("generated", SMALL_BLOCKS, *exact)
    if kernel != "auto":
        exact = (kernel,)
    has = _kernels.forms_of(isa)
    sixteen = tuple(
        form
        for name, forms in SIXTEEN_BITS.items()
        for form in forms
        if precision in (name, "auto") and form in has and kernel in ("auto", form[-len(kernel) :])
    )
    integers = tuple(form for form in INTEGERS if form in has)
    if "generated" not in exact:  # the system forbids it, or another form is pinned
        sixteen = tuple(form for form in sixteen if form != "f16_generated")
        integers = tuple(form for form in integers if form != "s8_generated")
    pinned = tuple(form for form in integers if form == f"s8_{kernel}")
    integers = pinned or integers
    if kernel != "auto" and precision != "auto" and sixteen:
        return Forms(sixteen, exact, integers)
    return Forms((*exact, *sixteen), exact, integers)


def choose(plan: Plan, isa: str, forms: Forms, num_threads: int, path: Path | None) -> Choices:
    """Choose the form of every weight.

    Args:
        plan: Weights of the model.
        isa: One of `available_isas()`.
        forms: Those that may be used.
        num_threads: Threads that count the nonzeros; part of what a choice belongs to.
        path: Where timings are kept; None: nowhere.
    """
    weights = weights_of(plan)
    layers = {name for name in weights if name not in plan.linears and name != PROJECTION}
    with ThreadPoolExecutor(num_threads, "counting") as pool:
        counts = list(pool.map(lambda weight: _count(weight[0]), weights.values()))
        shares = list(pool.map(lambda weight: _live_share(weight[0], forms), weights.values()))
    kinds = {
        name: kind_of_weight(parts, is_residual, name in layers, int(count.sum()), share)
        for (name, (parts, is_residual)), count, share in zip(
            weights.items(), counts, shares, strict=True
        )
    }
    open_kinds = {kind for kind in kinds.values() if len(candidates(kind, forms)) > 1}
    timings: dict[WeightKind, Timing] = {}
    origin = "one candidate for every weight, nothing to measure"
    if open_kinds:
        key = key_of(isa, forms, num_threads, weights, counts)
        found = path and read_timings(path, key, open_kinds, forms)
        origin = f"read from {path}"
        if found:
            timings = found
        else:
            samples = {kinds[name]: parts for name, (parts, _) in reversed(weights.items())}
            timings = {
                kind: measure_forms(kind, sample_of(samples[kind]), isa, forms)
                for kind in sorted(open_kinds)
            }
            origin = "measured now, " + (
                write_timings(path, key, timings) if path else "not stored: no file was asked for"
            )
    by_kind = {kind: choose_forms(kind, forms, timings.get(kind)) for kind in set(kinds.values())}
    in_layers = [kinds[name] for name in weights if name in layers]
    large = [by_kind[kind][1].form for kind in in_layers]
    timed = [timings[kind].groups for kind in in_layers if kind in timings]
    return Choices(
        {name: by_kind[kind] for name, kind in kinds.items()},
        f"forms {origin}",
        group_tiles(isa, large, timed),
    )


def weights_of(plan: Plan) -> dict[str, tuple[list[Linear], bool]]:
    """Return by name what is packed as one weight, and whether its sums start from a residual."""
    weights: dict[str, tuple[list[Linear], bool]] = {}
    for i, layer in enumerate(plan.layers):
        check_qkv(layer)
        weights[f"layer{i}.qkv"] = [layer.query, layer.key, layer.value], False
        weights[f"layer{i}.attention_output"] = [layer.attention_output], True
        weights[f"layer{i}.intermediate"] = [layer.intermediate], False
        weights[f"layer{i}.output"] = [layer.output], True
    if plan.embeddings.projection is not None:
        weights[PROJECTION] = [plan.embeddings.projection], False
    return weights | {key: ([linear], False) for key, linear in plan.linears.items()}


def kind_of_weight(
    parts: Sequence[Linear], is_residual: bool, is_layer: bool, nonzeros: int, live: float
) -> WeightKind:
    """Tell the kind of a weight of `nonzeros` nonzeros or quads; `parts` are packed as one."""
    rows, columns = sum(len(part.weight) for part in parts), parts[0].weight.shape[1]
    is_integer = parts[0].quantization is not None
    found = nonzeros / max(1, rows * (-(-columns // QUAD) if is_integer else columns))
    bucket, share = bisect_right(DENSITIES, found), bisect_right(DENSITIES, live)
    return WeightKind(rows, columns, bucket, is_residual, is_layer, share, is_integer)


def live_share(parts: Sequence[Linear]) -> float:
    """Return the share of blocks that are not all zeros, in [0, 1].

    They have `LIVE_ROWS` rows and as many columns as a line of x holds: 2, of integers `QUAD`.
    """
    live = blocks = 0
    for part in parts:
        steps = (LIVE_ROWS, 2 if part.quantization is None else QUAD)
        rows, lines = (np.arange(0, n, s) for n, s in zip(part.weight.shape, steps, strict=True))
        found = np.logical_or.reduceat(part.weight != 0, rows, axis=0)
        found = np.logical_or.reduceat(found, lines, axis=1)
        live, blocks = live + int(found.sum()), blocks + found.size
    return live / blocks


def _live_share(parts: Sequence[Linear], forms: Forms) -> float:
    """`live_share` where a form looks at it; to count it reads the whole weight."""
    is_integer = parts[0].quantization is not None
    is_timed = "s8_block" in forms.integers if is_integer else "bf16_block" in forms.layers
    return live_share(parts) if is_timed else 1.0


def candidates(kind: WeightKind, allowed: Forms) -> list[str]:
    """Return the forms worth timing, at least one."""
    forms = allowed.layers if kind.is_layer else allowed.others
    forms = allowed.integers if kind.is_integer else forms
    if len(forms) == 1:
        return [*forms]
    low, high = (0.0, *DENSITIES)[kind.bucket], (*DENSITIES, 1.0)[kind.bucket]
    table = "s8_table" if kind.is_integer else "table"
    if high == DENSITIES[0] and table in forms:
        return [table]  # next to nothing to compute
    is_worth = {
        "generated": high <= SPARSE_TO,
        SMALL_BLOCKS: high <= SMALL_BLOCKS_TO,
        "table": high <= SPARSE_TO,
        "dense": low >= DENSE_FROM,
        "bf16_dense": low >= BF16_DENSE_FROM,
        "f16_table": high <= SPARSE_TO,
        "f16_generated": high <= SPARSE_TO,
        "bf16_compressed": COMPRESSED[0] <= low and high <= COMPRESSED[1],
        "bf16_block": (*DENSITIES, 1.0)[kind.live] <= LIVE_TO,
        "s8_block": (*DENSITIES, 1.0)[kind.live] <= LIVE_TO,
        "s8_generated": high <= SPARSE_TO,
        "s8_table": high <= SPARSE_TO,
        "s8_dense": low >= S8_DENSE_FROM,
    }
    return [form for form in forms if is_worth[form]] or [forms[0]]  # `engine.kernel` pins the rest


def choose_forms(kind: WeightKind, allowed: Forms, timing: Timing | None) -> tuple[Choice, Choice]:
    """Choose the forms of one kind of weight for small and for large calls, and say why."""
    choices = []
    for size in CALL_SIZES:
        if timing is None:
            form = candidates(kind, allowed)[0]
            reason = "dense computes the zeros, too"
            if form.endswith("dense"):
                reason = "too few zeros to skip"
            why = f"only candidate: {reason}"
            if len(allowed.integers if kind.is_integer else allowed.layers) == 1:
                why = f"pinned by engine.kernel={form.rpartition('_')[2]}"
            choices.append(Choice(form, why))
            continue
        seconds = timing.seconds[size]
        form = pick(seconds, PREFERRED[size])
        others = [other for other in PREFERRED[size] if other in seconds and other != form]
        ratios = ", ".join(f"{seconds[other] / seconds[form]:.2f}x {other}" for other in others)
        tokens = TIMED_TILES[size] * _kernels.TILE_TOKENS
        rate = 2e-9 * timing.nonzeros * tokens / seconds[form]
        unit = "GOP/s" if kind.is_integer else "GFLOP/s"
        why = f"{ratios} when measured ({rate:.0f} {unit}, {tokens} tokens)"
        choices.append(Choice(form, why))
    return choices[0], choices[1]


def pick(seconds: Mapping[str, float], preferred: Sequence[str]) -> str:
    """Return the fastest form, or the first of `preferred` that is as fast within `TIE`."""
    best = min(seconds.values())
    return next(form for form in preferred if seconds.get(form, math.inf) <= TIE * best)


def group_tiles(isa: str, forms: Sequence[str], timed: Sequence[Mapping[int, float]]) -> int:
    """Return the tiles of a group.

    Args:
        isa: One of `available_isas()`.
        forms: What the layers' weights have in large calls.
        timed: The `Timing.groups` of those of them that were timed.
    """
    in_registers = sum(form in TILE_REGISTER_FORMS for form in forms)
    has_registers = "bf16_compressed" in _kernels.forms_of(isa)  # which no other ISA has
    usual = TILE_REGISTER_GROUP if has_registers and 2 * in_registers > len(forms) else GROUP_TILES
    if not timed:
        return usual
    seconds = {tiles: sum(groups[tiles] for groups in timed) for tiles in GROUPS}
    preferred = sorted(seconds, key=lambda tiles: (tiles != usual, -tiles))
    return next(t for t in preferred if seconds[t] <= GROUP_TIE * min(seconds.values()))


# ---- Timing ----------------------------------------------------------------------------------


def sample_of(parts: Sequence[Linear]) -> Linear:
    """Return the upper left corner of a weight, as many rows of each part."""
    is_integer = parts[0].quantization is not None
    rows, columns = -(-SAMPLE_ROWS // len(parts)), 2 * (S8_KBLOCK if is_integer else KBLOCK)
    weight = np.concatenate([part.weight[:rows, :columns] for part in parts])
    ones = np.ones(len(weight), np.float32)
    quantization = Quantization(ones, 1 / 128, 128) if is_integer else None
    return Linear("sample", weight, 0 * ones, quantization)


def measure_forms(kind: WeightKind, sample: Linear, isa: str, allowed: Forms) -> Timing:
    """Time the candidates of one kind on a sample (N, K) of such a weight, on one thread."""
    rows, columns = sample.weight.shape
    forms, found = candidates(kind, allowed), density(sample.weight)
    most = TIMED_TILES["large"]
    x, y, init = (
        aligned(most * features * _kernels.TILE_TOKENS).reshape(most, features, -1)
        for features in (columns, rows, rows)
    )
    x[...] = 1.0  # fresh memory may hold denormals, which are slow
    y[...] = init[...] = 0.0

    def timed(packed: list[PackedLinear], tiles: int) -> list[float]:
        start = init[:tiles] if kind.is_residual else None
        return time_gemm(packed, x[:tiles], y[:tiles], start, REPEATS)

    times: Seconds = {}
    for size in CALL_SIZES:
        panels = [panel_rows(form, size == "large", found) for form in forms]
        memory = CodeMemory() if any("generated" in form for form in forms) else None
        packed: list[PackedLinear] = [
            pack_form(sample, isa, form, number, kind.is_residual, memory)
            for form, number in zip(forms, panels, strict=True)
        ]
        if memory is not None:
            memory.seal()
        times[size] = dict(zip(forms, timed(packed, TIMED_TILES[size]), strict=True))
    form = pick(times["large"], PREFERRED["large"])
    groups = {most: times["large"][form] / most}  # `packed` are those of large calls now
    for tiles in GROUPS[1:]:
        groups[tiles] = timed([packed[forms.index(form)]], tiles)[0] / tiles
    return Timing(int(np.count_nonzero(sample.weight)), times, groups)


@cache
def is_16_bit_attention_faster(isa: str, head_size: int) -> bool:
    """Time attention of one head, 128 tokens; True unless bfloat16 is clearly slower than float32.

    Some CPUs have its products at half the rate of float32's. The wide margin keeps the choice, and
    with it the bits, the same from load to load.
    """
    shape = (128 // _kernels.TILE_TOKENS, head_size, _kernels.TILE_TOKENS)
    x, out = (aligned(math.prod(shape)).reshape(shape) for _ in range(2))
    x[...] = 1.0
    best = [math.inf, math.inf]
    for _ in range(REPEATS):
        for is_16_bit in (0, 1):
            start = time.perf_counter()
            _kernels.attention(x, x, x, 128, out, isa, bool(is_16_bit))
            best[is_16_bit] = min(best[is_16_bit], time.perf_counter() - start)
    return best[1] < 1.2 * best[0]


# ---- The file --------------------------------------------------------------------------------


def path_beside(model: Path) -> Path:
    """Return where the timings of a model are kept."""
    return model.with_name(model.name + ".kernels.json")


def key_of(
    isa: str,
    forms: Forms,
    num_threads: int,
    weights: Mapping[str, tuple[Sequence[Linear], bool]],
    counts: Sequence[NDArray[np.int32]],
) -> str:
    """Name all that timings depend on: CPU, ISA, threads, kernels, and where nonzeros are."""
    digest = hashlib.blake2b(digest_size=16)
    for (name, (parts, _)), count in zip(weights.items(), counts, strict=True):
        shapes = [(part.name, part.weight.shape) for part in parts]
        digest.update(f"{name} {shapes} {count.tolist()}\n".encode())
    return (
        f"{cpu_model()}, {isa} {' '.join(forms.layers + forms.integers)}, {num_threads} threads, "
        f"kernels {_version()}, weights {digest.hexdigest()}"
    )


def read_timings(
    path: Path, key: str, kinds: set[WeightKind], forms: Forms
) -> dict[WeightKind, Timing] | None:
    """Return the timings kept under `key`; None unless all are there, sound and unchanged."""
    entry = _entries(path).get(key)
    if entry is None:
        return None
    try:
        return {kind: _timing(entry[str(kind)], candidates(kind, forms)) for kind in kinds}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def write_timings(path: Path, key: str, timings: Mapping[WeightKind, Timing]) -> str:
    """Add timings to the file, replacing what is damaged; return what became of it.

    The file is replaced at once. Of two processes that write at the same time one loses its entry,
    and measures again at its next load.
    """
    entry = {
        str(kind): {
            "nonzeros": timing.nonzeros,
            "groups": {str(tiles): seconds for tiles, seconds in timing.groups.items()},
            **timing.seconds,
        }
        for kind, timing in timings.items()
    }
    entries = {other: value for other, value in _entries(path).items() if other != key}
    entries = dict([*entries.items(), (key, entry)][-MAX_ENTRIES:])
    content = {
        key: {"checksum": _checksum(key, value), "timings": value} for key, value in entries.items()
    }
    try:
        write_text(path, json.dumps(content, indent=1))
    except InputError as error:
        return f"not stored: {error}"
    return f"stored in {path}"


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of the file whose checksum fits; none if it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            return {}
        with path.open("rb") as file:
            content = json.loads(file.read(MAX_FILE_BYTES))
        return {
            key: entry["timings"]
            for key, entry in content.items()
            if isinstance(entry, dict)
            and isinstance(entry.get("timings"), dict)
            and entry.get("checksum") == _checksum(key, entry["timings"])
        }
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _checksum(key: str, timings: object) -> str:
    text = json.dumps([key, timings], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _timing(value: Mapping[str, Any], forms: Sequence[str]) -> Timing:
    """Check one entry.

    Raises:
        ValueError, KeyError, TypeError: It is not what `write_timings` writes.
    """
    seconds = {size: {form: value[size][form] for form in forms} for size in CALL_SIZES}
    groups = {tiles: value["groups"][str(tiles)] for tiles in GROUPS}
    numbers = [*groups.values(), *(t for of_form in seconds.values() for t in of_form.values())]
    if type(value["nonzeros"]) is not int or value["nonzeros"] < 0:
        raise ValueError("nonzeros must be a count")
    if not all(type(number) is float and 0.0 < number < math.inf for number in numbers):
        raise ValueError("seconds must be positive")
    return Timing(value["nonzeros"], seconds, groups)


def _count(parts: Sequence[Linear]) -> NDArray[np.int32]:
    """Return the nonzeros per k-block of each part (parts, k-blocks), of integers the quads."""
    return np.stack(
        [
            count_nonzeros(part.weight, KBLOCK).sum(1)
            if part.quantization is None
            else live_quads(part.weight, S8_KBLOCK)
            for part in parts
        ]
    )


def live_quads(weight: NDArray[np.int8], kblock: int) -> NDArray[np.int32]:
    """Count, per k-block of `kblock` columns, the quads of integers that are not four zeros."""
    starts = np.arange(0, weight.shape[1], QUAD)
    found = np.zeros(len(starts), np.int32)
    for rows in np.array_split(weight, -(-len(weight) // SAMPLE_ROWS)):  # malloc keeps large arrays
        found += np.logical_or.reduceat(rows != 0, starts, axis=1).sum(0, dtype=np.int32)
    return np.add.reduceat(found, np.arange(0, len(starts), kblock // QUAD), dtype=np.int32)


@cache
def _version() -> str:
    """Identify the compiled kernels."""
    return hashlib.blake2b(Path(_kernels.__file__).read_bytes(), digest_size=8).hexdigest()
