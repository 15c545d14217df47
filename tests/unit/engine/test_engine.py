"""The engine against the float64 oracle, on hand-made plans."""

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plans import (
    ISAS,
    PLANS,
    REASON,
    Array,
    Inputs,
    assert_is_close,
    make_engine,
    make_inputs,
    make_plan,
    mask_of,
)
from support.scripts import run_script

from cython_kernels import _kernels
from toolkit.engine import reference
from toolkit.engine.engine import Engine, find_isa
from toolkit.engine.plan import LayerNorm, Linear
from toolkit.engine.schedule import Schedule
from toolkit.errors import InputError
from toolkit.families import LINEARS


@functools.cache
def cases(name: str, kind: str) -> list[tuple[Inputs, dict[str, Array]]]:
    """Batches of the plan and what the oracle makes of them."""
    plan = make_plan(**PLANS[name])
    shapes = [(1, 1), (3, 33), (7, 16)] if plan.embeddings.word.shape[1] < 384 else [(2, 17)]
    batches = [make_inputs(plan, mask_of(kind, *shape, seed=shape[0])) for shape in shapes]
    return [(inputs, reference.run(plan, inputs)) for inputs in batches]


KINDS = [("bert", "full"), ("bert", "right"), ("bert", "left"), ("roberta", "left")]
KINDS += [("classifier", "left"), ("classifier", "holes")]
KINDS += [(name, "full" if name == "no_mask" else "holes") for name in PLANS]


@pytest.mark.parametrize(("name", "kind"), dict.fromkeys(KINDS))
@pytest.mark.parametrize("isa", ISAS)
def test_engine_matches_the_oracle(isa: str, name: str, kind: str) -> None:
    plan, engine = make_plan(**PLANS[name]), make_engine(isa=isa, **PLANS[name])
    assert (engine.isa, engine.inputs, engine.outputs) == (isa, plan.inputs, plan.outputs)
    for inputs, expected in cases(name, kind):
        assert_is_close(engine.run(inputs), expected, inputs)


@pytest.mark.parametrize("name", ["bert", "roberta", "classifier"])
def test_any_batch_and_length(name: str) -> None:
    plan, engine = make_plan(**PLANS[name]), make_engine(**PLANS[name])
    for batch, length in ((1, 128), (40, 3), (2, 127), (5, 17), (1, 15)):  # growing and shrinking
        inputs = make_inputs(plan, mask_of("right", batch, length, seed=length))
        assert_is_close(engine.run(inputs), reference.run(plan, inputs), inputs)


def test_int32_and_int64_are_the_same() -> None:
    plan, engine = make_plan(), make_engine()
    mask = mask_of("right", 3, 20, seed=1)
    wide, narrow = (engine.run(make_inputs(plan, mask, dtype)) for dtype in (np.int64, np.int32))
    for name in wide:
        np.testing.assert_array_equal(wide[name], narrow[name])


def test_arrays_of_any_layout() -> None:
    plan, engine = make_plan(), make_engine()
    inputs = make_inputs(plan, mask_of("right", 4, 20, seed=1))
    strided = {
        name: np.repeat(np.asfortranarray(array), 2, axis=1)[:, ::2]
        for name, array in inputs.items()
    }
    np.testing.assert_array_equal(engine.run(inputs)["hidden"], engine.run(strided)["hidden"])


def test_weights_may_lie_at_any_byte() -> None:
    """As in an ONNX file; the sanitizers see that no float is read from there."""

    def shifted(linear: Linear) -> Linear:
        rows, columns = linear.weight.shape
        memory = np.empty(linear.weight.nbytes + 1, np.uint8)
        weight = memory[1:].view(np.float32).reshape(columns, rows).T
        weight[...] = linear.weight
        assert not weight.flags.aligned
        return replace(linear, weight=weight)

    plan, inputs = make_plan(), make_inputs(make_plan(), mask_of("full", 2, 9, seed=0))
    names = LINEARS
    layers = []
    for layer in plan.layers:
        changes: dict[str, Any] = {name: shifted(getattr(layer, name)) for name in names}
        layers.append(replace(layer, **changes))
    heads = {key: shifted(linear) for key, linear in plan.linears.items()}
    engine = Engine(replace(plan, layers=layers, linears=heads), 1, REASON, ISAS[0])
    for name, value in make_engine(1).run(inputs).items():
        np.testing.assert_array_equal(engine.run(inputs)[name], value)


def test_no_texts_give_no_outputs() -> None:
    empty = np.zeros((0, 5), np.int64)
    engine = make_engine()
    assert engine.run(dict.fromkeys(engine.inputs, empty))["hidden"].shape == (0, 5, 96)
    assert engine.profile(dict.fromkeys(engine.inputs, empty)) == []


def test_left_padding_changes_nothing_but_positions() -> None:
    """Masked tokens are not computed, so what they are makes no difference."""
    plan, engine = make_plan(), make_engine()
    inputs = make_inputs(plan, mask_of("left", 5, 40, seed=3))
    other = dict(inputs)
    other["input_ids"] = np.where(inputs["attention_mask"] == 0, 7, inputs["input_ids"])
    hidden = (engine.run(inputs)["hidden"], engine.run(other)["hidden"])
    np.testing.assert_array_equal(hidden[0][:, 1:], hidden[1][:, 1:])


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_the_rest_of_the_batch(isa: str) -> None:
    """Lanes do not mix, and all forms of a weight add the same products in the same order."""
    engine = make_engine(2, isa)
    mask = mask_of("right", 20, 33, seed=7)
    inputs = make_inputs(make_plan(), mask)
    together = engine.run(inputs)
    for row in (0, 7, 19):
        length = int(mask[row].sum())
        alone = engine.run({name: array[[row], :length] for name, array in inputs.items()})
        for name in alone:
            np.testing.assert_array_equal(alone[name][0], together[name][row, :length])


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 30),
    length=st.integers(1, 80),
    num_threads=st.integers(1, 5),
    group_tiles=st.integers(1, 40),
    kind=st.sampled_from(["full", "right", "left", "holes"]),
    seed=st.integers(0, 99),
)
def test_schedule_has_every_token_once(
    batch: int, length: int, num_threads: int, group_tiles: int, kind: str, seed: int
) -> None:
    mask = mask_of(kind, batch, length, seed).astype(np.int32)
    schedule = Schedule(mask, num_threads, group_tiles)
    texts = [text for group in schedule.groups for text in group.texts]
    assert sorted(texts) == list(range(batch))
    for group in schedule.groups:
        assert group.tiles == sum(-(-len(lanes) // 16) for lanes in group.lanes)
        for text, lanes, keys in zip(group.texts, group.lanes, group.keys, strict=True):
            np.testing.assert_array_equal(lanes[:keys], np.flatnonzero(mask[text]))
            asks = [0] if mask[text, 0] == 0 else []
            assert list(lanes[keys:]) == asks
    if not schedule.is_team:  # no thread has much more to do than another
        loads = [sum(g.tiles for g in schedule.groups[i::num_threads]) for i in range(num_threads)]
        assert max(loads) * num_threads <= 1.2 * sum(loads) or num_threads == 1


def test_a_mask_without_columns_has_no_texts() -> None:
    assert Schedule(np.ones((3, 0), np.int32), 2, 32).groups == []


@pytest.mark.parametrize(
    ("texts", "lanes", "keys", "sentence"),
    [
        ([], [], [], "a group needs lanes and keys for each text; got 0 texts"),
        ([0, 1], [[0]], [1], "got 2 texts, 1 lanes, 1 keys"),
        ([2], [[0]], [1], "text 2 must be in 0…1"),
        ([-1], [[0]], [1], "text -1 must be in 0…1"),
        ([0], [[0, 1]], [3], "its keys in 1…2; got 3 keys"),
        ([0], [[0, 1]], [0], "its keys in 1…2; got 0 keys"),
        ([0], [[0, 5]], [1], "lanes of text 0 must be in 0…4; got 5"),
        ([0], [[0, -1]], [1], "lanes of text 0 must be in 0…4; got -1"),
        ([1], [[1]], [1], "lanes of text 1 must hold position 0"),
    ],
)
def test_a_group_outside_the_batch_is_refused(
    texts: list[int], lanes: list[list[int]], keys: list[int], sentence: str
) -> None:
    encoder = make_engine(**PLANS["classifier"])._encoder
    arrays = [np.array(of_text, np.int64) for of_text in lanes]
    group = SimpleNamespace(texts=texts, lanes=arrays, keys=keys)
    ids = np.zeros((2, 5), np.int32)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        encoder.run(ids, ids, ids, SimpleNamespace(groups=[group], is_team=False), True)


# ---- What is refused -------------------------------------------------------------------------

Change = Callable[[Inputs], object]


def put(name: str, value: Array | None = None, **at: int) -> Change:
    def change(inputs: Inputs) -> None:
        if value is not None:
            inputs[name] = value
        else:
            inputs[name][at["row"], at["column"]] = at["number"]

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "missing": (
        lambda inputs: inputs.pop("attention_mask"),
        "input 'attention_mask' is missing: expected input_ids, attention_mask, token_type_ids",
    ),
    "unknown": (
        put("position_ids", np.zeros((2, 5), np.int64)),
        "unknown input 'position_ids': expected input_ids,",
    ),
    "floats": (
        put("input_ids", np.zeros((2, 5))),
        r"input_ids must be a \(batch, length\) array of int32 or int64; got float64",
    ),
    "one row": (
        put("input_ids", np.zeros(5, np.int64)),
        r"input_ids must be a \(batch, length\) array .* of shape \(5,\)",
    ),
    "bool mask": (
        put("attention_mask", np.ones((2, 5), bool)),
        "attention_mask must be .* got bool",
    ),
    "other length": (
        put("attention_mask", np.ones((2, 6), np.int64)),
        r"attention_mask must have the shape of input_ids, \(2, 5\); got \(2, 6\)",
    ),
    "id too large": (
        put("input_ids", row=1, column=2, number=50),
        r"input_ids\[1, 2\] must be in 0…49; got 50",
    ),
    "negative id": (
        put("input_ids", row=0, column=4, number=-1),
        r"input_ids\[0, 4\] must be in 0…49; got -1",
    ),
    "beyond 32 bits": (
        put("input_ids", row=0, column=0, number=2**40),
        "input_ids must hold 32-bit numbers; got .*1099511627776",
    ),
    "type too large": (
        put("token_type_ids", row=0, column=0, number=2),
        r"token_type_ids\[0, 0\] must be in 0…1; got 2",
    ),
    "negative type": (
        put("token_type_ids", row=0, column=0, number=-3),
        r"token_type_ids\[0, 0\] must be in 0…1; got -3",
    ),
    "row of zeros": (
        put("attention_mask", np.array([[1] * 5, [0] * 5])),
        r"attention_mask\[1\] must have at least one 1; got a row of zeros",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_inputs_are_refused(what: str) -> None:
    change, sentence = REFUSED[what]
    plan, engine = make_plan(), make_engine()
    inputs = make_inputs(plan, np.ones((2, 5), np.int64))
    expected = engine.run(inputs)
    bad = {name: array.copy() for name, array in inputs.items()}
    change(bad)
    for call in (engine.run, engine.profile):
        with pytest.raises(ValueError, match=sentence):
            call(bad)
    np.testing.assert_array_equal(engine.run(inputs)["hidden"], expected["hidden"])


@pytest.mark.parametrize(("name", "longest"), [("bert", 130), ("roberta", 128)])
def test_texts_longer_than_the_model_are_refused(name: str, longest: int) -> None:
    plan, engine = make_plan(**PLANS[name]), make_engine(**PLANS[name])
    ids = np.full((2, longest), 9)
    inputs = {name: np.ones_like(ids) for name in plan.inputs} | {"input_ids": ids}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = np.zeros_like(ids)
    assert_is_close(engine.run(inputs), reference.run(plan, inputs), inputs)
    longer = {key: np.pad(array, ((0, 0), (0, 1)), mode="edge") for key, array in inputs.items()}
    with pytest.raises(ValueError, match=r"text of row 0 is too long: .* the model has 130"):
        engine.run(longer)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"heads": 0}, "num_heads must divide 96 features; got 0"),
        ({"heads": 5}, "num_heads must divide 96 features; got 5"),
        ({"norm": 95}, "gamma and beta must have 96 elements; got 95, 95"),
        ({"position": 97}, "position embeddings must be 96 wide, as those of words; got 97"),
        ({"token_type": 1}, "token_type embeddings must be 96 wide, as those of words; got 1"),
        ({"query": (66, 96)}, "query, key and value must all give 66 of 96 features"),
        ({"output": (96, 100)}, "the weights of a layer must take and give 96 features"),
        ({"attention_output": (96, 66)}, "as many features as attention's output takes"),
        ({"attention_output": (64, 96)}, "the weights of a layer must take and give 96 features"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, Any], sentence: str) -> None:
    """Whatever a file says, no pointer leaves its array."""
    plan = make_plan(num_layers=1)
    changes: dict[str, Any] = {}
    for name, size in sizes.items():
        if name == "heads":
            changes["num_heads"] = size
        elif name == "norm":
            ones = np.ones(size, np.float32)
            changes["output_norm"] = LayerNorm(ones, ones, 1e-5)
        elif name in ("position", "token_type"):
            table: dict[str, Any] = {name: np.zeros((130, size), np.float32)}
            plan = replace(plan, embeddings=replace(plan.embeddings, **table))
        else:
            changes[name] = Linear(name, np.zeros(size, np.float32), np.zeros(size[0], np.float32))
    plan.layers[0] = replace(plan.layers[0], **changes)
    with pytest.raises(ValueError, match=sentence):
        Engine(plan, 1, REASON, ISAS[0])


def test_a_plan_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        make_engine(num_layers=0)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.onnx"):
        Engine.load(tmp_path)


# ---- Which instruction set -------------------------------------------------------------------


def test_isa_is_the_best_the_forced_or_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOOLKIT_ISA", raising=False)
    assert find_isa("auto") == ISAS[0]
    for isa in ISAS:
        assert find_isa(isa) == isa
        monkeypatch.setenv("TOOLKIT_ISA", isa)
        assert find_isa("auto") == isa
        assert find_isa("generic") == "generic"  # what is asked for comes first
    sentence = r"isa 'sve2' is not supported on this CPU \(available: .*generic\)"
    with pytest.raises(ValueError, match=sentence):
        find_isa("sve2")
    monkeypatch.setenv("TOOLKIT_ISA", "sve2")
    with pytest.raises(ValueError, match=sentence):
        find_isa("auto")


def test_a_refused_amx_is_told_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "refused_features", lambda: "AMX: refused")
    with pytest.raises(ValueError, match=r"isa 'amx' is not .*generic; AMX: refused\)"):
        find_isa("amx")


@pytest.mark.parametrize("isa", ISAS)
def test_the_isa_asked_for_runs(isa: str) -> None:
    engine = make_engine(isa=isa)
    assert engine.isa == engine._encoder.isa == isa
    assert {weight.isa for _, weight in engine.weights()} == {isa}


# ---- What it tells ---------------------------------------------------------------------------


def test_explain_names_every_weight_and_why() -> None:
    plan, engine = make_plan(**PLANS["classifier"]), make_engine(**PLANS["classifier"])
    lines = engine.explain().splitlines()
    code = "generated, generated_small, " if ISAS[0].startswith("avx512") else ""
    expected = f"isa {ISAS[0]} ({code}table, dense), precision fp32, 2 threads: {REASON}"
    assert lines[0] == expected
    for i, layer in enumerate(plan.layers):
        weight = layer.intermediate.weight
        line = next(line for line in lines if line.startswith(f"layer{i}.intermediate"))
        density = np.count_nonzero(weight) / weight.size
        assert f"{len(weight):6d} {weight.shape[1]:6d} {density:8.4f}" in line
        assert f"_{ISAS[0]}: {1 - density:.1%} zeros; " in line
        assert re.search(
            r"\dx (table|generated) when measured \(\d+ GFLOP/s|only candidate: dense", line
        )
        for step in ("qkv", "attention_output", "output"):
            assert any(line.startswith(f"layer{i}.{step} ") for line in lines)
    assert any(line.startswith("head") and f"dense_{ISAS[0]}" in line for line in lines)
    assert any("first" in line and "Gather: plain function" in line for line in lines)
    assert engine.packed_bytes == sum(weight.nbytes for _, weight in engine.weights())


@pytest.mark.skipif("avx512" not in ISAS, reason="only AVX-512 generates code")
def test_no_executable_memory_means_the_table_form_and_a_warning() -> None:
    script = """
import ctypes, sys, warnings
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1  # Linux 6.3
if ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0):
    sys.exit(print("cannot forbid"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from support.plans import make_engine, make_inputs, make_plan, mask_of
    engine = make_engine(1)
print(any("forbids executable memory" in str(w.message) for w in caught))
print("generated" in engine.explain())
print(engine.run(make_inputs(make_plan(), mask_of("right", 20, 30, 1)))["hidden"].any())
"""
    printed = run_script(script)
    if printed == "cannot forbid\n":
        pytest.skip("this kernel cannot forbid executable memory")
    assert printed == "True\nFalse\nTrue\n"
