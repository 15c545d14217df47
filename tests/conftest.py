"""Fixtures shared by all tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Several workers share the cores, and threads of torch's wait for each other busily: with one each
# the tests take a third of the time. Set before torch is imported; processes of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPO = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name("toolkit")  # the console script, as a user runs it

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def toolkit(tmp_path: Path) -> Run:
    """Run the real command in an empty folder: `toolkit("train", "seed=1", BLOCK="1")`.

    Keyword arguments in capitals are environment variables; `cwd` and `timeout` (seconds) are
    those of `subprocess.run`.
    """

    def run(
        *args: str | Path, cwd: Path = tmp_path, timeout: float = 120, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [COMMAND, *args],
            cwd=cwd,
            timeout=timeout,
            env=os.environ | env,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets: $TOOLKIT_DATA, or `shared/data` beside the repository; skips without."""
    folder = Path(os.environ.get("TOOLKIT_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs real data: set TOOLKIT_DATA ({folder} does not exist)")
    return folder
