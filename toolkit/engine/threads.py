"""Who may run: calls queue for the CPUs, and a forked child starts threads of its own."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from toolkit.environment import affinity

T = TypeVar("T")


def run_on_cores(num_threads: int, work: Callable[[], T]) -> T:
    """Run `work`, which starts `num_threads` threads, as soon as so many CPUs are free."""
    with _CORES.taken(num_threads):
        if _FORKED:
            # libgomp's idle threads did not survive the fork, and the forking thread would
            # wait for them for ever; a thread made after it starts a pool of its own
            return _fresh_thread().submit(work).result()
        return work()


class _Cores:
    """Counts the threads that engine calls of this process run on: at most the CPUs it has.

    Several engines and calling threads then queue instead of oversubscribing the CPUs.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._busy = 0

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        with self._condition:
            # a call that wants more than there is runs when it is alone
            self._condition.wait_for(lambda: self._busy == 0 or self._busy + count <= affinity())
            self._busy += count
        try:
            yield
        finally:
            with self._condition:
                self._busy -= count
                self._condition.notify_all()


_CORES = _Cores()
_FORKED = False
_POOL: ThreadPoolExecutor | None = None


def _fresh_thread() -> ThreadPoolExecutor:
    global _POOL
    if _POOL is None:
        _POOL = ThreadPoolExecutor(1, "engine")
    return _POOL


def _after_fork() -> None:
    global _CORES, _FORKED, _POOL
    _CORES, _FORKED, _POOL = _Cores(), True, None


os.register_at_fork(after_in_child=_after_fork)
