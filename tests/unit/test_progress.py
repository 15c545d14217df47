"""What is said, to whom, and how much of it."""

import io
import logging
from collections.abc import Iterable
from contextlib import redirect_stderr

import pytest

from toolkit import progress
from toolkit.errors import UsageError
from toolkit.overrides import take_verbosity
from toolkit.progress import VERBOSITY, bar, say, tell, warn


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set, and whatever takes any time is long."""
    monkeypatch.delenv(VERBOSITY, raising=False)
    monkeypatch.setattr(progress, "DELAY_S", 0.0)


def shown_by(work: Iterable[object]) -> str:
    """Return what a terminal gets to see of a bar."""
    with redirect_stderr(Terminal()) as screen:
        assert list(bar(work, "reading")) == list(work)
    return screen.getvalue()


def test_a_bar_is_drawn_on_a_terminal_and_wiped() -> None:
    shown = shown_by(range(3))
    assert "reading:   0%" in shown
    assert shown.endswith("\r")


def test_short_work_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY_S", 2.0)
    assert "reading" not in shown_by(range(3))


@pytest.mark.parametrize(("name", "value"), [(VERBOSITY, "quiet"), ("RANK", "1")])
def test_none_where_nobody_wants_it(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert shown_by(range(3)) == ""


def test_none_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(bar(iter(range(3)), "reading", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_every_bar_leaves_a_line_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "toolkit"):
        list(bar(range(3), "reading"))
    assert caplog.messages[0].startswith("reading: 3 in 0.")


def test_quiet_leaves_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {"quiet": ("c\n", ""), "": ("a\nc\n", "warning: b\n")}
    for verbosity, texts in expected.items():
        monkeypatch.setenv(VERBOSITY, verbosity)
        say("a")
        warn("b")
        tell("c")
        assert capsys.readouterr() == texts


def test_flags_become_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VERBOSITY, "")  # so that what is set is undone
    assert take_verbosity(["seed=1"]) == ["seed=1"]
    verbose = "hydra.verbose=[toolkit]"
    assert take_verbosity(["-v", "seed=1"]) == [verbose, "seed=1"]
    assert take_verbosity(["--cfg", "job", "-v"]) == ["--cfg", "job", verbose]
    assert take_verbosity(["a=1,2", "b=3", "-m", "-v"]) == [verbose, "a=1,2", "b=3", "-m"]
    assert "hydra/job_logging=none" in take_verbosity(["seed=1", "-q"])
    assert progress.is_quiet()
    with pytest.raises(UsageError, match="give one of them"):
        take_verbosity(["-q", "-v"])
