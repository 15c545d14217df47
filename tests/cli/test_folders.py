"""Where a run writes: results, `.hydra/` and log in one folder, however it was named."""

from pathlib import Path

import pytest
from conftest import Run
from omegaconf import OmegaConf

from toolkit.config import ReportRoot
from toolkit.record import new_record, write_record

NAME = "a b=1,c"  # what a shell, Hydra's grammar and OmegaConf may trip over


@pytest.fixture(autouse=True)
def records(tmp_path: Path) -> None:
    """Two run folders with a record each, and options of a user's own."""
    for name in ("one", "two"):
        config = ReportRoot(paths=[], select=None, within=0.01, output_dir="")
        write_record(tmp_path / name / "record.json", new_record("bench", config))
    files = {
        "mine.yaml": {"defaults": ["report", "_self_"], "output_dir": NAME},
        "overlay/mine.yaml": {"output_dir": NAME},
        "named.yaml": {"defaults": ["report", "_self_"], "output_dir": "from ${paths[0]}"},
        "beside.yaml": {"defaults": ["export", "_self_"], "checkpoint": "runs/x/checkpoint"},
    }
    for path, values in files.items():
        (tmp_path / "mine" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / path).write_text("# @package _global_\n" + OmegaConf.to_yaml(values))


WAYS = [
    [f"output_dir='{NAME}'"],
    [f"++output_dir='{NAME}'"],
    [f'output_dir="{NAME}"', "hydra.verbose=false"],
    ["-cd", "mine", "-cn", "mine"],
    ["+overlay=mine", "hydra.searchpath=[file://mine]"],
    [f"hydra.run.dir='{NAME}'", f"hydra.sweep.dir='{NAME}'"],  # Hydra's own word for it
]


@pytest.mark.parametrize("way", WAYS)
def test_one_run_is_in_one_folder(toolkit: Run, tmp_path: Path, way: list[str]) -> None:
    before = set(tmp_path.iterdir())
    run = toolkit("report", "one", *way)
    assert run.returncode == 0, run.stderr
    assert set(tmp_path.iterdir()) - before == {tmp_path / NAME}
    assert_complete(tmp_path / NAME)


@pytest.mark.parametrize("way", WAYS)
def test_the_jobs_of_a_sweep_are_numbered_below_it(
    toolkit: Run, tmp_path: Path, way: list[str]
) -> None:
    before = set(tmp_path.iterdir())
    run = toolkit("report", "-m", "paths=[one],[two]", *way)
    assert run.returncode == 0, run.stderr
    assert set(tmp_path.iterdir()) - before == {tmp_path / NAME}
    names = {path.name for path in (tmp_path / NAME).iterdir()}
    assert names == {"0", "1", "multirun.yaml", "sweep.csv", ".sweep"}
    for number in ("0", "1"):
        assert_complete(tmp_path / NAME / number)


def test_a_folder_may_be_named_after_what_is_run(toolkit: Run, tmp_path: Path) -> None:
    run = toolkit("report", "one", "-cd", "mine", "-cn", "named")
    assert run.returncode == 0, run.stderr
    assert_complete(tmp_path / "from one")


def test_without_a_name_it_is_the_time(toolkit: Run, tmp_path: Path) -> None:
    assert toolkit("report", "one").returncode == 0
    (folder,) = tmp_path.glob("outputs/report/????-??-??/??-??-??")
    assert_complete(folder)
    assert toolkit("report", "-m", "paths=[one],[two]").returncode == 0
    (folder,) = tmp_path.glob("multirun/????-??-??/??-??-??")
    for number in ("0", "1"):
        assert_complete(folder / number)


def test_an_export_lies_beside_its_checkpoint(toolkit: Run, tmp_path: Path) -> None:
    checkpoint = tmp_path / "runs" / "x" / "checkpoint"
    checkpoint.mkdir(parents=True)
    shown = ["--cfg", "job", "--resolve", "-p", "output_dir"]
    for way in (["checkpoint=runs/x/checkpoint"], ["-cd", "mine", "-cn", "beside"]):
        assert toolkit("export", *way, *shown).stdout == f"{tmp_path}/runs/x/export\n"
    given = toolkit("export", "checkpoint=runs/x/checkpoint", "output_dir=else", *shown)
    assert given.stdout == "else\n"
    missing = toolkit("export", "checkpoint=none", *shown).stdout
    assert missing.startswith("outputs/export/")
    run = toolkit("export", "checkpoint=runs/x/checkpoint")  # it is empty
    assert run.returncode == 1
    assert (tmp_path / "runs/x/export/.hydra/config.yaml").is_file()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--cfg", "job"],
        ["--cfg", "job", "--resolve"],
        ["--cfg", "all", "--resolve"],
        ["--cfg", "hydra", "--resolve"],
        ["--help"],
        ["--info", "config"],
    ],
)
def test_hydras_flags_show_it_and_make_no_folder(
    toolkit: Run, tmp_path: Path, flags: list[str]
) -> None:
    before = set(tmp_path.iterdir())
    for given in ([], [f"output_dir='{NAME}'"], ["-cd", "mine", "-cn", "mine"]):
        run = toolkit("report", "one", *flags, *given)
        assert run.returncode == 0, run.stderr
        assert "hydra" in flags or "output_dir: " in run.stdout
        assert not given or "hydra" in flags or NAME in run.stdout
    assert set(tmp_path.iterdir()) == before


def assert_complete(folder: Path) -> None:
    """Results, configuration and log are there, and the results know where."""
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert config.paths in (["one"], ["two"])
    names = {path.name for path in folder.iterdir()}
    assert {".hydra", "report.log", "report.html", "report.md"} <= names
