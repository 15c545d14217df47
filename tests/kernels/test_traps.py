"""AMX and FP16 as compiled, on a CPU without them: `support.traps` runs their instructions.

The models have been compared with the oracle elsewhere; what was compiled must have their bits.
"""

import numpy as np
import pytest
from numpy.typing import NDArray
from support.memory import guarded
from support.plans import PLANS, REASON, make_inputs, make_plan, mask_of
from support.traps import ISA, install

from cython_kernels import _kernels, reference
from cython_kernels._kernels import TILE_TOKENS, PackedLinear, attention, gemm, linear
from toolkit.engine import Engine
from toolkit.engine.plan import Quantization

# A process died in it once, under the sanitizers, and never again.
pytestmark = pytest.mark.nightly

MODEL = "amx_bf16_model"
SHAPES = [(1, 1, 1), (5, 7, 3), (61, 97, 40), (64, 130, 33)]  # rows, columns, tokens
EPSILON = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module", autouse=True)
def traps() -> None:
    """Install them where tests run, not where they are collected: other tests' traps are faults."""
    reason = install()
    if reason:
        pytest.skip(reason)


def numbers(*shape: int, seed: int, zeros: float = 0.0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    found = rng.standard_normal(shape).astype(np.float32)
    found[rng.random(shape) < zeros] = 0.0
    return found


@pytest.mark.parametrize("after", [None, "relu"])
@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize("form", ["bf16_dense", "bf16_block", "bf16_compressed"])
def test_tiles_of_bfloat16_have_the_bits_of_the_model(
    form: str, is_residual: bool, after: str | None
) -> None:
    for rows, k, count in SHAPES:
        weight, bias = numbers(rows, k, seed=1, zeros=0.5), numbers(rows, seed=2)
        tiles = -(-count // TILE_TOKENS)
        x = guarded(tiles, k, TILE_TOKENS, fill=numbers(tiles, k, TILE_TOKENS, seed=3))[0]
        start = guarded(tiles, rows, TILE_TOKENS, fill=numbers(tiles, rows, TILE_TOKENS, seed=4))[0]
        found = []
        for isa in (ISA, MODEL):
            packed = PackedLinear.pack(weight, bias, form, isa, 48, 64, is_residual)
            y, check = guarded(tiles, rows, TILE_TOKENS)
            gemm(packed, x, y, start if is_residual else None, after=after)
            check()
            found.append(y)
        np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("form", ["s8_dense", "s8_block"])
def test_tiles_of_integers_have_the_bits_of_the_model(form: str) -> None:
    for rows, k, count in SHAPES:
        weight = np.random.default_rng(5).integers(-128, 128, (rows, k)).astype(np.int8)
        scale = np.abs(numbers(rows, seed=6)) + np.float32(1e-3)
        found = [
            linear(
                PackedLinear.pack(
                    weight, numbers(rows, seed=7), form, isa, 48, 64,
                    quantization=Quantization(scale, 0.05, 117),
                ),
                numbers(count, k, seed=8),
            )
            for isa in (ISA, MODEL)
        ]  # fmt: skip
        np.testing.assert_array_equal(found[0], found[1])


def test_halves_are_rounded_once_and_code_has_the_bits_of_the_table() -> None:
    """64 terms are summed in half precision; each factor and each sum errs by 2⁻¹¹ of itself."""
    for rows, k, count in SHAPES:
        weight, bias = numbers(rows, k, seed=1, zeros=0.6), numbers(rows, seed=2)
        x = numbers(count, k, seed=3)
        table, code = (
            linear(PackedLinear.pack(weight, bias, form, ISA, 48, 64), x)
            for form in ("f16_table", "f16_generated")
        )
        np.testing.assert_array_equal(code, table)
        size = reference.linear(np.abs(x), np.abs(weight))
        error = 68 * 2.0**-11 * size + (k + 1) * (EPSILON * np.abs(bias) + 2.0**-22)
        assert (np.abs(table - reference.linear(x, weight, bias)) <= error).all()


@pytest.mark.parametrize("head_size", [3, 32, 64])
def test_attention_by_tiles_is_that_of_the_model(head_size: int) -> None:
    """Its softmax is another instruction set's: weights beside a half may be rounded otherwise."""
    for queries, keys in ((1, 1), (2, 33), (3, 48)):
        q, k, v = (
            guarded(tiles, head_size, 16, fill=numbers(tiles, head_size, 16, seed=seed))[0]
            for seed, tiles in enumerate((queries, -(-keys // 16), -(-keys // 16)))
        )
        found = []
        for isa in (ISA, MODEL):
            out, check = guarded(*q.shape)
            attention(q, k, v, keys, out, isa, True)
            check()
            found.append(out)
        np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2.0**-7 * np.abs(v).max())


def test_every_thread_configures_its_own_registers() -> None:
    """A team shares what is small, lone threads take groups of more; the bits are one thread's."""
    one, three = (
        Engine(make_plan(**PLANS["minilm"]), threads, REASON, ISA, "dense", "bf16")
        for threads in (1, 3)
    )
    for batch in (1, 5):
        inputs = make_inputs(make_plan(**PLANS["minilm"]), mask_of("right", batch, 17, seed=7))
        expected = one.run(inputs)
        for name, value in three.run(inputs).items():
            np.testing.assert_array_equal(value, expected[name])


def test_the_peaks_are_rates() -> None:
    for precision in ("bf16", "int8"):
        assert _kernels.fma_peak(ISA, 2, 0.01, precision) > 0
