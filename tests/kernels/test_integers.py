"""Weights of 8 bits times tokens of 8 bits: every form and size on every ISA, exact."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.memory import guarded

from cython_kernels import _kernels
from cython_kernels._kernels import TILE_TOKENS, PackedLinear, gemm, linear
from toolkit.engine.plan import Quantization

pytestmark = pytest.mark.slow

Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]

EPSILON = float(np.finfo(np.float32).eps)
SIZES = [1, 3, 4, 5, 24, 29, 31, 61, 66, 97]
ALL_ISAS = [*_kernels.available_isas(), *_kernels.model_isas()]


def _forms() -> list[tuple[str, str]]:
    """Every (isa, form) that can be packed here."""
    cases = []
    for isa in ALL_ISAS:
        for form in _kernels.forms_of(isa):
            if not form.startswith("s8"):
                continue
            try:
                pack(np.ones((1, 1), np.int8), form, isa, static(1))
            except OSError:  # executable memory is forbidden
                continue
            cases.append((isa, form))
    return cases


def static(rows: int, x_scale: float | None = 0.05, zero_point: int = 117) -> Quantization:
    scale = np.random.default_rng(rows).random(rows, np.float32) * 0.01 + 0.001
    return Quantization(scale.astype(np.float32), x_scale, zero_point)


def pack(
    weight: Int8,
    form: str,
    isa: str,
    quantization: Quantization,
    panel_rows: int = 192,
    kblock: int = 768,
    bias: Float32 | None = None,
    is_residual: bool = False,
) -> PackedLinear:
    if bias is None:
        bias = np.zeros(len(weight), np.float32)
    return PackedLinear.pack(
        weight, bias, form, isa, panel_rows, kblock, is_residual, quantization=quantization
    )


FORMS = _forms()
with_forms = pytest.mark.parametrize(("isa", "form"), FORMS)


@st.composite
def weights(draw: Callable[..., Any]) -> Int8:
    """(N, K) with a share of zeros or of empty quads, and with what looks like −0.0 as a float."""
    rows, k = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.integers(-128, 128, (rows, k)).astype(np.int8)
    share = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    if draw(st.booleans()):
        weight[rng.random((rows, k)) < share] = 0
    else:
        empty = rng.random((rows, -(-k // 4))) < share
        weight[np.repeat(empty, 4, axis=1)[:, :k]] = 0
    for first in range(0, k - 3, 12):
        weight[rng.integers(rows), first : first + 4] = 0, 0, 0, -128
    return weight


blocks = st.fixed_dictionaries(
    {"panel_rows": st.sampled_from([1, 4, 7, 24, 200]), "kblock": st.sampled_from([4, 32, 400])}
)
scales = st.sampled_from([0.05, 0.4, None])


def tokens(count: int, features: int, seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal((count, features)).astype(np.float32)


def expected(
    x: Float32, weight: Int8, quantization: Quantization, kblock: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x Wᵀ (M, N) with x rounded as `Quantization` says, and the size of what was added."""
    total = np.zeros((len(x), len(weight)))
    size = np.zeros_like(total)
    for first in range(0, x.shape[1], kblock):
        part, columns = x[:, first : first + kblock], weight[:, first : first + kblock]
        if quantization.x_scale is None:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = (high - low) / np.float32(255)
            scale[scale == 0] = 1
            zero = np.rint(np.clip(-low / scale, 0, 255))
        else:
            scale = np.full(len(x), quantization.x_scale, np.float32)
            zero = np.full(len(x), quantization.x_zero_point, np.float32)
        inverse = np.float32(1) / scale
        integers = np.rint(np.clip(part * inverse[:, None], -zero[:, None], 255 - zero[:, None]))
        product = integers.astype(np.int64) @ columns.astype(np.int64).T
        product = product * scale[:, None].astype(np.float64) * quantization.scale
        total, size = total + product, size + np.abs(product)
    return total, size


@with_forms
@given(weight=weights(), sizes=blocks, count=st.integers(1, 70), x_scale=scales)
def test_linear_is_close_to_the_oracle(
    isa: str, form: str, weight: Int8, sizes: dict[str, Any], count: int, x_scale: float | None
) -> None:
    """The integers are exact: only the conversion, two products and the sums of k-blocks round."""
    x, bias = tokens(count, weight.shape[1], count), tokens(1, len(weight), 1)[0]
    x[0] = 0.0
    quantization = static(len(weight), x_scale)
    packed = pack(weight, form, isa, quantization, bias=bias, **sizes)
    product, size = expected(x, weight, quantization, sizes["kblock"])
    steps = 4 + -(-weight.shape[1] // sizes["kblock"])
    error = np.abs(linear(packed, x) - (product + bias))
    assert (error <= steps * EPSILON * (size + np.abs(bias))).all()


@with_forms
@given(weight=weights(), sizes=blocks, zero_point=st.sampled_from([0, 1, 128, 255]))
def test_integers_are_exact(
    isa: str, form: str, weight: Int8, sizes: dict[str, Any], zero_point: int
) -> None:
    """With all scales 1 the result is an integer, and the right one."""
    rng = np.random.default_rng(3)
    x = rng.integers(-300, 300, (37, weight.shape[1])).astype(np.float32)
    quantization = Quantization(np.ones(len(weight), np.float32), 1.0, zero_point)
    found = linear(pack(weight, form, isa, quantization, **sizes), x)
    integers = np.clip(x, -zero_point, 255 - zero_point).astype(np.int64)
    np.testing.assert_array_equal(found, integers @ weight.astype(np.int64).T)


@pytest.mark.parametrize("x_scale", [0.05, None])
@with_forms
@given(weight=weights(), sizes=blocks)
def test_factors_multiply_features_before_they_are_rounded(
    isa: str, form: str, x_scale: float | None, weight: Int8, sizes: dict[str, Any]
) -> None:
    k = weight.shape[1]
    x, factor = tokens(19, k, 1), tokens(1, k, 2)[0]
    quantization = static(len(weight), x_scale)
    multiplied = linear(pack(weight, form, isa, quantization, **sizes), x * factor)
    packed = pack(weight, form, isa, replace(quantization, x_factor=factor), **sizes)
    np.testing.assert_array_equal(linear(packed, x), multiplied)


@with_forms
def test_nothing_saturates(isa: str, form: str) -> None:
    """As sums of 16 bits would: every product is the largest there is."""
    x = np.full((17, 768), 255.0, np.float32)
    for number in (-128, 127):
        weight = np.full((33, 768), number, np.int8)
        quantization = Quantization(np.ones(33, np.float32), 1.0, 0)
        found = linear(pack(weight, form, isa, quantization), x)
        np.testing.assert_array_equal(found, np.full((17, 33), np.float32(255 * number * 768)))


@with_forms
def test_halves_are_rounded_to_even(isa: str, form: str) -> None:
    x = np.arange(-4, 4, 0.5, dtype=np.float32)[:, None]
    one = np.ones((1, 1), np.int8)
    for zero_point in (100, 101):
        quantization = Quantization(np.ones(1, np.float32), 1.0, zero_point)
        found = linear(pack(one, form, isa, quantization), x)
        np.testing.assert_array_equal(found, np.rint(x))


@pytest.mark.parametrize("start", ["bias", "residual", "y"])
@with_forms
@given(weight=weights(), sizes=blocks, tiles=st.integers(1, 5), x_scale=scales)
def test_gemm_fills_its_rows_and_nothing_else(
    isa: str,
    form: str,
    start: str,
    weight: Int8,
    sizes: dict[str, Any],
    tiles: int,
    x_scale: float | None,
) -> None:
    rows, k = weight.shape
    bias, quantization = tokens(1, rows, 5)[0], static(rows, x_scale)
    packed = pack(weight, form, isa, quantization, bias=bias, is_residual=start != "bias", **sizes)
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
    rows_of_x = np.ascontiguousarray(np.moveaxis(x, 1, 2)).reshape(-1, k)
    product, size = expected(rows_of_x, weight, quantization, sizes["kblock"])
    start_rows = np.moveaxis(added, 1, 2).reshape(-1, rows)
    error = np.abs(np.moveaxis(y, 1, 2).reshape(-1, rows) - (product + start_rows))
    steps = 4 + -(-k // sizes["kblock"])
    assert (error <= steps * EPSILON * (size + np.abs(start_rows))).all()


@with_forms
@given(weight=weights(), sizes=blocks, tiles=st.integers(1, 5))
def test_what_runs_after_the_last_block_runs_once_on_every_row(
    isa: str, form: str, weight: Int8, sizes: dict[str, Any], tiles: int
) -> None:
    rows, k = weight.shape
    packed = pack(weight, form, isa, static(rows), bias=tokens(1, rows, 5)[0], **sizes)
    fill = tokens(tiles * k, TILE_TOKENS, 6).reshape(tiles, k, -1)
    x, expected = guarded(*fill.shape, fill=fill)[0], guarded(tiles, rows, TILE_TOKENS)[0]
    y, check_y = guarded(*expected.shape)
    gemm(packed, x, expected)
    _kernels.activation("gelu", expected.ravel(), isa)
    gemm(packed, x, y, after="gelu")
    check_y()
    np.testing.assert_array_equal(y, expected)


@with_forms
@given(weight=weights(), sizes=blocks)
def test_unpack_inverts_pack(isa: str, form: str, weight: Int8, sizes: dict[str, Any]) -> None:
    for given_weight in (weight, np.asfortranarray(weight), np.repeat(weight, 2, axis=1)[:, ::2]):
        packed = pack(given_weight, form, isa, static(len(weight)), **sizes)
        assert packed.density == np.count_nonzero(weight) / weight.size
        if form != "s8_generated":
            np.testing.assert_array_equal(packed.unpack(), weight)


GENERATED = pytest.mark.parametrize("isa", [isa for isa, form in FORMS if form == "s8_generated"])


@GENERATED
@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_code_and_table_read_the_same_numbers(isa: str, density: float, is_residual: bool) -> None:
    """Once in memory; also where more of a group's numbers than its pointers reach."""
    rows, k = 205, 1021
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (rows, k)).astype(np.int8)
    weight[np.repeat(rng.random((rows, 256)) >= density, 4, axis=1)[:, :k]] = 0
    bias = np.zeros(rows, np.float32)
    code = PackedLinear.pack(
        *(weight, bias, "s8_generated", isa, 192, 1024, is_residual),
        quantization=static(rows),
        with_table=True,
    )
    alone = pack(weight, "s8_table", isa, static(rows), 192, 1024, bias, is_residual)
    table = code.table
    assert table is not None
    assert table.nbytes == alone.nbytes
    assert table.own_bytes == alone.nbytes - alone.values.nbytes
    assert code.own_bytes == code.nbytes > alone.values.nbytes
    np.testing.assert_array_equal(table.unpack(), weight)
    x = tokens(3 * k, TILE_TOKENS, 1).reshape(3, k, -1)
    init = tokens(3 * rows, TILE_TOKENS, 2).reshape(3, rows, -1) if is_residual else None
    x, found = guarded(*x.shape, fill=x)[0], []
    if init is not None:
        init = guarded(*init.shape, fill=init)[0]
    for packed in (alone, table, code):
        y, check_y = guarded(3, rows, TILE_TOKENS)
        gemm(packed, x, y, init)
        check_y()
        found.append(y)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.parametrize("isa", ALL_ISAS)
@given(weight=weights(), sizes=blocks, count=st.integers(1, 40), x_scale=scales)
def test_all_forms_give_the_same_bits(
    isa: str, weight: Int8, sizes: dict[str, Any], count: int, x_scale: float | None
) -> None:
    x, bias = tokens(count, weight.shape[1], 10), tokens(1, len(weight), 11)[0]
    quantization = static(len(weight), x_scale)
    forms = [form for name, form in FORMS if name == isa]
    first, *others = [
        linear(pack(weight, form, isa, quantization, bias=bias, **sizes), x) for form in forms
    ]
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("x_scale", [0.05, None])
@with_forms
def test_what_is_not_finite_stays_in_its_lane(
    isa: str, form: str, poison: float, x_scale: float | None
) -> None:
    weight = np.random.default_rng(1).integers(-127, 128, (31, 50)).astype(np.int8)
    x, packed = tokens(37, 50, 15), pack(weight, form, isa, static(31, x_scale))
    clean = linear(packed, x)
    x[11, 7] = poison
    others = np.arange(len(x)) != 11
    np.testing.assert_array_equal(linear(packed, x)[others], clean[others])


@pytest.mark.parametrize("isa", ALL_ISAS)
def test_what_does_not_fit_is_refused(isa: str) -> None:
    weight, good = np.ones((4, 8), np.int8), static(4)
    zeros = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="need a quantization"):
        PackedLinear.pack(weight, zeros, "s8_dense", isa, 4, 8)
    with pytest.raises(ValueError, match="need a quantization"):
        pack(weight, "dense", isa, good)
    with pytest.raises(ValueError, match="must be int8; got float32"):
        PackedLinear.pack(
            weight.astype(np.float32), zeros, "s8_dense", isa, 4, 8, quantization=good
        )
    with pytest.raises(ValueError, match="kblock must be whole"):
        pack(weight, "s8_dense", isa, good, kblock=6)
    for scale in (zeros, np.full(4, np.nan, np.float32), np.ones(3, np.float32)):
        with pytest.raises(ValueError, match=r"scale must be \(4,\), positive"):
            pack(weight, "s8_dense", isa, Quantization(scale, 0.1, 0))
    for x_scale, zero_point in (
        (0.0, 0),
        (-1.0, 0),
        (np.nan, 0),
        (np.inf, 0),
        (1e-46, 0),
        (0.1, 256),
    ):
        with pytest.raises(ValueError, match="x_scale must be positive"):
            pack(weight, "s8_dense", isa, Quantization(good.scale, x_scale, zero_point))
