"""Files and folders: read with a sentence for what is wrong, written whole or not at all.

What is written has a temporary name at first, in the folder of what it becomes: only within one
file system is a rename atomic.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import InputError


def read_text(path: Path, wanted_by: str) -> str:
    """Read a UTF-8 file.

    Args:
        path: The file.
        wanted_by: Who expects it, for the error's sentence.

    Raises:
        InputError: It is missing, unreadable or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{wanted_by} expects the file {path}, but there is none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text; as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, and its folder if that is missing.

    Raises:
        InputError: The disk is full, or the folder cannot be written.
    """
    try:
        with new_file(Path(path)) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give the name of an empty temporary file that becomes `path` at the end.

    Raises:
        OSError: The disk is full, or the folder cannot be written; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; give it what an ordinary open() would have given
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give the name of a temporary folder, not there yet, that replaces `path` at the end.

    Raises:
        OSError: The disk is full, or the folder cannot be written; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def added_to(folder: Path, last: str, also: str) -> Iterator[Path]:
    """Give an empty temporary folder whose contents move into `folder` at the end.

    What else lies in `folder` stays. Who finds `last` there finds all that belongs to it: an old
    one, and files named after it or after `also`, go before anything moves, and it moves after
    everything else.

    Raises:
        InputError: The disk is full, or the folder cannot be written.
    """
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
        yield temporary
        for name in (last, also):
            for path in folder.glob(f"{name}*"):
                path.unlink()
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == last):
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            path.replace(folder / path.name)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Add up the bytes of the files in a folder, and below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
