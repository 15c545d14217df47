"""Packed weights times tokens: every form, block size and start, on every ISA of this CPU."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.machine_code import HAS_OBJDUMP, Interpreter, fma_rounded_once, fma_rounded_twice
from support.memory import guarded

from cython_kernels import _kernels, reference
from cython_kernels._kernels import TILE_TOKENS, PackedLinear, aligned, gemm, linear

pytestmark = pytest.mark.slow

Float32 = NDArray[np.float32]

EPSILON = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).smallest_subnormal)

# Register tiles have 2, 4, 6 or 24 rows, generated code groups of 30, a bundle 4; BERT's own sizes.
SIZES = [1, 2, 3, 4, 5, 7, 23, 24, 25, 29, 30, 31, 59, 61, 97]
BERT_SIZES = [(768, 768), (3072, 768), (768, 3072), (384, 1536)]


def _forms() -> list[tuple[str, str]]:
    """Every (isa, form) that can be packed here."""
    cases = []
    for isa in [*_kernels.available_isas(), *_kernels.model_isas()]:
        for form in _kernels.FORMS:
            if ("16" in isa and "16" not in form) or form.startswith("s8"):
                continue  # the functions of avx512, or of generic; test_integers.py
            try:
                pack(np.ones((1, 1), np.float32), form, isa)
            except (ValueError, OSError):  # unknown to the ISA; executable memory is forbidden
                continue
            cases.append((isa, form))
    return cases


def pack(
    weight: Float32,
    form: str,
    isa: str,
    panel_rows: int = 192,
    kblock: int = 384,
    bias: Float32 | None = None,
    is_residual: bool = False,
) -> PackedLinear:
    if bias is None:
        bias = np.zeros(len(weight), np.float32)
    if form.startswith("bf16"):
        kblock += kblock % 2  # whole pairs
    return PackedLinear.pack(weight, bias, form, isa, panel_rows, kblock, is_residual)


def round_to_bf16(values: Float32) -> Float32:
    """Round to the nearest bfloat16, ties to even, as torch does."""
    exact = values.view(np.uint32).astype(np.int64)
    bits = (exact + 0x7FFF + ((exact >> 16) & 1)) >> 16 << 16
    return np.where(np.isnan(values), values, bits.astype(np.uint32).view(np.float32))


FORMS = _forms()
with_forms = pytest.mark.parametrize(("isa", "form"), FORMS)


@st.composite
def weights(draw: Callable[..., Any]) -> Float32:
    """(N, K) with a share of zeros, perhaps whole empty rows, or a single nonzero."""
    rows, k = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.standard_normal((rows, k)).astype(np.float32)
    weight[rng.random((rows, k)) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))] = 0.0
    if draw(st.booleans()):
        weight[rng.random(rows) < 0.5] = 0.0
    if draw(st.integers(0, 9)) == 0:
        weight[...] = 0.0
        weight[rng.integers(rows), rng.integers(k)] = -1.5
    return weight


blocks = st.fixed_dictionaries(
    {"panel_rows": st.sampled_from([1, 4, 7, 24, 200]), "kblock": st.sampled_from([1, 5, 32, 400])}
)


def tokens(count: int, features: int, seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal((count, features)).astype(np.float32)


def bound(weight: Float32, x: Float32, start: Float32, form: str = "dense") -> NDArray[np.float64]:
    """Largest error of `start + x weightᵀ`: (nnz + 1)·eps·(|x||weight|ᵀ + |start|).

    A sum of n rounded products and a start errs by at most (n + 1)·eps/2 relative to the sum of
    their absolute values, to first order; eps instead of eps/2 covers the rest. Products below the
    smallest denormal are lost one by one. bfloat16 rounds both factors of a product, each by at
    most 2⁻⁸ of it.

    Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    nnz = int(np.count_nonzero(weight, axis=1).max())
    size = reference.linear(np.abs(x), np.abs(weight)) + np.abs(start)
    error = (nnz + 1) * (EPSILON * size + TINY)
    if "16" in form:
        # in half precision 64 terms are summed in it, too, and what is small has an absolute error
        unit, terms, least = (2.0**-8, 0, 0.0) if "bf16" in form else (2.0**-11, 64, 2.0**-24)
        products = reference.linear(np.abs(x), np.abs(weight))
        error += (2 * unit + unit**2 + (terms + 1) * unit * (terms > 0)) * products
        error += (nnz + 1) * least * (2 + np.abs(x).max(initial=0) + np.abs(weight).max(initial=0))
    return error


@with_forms
@given(weight=weights(), sizes=blocks, count=st.integers(1, 70), seed=st.integers(0, 99))
def test_linear_is_close_to_the_oracle(
    isa: str, form: str, weight: Float32, sizes: dict[str, Any], count: int, seed: int
) -> None:
    x, bias = tokens(count, weight.shape[1], seed), tokens(1, len(weight), seed + 1)[0]
    packed = pack(weight, form, isa, bias=bias, **sizes)
    assert packed.isa == isa
    error = np.abs(linear(packed, x) - reference.linear(x, weight, bias))
    assert (error <= bound(weight, x, bias, form)).all()


@pytest.mark.parametrize(("rows", "k"), BERT_SIZES)
@with_forms
def test_linear_is_close_to_the_oracle_at_berts_sizes(
    isa: str, form: str, rows: int, k: int
) -> None:
    weight, x, bias = tokens(rows, k, 1), tokens(33, k, 2), tokens(1, rows, 3)[0]
    weight[np.random.default_rng(4).random(weight.shape) < 0.9] = 0.0
    error = np.abs(
        linear(pack(weight, form, isa, bias=bias), x) - reference.linear(x, weight, bias)
    )
    assert (error <= bound(weight, x, bias, form)).all()


@pytest.mark.parametrize("start", ["bias", "residual", "y"])
@with_forms
@given(weight=weights(), sizes=blocks, tiles=st.integers(1, 5))
def test_gemm_fills_its_rows_and_nothing_else(
    isa: str, form: str, start: str, weight: Float32, sizes: dict[str, Any], tiles: int
) -> None:
    rows, k = weight.shape
    bias = tokens(1, rows, 5)[0]
    packed = pack(weight, form, isa, bias=bias, is_residual=start != "bias", **sizes)
    x, check_x = guarded(
        tiles, k, TILE_TOKENS, fill=tokens(tiles * k, TILE_TOKENS, 6).reshape(tiles, k, -1)
    )
    residual = tokens(tiles * rows, TILE_TOKENS, 7).reshape(tiles, rows, TILE_TOKENS)
    init, _ = guarded(*residual.shape, fill=residual)
    y, check_y = guarded(*residual.shape, fill=residual if start == "y" else np.nan)
    gemm(packed, x, y, {"bias": None, "residual": init, "y": y}[start])
    check_x()
    check_y()
    added = np.broadcast_to(bias[:, None], residual.shape) if start == "bias" else residual
    flat = np.moveaxis(x, 1, 2), np.moveaxis(added, 1, 2)  # (tiles, lane, features)
    error = np.abs(np.moveaxis(y, 1, 2) - (reference.linear(flat[0], weight) + flat[1]))
    assert (error <= bound(weight, *flat, form)).all()


@with_forms
@given(weight=weights(), sizes=blocks, tiles=st.integers(1, 5))
def test_what_runs_after_the_last_block_runs_once_on_every_row(
    isa: str, form: str, weight: Float32, sizes: dict[str, Any], tiles: int
) -> None:
    packed = pack(weight, form, isa, bias=tokens(1, len(weight), 5)[0], **sizes)
    x = guarded(tiles, packed.k, TILE_TOKENS, fill=1.0)[0]
    x[...] = tokens(tiles * packed.k, TILE_TOKENS, 6).reshape(x.shape)
    expected, (y, check_y) = aligned(tiles * packed.rows * 16), guarded(tiles, packed.rows, 16)
    gemm(packed, x, expected.reshape(y.shape))
    _kernels.activation("gelu", expected, isa)
    gemm(packed, x, y, after="gelu")
    check_y()
    np.testing.assert_array_equal(y.ravel(), expected)


@with_forms
@given(weight=weights(), sizes=blocks)
def test_unpack_inverts_pack(isa: str, form: str, weight: Float32, sizes: dict[str, Any]) -> None:
    for given_weight in (weight, np.asfortranarray(weight), np.repeat(weight, 2, axis=1)[:, ::2]):
        packed = pack(given_weight, form, isa, **sizes)
        assert packed.density == np.count_nonzero(weight) / weight.size
        if not form.endswith("generated"):
            expected = weight
            if "16" in form:
                halves = weight.astype(np.float16).astype(np.float32)
                expected = round_to_bf16(weight) if "bf16" in form else halves
            np.testing.assert_array_equal(packed.unpack(), expected)


@pytest.mark.parametrize("isa", _kernels.available_isas())
@given(weight=weights(), sizes=blocks, count=st.integers(1, 40))
def test_all_forms_give_the_same_bits(
    isa: str, weight: Float32, sizes: dict[str, Any], count: int
) -> None:
    """They add the same products in the same order, so the choice of a form changes no result.

    Likewise those of half precision.
    """
    x, bias = tokens(count, weight.shape[1], 10), tokens(1, len(weight), 11)[0]
    here = [form for name, form in FORMS if name == isa]
    exact = [form for form in here if "16" not in form]
    for forms in (exact, [form for form in here if form.startswith("f16")]):
        results = [linear(pack(weight, form, isa, bias=bias, **sizes), x) for form in forms]
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


@with_forms
@given(weight=weights(), count=st.integers(1, 150))
def test_linear_does_not_depend_on_threads(
    isa: str, form: str, weight: Float32, count: int
) -> None:
    x, packed = tokens(count, weight.shape[1], 12), pack(weight, form, isa)
    alone = linear(packed, x, 1)
    for num_threads in (2, 3):
        np.testing.assert_array_equal(linear(packed, x, num_threads), alone)


@with_forms
@given(weight=weights(), sizes=blocks, seed=st.integers(0, 99))
def test_scaling_and_permuting_are_exact(
    isa: str, form: str, weight: Float32, sizes: dict[str, Any], seed: int
) -> None:
    x, bias = tokens(20, weight.shape[1], 13), tokens(1, len(weight), 14)[0]
    y = linear(pack(weight, form, isa, bias=bias, **sizes), x)
    doubled = pack(2 * weight, form, isa, bias=2 * bias, **sizes)
    np.testing.assert_array_equal(linear(doubled, x), 2 * y)
    order = np.random.default_rng(seed).permutation(len(weight))
    permuted = pack(weight[order], form, isa, bias=bias[order], **sizes)
    np.testing.assert_array_equal(linear(permuted, x), y[:, order])
    shuffled = np.random.default_rng(seed).permutation(len(x))
    np.testing.assert_array_equal(
        linear(pack(weight, form, isa, bias=bias, **sizes), x[shuffled]), y[shuffled]
    )


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@with_forms
@given(weight=weights(), sizes=blocks, seed=st.integers(0, 99))
def test_what_is_not_finite_stays_in_its_lane(
    isa: str, form: str, poison: float, weight: Float32, sizes: dict[str, Any], seed: int
) -> None:
    """It reaches every row with a nonzero weight for it. A row may besides read it times zero."""
    rng = np.random.default_rng(seed)
    x, packed = tokens(37, weight.shape[1], 15), pack(weight, form, isa, **sizes)
    clean = linear(packed, x)
    lane, feature = rng.integers(len(x)), rng.integers(weight.shape[1])
    x[lane, feature] = poison
    y = linear(packed, x)
    others = np.arange(len(x)) != lane
    np.testing.assert_array_equal(y[others], clean[others])
    with np.errstate(invalid="ignore"):
        times_weight = poison * weight[:, feature]
    expected = np.where(weight[:, feature] != 0.0, times_weight, clean[lane])
    may_be_zero_times = np.isnan(y[lane])
    assert (may_be_zero_times | (y[lane] == expected)).all()
    assert np.isnan(y[lane, np.isnan(expected)]).all()


@with_forms
def test_denormals_and_poisoned_weights_are_ordinary_nonzeros(isa: str, form: str) -> None:
    if "16" in form:
        pytest.skip("these numbers are none in 16 bits")
    weight = np.zeros((5, 6), np.float32)
    weight[0, 1], weight[1, 2], weight[2, 3], weight[3, 4] = TINY, np.nan, np.inf, 1e-30
    packed, x = pack(weight, form, isa), np.full((3, 6), 2.0, np.float32)
    assert packed.density == 4 / 30
    y = linear(packed, x)
    np.testing.assert_array_equal(y[0, [0, 2]], [2 * TINY, np.inf])
    assert np.isnan(y[:, 1]).all()
    np.testing.assert_array_equal(
        linear(packed, np.full((1, 6), 1e-12, np.float32))[0, 3],
        np.float32(1e-12) * np.float32(1e-30),
    )


# ---- Code in half precision, which few CPUs run: read and interpreted -------------------------

CAN_READ_F16 = pytest.mark.skipif(
    not HAS_OBJDUMP or ("avx512", "generated") not in FORMS,
    reason="needs objdump (Debian: binutils), and AVX-512 to generate code",
)


def run_f16(
    packed: PackedLinear, tiles: int, start: str, fma: Callable[..., Any] | None = None
) -> tuple[Float32, Float32, Float32, Interpreter | None]:
    """Run random tiles; return y, x and what y starts from, as token rows, and the interpreter."""
    rows, k = packed.rows, packed.k
    interpreter = None if fma is None else Interpreter(packed, fma)
    x = tokens(tiles * k, TILE_TOKENS, 6).reshape(tiles, k, -1)
    residual = tokens(tiles * rows, TILE_TOKENS, 7).reshape(tiles, rows, -1)
    init, _ = guarded(*residual.shape, fill=residual)
    y, check = guarded(*residual.shape, fill=residual if start == "y" else np.nan)
    gemm(packed, guarded(*x.shape, fill=x)[0], y, {"bias": None, "residual": init, "y": y}[start])
    check()
    if interpreter and interpreter.error:
        raise interpreter.error
    if start == "bias":
        residual = np.broadcast_to(packed.bias[:, None], residual.shape).astype(np.float32)
    rows_of = [np.moveaxis(a, 1, 2).reshape(tiles * TILE_TOKENS, -1) for a in (y, x, residual)]
    return rows_of[0], rows_of[1], rows_of[2], interpreter


def check_f16(weight: Float32, sizes: dict[str, Any], tiles: int, start: str) -> None:
    """The code adds what the table form adds, in its order: the same bits where it is rounded so.

    Rounded as the instruction rounds, it keeps the bound of half precision.
    """
    bias, is_residual = tokens(1, len(weight), 5)[0], start != "bias"

    def packed(form: str, isa: str) -> PackedLinear:
        return pack(weight, form, isa, bias=bias, is_residual=is_residual, **sizes)

    expected = run_f16(packed("f16_table", "f16_model"), tiles, start)[0]
    found = run_f16(packed("f16_generated", "f16_code"), tiles, start, fma_rounded_twice)[0]
    np.testing.assert_array_equal(found, expected)
    found, x, added, _ = run_f16(
        packed("f16_generated", "f16_code"), tiles, start, fma_rounded_once
    )
    error = np.abs(found - (reference.linear(x, weight) + added))
    assert (error <= bound(weight, x, added, "f16_generated")).all()


@CAN_READ_F16
@pytest.mark.parametrize("start", ["bias", "residual", "y"])
@given(
    weight=weights(),
    panel_rows=st.sampled_from([13, 48, 200]),  # each block is a run of objdump
    kblock=st.sampled_from([40, 400]),
    tiles=st.integers(1, 5),
)
def test_code_in_half_precision_computes_what_the_table_does(
    start: str, weight: Float32, panel_rows: int, kblock: int, tiles: int
) -> None:
    check_f16(weight, {"panel_rows": panel_rows, "kblock": kblock}, tiles, start)


@CAN_READ_F16
@pytest.mark.parametrize("start", ["bias", "residual", "y"])
@pytest.mark.parametrize(
    ("rows", "k", "sparsity", "tiles"),
    [(31, 512, 0.0, 3), (64, 512, 0.5, 2), (5, 512, 1.0, 1), (192, 1000, 0.9, 1), (33, 64, 0.0, 4)],
)
def test_code_in_half_precision_of_long_rows(
    start: str, rows: int, k: int, sparsity: float, tiles: int
) -> None:
    """Both pointers into x, several sums in half precision per row, k-blocks; one empty row."""
    weight = tokens(rows, k, 1)
    weight[np.random.default_rng(2).random(weight.shape) < sparsity] = 0.0
    weight[rows // 2] = 0.0
    check_f16(weight, {"panel_rows": 40, "kblock": 512}, tiles, start)


@CAN_READ_F16
@pytest.mark.parametrize("start", ["bias", "residual"])
def test_code_in_half_precision_prefetches_what_runs_next(start: str) -> None:
    rows, k, tiles = 40, 300, 5
    weight = tokens(rows, k, 1)
    packed = pack(weight, "f16_generated", "f16_code", 40, 512, is_residual=start != "bias")
    interpreter = run_f16(packed, tiles, start, fma_rounded_once)[3]
    assert interpreter is not None
    assert len(interpreter.calls) == 3  # pairs of tiles
    for call, prefetched in zip(interpreter.calls, interpreter.prefetched, strict=True):
        block, x, y, init, y_other, init_other = call[4:10]
        arrays = [(block, -(-weight.size // 64)), (x, k), (y, rows), (y_other, rows)]
        if start == "residual":
            arrays += [(init, rows), (init_other, rows)]
        expected = [at + 64 * line for at, lines in arrays for line in range(lines)]
        assert sorted(prefetched) == sorted(expected)
    first, second, third = interpreter.calls
    assert first[6] == second[1], "y of the next pair"
    assert first[8] == second[10]
    assert third[10] == third[1], "the last of an odd number is a pair with itself"


def test_the_code_of_other_forms_is_not_interpreted() -> None:
    packed = pack(np.ones((4, 4), np.float32), "table", "generic")
    with pytest.raises(ValueError, match="only generated forms have code; got 'table'"):
        _kernels.interpret_code(packed, lambda _, __: 0)


@pytest.mark.skipif(("avx512", "generated") not in FORMS, reason="no code is generated here")
def test_generated_code_is_given_back_from_a_cycle() -> None:
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    weight = np.ones((4, 4), np.float32)
    before = mappings()
    for _ in range(50):
        memory = _kernels.CodeMemory()
        cycle: list[Any] = [
            PackedLinear.pack(weight, weight[0], "generated", "avx512", 4, 4, memory=memory)
        ]
        cycle.append(cycle)
    del memory, cycle
    gc.collect()
    assert mappings() < before + 25


@pytest.mark.parametrize("isa", _kernels.available_isas())
def test_sizes_out_of_range_are_refused(isa: str) -> None:
    weight, bias = np.ones((4, 4), np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"form must be one of .*'csr'"):
        PackedLinear.pack(weight, bias, "csr", isa, 4, 4)
    for panel_rows, kblock in ((0, 4), (4, 0), (65537, 4), (4, _kernels.MAX_K + 1), (-1, 4)):
        with pytest.raises(ValueError, match=r"kblock must be in .* and panel_rows in 1…65536"):
            PackedLinear.pack(weight, bias, "table", isa, panel_rows, kblock)
    claims = [(weight, bias[:3]), (weight[:0], bias[:0]), (weight[:, :0], bias)]
    # as a file may claim: no size is formed of these
    one = np.ones((1, 1), np.float32)
    claims += [(np.broadcast_to(one, (4, 2**40)), bias), (np.broadcast_to(one, (2**33, 1)), bias)]
    claims += [(np.broadcast_to(one, (2**32 + 4, 4)), bias)]  # 4 × 4, were it cut to 32 bits
    for bad_weight, bad_bias in claims:
        with pytest.raises(ValueError, match="must agree"):
            PackedLinear.pack(bad_weight, bad_bias, "table", isa, 4, 4)
    packed = PackedLinear.pack(weight, bias, "table", isa, 4, 4)
    with pytest.raises(ValueError, match=r"x must be \(M, 4\); got 2×5"):
        linear(packed, np.ones((2, 5), np.float32))
    with pytest.raises(ValueError, match="x must be"):
        gemm(packed, guarded(1, 5, 16)[0], guarded(1, 4, 16)[0])
    assert linear(packed, np.ones((0, 4), np.float32)).shape == (0, 4)


@given(weight=weights(), kblock=st.sampled_from([1, 5, 32, 400]))
def test_nonzeros_are_counted_in_any_layout(weight: Float32, kblock: int) -> None:
    expected = [
        np.count_nonzero(weight[:, k : k + kblock], axis=1)
        for k in range(0, weight.shape[1], kblock)
    ]
    moved = np.empty(weight.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(weight.shape)
    moved[...] = weight
    for same in (weight, np.asfortranarray(weight), np.repeat(weight, 2, axis=1)[:, ::2], moved):
        np.testing.assert_array_equal(_kernels.count_nonzeros(same, kblock), expected)
    with pytest.raises(ValueError, match="kblock must be at least 1"):
        _kernels.count_nonzeros(weight, 0)


def test_an_isa_that_this_cpu_lacks_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"isa 'sve' is not supported on this CPU \(available: .*generic\)"
    ):
        pack(np.ones((1, 1), np.float32), "table", "sve")
