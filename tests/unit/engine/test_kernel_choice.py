"""Which form a weight runs in: the rule, the file of timings, and what `engine.kernel` pins."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.plans import make_plan

from cython_kernels import _kernels
from toolkit.engine import Engine, kernel_choice, packing
from toolkit.engine import engine as engine_module
from toolkit.engine.kernel_choice import (
    CALL_SIZES,
    DENSITIES,
    PREFERRED,
    TIE,
    Forms,
    Timing,
    WeightKind,
)
from toolkit.engine.plan import Linear, Plan

ISAS = _kernels.available_isas()
REASON = "the test says so"
CAN_GENERATE = not packing.why_not_generate(ISAS[0])
FORMS = [*kernel_choice.forms_of("auto", ISAS[0], "fp32").layers]


class Clock:
    """Stands in for `measure_forms`: counts, and finds the dense form the fastest."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, kind: WeightKind, _: object, __: str, allowed: Forms) -> Timing:
        self.calls += 1
        forms = kernel_choice.candidates(kind, allowed)
        seconds = {form: 1e-4 if form == "dense" else 2e-4 for form in forms}
        groups = dict.fromkeys(kernel_choice.GROUPS, 1e-4)
        return Timing(1000, {size: dict(seconds) for size in CALL_SIZES}, groups)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(kernel_choice, "measure_forms", clock)
    return clock


def load(timings: Path | None, num_threads: int = 2, isa: str = ISAS[0], **sizes: Any) -> Engine:
    sizes = {"sparsity": 0.5} | sizes  # every form is worth timing
    return Engine(make_plan(**sizes), num_threads, REASON, isa, timings=timings)


def forms_in(engine: Engine) -> set[str]:
    return {weight.form for name, weight in engine.weights() if name.startswith("layer")}


# ---- The rule --------------------------------------------------------------------------------


@given(
    seconds=st.dictionaries(
        st.sampled_from(PREFERRED["large"]), st.floats(1e-7, 1.0), min_size=1, max_size=3
    ),
    size=st.sampled_from(CALL_SIZES),
)
def test_the_fastest_is_picked_unless_a_preferred_one_is_as_fast(
    seconds: dict[str, float], size: str
) -> None:
    form = kernel_choice.pick(seconds, PREFERRED[size])
    fastest = min(seconds, key=seconds.__getitem__)
    assert seconds[form] <= TIE * seconds[fastest]
    before = PREFERRED[size][: PREFERRED[size].index(form)]
    assert all(seconds[other] > TIE * seconds[fastest] for other in before if other in seconds)
    if all(seconds[o] > TIE * seconds[fastest] for o in seconds if o != fastest):
        assert form == fastest


@given(density=st.floats(0.0, 1.0), is_layer=st.booleans(), data=st.data())
def test_what_is_timed_follows_the_density(density: float, is_layer: bool, data: Any) -> None:
    code = ["generated", packing.SMALL_BLOCKS]
    exact = ["table", "dense", *data.draw(st.sampled_from([[], code]))]
    layers = exact + data.draw(st.sampled_from([[], ["bf16_dense", "bf16_block"]]))
    live = data.draw(st.integers(0, len(DENSITIES)))
    bucket = sum(bound <= density for bound in DENSITIES)
    kind = WeightKind(8, 8, bucket, False, is_layer, live)
    forms = kernel_choice.candidates(kind, Forms(tuple(layers), tuple(exact), ()))
    assert forms
    assert len(set(forms)) == len(forms)
    assert ("dense" in forms) == (density >= kernel_choice.DENSE_FROM)
    assert ("bf16_dense" in forms) == (
        is_layer and "bf16_dense" in layers and density >= kernel_choice.BF16_DENSE_FROM
    )
    assert ("bf16_block" in forms) == (
        is_layer
        and "bf16_block" in layers
        and density >= DENSITIES[0]
        and (*DENSITIES, 1.0)[live] <= kernel_choice.LIVE_TO
    )
    assert ("table" in forms) == (density < kernel_choice.SPARSE_TO)
    assert ("generated" in forms) == (
        "generated" in exact and DENSITIES[0] <= density < kernel_choice.SPARSE_TO
    )


@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize("isa", ISAS)
def test_measuring_times_every_candidate(isa: str, is_residual: bool) -> None:
    rng = np.random.default_rng(0)
    sample: NDArray[np.float32] = rng.standard_normal((70, 50)).astype(np.float32)
    sample[rng.random(sample.shape) < 0.5] = 0.0
    allowed = kernel_choice.forms_of("auto", isa, "auto")
    kind = WeightKind(70, 50, sum(bound <= 0.5 for bound in DENSITIES), is_residual, True)
    linear = Linear("sample", sample, np.zeros(len(sample), np.float32))
    timing = kernel_choice.measure_forms(kind, linear, isa, allowed)
    assert timing.nonzeros == np.count_nonzero(sample)
    assert list(timing.seconds) == list(CALL_SIZES)
    for seconds in timing.seconds.values():
        assert list(seconds) == kernel_choice.candidates(kind, allowed)
        assert all(0.0 < number < 10.0 for number in seconds.values())
    assert [*timing.groups] == [32, 16, 8]
    assert all(0.0 < t < 1.0 for t in timing.groups.values())


def test_timing_refuses_sizes_that_do_not_fit() -> None:
    weight = np.ones((4, 6), np.float32)
    packed = _kernels.PackedLinear.pack(weight, weight[:, 0].copy(), "table", ISAS[0], 4, 6)
    x, y = np.zeros((1, 6, 16), np.float32), np.zeros((1, 4, 16), np.float32)
    for bad_x, bad_y in ((x[:, :5].copy(), y), (x, y[:, :3].copy()), (x[:0], y[:0])):
        with pytest.raises(ValueError, match="x must be"):
            _kernels.time_gemm([packed], bad_x, bad_y, None, 1)
    with pytest.raises(ValueError, match="init must have the shape of y"):
        _kernels.time_gemm([packed], x, y, x, 1)


# ---- The pin ---------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_a_pinned_form_runs_everything_and_all_give_the_same_bits(isa: str) -> None:
    plan = make_plan(sparsity=0.7)
    outputs = []
    for kernel in ("dense", "table", "generated"):
        if kernel == "generated" and packing.why_not_generate(isa):
            continue
        engine = Engine(make_plan(sparsity=0.7), 2, REASON, isa, kernel)
        assert {weight.form for _, weight in engine.weights()} == {kernel}
        assert f"pinned by engine.kernel={kernel}" in engine.explain()
        outputs.append([engine.run(inputs(plan, length)) for length in (5, 200)])
    outputs.append(
        [load(None, isa=isa, sparsity=0.7).run(inputs(plan, length)) for length in (5, 200)]
    )
    for other in outputs[1:]:
        for one, two in zip(outputs[0], other, strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], two[name])


def inputs(plan: Plan, tokens: int) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(tokens)
    ids = rng.integers(0, 50, (-(-tokens // 50), 50 if tokens > 50 else tokens))
    return {name: ids if name == "input_ids" else np.ones_like(ids) for name in plan.inputs}


def test_a_pin_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="kernel must be one of auto, generated, table, dense"):
        Engine(make_plan(), 1, REASON, ISAS[0], "csr")
    with pytest.raises(ValueError, match="no code is generated for generic; use auto or table"):
        Engine(make_plan(), 1, REASON, "generic", "generated")
    monkeypatch.setattr(kernel_choice, "why_not_generate", lambda _: "this system forbids it")
    with pytest.raises(ValueError, match="not possible here: this system forbids it; use auto"):
        Engine(make_plan(), 1, REASON, ISAS[0], "generated")
    with pytest.warns(UserWarning, match="this system forbids it: sparse layers run more slowly"):
        engine = Engine(make_plan(), 1, REASON, ISAS[0])
    assert "generated" not in forms_in(engine)


def test_code_in_half_precision_is_a_candidate_where_code_may_be_generated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has = ["table", "dense", "generated", "f16_table", "f16_generated"]
    monkeypatch.setattr(_kernels, "forms_of", lambda _: has)
    monkeypatch.setattr(kernel_choice, "precisions_of", lambda _: ["fp32", "fp16"])
    for reason, halves in (("", {"f16_table", "f16_generated"}), ("no AVX-512", {"f16_table"})):
        monkeypatch.setattr(kernel_choice, "why_not_generate", lambda _, reason=reason: reason)
        forms = kernel_choice.forms_of("auto", "generic", "fp16")
        assert {form for form in forms.layers if form.startswith("f16")} == halves
        kind = WeightKind(8, 8, sum(bound <= 0.1 for bound in DENSITIES), False, True)
        assert halves <= {*kernel_choice.candidates(kind, forms)}
    monkeypatch.setattr(kernel_choice, "why_not_generate", lambda _: "")
    assert kernel_choice.forms_of("generated", "generic", "fp16").layers == ("f16_generated",)
    assert kernel_choice.forms_of("table", "generic", "fp16").layers == ("f16_table",)


def test_groups_are_smaller_where_most_weights_run_in_tile_registers() -> None:
    def tiles(isa: str, *forms: str) -> int:
        return kernel_choice.group_tiles(isa, forms, [])

    assert tiles("amx_bf16_model", "bf16_dense", "bf16_block", "bf16_compressed", "table") == 16
    assert tiles("amx_bf16_model", "s8_dense", "s8_block", "s8_table") == 16
    assert tiles("amx_bf16_model", "bf16_dense", "generated") == 32
    assert tiles("amx_bf16_model") == 32
    for isa in {*ISAS, "bf16_model", "f16_model"} - {"amx_bf16"}:
        assert tiles(isa, "bf16_dense", "s8_dense") == 32


@pytest.mark.parametrize(
    ("isa", "timed", "tiles"),
    [
        ("generic", [{32: 1.0, 16: 0.95, 8: 0.93}], 32),  # within the margin
        ("generic", [{32: 1.0, 16: 0.9, 8: 0.85}], 16),  # the larger of two that are as fast
        ("generic", [{32: 1.0, 16: 0.9, 8: 0.6}], 8),
        ("generic", [{32: 1.0, 16: 0.5, 8: 0.5}, {32: 9.0, 16: 9.0, 8: 9.5}], 32),  # of all weights
        ("amx_bf16_model", [{32: 1.0, 16: 1.0, 8: 1.0}], 16),
        ("amx_bf16_model", [{32: 0.8, 16: 1.0, 8: 1.0}], 32),
    ],
)
def test_groups_are_as_large_as_the_clock_says(
    isa: str, timed: list[dict[int, float]], tiles: int
) -> None:
    assert kernel_choice.group_tiles(isa, ["bf16_dense"], timed) == tiles


# ---- The file --------------------------------------------------------------------------------


def test_the_second_load_measures_nothing_and_chooses_the_same(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "read_graph", lambda _: make_plan(sparsity=0.5))
    model = tmp_path / "model.onnx"
    first = Engine.load(tmp_path, num_threads=1)
    assert clock.calls > 0
    path = tmp_path / "model.onnx.kernels.json"
    assert f"forms measured now, stored in {path}" in first.explain()
    calls = clock.calls
    again = Engine.load(model, num_threads=1)
    assert clock.calls == calls
    assert f"forms read from {path}" in again.explain()
    assert _kernels_of(again) == _kernels_of(first)
    before = path.read_bytes()
    third = Engine.load(model, num_threads=1, keep_timings=False)
    assert clock.calls > calls
    assert "not stored: no file was asked for" in third.explain()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _kernels_of(engine: Engine) -> list[str]:
    return [line for line in engine.explain().splitlines() if not line.startswith("kernels")]


def change_number(entry: dict[str, Any]) -> None:
    first_kind(entry)["large"]["dense"] *= 3.0


def first_kind(entry: dict[str, Any]) -> dict[str, Any]:
    kind: dict[str, Any] = next(iter(entry["timings"].values()))
    return kind


def drop_kind(entry: dict[str, Any]) -> None:
    entry["timings"].popitem()


def set_number(value: object) -> Callable[[dict[str, Any]], None]:
    def change(entry: dict[str, Any]) -> None:
        first_kind(entry)["small"]["dense"] = value

    return change


def set_nonzeros(entry: dict[str, Any]) -> None:
    first_kind(entry)["nonzeros"] = -1


def as_text(change: Callable[[dict[str, Any]], None], is_signed: bool) -> Callable[[str], str]:
    """Change the only entry; with `is_signed` its checksum, too: only its sense is then wrong."""

    def damage(text: str) -> str:
        content = json.loads(text)
        (key, entry), *_ = content.items()
        change(entry)
        if is_signed:
            entry["checksum"] = kernel_choice._checksum(key, entry["timings"])
        return json.dumps(content)

    return damage


DAMAGE: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "truncated": lambda text: text[: len(text) // 2],
    "one byte short": lambda text: text[:-1],
    "not text": lambda _: "\x00\xff\x12",
    "another kind": lambda _: "[1, 2]",
    "a number": lambda _: "7",
    "foreign": lambda _: '{"a": {"timings": {}, "checksum": 3}, "b": null}',
    "deeply nested": lambda _: "[" * 100_000,
    "hand-edited": as_text(change_number, is_signed=False),
    "no checksum": as_text(lambda entry: entry.pop("checksum"), is_signed=False),
    "kind missing": as_text(drop_kind, is_signed=True),
    "kind is a list": as_text(
        lambda entry: entry["timings"].update({next(iter(entry["timings"])): []}), is_signed=True
    ),
    "negative": as_text(set_number(-1.0), is_signed=True),
    "zero": as_text(set_number(0.0), is_signed=True),
    "nan": as_text(set_number(float("nan")), is_signed=True),
    "infinite": as_text(set_number(float("inf")), is_signed=True),
    "a word": as_text(set_number("fast"), is_signed=True),
    "true": as_text(set_number(True), is_signed=True),
    "negative count": as_text(set_nonzeros, is_signed=True),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_measured_again_and_repaired(
    what: str, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "timings.json"
    expected = _kernels_of(load(path))
    sound, calls = path.read_text(), clock.calls
    path.write_text(DAMAGE[what](sound))
    assert _kernels_of(load(path)) == expected
    assert clock.calls == 2 * calls
    assert path.read_text() == sound
    load(path)
    assert clock.calls == 2 * calls


def test_another_model_isa_cpu_or_number_of_threads_measures_anew(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "timings.json"
    situations: list[dict[str, Any]] = [
        {},
        {"num_threads": 1},
        {"isa": "generic"},
        {"seed": 1},
        {"hidden": 48},
        {"num_layers": 1},
    ]
    for number, situation in enumerate(situations):
        calls = clock.calls
        load(path, **situation)
        assert clock.calls > calls, situation
        assert len(json.loads(path.read_text())) == number + 1
    for situation in situations:  # all of them live in one file
        calls = clock.calls
        load(path, **situation)
        assert clock.calls == calls, situation
    for name, value in (("cpu_model", "another CPU"), ("_version", "0123")):
        monkeypatch.setattr(kernel_choice, name, lambda value=value: value)
        calls = clock.calls
        load(path)
        assert clock.calls > calls, name


def test_the_file_does_not_grow_for_ever(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_choice, "MAX_ENTRIES", 2)
    path = tmp_path / "timings.json"
    for seed in range(4):
        load(path, seed=seed, num_layers=1)
    assert len(json.loads(path.read_text())) == 2
    calls = clock.calls
    load(path, seed=3, num_layers=1)
    assert clock.calls == calls


def test_a_folder_that_cannot_be_written_to_is_no_error(clock: Clock, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    sentence = f"forms measured now, not stored: cannot write {taken}: Is a directory"
    assert sentence in load(taken).explain()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert f"measured now, stored in {pipe}" in load(pipe).explain()
    assert clock.calls > 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pipe", "taken"]


def test_a_full_disk_leaves_the_old_file(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "timings.json"
    load(path)
    before = path.read_bytes()

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    explained = load(path, seed=1).explain()
    assert f"not stored: cannot write {path}: No space left on device" in explained
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert clock.calls > 0


def test_many_load_at_once(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: load(path, seed=i % 4, num_layers=1), range(24)))
    content = json.loads(path.read_text())
    assert 1 <= len(content) <= 4
    for key, entry in content.items():
        assert entry["checksum"] == kernel_choice._checksum(key, entry["timings"])
    assert clock.calls > 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_dense_model_needs_no_file(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    engine = load(path, sparsity=0.0)
    assert forms_in(engine) == {"dense"}
    assert "nothing to measure" in engine.explain()
    assert "100.0% zeros" not in engine.explain()
    assert "only candidate: too few zeros to skip" in engine.explain()
    assert clock.calls == 0
    assert not path.exists()


@settings(max_examples=10, deadline=None)
@given(num_threads=st.integers(1, 4))
def test_packing_threads_change_nothing(num_threads: int) -> None:
    one, other = (
        Engine(make_plan(num_layers=5), n, REASON, ISAS[0], "table") for n in (1, num_threads)
    )
    for (name, a), (same, b) in zip(one.weights(), other.weights(), strict=True):
        assert name == same
        for array in ("values", "offsets", "row_numbers", "runs", "layout", "bias"):
            np.testing.assert_array_equal(getattr(a, array), getattr(b, array))
