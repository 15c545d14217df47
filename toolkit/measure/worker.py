"""One engine in one process, so that no engine's threads, memory or crash touch another's.

Both ends of the conversation are here: `Worker` is the handle that `bench` holds,
`answer_requests` what runs in the process (`python -m toolkit.measure.worker`). A request is a line
of JSON `{"do": …}` on stdin, the answer a line of JSON on what was stdout. A worker runs only while
it is asked: between its answers it is stopped (SIGSTOP), so no idle thread pool spins beside the
engine that is measured.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifact.agreement import Batch
from toolkit.errors import GateError, InputError, UsageError
from toolkit.measure.engines import ENGINES

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PROFILES = 3  # calls of which each operation's middle time is reported

# `python -m toolkit.measure.worker` for an interpreter that has numpy but not toolkit.
ELSEWHERE = (
    "import sys, types; toolkit = types.ModuleType('toolkit'); "
    "toolkit.__path__ = [sys.argv.pop(1)]; "
    "sys.modules['toolkit'] = toolkit; from toolkit.measure import worker; "
    "worker.answer_requests(worker.ACTIONS)"
)
ERRORS = {error.__name__: error for error in (GateError, InputError, UsageError)}


class Worker:
    """The parent's handle of one process; a context manager that ends it.

    Args:
        name: What the process is called in error sentences, such as `engine sparse`.
        log: File that receives what the process prints.
        num_threads: Its OpenMP and BLAS threads.
        python: Its interpreter, if that is not this one.
        module: What it runs: a module that calls `answer_requests`.
    """

    def __init__(
        self,
        name: str,
        log: Path,
        num_threads: int,
        python: str | None = None,
        module: str = "toolkit.measure.worker",
    ) -> None:
        self.name = name
        self._log = log
        threads = str(num_threads)
        # -P: the current folder is not on the path, as for the installed command
        command = [sys.executable, "-P", "-m", module, str(os.getpid())]
        if python is not None:
            package = str(Path(__file__).parent.parent)
            command = [python, "-P", "-c", ELSEWHERE, package, str(os.getpid())]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # SIGKILL ends a stopped process, too
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # a request that the process never read
                stream.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Let the process run until it has answered one request.

        Args:
            do: A key of the actions that the process answers with.
            arguments: What the action takes, as JSON knows it.

        Raises:
            GateError, InputError, UsageError: As raised in the process; any other error there,
                and its sudden death, become an InputError that names the engine.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has died, so there will be no answer either
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise InputError(self._last_words(do))
        self._process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" not in answer:
            return answer
        if answer["kind"] in ERRORS:
            raise ERRORS[answer["kind"]](f"{self.name}: {answer['error']}")
        raise InputError(
            f"{self.name} failed to {do}: {answer['kind']}: {answer['error']}"
        ) from RuntimeError(answer["traceback"])

    def _last_words(self, do: str) -> str:
        code = self._process.wait()
        if code < 0:
            killer = signal.Signals(-code)
            end = f"its process was killed by {killer.name}{REASONS.get(killer, '')}"
        else:
            end = f"its process ended with exit code {code}"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        said = f" (it last said: {lines[-1][:300]})" if lines else ""
        return f"{self.name} failed to {do}: {end}{said}"


REASONS = {
    signal.SIGKILL: ", most often by the system for lack of memory: use a smaller batch_size",
    signal.SIGILL: ", an illegal instruction: this build is not made for this CPU",
}


def save_batches(path: Path, batches: Iterable[Batch]) -> None:
    """Write batches (name → array) to an uncompressed .npz file."""
    arrays: dict[str, Any] = {
        f"{number}.{name}": array
        for number, batch in enumerate(batches)
        for name, array in batch.items()
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load_batches(path: str | Path) -> list[Batch]:
    """Read what `save_batches` wrote, in the same order."""
    batches: dict[int, Batch] = {}
    with np.load(path) as file:
        for key in file.files:
            number, _, name = key.partition(".")
            batches.setdefault(int(number), {})[name] = file[key]
    return list(batches.values())


def answer_requests(actions: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer requests until stdin ends; never outlive the parent, whose id is the argument.

    Args:
        actions: By name, functions of a state that lasts (a dict) and of what `Worker.ask` was
            given.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return  # the parent died before prctl, so its death would not be noticed
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints goes to the log, not into the conversation
    state: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = actions[request.pop("do")](state, **request)
        except Exception as error:
            answer = {
                "error": str(error),
                "kind": type(error).__name__,
                "traceback": traceback.format_exc(),
            }
        print(json.dumps(answer), file=talk, flush=True)


def _load(
    state: dict[str, Any], *, engine: str, model: str, batches: str, inputs: list[str], **asked: Any
) -> dict[str, Any]:
    whole = load_batches(batches)
    state["batches"] = [{name: batch[name] for name in inputs} for batch in whole]
    start = time.perf_counter()
    facts = ENGINES[engine].load(state, model, **asked)
    return {"load_s": time.perf_counter() - start, "isa": None, "packed_bytes": None, **facts}


def _run(state: dict[str, Any], *, inputs: str, outputs: str) -> dict[str, Any]:
    save_batches(Path(outputs), (state["run"](batch) for batch in load_batches(inputs)))
    return {}


def _warm_up(state: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    start = time.perf_counter()
    pass_s: list[float] = []
    while len(pass_s) < 2 or time.perf_counter() - start < seconds:
        pass_s.append(sum(_one_pass(state)))
    return {"pass_s": min(pass_s)}


def _time(state: dict[str, Any], *, passes: int) -> dict[str, Any]:
    call_s = [seconds for _ in range(passes) for seconds in _one_pass(state)]
    return {"call_s": call_s, "peak_rss_bytes": _peak_rss_bytes()}


def _profile(state: dict[str, Any]) -> dict[str, Any]:
    calls = [state["engine"].profile(state["batches"][0]) for _ in range(PROFILES)]
    middle = [
        sorted(rows, key=lambda row: float(row["time_ms"]))[PROFILES // 2]
        for rows in zip(*calls, strict=True)
    ]
    return {"profile": middle}


def _peaks(state: dict[str, Any]) -> dict[str, Any]:
    from toolkit.engine.roofline import measure_peaks

    engine = state["engine"]
    return measure_peaks(engine.isa, engine.num_threads, engine.narrow)


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "load": _load,
    "run": _run,
    "warm_up": _warm_up,
    "time": _time,
    "profile": _profile,
    "peaks": _peaks,
}


def _one_pass(state: dict[str, Any]) -> list[float]:
    """Run every batch once; return the seconds of each call."""
    run, seconds = state["run"], []
    for batch in state["batches"]:
        start = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def _peak_rss_bytes() -> int:
    """Return the process's largest resident memory.

    Not `ru_maxrss` on Linux: that starts with what the parent had when it started this process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    answer_requests(ACTIONS)
