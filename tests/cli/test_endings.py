"""How the command ends when the toolkit itself is broken, or what it needs is missing."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COMMAND

from toolkit.config import ReportRoot
from toolkit.record import new_record, write_record

HINT = "this is a bug of the toolkit; HYDRA_FULL_ERROR=1 shows the traceback"


def broken(patch: str, *args: str, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the command with something in it replaced."""
    code = f"import sys, toolkit.cli\n{patch}\nsys.argv[1:] = {args!r}\ntoolkit.cli.main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def run_folder(tmp_path: Path) -> str:
    """The name of a run folder that `toolkit report` reads."""
    config = ReportRoot(paths=[], select=None, within=0.01, output_dir="")
    write_record(tmp_path / "good" / "record.json", new_record("bench", config))
    return "good"


MISSING_KEY = "def broken(*args, **more): return {}['foo']"


@pytest.mark.parametrize(
    ("name", "args", "file"),
    [
        ("toolkit.record.read_record", ["report", "good"], r"(report|present/\w+).py"),  # in a verb
        ("toolkit.report.report", ["report", "good"], "cli.py"),
        ("toolkit.config.from_plain", ["report", "good"], "overrides.py"),  # before it
        ("toolkit.overrides._gather_paths", ["report", "good"], "overrides.py"),
        ("toolkit.overrides.explain", ["report", "good", "selct=1"], "cli.py"),
        ("toolkit.overrides.parse", ["train", "selct=1"], "overrides.py"),
        ("toolkit.environment.describe_machine", ["info"], "environment.py"),
        ("hydra.main", ["report", "good"], "cli.py"),  # outside of a job
    ],
)
def test_a_bug_is_called_one_and_says_where(
    tmp_path: Path, run_folder: str, name: str, args: list[str], file: str
) -> None:
    module, _, function = name.rpartition(".")
    patch = f"import {module}\n{MISSING_KEY}\n{module}.{function} = broken"
    run = broken(patch, *args, cwd=tmp_path)
    assert run.returncode == 1
    pattern = rf"internal error: KeyError 'foo' at toolkit/{file}:\d+: {HINT}\n"
    assert re.fullmatch(pattern, run.stderr), run.stderr
    asked = broken(patch, *args, cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert asked.returncode == 1
    assert "Traceback" in asked.stderr
    assert "in broken" in asked.stderr


def test_a_bug_in_one_job_of_a_sweep(tmp_path: Path, run_folder: str) -> None:
    patch = f"import toolkit.record\n{MISSING_KEY}\ntoolkit.record.read_record = broken"
    run = broken(patch, "report", "-m", f"paths=[{run_folder}],[none]", cwd=tmp_path)
    assert run.returncode == 1
    first, second, *_ = run.stderr.splitlines()
    assert first.startswith("internal error: cell 0 (paths=[good]): KeyError 'foo' at toolkit/")
    assert second.startswith("error: cell 1 (paths=[none]): expected records below none")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("ZeroDivisionError()", r"internal error: ZeroDivisionError at toolkit/cli.py:\d+: .*"),
        ("ValueError('a\\nb')", r"internal error: ValueError a b at toolkit/cli.py:\d+: .*"),
        ("PermissionError(13, 'no', 'x')", r"error: \[Errno 13\] no: 'x'"),
        ("MemoryError('too big')", "error: too big"),
        ("toolkit.errors.InputError('so')", "error: so"),
        ("type('MlflowException', (Exception,), {'__module__': 'mlflow.x'})('no')", "error: no"),
        (
            "ModuleNotFoundError('no', name='toolkit.gone')",
            r"internal error: ModuleNotFoundError no at toolkit/cli.py:\d+: .*",
        ),
        (
            "ModuleNotFoundError('no', name='tensorboard.compat')",
            "error: this needs tensorboard, which is not installed: pip install tensorboard",
        ),
        (
            "ImportError('cannot import name', name='torch')",
            r"internal error: ImportError cannot import name at toolkit/cli.py:\d+: .*",
        ),
    ],
)
def test_only_what_is_no_fault_of_the_toolkits_is_told_without_a_place(
    tmp_path: Path, error: str, line: str
) -> None:
    patch = (
        "import toolkit.errors, toolkit.report\n"
        f"def report(config): raise {error}\n"
        "toolkit.report.report = report"
    )
    run = broken(patch, "report", "good", cwd=tmp_path)
    assert run.returncode == 1
    assert re.fullmatch(line + "\n", run.stderr), run.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["info"],
        ["--help"],
        ["--version"],
        ["-sc", "query=bash"],
        ["report", "--help"],
        ["report", "good", "--cfg", "job"],
        ["report", "good", "--info", "all"],
        ["report", "good"],
        ["report", "-m", "paths=[good],[good]"],
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.usefixtures("run_folder")
def test_a_closed_pipe_ends_it_quietly(tmp_path: Path, args: list[str], unbuffered: str) -> None:
    with subprocess.Popen(
        [COMMAND, *args],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert said == ""
    # Hydra's --info goes through a log, which may go on without its reader
    assert process.returncode in (128 + signal.SIGPIPE, 0 if "--info" in args else None)


def test_an_error_that_nobody_reads_keeps_its_code(tmp_path: Path) -> None:
    for args, code in ((["tran"], 2), (["report", "none"], 1)):
        read, write = os.pipe()
        os.close(read)
        run = subprocess.run(
            [COMMAND, *args], cwd=tmp_path, stdout=write, stderr=write, check=False
        )
        os.close(write)
        assert run.returncode == code


def test_a_full_disk_behind_a_redirection_is_told() -> None:
    run = subprocess.run(
        f"{COMMAND} info > /dev/full", shell=True, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (1, "error: [Errno 28] No space left on device\n")
