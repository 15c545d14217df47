"""Twice as many requests as the server can answer: some are refused, none lost or mixed up."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from support.load import embed_alone, measure
from support.serving import serving, slowly

TEXTS = [f"the {noun} was {word}" for noun in ("soup", "bread", "wine") for word in ("good", "bad")]
BATCH_S = 0.05


@pytest.mark.slow
def test_twice_the_capacity(exports: Callable[[str], Path]) -> None:
    limits = {"max_batch": 4, "max_texts": 4, "max_queue": 8}
    with serving(exports("embedding"), slowly(BATCH_S), **limits) as url:
        alone = asyncio.run(embed_alone(f"{url}/", TEXTS))
        rate = 2 * limits["max_batch"] / BATCH_S
        found = asyncio.run(measure(f"{url}/", TEXTS, alone, rate, seconds=1.5))
        assert found["sent"] == int(1.5 * rate)
        assert (found["lost"], found["wrong"]) == (0, 0), found
        assert found["refused"] > 0
        assert found["answered"] > 0
        again = asyncio.run(measure(f"{url}/", TEXTS, alone, rate / 8, seconds=0.5))
        assert again["answered"] == again["sent"], again
