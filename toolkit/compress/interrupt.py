"""Ends training between two steps on Ctrl-C or SIGTERM, with a checkpoint to continue from."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """A callback, and the context in which it listens.

    The first signal lets the current step end, saves a checkpoint of the Trainer and ends training;
    on leaving the context the signal is raised again and does what it usually does. A second signal
    does that at once. Several processes (DDP) would not agree on the step, so there signals are
    left alone and the Trainer's own checkpoints remain.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.usual: dict[int, Any] = {}

    def __enter__(self) -> None:
        # Python lets no other thread handle signals.
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            self.usual = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)
        if self.received is not None and kind is None:
            signal.raise_signal(self.received)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the Trainer to save and stop, once a signal has come."""
        if self.received is not None:
            control.should_save = control.should_training_stop = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        for each, handler in self.usual.items():
            signal.signal(each, handler)
        self.received = number
        print(
            "interrupted: saving a checkpoint after this step; `resume=true` with the same "
            "output_dir continues",
            file=sys.stderr,
            flush=True,
        )
