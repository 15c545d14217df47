"""Texts in, each its own answer out, whatever else goes on: in real event loops and threads."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from itertools import chain
from typing import Any

import numpy as np
import pytest

from toolkit.serving.batcher import Batcher, OverloadedError
from toolkit.serving.model import Outputs
from toolkit.tasks.features import Feature


def feature(number: int, tokens: int = 1) -> Feature:
    return {"input_ids": [number] * tokens}


class Engine:
    """Answers a text with its first id, refuses negative ones, and keeps what it ran.

    Attributes:
        batches: The ids of each batch.
        is_open: Batches wait until it is set.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_open = threading.Event()
        self.is_open.set()

    def run(self, features: list[Feature]) -> list[Outputs]:
        ids = [int(feature["input_ids"][0]) for feature in features]
        self.batches.append(ids)
        assert self.is_open.wait(60)
        if min(ids) < 0:
            raise ValueError("a negative id")
        return [{"id": np.array(number)} for number in ids]


def run(engine: Engine, work: Any, **limits: Any) -> Any:
    """Run `work(batcher)`, a coroutine function, and close the batcher."""
    values = {"max_batch": 4, "max_wait_s": 0.0, "max_tokens": 100, "max_queue": 1000} | limits

    async def main() -> Any:
        batcher = Batcher(engine.run, **values)
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.close()
            assert not batcher.is_alive

    return asyncio.run(main())


async def ids_of(work: Coroutine[Any, Any, list[Any]]) -> list[int]:
    return [int(answer.outputs["id"]) for answer in await work]


def test_many_requests_get_their_own_answers_in_order() -> None:
    engine = Engine()

    async def work(batcher: Batcher) -> list[list[int]]:
        requests = [[10 * i + j for j in range(1 + i % 7)] for i in range(60)]
        calls = [ids_of(batcher.infer([feature(n) for n in numbers])) for numbers in requests]
        assert await asyncio.gather(*calls) == requests
        return requests

    requests = run(engine, work)
    assert sorted(n for batch in engine.batches for n in batch) == sorted(chain(*requests))
    assert max(map(len, engine.batches)) == 4


def test_a_batch_waits_for_others_but_not_longer_than_told() -> None:
    engine = Engine()

    async def work(batcher: Batcher) -> float:
        calls = [asyncio.create_task(batcher.infer([feature(1)]))]
        await asyncio.sleep(0.05)
        calls += [asyncio.create_task(batcher.infer([feature(n)])) for n in (2, 3, 4)]
        await asyncio.gather(*calls)
        began = time.monotonic()
        await batcher.infer([feature(5)])
        return time.monotonic() - began

    took = run(engine, work, max_wait_s=0.4)
    assert engine.batches == [[1, 2, 3, 4], [5]]  # four are a full batch: no more waiting
    assert 0.35 < took < 10


def test_a_batch_ends_before_too_many_tokens_and_one_long_text_runs_alone() -> None:
    engine = Engine()
    features = [feature(1, 40), feature(2, 50), feature(3, 30), feature(4, 300), feature(5)]
    run(engine, lambda batcher: batcher.infer(features))
    assert engine.batches == [[1, 2], [3], [4], [5]]


def test_a_full_queue_refuses_a_whole_request_and_loses_nothing() -> None:
    engine = Engine()

    async def work(batcher: Batcher) -> None:
        engine.is_open.clear()
        first = asyncio.create_task(batcher.infer([feature(0)]))
        while not engine.batches:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(batcher.infer([feature(n) for n in (1, 2, 3)]))
        await asyncio.sleep(0)
        assert batcher.size == 3
        with pytest.raises(OverloadedError):
            await batcher.infer([feature(n) for n in (4, 5)])
        third = asyncio.create_task(batcher.infer([feature(6)]))
        await asyncio.sleep(0)
        engine.is_open.set()
        assert [len(await call) for call in (first, second, third)] == [1, 3, 1]

    run(engine, work, max_queue=4)
    assert engine.batches == [[0], [1, 2, 3, 6]]


def test_what_nobody_waits_for_is_not_computed() -> None:
    engine = Engine()

    async def work(batcher: Batcher) -> None:
        engine.is_open.clear()
        running = asyncio.create_task(batcher.infer([feature(0)]))
        while not engine.batches:
            await asyncio.sleep(0.001)
        left = asyncio.create_task(batcher.infer([feature(1), feature(2)]))
        kept = asyncio.create_task(batcher.infer([feature(3)]))
        await asyncio.sleep(0)
        left.cancel()
        running.cancel()  # too late for the engine, but not for who waits
        await asyncio.wait({left, running})
        assert left.cancelled()
        assert running.cancelled()
        assert batcher.size == 1
        engine.is_open.set()
        assert await ids_of(_await(kept)) == [3]

    run(engine, work)
    assert engine.batches == [[0], [3]]


async def _await(task: "asyncio.Task[list[Any]]") -> list[Any]:
    return await task


def test_a_text_that_fails_fails_alone() -> None:
    engine = Engine()

    async def work(batcher: Batcher) -> None:
        engine.is_open.clear()
        calls = [batcher.infer([feature(0)]), batcher.infer([feature(1), feature(-2)])]
        tasks = [asyncio.create_task(call) for call in (*calls, batcher.infer([feature(3)]))]
        await asyncio.sleep(0)
        engine.is_open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(one, ValueError) for one in found] == [False, True, False]
        assert await ids_of(batcher.infer([feature(7)])) == [7]

    run(engine, work)


def test_closing_answers_what_waits() -> None:
    engine = Engine()

    async def main() -> list[list[int]]:
        batcher = Batcher(engine.run, 2, 10.0, 100, 100)  # it would wait ten seconds for a second
        batcher.start()
        calls = [asyncio.create_task(ids_of(batcher.infer([feature(n)]))) for n in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        await batcher.close()
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [[1], [2], [3], [4]]
