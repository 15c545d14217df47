"""Dynamic batching: texts that arrive about the same time go through the engine together.

One event loop, one engine, one thread that the engine runs on. The engine computes no padding, so
texts go in the order of their arrival, whatever their lengths.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from toolkit.serving.model import Outputs
from toolkit.tasks.features import Feature


class OverloadedError(Exception):
    """The queue has no room for a request's texts."""


class Answer(NamedTuple):
    """What the engine made of one text.

    Attributes:
        outputs: By name, see `toolkit.serving.model.run_batch`.
        queue_s: Seconds that it waited.
        inference_s: Seconds that its batch took.
    """

    outputs: Outputs
    queue_s: float
    inference_s: float


@dataclass(frozen=True)
class Waiting:
    """A text in the queue.

    Attributes:
        feature: Its model inputs.
        since: When it arrived, in seconds of `time.monotonic`.
        answer: Cancelled where nobody waits for it any more.
    """

    feature: Feature
    since: float
    answer: "asyncio.Future[Answer]"

    @property
    def tokens(self) -> int:
        """Tokens it has."""
        return len(self.feature["input_ids"])


class Batcher:
    """The queue of an engine, which runs between `start` and `close`.

    Attributes:
        size: Texts that wait.
    """

    def __init__(
        self,
        run: Callable[[list[Feature]], list[Outputs]],
        max_batch: int,
        max_wait_s: float,
        max_tokens: int,
        max_queue: int,
        on_batch: Callable[[int, int], Any] = lambda texts, tokens: None,
    ) -> None:
        """Make an empty queue.

        Args:
            run: A batch through the engine; called in one thread of its own.
            max_batch: Most texts of a batch.
            max_wait_s: Longest time that a text waits for others while the engine is idle.
            max_tokens: Most tokens of a batch.
            max_queue: Most texts that wait.
            on_batch: Told texts and tokens of every batch.
        """
        self._run, self._on_batch = run, on_batch
        self._max_batch, self._max_tokens = max_batch, max_tokens
        self._max_wait_s, self._max_queue = max_wait_s, max_queue
        self._queue: deque[Waiting] = deque()
        self._is_busy = False
        self._has_some, self._is_full = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "serving")
        self._loop: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        return len(self._queue)

    @property
    def is_alive(self) -> bool:
        """Whether texts are being answered."""
        return self._loop is not None and not self._loop.done()

    def start(self) -> None:
        """Begin to answer; in a running event loop."""
        self._loop = asyncio.create_task(self._answer_all())

    async def close(self) -> None:
        """Answer what waits, then stop."""
        while self.is_alive and (self._queue or self._is_busy):
            await asyncio.sleep(0.01)
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
        self._thread.shutdown()

    def check_room(self, texts: int) -> None:
        """Refuse a request before anything is made of its texts.

        Raises:
            OverloadedError: So many do not fit into the queue.
        """
        if len(self._queue) + texts > self._max_queue:
            raise OverloadedError("Model is overloaded")

    async def infer(self, features: Sequence[Feature]) -> list[Answer]:
        """Run a request's texts, with others if there are any; cancelled, they leave the queue.

        Returns:
            Their answers, in their order.

        Raises:
            OverloadedError: The queue has no room for all of them.
            Exception: What `run` raised for one of them.
        """
        self.check_room(len(features))
        loop, now = asyncio.get_running_loop(), time.monotonic()
        waiting = [Waiting(feature, now, loop.create_future()) for feature in features]
        self._queue += waiting
        self._note_size()
        try:
            return await asyncio.gather(*(text.answer for text in waiting))
        finally:  # cancelled, or one of them failed; an answer that is done stays as it is
            for text in waiting:
                text.answer.cancel()
            if any(text.answer.cancelled() for text in waiting):
                self._queue = deque(text for text in self._queue if not text.answer.done())
                self._note_size()

    async def _answer_all(self) -> None:
        while True:
            while not self._queue:
                await self._has_some.wait()
            patience = self._queue[0].since + self._max_wait_s - time.monotonic()
            if patience > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await self._is_full.wait()
            if batch := self._take():  # unless who waited has left
                self._on_batch(len(batch), sum(text.tokens for text in batch))
                self._is_busy = True
                await self._answer(batch)
                self._is_busy = False

    def _take(self) -> list[Waiting]:
        """Take the oldest texts of the queue."""
        batch: list[Waiting] = []
        tokens = 0
        while self._queue and len(batch) < self._max_batch:
            tokens += self._queue[0].tokens
            if batch and tokens > self._max_tokens:
                break
            batch.append(self._queue.popleft())
        self._note_size()
        return batch

    async def _answer(self, batch: list[Waiting]) -> None:
        loop, began = asyncio.get_running_loop(), time.monotonic()
        features = [text.feature for text in batch]
        try:
            outputs = await loop.run_in_executor(self._thread, self._run, features)
        except Exception as error:
            if len(batch) > 1:  # which text is to blame? The others shall not suffer
                for text in batch:
                    await self._answer([text])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        took = time.monotonic() - began
        for text, found in zip(batch, outputs, strict=True):
            if not text.answer.done():
                text.answer.set_result(Answer(found, began - text.since, took))

    def _note_size(self) -> None:
        is_full = len(self._queue) >= self._max_batch or (
            sum(text.tokens for text in self._queue) >= self._max_tokens
        )
        for event, is_set in ((self._has_some, bool(self._queue)), (self._is_full, is_full)):
            event.set() if is_set else event.clear()
