"""What a run says while it works: sentences, bars, lines for debugging; and how much is wanted."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

# Environment variable that the flags -q and -v set: processes started by this one inherit it.
VERBOSITY = "TOOLKIT_VERBOSITY"
DELAY_S = 2.0  # what takes less shows no bar

log = logging.getLogger(__name__)


def is_quiet() -> bool:
    """Tell whether only errors and the line of the result are wanted (`-q`)."""
    return os.environ.get(VERBOSITY) == "quiet"


def is_first_process() -> bool:
    """Tell whether this process may write: the only one, or the first of a distributed run."""
    return int(os.environ.get("RANK", "0")) == 0


def tell(result: str) -> None:
    """Print the line of a result, which `-q` leaves, once in a distributed run."""
    if is_first_process():
        print(result, flush=True)


def say(sentence: str) -> None:
    """Print a sentence, once in a distributed run, unless `-q` was given."""
    if is_first_process() and not is_quiet():
        print(sentence, flush=True)


@cache
def say_once(sentence: str) -> None:
    """Print once, however often a process comes here, as it does when it reads a file again."""
    say(sentence)


def warn(sentence: str) -> None:
    """Print a warning on stderr, unless `-q` was given."""
    if not is_quiet():
        print(f"warning: {sentence}", file=sys.stderr, flush=True)


def shows_bars() -> bool:
    """Tell whether bars are drawn: only where somebody watches."""
    return sys.stderr.isatty() and is_first_process() and not is_quiet()


def bar(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, with a bar on stderr if that takes over two seconds on a terminal.

    Args:
        items: What is worked on.
        what: Stands before the bar, and in the line for debugging (`-v`) at the end.
        total: How many, where `items` has no length.
    """
    start, count = time.perf_counter(), 0
    shown = tqdm(
        items, what, total, leave=False, delay=DELAY_S, disable=not shows_bars(), dynamic_ncols=True
    )
    try:
        for item in shown:
            yield item
            count += 1
    finally:
        shown.close()
        log.debug("%s: %d in %.1f s", what, count, time.perf_counter() - start)
