"""Pack random weights and run them, for a while: `python fuzz_packing.py SECONDS [SEED]`.

Every weight has its seed; the one that fails is named. `make fuzz` runs this under the address and
undefined-behaviour sanitizers.
"""

import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_kernels import _kernels, reference
from cython_kernels._kernels import PackedLinear, gemm, linear
from toolkit.engine.plan import Quantization

Float32 = NDArray[np.float32]

# Bits that are easy to lose: -0, NaN, infinities, the smallest and the largest denormal.
SPECIAL = np.array([0x80000000, 0x7FC00000, 0x7F800000, 0xFF800000, 1, 0x007FFFFF], np.uint32).view(
    np.float32
)


FLOAT_FORMS = ("table", "dense", "generated")


def random_weight(rng: np.random.Generator) -> Float32:
    """Draw (N, K) of any sparsity, with empty rows and columns, in any memory order."""
    rows, k = (int(2 ** rng.uniform(0, 9.5)) for _ in range(2))
    weight = rng.standard_normal((rows, k)).astype(np.float32)
    weight[rng.random((rows, k)) < rng.choice([0.0, 0.3, 0.7, 0.9, 0.97, 1.0])] = 0.0
    weight[rng.random(rows) < rng.choice([0.0, 0.3])] = 0.0
    weight[:, rng.random(k) < rng.choice([0.0, 0.3])] = 0.0
    order = rng.integers(4)
    if order == 1:
        weight = np.asfortranarray(weight)
    elif order == 2:
        weight = np.repeat(weight, 3, axis=0)[::3]
    elif order == 3:
        weight = weight[::-1, ::-1].copy()[::-1, ::-1]
    return weight


def check(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = random_weight(rng)
    bias = rng.standard_normal(len(weight)).astype(np.float32)
    isa, form = str(rng.choice(_kernels.available_isas())), str(rng.choice(FLOAT_FORMS))
    sizes: dict[str, Any] = {
        "panel_rows": int(2 ** rng.uniform(0, 10)),
        "kblock": int(2 ** rng.uniform(0, 10)),
        "is_residual": bool(rng.integers(2)),
    }
    special = weight.copy(order="K")
    chosen = rng.random(weight.shape) < rng.choice([0.0, 0.1])
    special[chosen] = rng.choice(SPECIAL, int(chosen.sum()))
    try:
        packed = PackedLinear.pack(weight, bias, form, isa, **sizes)
        poisoned = PackedLinear.pack(special, bias, form, isa, **sizes)
    except ValueError:
        assert form == "generated", "only this form has an ISA and a limit of its own"
        return
    if form != "generated":
        np.testing.assert_array_equal(poisoned.unpack(), special)
    assert packed.density == np.count_nonzero(weight) / weight.size
    run(packed, weight, bias, rng)


def check_integers(seed: int) -> None:
    """Likewise of 8 bits, where integer scales give an integer that must be the right one."""
    rng = np.random.default_rng(seed)
    weight = (random_weight(rng) * 50).clip(-128, 127).astype(np.int8)
    isa = str(rng.choice([*_kernels.available_isas(), *_kernels.model_isas()]))
    form = str(rng.choice([form for form in _kernels.forms_of(isa) if form.startswith("s8")]))
    zero_point = int(rng.integers(256))
    ones = np.ones(len(weight), np.float32)
    packed = PackedLinear.pack(
        weight,
        0 * ones,
        form,
        isa,
        panel_rows=int(2 ** rng.uniform(0, 10)),
        kblock=4 * int(2 ** rng.uniform(0, 8)),
        quantization=Quantization(ones, 1.0, zero_point),
    )
    x = rng.integers(-300, 300, (int(rng.integers(1, 50)), weight.shape[1])).astype(np.float32)
    integers = np.clip(x, -zero_point, 255 - zero_point).astype(np.int64)
    found = linear(packed, x, int(rng.integers(1, 4)))
    np.testing.assert_array_equal(found, integers @ weight.astype(np.int64).T)
    if form != "s8_generated":
        np.testing.assert_array_equal(packed.unpack(), weight)


def run(packed: PackedLinear, weight: Float32, bias: Float32, rng: np.random.Generator) -> None:
    """Compare with the oracle; the bound is that of test_linear.py."""
    rows, k = weight.shape
    tiles = int(rng.integers(1, 4))
    x = rng.standard_normal((tiles * 16, k)).astype(np.float32)
    start: Any = bias
    if packed.is_residual:
        start = rng.standard_normal((tiles * 16, rows)).astype(np.float32)
        y, init = (_kernels.to_tiles(start, packed.isa) for _ in range(2))
        gemm(packed, _kernels.to_tiles(x, packed.isa), y, y if rng.integers(2) else init)
        result = _kernels.from_tiles(y, len(x), packed.isa)
    else:
        result = linear(packed, x, int(rng.integers(1, 4)))
    error = np.abs(result - (reference.linear(x, weight) + start))
    size = reference.linear(np.abs(x), np.abs(weight)) + np.abs(start)
    terms = np.count_nonzero(weight, axis=1).max() + 1
    assert (error <= terms * float(np.finfo(np.float32).eps) * size).all()


def main(seconds: float, seed: int) -> None:
    first, end = seed, time.monotonic() + seconds
    while seed == first or time.monotonic() < end:
        try:
            check(seed)
            check_integers(seed)
        except BaseException:
            print(f"failed: fuzz_packing.py 0 {seed}", file=sys.stderr)
            raise
        seed += 1
    print(f"packing: {seed - first} weights from seed {first} on, no failure")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 2**32)
