"""The three ways a command ends badly; `cli.py` turns each into one sentence and its exit code."""

import difflib
from collections.abc import Collection


class InputError(Exception):
    """A missing, damaged or foreign input, or a run that failed: exit code 1."""


class UsageError(Exception):
    """A wrong command line or configuration: exit code 2."""


class GateError(Exception):
    """A result below its gate (parity, accuracy floor, speed regression): exit code 3."""


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
