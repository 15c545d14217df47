"""_kernels.pyi, the kernels' API page, against the compiled module."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]


def test_the_stub_names_what_the_module_has(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(r"cython_kernels\._kernels\.__\w+__")  # Cython's own
    compare = [sys.executable, "-m", "mypy.stubtest", "cython_kernels._kernels"]
    done = subprocess.run(
        [*compare, "--concise", "--allowlist", allowed],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
