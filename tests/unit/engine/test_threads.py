"""Threads: they change no bit, share engines, and start anew in a forked process."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from support.plans import (
    ISAS,
    PLANS,
    assert_is_close,
    make_engine,
    make_inputs,
    make_plan,
    mask_of,
)
from support.scripts import run_script

from toolkit.engine import kernel_choice, packing, reference, threads
from toolkit.engine.schedule import Schedule

pytestmark = pytest.mark.slow


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks and groups, so that threads have something to share."""
    monkeypatch.setattr(packing, "KBLOCK", 32)
    monkeypatch.setattr(packing, "PANEL_ROWS", 16)
    monkeypatch.setattr(packing, "SPARSE_PANEL_ROWS", 32)
    monkeypatch.setattr(kernel_choice, "GROUP_TILES", 3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("batch", "length", "teams"), [(1, 100, True), (24, 40, False), (5, 33, None)]
)
@pytest.mark.parametrize("name", ["bert", "electra", "classifier"])
@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads(
    isa: str, name: str, batch: int, length: int, teams: bool | None
) -> None:
    plan = make_plan(**PLANS[name])
    inputs = make_inputs(plan, mask_of("holes", batch, length, seed=batch))
    alone = make_engine(1, isa, **PLANS[name]).run(inputs)
    assert_is_close(alone, reference.run(plan, inputs), inputs)
    for num_threads in (2, 3):
        schedule = Schedule(inputs["attention_mask"].astype(np.int32), num_threads, 3)
        assert teams is None or schedule.is_team == teams
        together = make_engine(num_threads, isa, **PLANS[name]).run(inputs)
        for output in alone:
            np.testing.assert_array_equal(together[output], alone[output])


def test_many_threads_share_engines() -> None:
    plans = [PLANS["bert"], PLANS["classifier"]]
    engines = [make_engine(2, **sizes) for sizes in plans]
    work = []
    for i in range(24):
        mask = mask_of("right", 1 + i % 5, 5 + 7 * (i % 4), seed=i)
        work.append((engines[i % 2], make_inputs(make_plan(**plans[i % 2]), mask, seed=i)))
    alone = [engine.run(inputs) for engine, inputs in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: item[0].run(item[1]), work * 3))
    for one, other in zip(alone * 3, together, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_calls_queue_for_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "affinity", lambda: 2)
    is_running, may_end = Event(), Event()
    ended: list[str] = []

    def hold() -> None:
        is_running.set()
        may_end.wait(60)
        ended.append("first")

    with ThreadPoolExecutor(2) as pool:
        pool.submit(threads.run_on_cores, 2, hold)
        is_running.wait(60)
        second = pool.submit(threads.run_on_cores, 1, lambda: ended.append("second"))
        with pytest.raises(TimeoutError):
            second.result(0.1)
        may_end.set()
        second.result(60)
    assert ended == ["first", "second"]
    assert threads.run_on_cores(3, lambda: "alone") == "alone"  # more than there is


SETUP = """
import os
from support.plans import make_engine, make_inputs, make_plan, mask_of
engine, plan = make_engine(2), make_plan()
few, many = (make_inputs(plan, mask_of("right", batch, 30, 1)) for batch in (1, 20))
"""


def test_a_forked_process_uses_the_engine() -> None:
    """The parent's threads do not survive a fork; a child of a child works too."""
    script = (
        SETUP
        + """
import multiprocessing
expected = engine.run(few)["hidden"], engine.run(many)["hidden"]

def check(depth):
    for inputs, hidden in zip((few, many), expected):
        assert (engine.run(inputs)["hidden"] == hidden).all()
    if depth:
        child = multiprocessing.get_context("fork").Process(target=check, args=(depth - 1,))
        child.start()
        child.join(60)
        assert child.exitcode == 0, child.exitcode

check(2)
check(0)
print("same")
"""
    )
    assert run_script(script) == "same\n"


@pytest.mark.parametrize("limit", ["1", "2"])
def test_fewer_threads_than_asked_for_change_no_bit(limit: str) -> None:
    script = (
        SETUP
        + """
import hashlib
engine = make_engine(3)
for inputs in (few, many):
    print(hashlib.sha256(engine.run(inputs)["hidden"].tobytes()).hexdigest())
"""
    )
    assert run_script(script, OMP_THREAD_LIMIT=limit) == run_script(script)
