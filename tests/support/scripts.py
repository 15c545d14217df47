"""Python code in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def run_script(script: str, **env: str) -> str:
    """Run Python code that finds `support`; return what it prints."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *_python_path()])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path} | env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
