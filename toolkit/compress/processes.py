"""Several processes on this machine that train one model together (DDP), without `torchrun`."""

import builtins
import logging
import os
import signal
import uuid
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from toolkit.errors import CODES, InputError


def is_started() -> bool:
    """Tell whether this process is one of several already: ours, torchrun's or accelerate's."""
    return "LOCAL_RANK" in os.environ


def in_processes(count: int, work: Callable[[Any], None], argument: Any) -> None:
    """Call `work(argument)` in `count` new processes, which find each other as torchrun's do.

    The threads of torch are shared out among them. When one fails, all are ended.

    Args:
        count: Processes, > 1; with GPUs, at most as many as there are.
        work: A function of a module.
        argument: Anything that can be pickled.

    Raises:
        InputError, UsageError, GateError, OSError, MemoryError: As `work` raises them in the
            process that failed first.
        RuntimeError: Something else ended a process; its traceback is a note.
        SystemExit: A signal came, and the processes have been ended.
    """
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it ourselves
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        elastic_launch(launch, _one_of)(count, work, argument)
    except ChildFailedError as error:
        raise _as_raised(*error.get_first_failure()) from None
    except SignalException as error:
        if error.sigval is signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    finally:
        for number, handler in handlers.items():  # torch leaves its own
            signal.signal(number, handler)


def _one_of(count: int, work: Callable[[Any], None], argument: Any) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    work(argument)


def _as_raised(rank: int, failure: ProcessFailure) -> Exception:
    """Make the error again that ended a process, of which torch passes name, text and traceback."""
    message: Any = failure.message  # declared as text, but mostly a dict of these
    if isinstance(message, str):  # a signal
        return InputError(f"process {rank} of num_processes ended: {message}")
    name, _, sentence = message["message"].partition(": ")
    ours = {kind.__name__: kind for kinds in CODES for kind in kinds}
    kind: Any = ours.get(name) or vars(builtins).get(name)
    if isinstance(kind, type) and issubclass(kind, tuple(ours.values())):
        make: Any = kind  # mypy knows a class of any kind as `object`
        return cast(Exception, make(sentence))
    error = RuntimeError(f"{message['message']} (in process {rank} of num_processes)")
    error.add_note(message["extraInfo"]["py_callstack"])
    return error
