"""What a sweep (`-m`) keeps: one row per cell, right at every moment, whoever dies.

The sweep's folder holds `sweep.csv`, the table, and in `.sweep/` one file for each cell, which only
the process that runs the cell writes: cells may run on many machines that share the folder. The
table is merged from these files whenever one changes. Locks, which end with their process, tell
what really runs from what was killed.
"""

import csv
import fcntl
import io
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from toolkit.config import NOT_COMPARED
from toolkit.errors import InputError, UsageError, fail, verdict
from toolkit.files import read_text, write_text
from toolkit.overrides import parse, quote
from toolkit.present.results import mark_pareto_front
from toolkit.present.tables import text_table
from toolkit.progress import say, tell
from toolkit.record import metrics_of, read_record

STATE_FOLDER = ".sweep"
TABLE = "sweep.csv"
LOCK_WAIT_S = 2.0  # for a killed process to be gone: the kernel needs milliseconds


@dataclass(kw_only=True)
class Cell:
    """One combination of a sweep's values, and what became of it.

    Attributes:
        number: From 0, in the order in which cells came up; it never changes.
        folder: Where it writes, relative to the sweep's folder.
        identity: What it is known by, see `identity`.
        overrides: All its overrides.
        swept: Those by which cells differ, as text.
        state: waiting, running, done, failed or interrupted.
        exit_code: Of the last attempt; null before its end.
        reason: Why it failed.
        metric: Name of the task's main metric.
        score: Its value, in percent.
        zeros: Fraction of the encoder's weights that are zero.
        items_per_s: Throughput of the configured engine.
        seconds: Wall time of all attempts that could say it.
        process: Host and process id of the last attempt.
    """

    number: int
    folder: str
    identity: str
    overrides: list[str]
    swept: str
    state: str = "waiting"
    exit_code: int | None = None
    reason: str = ""
    metric: str | None = None
    score: float | None = None
    zeros: float | None = None
    items_per_s: float | None = None
    seconds: float = 0.0
    process: str = ""

    @property
    def objectives(self) -> float | list[float] | None:
        """What a sweeper maximises: score and throughput, or the one that there is."""
        known = [value for value in (self.score, self.items_per_s) if value is not None]
        if self.state != "done" or not known:
            return None
        return known if len(known) > 1 else known[0]

    def __str__(self) -> str:
        return f"cell {self.number}" + (f" ({self.swept})" if self.swept else "")


def identity(
    overrides: Sequence[str], swept: Collection[str], not_compared: Collection[str]
) -> str:
    """Name a cell by its overrides: cells with one identity are one cell.

    Args:
        overrides: All its overrides, `[+]key=value`.
        swept: Keys that are swept.
        not_compared: Keys that its results do not depend on; they count where they are swept.
    """
    keyed = {_key(override): override.lstrip("+") for override in overrides}
    return "\n".join(
        sorted(
            override
            for key, override in keyed.items()
            if key in swept or not any(f"{key}.".startswith(f"{each}.") for each in not_compared)
        )
    )


def read_cells(sweep: Path) -> list[Cell]:
    """Read the cells of a sweep's folder, by number; none if there is no sweep.

    Raises:
        InputError: A file of a cell is damaged.
    """
    cells = []
    for path in (sweep / STATE_FOLDER).glob("*.json"):
        try:
            cells.append(Cell(**json.loads(read_text(path, "the sweep"))))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} is no cell of a sweep ({error}): remove it, and that cell's folder"
            ) from None
    return sorted(cells, key=lambda cell: cell.number)


def write_cells(sweep: Path, cells: Sequence[Cell]) -> None:
    """Write the files of some cells and the table that they belong to."""
    for cell in cells:
        write_text(_file(sweep, cell, "json"), json.dumps(asdict(cell), indent=1) + "\n")
    written = None
    while written != (found := read_cells(sweep)):  # whoever writes last has seen all
        written = found
        write_text(sweep / TABLE, table(written))


def table(cells: Sequence[Cell]) -> str:
    """Write cells as CSV, one line each."""
    names = [each.name for each in fields(Cell) if each.name not in ("identity", "overrides")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(cell, name) for name in names] for cell in cells)
    return text.getvalue()


def summary(cells: Sequence[Cell]) -> str:
    """Draw cells for a terminal, and name those that none beats in both score and speed."""
    metrics = {cell.metric for cell in cells if cell.metric}
    header = ["cell", "state", metrics.pop() if len(metrics) == 1 else "score", "zeros", "items/s"]
    lines = [
        [
            f"{cell.number} {cell.swept}".rstrip(),
            cell.state,
            "" if cell.score is None else f"{cell.score:.2f}",
            "" if cell.zeros is None else f"{100 * cell.zeros:.1f} %",
            "" if cell.items_per_s is None else f"{cell.items_per_s:,.1f}",
            f"{cell.seconds:.0f}" if cell.seconds else "",
        ]
        for cell in cells
    ]
    text = text_table([*header, "seconds"], lines)
    rows: list[dict[str, Any]] = [
        {"cell": cell.number, "score": cell.score, "items_per_s": cell.items_per_s}
        for cell in cells
        if cell.state == "done" and None not in (cell.score, cell.items_per_s)
    ]
    if len(rows) > 1:
        mark_pareto_front(rows)
        best = ", ".join(f"cell {row['cell']}" for row in rows if row["pareto"])
        text += f"\nPareto set of {header[2]} and items/s: {best}"
    return text


def run_cell(
    hydra: Any, config: DictConfig, work: Callable[[], None], wants_traceback: bool
) -> float | list[float] | None:
    """Run the cell that Hydra runs, in any process on any machine, and say what became of it.

    Args:
        hydra: Hydra's own configuration of the job.
        config: The cell's; `resume` is set where an earlier attempt is to be continued.
        work: Does it.
        wants_traceback: Show where it went wrong, too.

    Returns:
        `Cell.objectives`; None if it went wrong.

    Raises:
        InputError: This machine does not see the sweep.
    """
    sweep, folder = Path(hydra.sweep.dir), str(hydra.sweep.subdir)
    cell = next((cell for cell in read_cells(sweep) if cell.folder == folder), None)
    if cell is None:
        raise InputError(
            f"{socket.gethostname()} finds no cell {folder} in {sweep}: a sweep's machines must "
            "share its output_dir"
        )
    try:
        # paths are meant as they were where the sweep began
        with running(sweep, cell) as is_restart, chdir(hydra.runtime.cwd):
            if is_restart and "resume" in config:
                config.resume = True
            work()
        score = "" if cell.score is None else f", {cell.metric} {cell.score:.2f}"
        speed = "" if cell.items_per_s is None else f", {cell.items_per_s:,.1f} items/s"
        states = Counter(each.state for each in read_cells(sweep))
        left = ", ".join(f"{count} {state}" for state, count in states.items())
        say(f"{cell}: done in {cell.seconds:.0f} s{score}{speed} ({left})")
    except Exception as error:
        fail(error, wants_traceback, f"{cell}: ")
    return cell.objectives


@contextmanager
def running(sweep: Path, cell: Cell) -> Iterator[bool]:
    """Keep a cell and its file right while its work is done; tell whether it is a restart.

    That is the case where an earlier attempt was ended by no fault of its own, as when a scheduler
    starts it again after its machine was lost.

    Raises:
        UsageError: The cell runs elsewhere, or has ended since it was planned.
    """
    with locked(_file(sweep, cell, "lock"), f"it still runs ({cell.process})"):
        (now,) = [each for each in read_cells(sweep) if each.number == cell.number]
        if now.state in ("done", "failed"):
            raise UsageError("it has been run elsewhere meanwhile")
        is_restart = now.state in ("running", "interrupted")
        cell.state, cell.process = "running", f"{socket.gethostname()}:{os.getpid()}"
        cell.exit_code, cell.reason = None, ""
        write_cells(sweep, [cell])
        start = time.monotonic()
        try:
            yield is_restart
            cell.state, cell.exit_code = "done", 0
        except Exception as error:
            cell.state = "failed"
            cell.exit_code, _, cell.reason = verdict(error)
            raise
        except BaseException as error:  # a signal
            cell.state = "interrupted"
            code = error.code if isinstance(error, SystemExit) else verdict(error)[0]
            cell.exit_code = code if isinstance(code, int) else 1
            raise
        finally:
            cell.seconds = round(cell.seconds + time.monotonic() - start, 3)
            try:
                _add_results(cell, sweep / cell.folder / "record.json")
            finally:
                write_cells(sweep, [cell])


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends.

    Raises:
        UsageError: Another process holds it; `otherwise` says what that means.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{otherwise}: wait for its end, or end it") from None
        except OSError as error:
            print(f"{path} cannot be locked ({error}): start no second sweep there", flush=True)
        yield


class Sweep:
    """A sweep as its main process sees it: a context around Hydra, and in it Hydra's launcher.

    Whatever sweeper asks for cells, and whatever launcher runs them, both talk to `launch`: there
    cells get their folders, and those that are done are answered from their files.
    """

    def __init__(self, verb: str) -> None:
        self.not_compared = NOT_COMPARED if verb == "train" else ("output_dir", "resume")
        self.launcher: Launcher | None = None
        self.lock = ExitStack()  # until the sweep's end
        self.numbers: list[int] = []  # what was asked for here
        self.tried: set[int] = set()  # what was run here
        self.exit_code = 0  # of the first cell that failed

    def __enter__(self) -> "Sweep":
        # Hydra only knows launchers of the package hydra_plugins, by name; so its own is taken when
        # it is made. Once: the instance, which goes to other machines, is left as it was.
        plugins = Plugins.instance()
        make = plugins.instantiate_launcher

        def instantiate(**context: Any) -> "Sweep":
            del plugins.instantiate_launcher
            self._open(context["config"])
            self.launcher, self.context = make(**context), context["hydra_context"]
            return self

        plugins.instantiate_launcher = instantiate  # type: ignore[method-assign, assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        vars(Plugins.instance()).pop("instantiate_launcher", None)
        with self.lock:
            return bool(self.numbers) and self._conclude(error)

    def _conclude(self, error: BaseException | None) -> bool:
        """Say what became of the cells; tell whether that says enough about an error."""
        cells = [cell for cell in read_cells(self.folder) if cell.number in self.numbers]
        states = Counter(cell.state for cell in cells)
        say(summary(cells))
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        tell(f"{self.folder / TABLE}: {counts} of {len(cells)} cells")
        failed = [cell for cell in cells if cell.state == "failed"]
        for cell in failed:
            print(f"{cell} failed, exit code {cell.exit_code}: {cell.reason}", file=sys.stderr)
        undone = [cell for cell in cells if cell.state != "done"]
        self.exit_code = ([*failed, *undone][0].exit_code or 1) if undone else 0
        gave_up = isinstance(error, Exception) and bool(failed)
        if gave_up:  # as Optuna's, after more failures than it allows
            print(f"the sweeper gave up: {error}", file=sys.stderr)
        return gave_up

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run the cells that are not done yet; return what each is worth, in order.

        A cell that failed is worth None, so that no sweeper stops at it.

        Raises:
            InputError: The launcher could start none.
            UsageError: Two cells would share a folder.
        """
        known = {cell.identity: cell for cell in read_cells(self.folder)}
        asked, todo = [], {}
        for overrides in map(list, job_overrides):
            name = identity(overrides, self.swept, self.not_compared)
            if name not in known:
                known[name] = self._place(name, overrides, list(known.values()))
            cell = known[name]
            asked.append(cell.number)
            is_done = cell.state == "done" and set(map(_plain, overrides)) == set(
                map(_plain, cell.overrides)
            )
            is_there = (self.folder / cell.folder).is_dir()
            if cell.number not in self.tried and not (is_done and is_there):
                cell.overrides, todo[cell.number] = overrides, cell
        self.numbers += [number for number in asked if number not in self.numbers]
        self.tried |= todo.keys()
        waiting = [cell for cell in todo.values() if not self._runs(cell)]
        for cell in waiting:
            cell.state, cell.exit_code, cell.reason = "waiting", None, ""
        write_cells(self.folder, waiting)
        if skipped := len(asked) - len(todo):
            say(f"{skipped} of {len(asked)} cells are finished; they are not run again")
        self._run(list(todo.values()))
        found = {cell.number: cell for cell in read_cells(self.folder)}
        return [
            JobReturn(status=JobStatus.COMPLETED, _return_value=found[number].objectives)
            for number in asked
        ]

    def _open(self, config: DictConfig) -> None:
        """Take the folder for this sweep.

        Raises:
            UsageError: It is another sweep's.
        """
        self.config, self.folder = config, Path(str(config.hydra.sweep.dir)).resolve()
        given = parse(OmegaConf.to_container(config.hydra.overrides.task))  # type: ignore[arg-type]
        self.swept = {each.key_or_group for each in given if each.is_sweep_override()}
        self.swept |= set(config.hydra.sweeper.get("params") or {})
        named: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        self.is_numbered = named["subdir"] == "${hydra.job.num}"  # spares composing every cell
        cells = read_cells(self.folder)
        can_resume = "resume" in config
        if cells and not (can_resume and config.resume):
            remedy = "continue it with resume=true, or choose" if can_resume else "choose"
            raise UsageError(
                f"output_dir={self.folder} already holds a sweep of {len(cells)} cells: "
                f"{remedy} another output_dir"
            )
        lock = self.folder / STATE_FOLDER / "lock"
        self.lock.enter_context(locked(lock, f"a sweep runs in {self.folder}"))
        self._settle(cells, "interrupted", "")

    def _place(self, name: str, overrides: list[str], others: Sequence[Cell]) -> Cell:
        """Give a new cell its number and folder, which `hydra.sweep.subdir` names.

        Raises:
            UsageError: The folder is there already.
        """
        number = max((cell.number for cell in others), default=-1) + 1
        folder = str(number)
        if not self.is_numbered:
            config = self.context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            folder = str(config.hydra.sweep.subdir)
        path = self.folder / folder
        if folder in [cell.folder for cell in others] or (path.is_dir() and any(path.iterdir())):
            raise UsageError(
                f"a cell of this sweep would write to {path}, which is there already: "
                "choose another output_dir (or hydra.sweep.subdir)"
            )
        swept = ",".join(each for each in overrides if _key(each) in self.swept)
        return Cell(number=number, folder=folder, identity=name, overrides=overrides, swept=swept)

    def _run(self, cells: Sequence[Cell]) -> None:
        """Let the launcher run cells; when it breaks because a process died, those left over."""
        assert self.launcher is not None
        while cells:
            where = f"hydra.sweep.dir={quote(str(self.folder))}"
            jobs = [
                [*cell.overrides, where, f"hydra.sweep.subdir={quote(cell.folder)}"]
                for cell in cells
            ]
            try:
                for cell, job in zip(
                    cells, self.launcher.launch(jobs, cells[0].number), strict=True
                ):
                    if job.status is JobStatus.FAILED:  # before it could say so
                        cell.state = "failed"
                        cell.exit_code, _, cell.reason = verdict(job._return_value)
                        write_cells(self.folder, [cell])
                return
            except ImportError:
                raise
            except Exception as error:
                self._settle(cells, "failed", f"its process ended: {error or type(error).__name__}")
                left = self._still(cells, "waiting")
                if len(left) == len(cells):
                    raise InputError(f"the launcher could not start any cell: {error}") from error
                cells = left
            finally:
                self._settle(cells, "interrupted", "")

    def _settle(self, cells: Sequence[Cell], state: str, reason: str) -> None:
        """Set the state of cells whose process was killed before it could."""
        for cell in self._still(cells, "running"):
            end = time.monotonic() + LOCK_WAIT_S
            while (is_alive := self._runs(cell)) and time.monotonic() < end:
                time.sleep(0.05)
            if not is_alive:
                cell.state, cell.reason = state, reason
                cell.exit_code = 1 if state == "failed" else None
                write_cells(self.folder, [cell])

    def _still(self, cells: Sequence[Cell], state: str) -> list[Cell]:
        numbers = {cell.number for cell in cells}
        found = read_cells(self.folder)
        return [cell for cell in found if cell.number in numbers and cell.state == state]

    def _runs(self, cell: Cell) -> bool:
        try:
            with locked(_file(self.folder, cell, "lock"), ""):
                return False
        except UsageError:
            return True


def _add_results(cell: Cell, path: Path) -> None:
    """Read from a cell's record, where it has one, what the table shows."""
    cell.metric = cell.score = cell.zeros = cell.items_per_s = None
    if not path.is_file():
        return
    with suppress(InputError):  # damaged: whoever needs it says so
        record = read_record(path)
        scores = metrics_of(record["metrics"])
        cell.metric, cell.score = next(iter(scores.items()), (None, None))
        cell.zeros = record["model"].get("sparsity", {}).get("encoder")
        if record["speed"]:
            cell.items_per_s = record["speed"][0]["items_per_s"]


def _file(sweep: Path, cell: Cell, suffix: str) -> Path:
    return sweep / STATE_FOLDER / f"{cell.number}.{suffix}"


def _key(override: str) -> str:
    return re.split("[=@]", override.lstrip("+~"), maxsplit=1)[0]


def _plain(override: str) -> str:
    """Return an override, but none for what says only that and where a sweep goes on."""
    return "" if _key(override) in ("resume", "output_dir") else override.lstrip("+")
