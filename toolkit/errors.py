"""How a command ends badly: in one of three ways of its own, or by a bug."""

import difflib
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path


class InputError(Exception):
    """A missing, damaged or foreign input, or a run that failed: exit code 1."""


class UsageError(Exception):
    """A wrong command line or configuration: exit code 2."""


class GateError(Exception):
    """A result below its gate (parity, accuracy floor, speed regression): exit code 3."""


DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # packages that pip knows by another name
CODES = {(InputError, OSError, MemoryError): 1, (UsageError,): 2, (GateError,): 3}

REPORTERS = ("mlflow", "wandb")  # what trainer.report_to names, whose refusals are not our bugs


def fail(error: BaseException, wants_traceback: bool, cell: str = "") -> int:
    """Say on stderr what went wrong.

    Args:
        error: What ended the command.
        wants_traceback: Show where, too.
        cell: Which cell of a sweep it ended, with a colon; empty outside of a sweep.

    Returns:
        The exit code.

    Raises:
        SystemExit: Nobody reads any more (`toolkit info | head`): the end is quiet, as of `cat`.
    """
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python still flushes at its end
        raise SystemExit(128 + signal.SIGPIPE) from None
    code, kind, sentence = verdict(error)
    with suppress(BrokenPipeError):
        if wants_traceback:
            traceback.print_exception(error)
        print(f"{kind}: {cell}{sentence}", file=sys.stderr, flush=True)
    return code


def verdict(error: BaseException) -> tuple[int, str, str]:
    """Return the exit code of an error, its kind, and the sentence that says it.

    What is none of ours, no refusal of the machine's and no missing package is a bug.
    """
    sentence = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "error", "interrupted"
    for kinds, code in CODES.items():
        if isinstance(error, kinds):
            return code, "error", sentence
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package not in ("toolkit", "cython_kernels"):
            remedy = _remedy(package)
            return 1, "error", f"this needs {package}, which is not installed: {remedy}"
    if type(error).__module__.partition(".")[0] in REPORTERS:
        return 1, "error", sentence
    name = type(error).__name__
    said = name if sentence == name else f"{name} {sentence}"
    hint = "this is a bug of the toolkit; HYDRA_FULL_ERROR=1 shows the traceback"
    return 1, "internal error", f"{said} at {_place(error)}: {hint}"


def nearest(word: str, valid: Collection[str]) -> str:
    """Say which of the valid names come closest, or all of them if none is close."""
    last = word.rpartition(".")[2]
    for cutoff in (0.75, 0.5):  # similarity in [0, 1]; the nearest only, if there are such
        close = difflib.get_close_matches(word, valid, n=3, cutoff=cutoff)
        ends = difflib.get_close_matches(
            last, {name.rpartition(".")[2] for name in valid}, n=3, cutoff=cutoff
        )
        close += [name for name in valid if name.rpartition(".")[2] in ends and name not in close]
        if close:
            return f"did you mean {' or '.join(repr(name) for name in close[:3])}?"
    return f"valid are {', '.join(sorted(name for name in valid if '.' not in name))}"


def _remedy(package: str) -> str:
    """Say how to install a package; one attempt suffices where a slim deployment lacks several.

    That is all which is missing of the plain install, or of the extra that names the package.
    """
    package = DISTRIBUTIONS.get(package, package)
    missing: dict[str, dict[str, str]] = {}
    for line in requires("toolkit") or []:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            version(name)
        except PackageNotFoundError:
            extra = re.search(r"extra == ['\"](\w+)", marker)
            missing.setdefault(extra[1] if extra else "", {})[name] = requirement.strip()
    for extra_name, lines in missing.items():
        if package in lines and extra_name != "dev":
            told = f" (the extra toolkit[{extra_name}])" if extra_name else ""
            return f"pip install {shlex.join(lines.values())}{told}"
    return f"pip install {package}"


def _place(error: BaseException) -> str:
    """Name the innermost line of the toolkit's that was running."""
    package = Path(__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    if not ours:
        return "an unknown place"
    return f"{Path(ours[-1].filename).relative_to(package.parent)}:{ours[-1].lineno}"
