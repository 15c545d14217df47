"""A sweep's bookkeeping: real Hydra, launcher and files; its verb only notes that it was called."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from support.records import record, speed

from toolkit import cli
from toolkit.config import TrainRoot, Verb
from toolkit.errors import InputError, UsageError
from toolkit.overrides import explain
from toolkit.record import write_record
from toolkit.sweep import Cell, identity, locked, read_cells, summary, table, write_cells

pytestmark = pytest.mark.slow

UNLUCKY = 13  # the seed that fails
Toolkit = Callable[..., int]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The configurations that were run."""
    found: list[Any] = []

    def work(verb: str, root: type, config: Any) -> None:
        found.append(OmegaConf.to_container(config, resolve=True))
        if config.seed == UNLUCKY:
            raise InputError("the data is gone")
        zeros = config.sparsity.final_sparsity
        made = record(
            zeros=zeros, accuracy=95 - 10 * zeros, speeds=(speed("sparse", 10 + 90 * zeros),)
        )
        write_record(Path(config.output_dir) / "record.json", made)

    monkeypatch.setattr(cli, "work", work)
    monkeypatch.setattr(sys, "argv", ["toolkit"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    return found


def train(*args: str) -> int:
    return cli.run(["train", "-m", "output_dir=runs", *args])


def rows() -> list[dict[str, str]]:
    with Path("runs/sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_cell_that_fails_ends_no_sweep(
    ran: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"seed=1,{UNLUCKY},2", "sparsity=prune80") == 1
    assert [config["seed"] for config in ran] == [1, UNLUCKY, 2]
    assert [config["output_dir"] for config in ran] == [f"{Path.cwd()}/runs/{n}" for n in range(3)]
    one, two, three = rows()
    assert (one["state"], one["swept"], one["folder"]) == ("done", "seed=1", "0")
    assert (one["metric"], one["score"], one["zeros"], one["items_per_s"]) == (
        *("accuracy", "87.0", "0.8", "82.0"),
    )
    assert (two["state"], two["exit_code"], two["reason"]) == ("failed", "1", "the data is gone")
    assert three["state"] == "done"
    said = capsys.readouterr()
    assert "sweep.csv: 2 done, 1 failed of 3 cells" in said.out
    lines = said.err.splitlines()
    assert lines[0] == "error: cell 1 (seed=13): the data is gone"
    assert lines[-1] == "cell 1 (seed=13) failed, exit code 1: the data is gone"


def test_resumed_it_runs_what_is_not_done_and_mixes_no_cells_up(ran: list[Any]) -> None:
    train(f"seed=1,{UNLUCKY},2")
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="already holds a sweep of 3 cells: continue it with resu"):
        train("seed=5,6")
    assert {path: path.read_bytes() for path in before} == before
    ran.clear()
    assert train(f"seed=3,2,{UNLUCKY}", "resume=true") == 1
    assert [(config["seed"], Path(config["output_dir"]).name) for config in ran] == [
        (3, "3"),
        (UNLUCKY, "1"),
    ]
    assert [(row["swept"], row["state"]) for row in rows()] == [
        *(("seed=1", "done"), ("seed=13", "failed"), ("seed=2", "done"), ("seed=3", "done")),
    ]
    ran.clear()
    assert train("seed=1,2,3", "resume=true") == 0
    assert ran == []


def test_cells_differ_by_what_their_results_depend_on(ran: list[Any]) -> None:
    train("seed=1,2")
    ran.clear()
    assert train("seed=1,2", "then=[export,bench]", "resume=true") == 0  # the same, gone on with
    assert [Path(config["output_dir"]).name for config in ran] == ["0", "1"]
    ran.clear()
    assert train("seed=1,2", "model.freeze_embeddings=true", "resume=true") == 0  # others
    assert [Path(config["output_dir"]).name for config in ran] == ["2", "3"]
    swept = {"bench.batch_size"}
    both = [f"bench.batch_size={size}" for size in (1, 32)]
    assert len({identity([each], swept, ["bench"]) for each in both}) == 2
    assert len({identity([each], set(), ["bench"]) for each in both}) == 1
    assert identity(["b=1", "++a=2"], set(), []) == identity(["a=2", "b=1"], set(), [])


def test_what_was_killed_goes_on(ran: list[Any]) -> None:
    train("seed=1,2")
    killed = read_cells(Path("runs"))[1]
    killed.state = "running"  # as SIGKILL leaves it
    write_cells(Path("runs"), [killed])
    ran.clear()
    lock = Path("runs/.sweep/1.lock")
    with locked(lock, ""):  # not killed after all
        assert train("seed=1,2", "resume=true") == 1
        assert ran == []
        assert rows()[1]["state"] == "running"
    assert train("seed=1,2", "resume=true") == 0
    assert [config["seed"] for config in ran] == [2]


def test_a_cell_that_its_scheduler_starts_again_goes_on(
    ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its machine was lost: the job is the same, so it is not told to resume."""
    once = cli.run_job
    states = []

    def lost_once(verb: str, root: type, config: Any, wants_traceback: bool) -> Any:
        (cell,) = read_cells(Path("runs"))
        states.append(cell.state)
        cell.state = "running"
        write_cells(Path("runs"), [cell])
        return once(verb, root, config, wants_traceback)

    monkeypatch.setattr(cli, "run_job", lost_once)
    assert train("seed=1") == 0
    assert states == ["waiting"]
    assert [config["resume"] for config in ran] == [True]


def test_only_one_sweep_at_a_time(ran: list[Any]) -> None:
    train("seed=1")
    with (
        locked(Path("runs/.sweep/lock"), ""),
        pytest.raises(UsageError, match=r"a sweep runs in .*/runs: wait for its end"),
    ):
        train("seed=1,2", "resume=true")
    assert len(ran) == 1


def test_folders_named_by_the_user(ran: list[Any]) -> None:
    named = ["hydra.sweep.subdir='seed ${seed}'", "resume=true"]
    assert train("seed=1,2", *named) == 0
    assert train("seed=3,1", *named) == 0
    assert [row["folder"] for row in rows()] == ["seed 1", "seed 2", "seed 3"]
    assert len(ran) == 3
    with pytest.raises(UsageError, match=r"a cell of this sweep would write to .*/runs/seed 1"):
        train("seed=1", "depth=full,layers1", *named)


def test_a_folder_that_holds_something_else_is_left_alone(ran: list[Any]) -> None:
    Path("runs/1").mkdir(parents=True)
    Path("runs/1/mine.txt").touch()
    with pytest.raises(UsageError, match=r"would write to .*/runs/1, which is there already"):
        train("seed=1,2")
    assert ran == []


def test_a_machine_that_does_not_see_the_sweep(
    ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = cli.run_job

    def elsewhere(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr("toolkit.sweep.read_cells", lambda sweep: [])
            return once(*args)

    monkeypatch.setattr(cli, "run_job", elsewhere)
    assert train("seed=1") == 1
    assert "a sweep's machines must share its output_dir" in rows()[0]["reason"]
    assert ran == []


def test_one_value_twice_is_one_cell(ran: list[Any]) -> None:
    assert train("seed=1,1") == 0
    assert len(ran) == len(rows()) == 1


def test_ctrl_c_leaves_the_table_right(ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(verb: str, root: type, config: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "work", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train("seed=1,2")
    assert [(row["state"], row["exit_code"]) for row in rows()] == [
        ("interrupted", "130"),
        ("waiting", ""),
    ]
    assert train("seed=1,2", "resume=true") == 0
    assert len(ran) == 2


SEARCH = (
    *("search=accuracy_speed", "sparsity=choice(dense,prune70,prune80,prune90,prune97)"),
    "seed=1",
)


@pytest.mark.filterwarnings("ignore")  # of a version of Optuna that its sweeper is bound to
def test_search(ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Optuna maximises both; a search that goes on asks the same again, and is answered."""
    assert train(*SEARCH, "hydra.sweeper.n_trials=3") == 0
    assert all(config["then"] == [Verb.export, Verb.bench] for config in ran)
    first = [config["sparsity"]["name"] for config in ran]
    ran.clear()
    assert train(*SEARCH, "hydra.sweeper.n_trials=12", "resume=true") == 0
    names = [*first, *(config["sparsity"]["name"] for config in ran)]
    assert len(names) == len(set(names)) > len(first)
    found = OmegaConf.load("runs/optimization_results.yaml")
    values = {tuple(solution["values"]) for solution in found.solutions}  # all, by how work() is
    assert values == {(float(row["score"]), float(row["items_per_s"])) for row in rows()}
    assert "Pareto set of accuracy and items/s: cell 0, cell 1, cell 2" in capsys.readouterr().out


def test_the_pareto_set_and_the_table() -> None:
    results = [("done", 90.0, 10.0), ("done", 80.0, 20.0), ("done", 79.0, 15.0)]
    made = [
        Cell(number=n, folder=str(n), identity="", overrides=["a=1"], swept=f"a={n}")
        for n in range(4)
    ]
    for cell, found in zip(made, [*results, ("failed", 99.0, 99.0)], strict=True):
        cell.metric = "f1"
        cell.state, cell.score, cell.items_per_s = found
    assert summary(made).endswith("Pareto set of f1 and items/s: cell 0, cell 1")
    assert made[0].objectives == [90.0, 10.0]
    assert made[3].objectives is None
    lines = list(csv.DictReader(table(made).splitlines()))
    assert [line["number"] for line in lines] == ["0", "1", "2", "3"]
    assert "overrides" not in lines[0]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / ".sweep").mkdir()
    for text in ("{", json.dumps({"number": 1})):
        (tmp_path / ".sweep" / "0.json").write_text(text)
        with pytest.raises(InputError, match=r"0\.json is no cell of a sweep"):
            read_cells(tmp_path)


def test_a_launcher_that_is_not_installed_names_the_extra() -> None:
    for group, option in (("hydra/launcher", "ray"), ("hydra/sweeper", "optuna")):
        error = MissingConfigException("", f"{group}/{option}", options=["basic"])
        said = explain("train", TrainRoot, [], error)
        assert said == f"{group}={option} is not installed: pip install 'toolkit[sweep]'"
