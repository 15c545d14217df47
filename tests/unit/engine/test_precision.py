"""`engine.precision`: 16-bit products, against float64 and among themselves."""

from collections.abc import Iterator

import numpy as np
import pytest
from support.plans import ISAS, PLANS, REASON, make_inputs, make_plan, mask_of

from cython_kernels import _kernels
from cython_kernels._kernels import precisions_of
from toolkit.engine import Engine, kernel_choice, reference

# what this CPU has, and plain C in place of every instruction
ALL_ISAS = [*ISAS, *_kernels.model_isas()]
BF16_ISAS = [isa for isa in ALL_ISAS if "bf16" in precisions_of(isa)]
F16_CASES = [
    (isa, form.removeprefix("f16_"))
    for isa in ALL_ISAS
    for form in _kernels.forms_of(isa)
    if form.startswith("f16_")
]
LAYER_STEPS = {"qkv", "attention_output", "intermediate", "output"}


def load(name: str, isa: str, precision: str, num_threads: int = 2, kernel: str = "auto") -> Engine:
    return Engine(make_plan(**PLANS[name]), num_threads, REASON, isa, kernel, precision)


def forms_by_step(engine: Engine) -> dict[str, str]:
    return {name.rpartition(".")[2]: weight.form for name, weight in engine.weights()}


def errors_of(name: str, engine: Engine) -> Iterator[tuple[float, float]]:
    """Yield the largest error of every output of some batches, and the largest value expected."""
    plan = make_plan(**PLANS[name])
    for shape in ((1, 1), (3, 33), (5, 17)):
        mask = mask_of("full" if name == "no_mask" else "right", *shape, seed=1)
        inputs = make_inputs(plan, mask)
        found, expected = engine.run(inputs), reference.run(plan, inputs)
        for output, value in found.items():
            error = np.abs(value - expected[output])
            error = error[mask != 0] if value.ndim == 3 else error
            yield float(error.max()), float(np.abs(expected[output]).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("isa", BF16_ISAS)
def test_bf16_is_close_to_the_oracle_but_not_float32(isa: str, name: str) -> None:
    """Operands have 8 bits: an error of 2⁻⁹ each, averaged over the terms, of values near 1."""
    engine = load(name, isa, "bf16", kernel="dense")
    forms = forms_by_step(engine)
    assert {forms[step] for step in LAYER_STEPS} == {"bf16_dense"}
    assert {form for step, form in forms.items() if step not in LAYER_STEPS} == {"dense"}
    for error, largest in errors_of(name, engine):
        assert error < 0.06 * largest
        assert error > 1e-4 or name == "bert_empty"


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(("isa", "kernel"), F16_CASES)
def test_fp16_is_closer_to_the_oracle_than_bf16(isa: str, kernel: str, name: str) -> None:
    """Operands have 11 bits instead of 8; weights alone are multiplied so."""
    engine = load(name, isa, "fp16", kernel=kernel)
    forms = forms_by_step(engine)
    assert {forms[step] for step in LAYER_STEPS} == {f"f16_{kernel}"}
    for error, largest in errors_of(name, engine):
        assert error < 0.015 * largest
        assert error > 1e-5 or name == "bert_empty"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "precision", "kernel"),
    [(isa, "bf16", "dense") for isa in BF16_ISAS]
    + [(isa, "fp16", form) for isa, form in F16_CASES],
)
def test_one_choice_gives_one_set_of_bits(isa: str, precision: str, kernel: str) -> None:
    """Whatever the number of threads, and whatever else is in the batch."""
    engines = [load("minilm", isa, precision, n, kernel=kernel) for n in (1, 2, 3)]
    mask = mask_of("right", 20, 33, seed=7)
    inputs = make_inputs(make_plan(**PLANS["minilm"]), mask)
    together, *others = [engine.run(inputs) for engine in engines]
    for outputs in others:
        for name, value in outputs.items():
            np.testing.assert_array_equal(value, together[name])
    for row in (0, 7, 19):
        length = int(mask[row].sum())
        alone = engines[1].run({name: array[[row], :length] for name, array in inputs.items()})
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], together[name][row, :length])


def test_all_bfloat16_rounds_alike() -> None:
    """They differ by the last bits of float32 sums, which a rounding behind them may enlarge."""
    plan = make_plan(**PLANS["bert_dense"])
    inputs = make_inputs(plan, mask_of("right", 3, 33, seed=2))
    first, *others = [
        load("bert_dense", isa, "bf16", kernel="dense").run(inputs) for isa in BF16_ISAS
    ]
    expected = reference.run(plan, inputs)
    for name, value in first.items():
        for other in others:
            between = np.abs(value - other[name]).mean()
            assert between < 0.3 * np.abs(value - expected[name]).mean()


@pytest.mark.parametrize("form", ["bf16_block", "bf16_compressed"])
@pytest.mark.parametrize("isa", BF16_ISAS)
def test_forms_that_skip_zeros_run_in_the_engine(
    isa: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small and large calls, texts of a lone thread and of a team."""
    if form not in _kernels.forms_of(isa):
        pytest.skip("only tile registers have it")

    def only(kind: kernel_choice.WeightKind, _: object) -> list[str]:
        return [form if kind.is_layer else "dense"]

    monkeypatch.setattr(kernel_choice, "candidates", only)
    engine = load("minilm", isa, "bf16")
    assert {forms_by_step(engine)[step] for step in LAYER_STEPS} == {form}
    plan = make_plan(**PLANS["minilm"])
    for shape in ((1, 9), (12, 40)):
        inputs = make_inputs(plan, mask_of("right", *shape, seed=3))
        found, expected = engine.run(inputs), reference.run(plan, inputs)
        tokens = inputs["attention_mask"] != 0
        error = np.abs(found["hidden"] - expected["hidden"])[tokens]
        assert 1e-4 < error.max() < 0.06 * np.abs(expected["hidden"]).max()


def test_what_stands_around_the_layers_is_float32_whatever_it_is_called() -> None:
    plan = make_plan(**PLANS["electra"])
    head = plan.linears.pop("head")
    plan.linears["layer0.qkv2"] = head
    forms = kernel_choice.forms_of("auto", BF16_ISAS[0], "auto")
    chosen = kernel_choice.choose(plan, BF16_ISAS[0], forms, 1, None).forms
    assert not [form for form in (*chosen["layer0.qkv2"], *chosen["projection"]) if "bf16" in form]


def test_a_pinned_kernel_runs_at_any_density() -> None:
    for sparsity in (0.0, 0.97, 1.0):
        plan = make_plan(sparsity=sparsity)
        for precision in ("fp32", "bf16", "auto"):
            engine = Engine(plan, 1, REASON, BF16_ISAS[0], "dense", precision)
            assert {form.removeprefix("bf16_") for form in forms_by_step(engine).values()} == {
                "dense"
            }
            plan = make_plan(sparsity=sparsity)


@pytest.mark.parametrize("isa", ISAS)
def test_auto_takes_what_there_is(isa: str) -> None:
    forms = set(forms_by_step(load("bert_dense", isa, "auto")).values())
    assert forms <= {"dense", "bf16_dense"}
    assert forms_by_step(load("bert", isa, "fp32"))["qkv"] in ("generated", "table")


@pytest.mark.parametrize("isa", ISAS)
def test_a_precision_that_is_not_there_is_refused_with_those_that_are(isa: str) -> None:
    here = precisions_of(isa)
    for precision in sorted({"bf16", "fp16", "int4"} - set(here)):
        with pytest.raises(ValueError, match=rf"isa {isa}: {', '.join(here)}, or auto; got"):
            load("bert", isa, precision)


def test_explain_says_what_runs_in_which_precision() -> None:
    lines = load("bert_dense", BF16_ISAS[0], "bf16", kernel="dense").explain().splitlines()
    assert lines[0].startswith(f"isa {BF16_ISAS[0]} (bf16_dense), precision bf16, ")
    assert any(line.startswith("layer0.qkv ") and "bf16_dense" in line for line in lines)
    assert any(line.startswith("head ") and " dense_" in line for line in lines)
