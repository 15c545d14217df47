"""Quantized plans: 8-bit integers in the engine, against the oracle and among themselves."""

from dataclasses import replace

import numpy as np
import pytest
from support.plans import ISAS, PLANS, REASON, make_inputs, make_plan, mask_of, quantize

from cython_kernels import _kernels
from toolkit.engine import Engine, kernel_choice, reference
from toolkit.engine.packing import S8_KBLOCK, pack_linear
from toolkit.engine.plan import Plan
from toolkit.families import LINEARS

ALL_ISAS = [*ISAS, *_kernels.model_isas()]
LAYER_STEPS = {"qkv", "attention_output", "intermediate", "output"}


def load(plan: Plan, isa: str = ISAS[0], num_threads: int = 2, kernel: str = "auto") -> Engine:
    return Engine(plan, num_threads, REASON, isa, kernel)


def forms_by_step(engine: Engine) -> dict[str, str]:
    """Of the last layer, for large calls."""
    weights = [(name, weight) for name, weight in engine.weights() if "(small" not in name]
    return {name.rpartition(".")[2]: weight.form for name, weight in weights}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_integers_are_close_to_the_oracle(isa: str, is_dynamic: bool, name: str) -> None:
    """Where a number lies between two integers the engine may take the other one, seldom."""

    def plan() -> Plan:
        return quantize(make_plan(**PLANS[name]), is_dynamic)

    engine = load(plan(), isa)
    forms = forms_by_step(engine)
    assert {forms[step][:3] for step in LAYER_STEPS} == {"s8_"}
    assert not [form for step, form in forms.items() if step not in LAYER_STEPS and "s8" in form]
    for shape in ((1, 1), (3, 33), (5, 17)):
        mask = mask_of("full" if name == "no_mask" else "right", *shape, seed=1)
        inputs = make_inputs(plan(), mask)
        found, expected = engine.run(inputs), reference.run(plan(), inputs, S8_KBLOCK)
        for output, value in found.items():
            error = np.abs(value - expected[output])
            error = error[mask != 0] if value.ndim == 3 else error
            largest = np.abs(expected[output]).max()
            assert error.max() < 0.1 * largest
            assert np.median(error) < 1e-5 * largest


@pytest.mark.slow
@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_one_set_of_bits(isa: str, is_dynamic: bool) -> None:
    """Whatever the number of threads, the form, and what else is in the batch."""

    def plan() -> Plan:
        sizes = PLANS["minilm"] | {"sparsity": 0.5}
        return quantize(make_plan(**sizes), is_dynamic)

    mask = mask_of("right", 20, 33, seed=7)
    inputs = make_inputs(plan(), mask)
    kernels = ["auto", "dense", "table"]
    if "s8_generated" in _kernels.forms_of(isa):
        kernels.append("generated")
    first, *others = [load(plan(), isa, kernel=kernel) for kernel in kernels]
    others += [load(plan(), isa, number) for number in (1, 3)]
    together = first.run(inputs)
    for engine in others:
        for name, value in engine.run(inputs).items():
            if name == "hidden":  # the head is float32, in the form that is pinned
                np.testing.assert_array_equal(value, together[name])
    for row in (0, 7, 19):
        length = int(mask[row].sum())
        alone = first.run({name: array[[row], :length] for name, array in inputs.items()})
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], together[name][row, :length])


@pytest.mark.parametrize("isa", ISAS)
def test_a_pinned_kernel_pins_integers_where_it_can(isa: str) -> None:
    for kernel in ("table", "dense"):
        plan = quantize(make_plan(sparsity=0.5))
        forms = forms_by_step(load(plan, isa, kernel=kernel))
        assert {forms[step] for step in LAYER_STEPS} == {f"s8_{kernel}"}
        assert forms["head"] == kernel


@pytest.mark.parametrize("isa", [isa for isa in ISAS if "s8_generated" in _kernels.forms_of(isa)])
def test_two_forms_of_a_weight_share_its_numbers_where_their_blocks_agree(isa: str) -> None:
    linear = quantize(make_plan(sparsity=0.5)).layers[0].intermediate
    alone, _ = pack_linear(linear, isa, ("s8_table", "s8_table"))
    for forms in (("s8_table", "s8_generated"), ("s8_generated", "s8_table")):
        pair = pack_linear(linear, isa, forms)
        assert (pair[0].form, pair[1].form) == forms
        table = pair[forms.index("s8_table")]
        assert table.own_bytes == alone.nbytes - alone.values.nbytes
    thin = replace(linear, weight=linear.weight * (np.arange(linear.weight.shape[1]) < 4))
    table, _ = pack_linear(thin, isa, ("s8_table", "s8_generated"))  # whose panels are wider
    assert table.own_bytes == table.nbytes


@pytest.mark.parametrize("isa", ISAS)
def test_words_of_8_bits_are_the_same_numbers(isa: str) -> None:
    plan, same = quantize(make_plan(hidden=99)), quantize(make_plan(hidden=99))
    tables = same.embeddings
    assert tables.word_scale is not None
    floats = tables.word.astype(np.float32) * tables.word_scale[:, None]
    same = replace(same, embeddings=replace(tables, word=floats, word_scale=None))
    inputs = make_inputs(plan, mask_of("right", 5, 40, seed=3))
    found, expected = load(plan, isa).run(inputs), load(same, isa).run(inputs)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_attention_follows_the_precision_and_integers_do_not() -> None:
    isa = next((isa for isa in ALL_ISAS if "bf16" in _kernels.precisions_of(isa)), None)
    assert isa
    for precision in ("fp32", "bf16", "auto"):
        engine = Engine(quantize(make_plan()), 1, REASON, isa, "auto", precision)
        assert {forms_by_step(engine)[step][:3] for step in LAYER_STEPS} == {"s8_"}
        assert ("bf16" in engine.narrow) <= (precision != "fp32")
        assert "int8" in engine.narrow


def test_explain_says_what_runs_in_integers_and_why_something_does_not() -> None:
    plan = quantize(make_plan())
    layer = plan.layers[0]
    noted = replace(make_plan().layers[0].output, note="its scales belong to columns")
    plan.layers[0] = replace(layer, output=noted)
    lines = load(plan).explain().splitlines()
    assert any(line.startswith("layer0.qkv ") and " s8_" in line for line in lines)
    assert any("layers.0.output: its scales belong to columns" in line for line in lines)


@pytest.mark.parametrize("isa", [isa for isa in ALL_ISAS if "s8_block" in _kernels.forms_of(isa)])
def test_lines_that_no_row_needs_are_left_out(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros in blocks of 32 × 4 are found by looking at them; small and large calls, one thread."""

    def plan() -> Plan:
        dense = make_plan(**(PLANS["minilm"] | {"sparsity": 0.0}))
        rng = np.random.default_rng(5)
        for layer in dense.layers:
            for name in LINEARS:
                weight = getattr(layer, name).weight
                live = rng.random((-(-len(weight) // 32), -(-weight.shape[1] // 4))) < 0.2
                weight *= np.kron(live, np.ones((32, 4)))[: len(weight), : weight.shape[1]]
        return quantize(dense)

    allowed = kernel_choice.forms_of("auto", isa, "fp32")
    weights = kernel_choice.weights_of(plan())
    for parts, is_residual in list(weights.values())[:4]:
        share = kernel_choice.live_share(parts)
        assert 0.15 < share < 0.25
        kind = kernel_choice.kind_of_weight(parts, is_residual, True, 20_000, share)
        assert "s8_block" in kernel_choice.candidates(kind, allowed)

    def only(kind: kernel_choice.WeightKind, _: object) -> list[str]:
        return ["s8_block" if kind.is_integer else "dense"]

    monkeypatch.setattr(kernel_choice, "candidates", only)
    engines = [load(plan(), isa, number) for number in (1, 2)]
    assert forms_by_step(engines[0])["output"] == "s8_block"
    for shape in ((1, 9), (12, 40)):
        inputs = make_inputs(plan(), mask_of("right", *shape, seed=3))
        expected = reference.run(plan(), inputs)["hidden"]
        tokens = inputs["attention_mask"] != 0
        for engine in engines:
            error = np.abs(engine.run(inputs)["hidden"] - expected)[tokens]
            assert error.max() < 0.1 * np.abs(expected).max()
            assert np.median(error) < 1e-5 * np.abs(expected).max()


def test_query_key_and_value_take_the_same_integers() -> None:
    plan = quantize(make_plan())
    key = plan.layers[0].key
    assert key.quantization is not None
    for other in (replace(key.quantization, x_scale=0.05), replace(key.quantization, x_scale=None)):
        plan.layers[0] = replace(plan.layers[0], key=replace(key, quantization=other))
        with pytest.raises(ValueError, match="must take the same integers"):
            load(plan)


def test_kinds_of_integers_are_apart_from_floats() -> None:
    """A float and an integer weight of one shape and density are timed apart."""
    plan = quantize(make_plan())
    plan.layers[1] = make_plan().layers[1]
    allowed = kernel_choice.forms_of("auto", ISAS[0], "fp32")
    forms = kernel_choice.choose(plan, ISAS[0], allowed, 1, None).forms
    assert all(form.startswith("s8_") for form in forms["layer0.output"])
    assert not any(form.startswith("s8_") for form in forms["layer1.output"])
