"""Several processes on this machine that train one model together (DDP), without `torchrun`."""

import os
import signal
import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
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
        InputError, UsageError, GateError: As `work` raises them in the process that failed first;
            InputError also for what else ended a process.
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
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        elastic_launch(launch, _one_of)(count, work, argument)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        kind, _, sentence = failure.message.partition(": ")
        ours = {each.__name__: each for kinds in CODES for each in kinds}
        if kind in ours:
            raise ours[kind](sentence) from None
        raise InputError(f"process {rank} of {count} ended: {failure.message}") from error
    except SignalException as error:
        if error.sigval is signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    finally:
        for number, handler in handlers.items():  # torch leaves its own
            signal.signal(number, handler)


@record
def _one_of(count: int, work: Callable[[Any], None], argument: Any) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    work(argument)
