"""What the machine can do at most, measured: figures come back whatever is asked for."""

import math

import pytest

from cython_kernels import _kernels


@pytest.mark.parametrize("isa", _kernels.available_isas())
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_peaks_are_rates(isa: str, num_threads: int) -> None:
    rates = [_kernels.fma_peak(isa, num_threads, 0.01)]
    for size in (_kernels.READ_BYTES, 37 * _kernels.READ_BYTES, 1 << 22):
        rates.append(_kernels.read_bandwidth(isa, num_threads, size, 0.01))
    assert all(rate > 0 and math.isfinite(rate) for rate in rates)


@pytest.mark.parametrize("isa", ["bf16_model", "amx_bf16_model"])
def test_the_peak_of_bfloat16_is_a_rate(isa: str) -> None:
    assert 0 < _kernels.fma_peak(isa, 2, 0.01, "bf16") < math.inf
    for precision in ("bf16", "fp16", "int4"):
        with pytest.raises(ValueError, match=f"isa 'generic' multiplies no {precision}"):
            _kernels.fma_peak("generic", 1, 0.01, precision)


def test_the_peak_of_halves_is_a_rate() -> None:
    assert 0 < _kernels.fma_peak("f16_model", 2, 0.01, "fp16") < math.inf


@pytest.mark.parametrize("isa", [*_kernels.available_isas(), *_kernels.model_isas()])
def test_the_peak_of_integers_is_a_rate(isa: str) -> None:
    assert 0 < _kernels.fma_peak(isa, 2, 0.01, "int8") < math.inf


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("sse9", 1, 512, 0.01), "isa 'sse9' is not supported"),
        (("generic", 0, 512, 0.01), "num_threads must be at least 1"),
        (("generic", 1, 512, 0.0), "seconds above 0"),
        (("generic", 1, 512, math.nan), "seconds above 0"),
        (("generic", 1, 0, 0.01), "size must be a multiple of 512; got 0"),
        (("generic", 1, 513, 0.01), "size must be a multiple of 512; got 513"),
    ],
)
def test_what_cannot_be_measured(arguments: tuple[str, int, int, float], sentence: str) -> None:
    isa, num_threads, size, seconds = arguments
    with pytest.raises(ValueError, match=sentence):
        _kernels.read_bandwidth(isa, num_threads, size, seconds)
    if "size" not in sentence:
        with pytest.raises(ValueError, match=sentence):
            _kernels.fma_peak(isa, num_threads, seconds)
