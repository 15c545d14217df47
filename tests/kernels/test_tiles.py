"""Token rows to tiles and back, on every ISA of this CPU."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cython_kernels._kernels import TILE_TOKENS, available_isas, from_tiles, to_tiles

with_isas = pytest.mark.parametrize("isa", available_isas())


@with_isas
@given(
    count=st.integers(1, 70),
    features=st.one_of(st.integers(1, 70), st.sampled_from([384, 768])),
    seed=st.integers(0, 99),
)
def test_from_tiles_inverts_to_tiles(isa: str, count: int, features: int, seed: int) -> None:
    # any bits, NaN with payloads and denormals among them, are only moved
    bits = np.random.default_rng(seed).integers(0, 2**32, (count, features), np.uint32)
    rows = bits.view(np.float32)
    tiles = to_tiles(rows, isa)
    assert tiles.shape == (-(-count // TILE_TOKENS), features, TILE_TOKENS)
    lanes = tiles.swapaxes(1, 2).reshape(-1, features)
    np.testing.assert_array_equal(lanes[:count].copy().view(np.uint32), bits)
    assert not lanes[count:].any()
    np.testing.assert_array_equal(from_tiles(tiles, count, isa).view(np.uint32), bits)


@with_isas
def test_no_tokens_are_no_tiles(isa: str) -> None:
    assert to_tiles(np.zeros((0, 5), np.float32), isa).shape == (0, 5, TILE_TOKENS)
