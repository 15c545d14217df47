"""The three ways a command ends badly; `cli.py` turns each into one sentence and its exit code."""


class InputError(Exception):
    """A missing, damaged or foreign input, or a run that failed: exit code 1."""


class UsageError(Exception):
    """A wrong command line or configuration: exit code 2."""


class GateError(Exception):
    """A result below its gate (parity, accuracy floor, speed regression): exit code 3."""
