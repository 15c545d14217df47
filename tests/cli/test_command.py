"""The command itself, as a process: help, flags, exit codes, signals, folders."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import COMMAND, Run
from omegaconf import OmegaConf

from toolkit.config import ReportRoot
from toolkit.record import new_record, write_record

VERBS = ["train", "export", "bench", "grid", "report", "serve"]


def test_help_and_version_say_what_there_is(toolkit: Run) -> None:
    out = toolkit("--help").stdout
    for verb in (*VERBS, "info"):
        assert f"\n  {verb} " in out
    version = toolkit("--version")
    assert (version.returncode, version.stdout[:8]) == (0, "toolkit ")


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["info"], ["bench", "--cfg", "job"]])
def test_start_up_imports_no_framework(args: list[str]) -> None:
    code = (
        "import sys, toolkit.cli\n"
        f"sys.argv[1:] = {args!r}\n"
        "try: toolkit.cli.main()\n"
        "except SystemExit as exit: assert not exit.code, exit.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'onnxruntime', 'matplotlib', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    if args == ["info"]:  # asks the compiled kernels, which use NumPy
        code = code.replace(", 'numpy'", "")
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_info_decides_threads_and_says_why(toolkit: Run) -> None:
    out = toolkit("info").stdout
    assert "because the" in out
    assert "generic" in out
    assert "hydra-core  " in out


def test_info_names_what_the_cpu_has_and_lacks(toolkit: Run) -> None:
    lines = dict(line.split(maxsplit=1) for line in toolkit("info").stdout.splitlines())
    flags = re.findall(r"^(?:flags|Features)\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)[0]
    has, lacks = lines["features"].split(), set(lines["missing"].split())
    assert has
    assert set(has) <= set(flags.split())
    assert lacks.isdisjoint(flags.split())


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "a verb is missing"),
        (["trian"], 2, "'trian' is no verb of toolkit; did you mean 'train'?"),
        (["train", "modle=x"], 2, "train has no key 'modle'; did you mean 'model'?"),
        (["train", "seed=abc"], 2, "seed=abc: Value 'abc' of type 'str'"),
        (["train", "sparsity.final_sparsity=2"], 2, "must be in [0, 1); got 2.0"),
        (["train", "+x=1"], 2, "train has no key 'x'"),
        (["train", "--cgf", "job"], 2, "unrecognized arguments: --cgf"),
        (["train", "output_dir=/proc/none"], 1, "/proc/none"),
        (["report", "missing"], 1, "missing"),
        (["export", "checkpoint=missing"], 1, "missing"),
        (["bench", "onnx=missing.onnx"], 1, "missing.onnx"),
    ],
)
def test_exit_codes_and_one_sentence(toolkit: Run, args: list[str], code: int, says: str) -> None:
    run = toolkit(*args)
    assert run.returncode == code, run.stderr
    assert says in run.stderr
    assert "Traceback" not in run.stderr
    if "unrecognized" not in says:  # argparse prints its usage first
        lines = run.stderr.strip().splitlines()  # a warning of the verb's may come before
        assert [line.startswith("error: ") for line in lines].count(True) == 1, run.stderr
        assert lines[-1].startswith("error: ")


def test_several_processes_need_one_folder(toolkit: Run) -> None:
    run = toolkit("train", WORLD_SIZE="2", RANK="0")
    assert run.returncode == 2
    assert "need output_dir=DIR" in run.stderr
    shown = toolkit("train", "output_dir=x", "--cfg", "job", "--resolve", WORLD_SIZE="2", RANK="0")
    assert shown.returncode == 0, shown.stderr


def test_the_traceback_is_there_when_asked_for(toolkit: Run) -> None:
    run = toolkit("export", "checkpoint=missing", HYDRA_FULL_ERROR="1")
    assert run.returncode == 1
    assert "Traceback" in run.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_hydras_flags_work_after_every_verb(toolkit: Run, verb: str) -> None:
    paths = {"report": ["a"], "serve": ["onnx=a"]}.get(verb, [])
    shown = toolkit(verb, *paths, "--cfg", "job", "--resolve")
    assert shown.returncode == 0, shown.stderr
    assert OmegaConf.select(OmegaConf.create(shown.stdout), "output_dir").startswith(
        f"outputs/{verb}/"
    )
    help_ = toolkit(verb, "--help")
    assert help_.stdout.startswith(f"usage: toolkit {verb}")
    assert "Flags: -q (only errors and the result), -v (debugging), -m" in help_.stdout
    defaults = toolkit(verb, "--info", "defaults")
    assert f"{verb}_schema" in defaults.stdout
    packaged = toolkit(verb, *paths, "--cfg", "job", "-p", "output_dir")
    assert packaged.returncode == 0


def test_verbosity(toolkit: Run) -> None:
    """-q leaves one line, and errors; -v adds lines for debugging, also of a sweep."""
    args = ["grid", "model=demo", "rounds=1", "batch_size=2", "seq_len=16", "sparsities=[0.9]"]
    args += ["precisions=[fp32]", "depths=[1]", "engine.num_threads=1"]
    quiet = toolkit(*args, "-q", "output_dir=a")
    assert quiet.returncode == 0, quiet.stderr
    assert quiet.stderr == ""
    assert re.fullmatch(r"record: \S*a/record\.json\n", quiet.stdout)
    sweep = toolkit(args[0], "-m", *args[1:], "seed=1", "output_dir=b", "-q")
    counted = r"record: \S*b/0/record\.json\n\S*b/sweep\.csv: 1 done of 1 cells\n"
    assert re.fullmatch(counted, sweep.stdout), sweep.stderr
    verbose = toolkit(*args, "-v", "output_dir=c")
    assert "[toolkit.progress][DEBUG] - packing: 1 in" in verbose.stdout
    wrong = toolkit("grid", "-q", "depths=[99]")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: depths must be at most 12")
    assert toolkit("bench", "-q", "-v").returncode == 2


def test_a_users_own_options_join_by_searchpath(toolkit: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "sparsity"
    folder.mkdir(parents=True)
    (folder / "half.yaml").write_text(
        "defaults: [dense, _self_]\nname: half\nfinal_sparsity: 0.5\n"
    )
    args = ["train", "--cfg", "job", "-p", "sparsity.final_sparsity"]
    run = toolkit(*args, "sparsity=half", f"hydra.searchpath=[file://{tmp_path}/mine]")
    assert run.stdout.strip() == "0.5", run.stderr
    wrong = toolkit(*args, "sparsity=hafl", f"hydra.searchpath=[file://{tmp_path}/mine]")
    assert wrong.returncode == 2
    assert "did you mean 'half'?" in wrong.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("toolkit tr", {"train", "export", "bench", "report", "serve", "info"}),
        ("toolkit train mod", {"model=", "model."}),
        ("toolkit train sparsity=prune9", {"sparsity=prune90", "sparsity=prune97_block4"}),
        ("toolkit bench batch", {"batch_size="}),
        ("toolkit grid -", {"-q", "-v", "-m", "--help"}),
    ],
)
def test_shell_completion(toolkit: Run, line: str, words: set[str]) -> None:
    run = toolkit("-sc", "query=bash", COMP_LINE=line)
    assert words <= set(run.stdout.split()), run.stderr


def test_shell_completion_installs_for_this_command(toolkit: Run) -> None:
    assert toolkit("-sc", "install=bash").stdout.rstrip().endswith("toolkit")


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A run directory with a record that holds no results."""
    config = ReportRoot(paths=[], select=None, within=0.01, output_dir="")
    write_record(tmp_path / "good" / "record.json", new_record("bench", config))
    return tmp_path / "good"


def test_a_gate_that_nothing_passes_is_exit_code_3(toolkit: Run, finished_run: Path) -> None:
    run = toolkit("report", finished_run, "select=latency_p99_ms<=10")
    assert run.returncode == 3, run.stderr
    assert run.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.usefixtures("finished_run")
def test_a_sweep_goes_on_behind_a_failing_job(toolkit: Run, tmp_path: Path) -> None:
    run = toolkit("report", "-m", "paths=[bad],[good],[worse]", "output_dir=sweep")
    assert run.returncode == 1
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert errors[0].startswith("error: cell 0 (paths=[bad]): ")
    assert errors[1].startswith("error: cell 2 (paths=[worse]): ")
    assert "Traceback" not in run.stderr
    assert (tmp_path / "sweep/1/report.html").is_file()
    for number in (0, 1, 2):
        assert (tmp_path / f"sweep/{number}/.hydra/config.yaml").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_with_their_code(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [COMMAND, "train", "output_dir=run"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/.hydra/overrides.yaml").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr


def test_it_runs_as_a_module_as_torchrun_does(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", "bench", "--cfg", "job", "-p", "seed"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert json.loads(run.stdout) == 42
