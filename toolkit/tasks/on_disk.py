"""Examples and features in a temporary file: a large data set takes disk instead of memory."""

import pickle
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from os import pread
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError

Item = TypeVar("Item")
WRITE_BYTES = 1 << 20  # gathered before they are written


class OnDisk(Sequence[Item], Generic[Item]):
    """A sequence whose items lie in a file that nobody else sees and that ends with the process.

    The file is in the folder for temporary files (`TMPDIR`). An item is made anew each time it is
    asked for: changing it changes nothing. A slice shares the file. Processes that are forked may
    read at the same time.

    Args:
        items: Written as they come, so that only one is in memory at a time.

    Raises:
        InputError: The disk is full.
    """

    _whole: Any = None  # of which this is a part: it keeps the file open

    def __init__(self, items: Iterable[Item]) -> None:
        ends, waiting, end = array("q", [0]), bytearray(), 0
        # without a buffer: the file is read at any place by its number
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it lives as long as this object
        weakref.finalize(self, file.close)
        try:
            for item in items:
                waiting += pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
                ends.append(end + len(waiting))
                if len(waiting) >= WRITE_BYTES:
                    end += _write(file, waiting)
            _write(file, waiting)
        except OSError as error:
            raise InputError(
                f"cannot keep the task's data in {tempfile.gettempdir()} "
                f"({error.strerror or error}): name a folder with more room by TMPDIR=DIR"
            ) from error
        whole = np.frombuffer(ends, dtype=np.int64)
        self._file, self._starts, self._sizes = file, whole[:-1], np.diff(whole)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> "OnDisk[Item]": ...
    def __getitem__(self, place: int | slice) -> "Item | OnDisk[Item]":
        if isinstance(place, slice):
            return self.pick(np.arange(len(self))[place])
        item: Item = pickle.loads(
            pread(self._file.fileno(), int(self._sizes[place]), int(self._starts[place]))
        )
        return item

    def __iter__(self) -> Iterator[Item]:
        return (self[place] for place in range(len(self)))

    def pick(self, places: NDArray[Any]) -> "OnDisk[Item]":
        """Return a sequence of the items at these places (N,), in their order; shares the file."""
        picked = OnDisk.__new__(OnDisk)
        picked._file, picked._whole = self._file, self
        picked._starts, picked._sizes = self._starts[places], self._sizes[places]
        return picked


def _write(file: Any, waiting: bytearray) -> int:
    """Write all that waits; return how many bytes these were."""
    size, view = len(waiting), memoryview(bytes(waiting))
    while view:
        view = view[file.write(view) :]
    waiting.clear()
    return size
