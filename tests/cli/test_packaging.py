"""The wheel, installed into an empty environment and run in an empty folder.

Nothing is downloaded: the environments link to the packages that are installed here already — the
slim one to exactly what `pip install -r requirements-engine.txt` would bring.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.serving import post, write_export

REPO = Path(__file__).resolve().parents[2]
CONTAINERFILE = REPO / "docs" / "deploy" / "Containerfile"
PACKAGES = ("toolkit", "cython_kernels", "conf")


def requirements(use: str = "engine") -> list[Requirement]:
    lines = (REPO / f"requirements-{use}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def closure(wanted: list[Requirement]) -> set[str]:
    """Names of the wanted packages and of all that they need."""
    found: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        if requirement.name.lower() not in found:
            found.add(requirement.name.lower())
            needs = [Requirement(text) for text in distribution(requirement.name).requires or []]
            wanted += [need for need in needs if not need.marker or need.marker.evaluate()]
    return found


def make_environment(folder: Path, wheel: Path) -> Path:
    """Make an environment with nothing but the wheel in it; return its site-packages."""
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    return next(folder.glob("lib/python*/site-packages"))


def run(folder: Path, *args: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program of the environment, with nothing of ours on its path."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [folder / "bin" / args[0], *args[1:]],
        cwd=cwd,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the sources from a clean copy, so that nothing built earlier slips in."""
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(REPO / name, source / name, ignore=unwanted)
    for file in filter(Path.is_file, REPO.iterdir()):
        shutil.copy(file, source)
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation"]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    return next((source / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "--wheel-dir", folder, sdist], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def slim(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and requirements-engine.txt, without torch."""
    return make_slim(tmp_path_factory.mktemp("slim"), wheel, "engine")


@pytest.fixture(scope="module")
def serving(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with requirements-serve.txt."""
    return make_slim(tmp_path_factory.mktemp("serving"), wheel, "serve")


def make_slim(folder: Path, wheel: Path, use: str) -> Path:
    """Make an environment of the wheel and a list of requirements."""
    site = make_environment(folder, wheel)
    for name in closure(requirements(use)):
        installed = distribution(name)
        tops = {file.parts[0] for file in installed.files or []} - {"..", "__pycache__", "bin"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(installed.locate_file(top))))
    return folder


@pytest.fixture(scope="module")
def trained(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory made by the wheel in a full installation: train, export, bench."""
    folder = tmp_path_factory.mktemp("full")
    site = make_environment(folder, wheel)
    (site / "installed_here.pth").write_text(sysconfig.get_paths()["purelib"])
    empty = tmp_path_factory.mktemp("empty")
    where = run(folder, "python", "-c", "import toolkit; print(toolkit.__file__)", cwd=empty)
    assert where.stdout.startswith(str(folder))
    args = ["trainer=smoke", "depth=layers3", "sparsity=prune80", "then=[export,bench]"]
    quick = ["bench.seconds=0.1", "bench.batch_size=2", "bench.seq_len=16", "output_dir=run"]
    train = run(folder, "toolkit", "train", *args, *quick, cwd=empty)
    assert train.returncode == 0, train.stderr
    return empty / "run"


def test_the_sdist_holds_all_sources_and_nothing_generated(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        paths = [member.name.partition("/")[2] for member in archive if member.isfile()]
    for package in PACKAGES:
        for file in (REPO / package).rglob("*"):
            if file.is_file() and not re.search(r"\.(pyc|so|c)$", file.name):
                assert file.relative_to(REPO).as_posix() in paths
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= set(paths)
    assert {f"requirements-{use}.txt" for use in ("engine", "serve")} <= set(paths)
    assert not [path for path in paths if re.search(r"\.(pyc|so|c)$", path)]


def test_the_wheel_holds_all_files_and_no_sources_of_the_extension(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        for file in (REPO / package).rglob("*"):
            if file.is_file() and not re.search(r"\.(pyc|so|c|h|pyx|pxd|pxi)$", file.name):
                path = file.relative_to(REPO).as_posix()
                assert (f"toolkit/{path}" if package == "conf" else path) in names
    assert any(name.startswith("cython_kernels/_kernels.") for name in names)
    assert not [name for name in names if re.search(r"\.(c|h|pyx|pxd|pxi)$", name)]


@pytest.mark.parametrize("use", ["engine", "serve"])
def test_slim_requirements_are_among_the_declared_dependencies(use: str) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"].get(use, [])
    declared = {r.name: r.specifier for r in map(Requirement, [*project["dependencies"], *extra])}
    for requirement in requirements(use):
        assert declared[requirement.name] == requirement.specifier
    assert {Requirement(line).name for line in extra} <= {r.name for r in requirements(use)}
    assert not {"torch", "transformers", "datasets"} & closure(requirements(use))


def test_a_server_needs_no_torch(serving: Path, tmp_path: Path) -> None:
    """As in the image of docs/deploy/Containerfile: its entry point, another port."""
    export = write_export(tmp_path / "model", "base")
    command = re.findall(r"^ENTRYPOINT (.*)$", CONTAINERFILE.read_text(), re.MULTILINE)[0]
    words = [word.replace("/model", str(export)) for word in json.loads(command)]
    words = [word.replace("/tmp/serve", str(tmp_path / "run")) for word in words]
    process = subprocess.Popen(
        [serving / "bin" / words[0], *words[1:], "serve.host=127.0.0.1", "serve.port=0"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        status, vectors = post(f"{url}embed", {"inputs": "the soup was good"})
        process.terminate()
        process.communicate(timeout=60)  # reads its last words: nobody to read them is another end
    assert (status, len(vectors[0])) == (200, 16)
    assert process.returncode == 143
    without = run(serving, "python", "-c", "import torch", cwd=tmp_path)
    assert "No module named 'torch'" in without.stderr


def test_a_verb_without_its_extra_names_it(slim: Path, tmp_path: Path) -> None:
    serve = run(slim, "toolkit", "serve", "onnx=x", cwd=tmp_path)
    assert serve.returncode == 1
    assert "Traceback" not in serve.stderr
    told = serve.stderr.partition("which is not installed: ")[2]
    command, _, extra = told.strip().partition(" (the extra ")
    assert extra == "toolkit[serve])"
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert shlex.split(command) == ["pip", "install", *project["optional-dependencies"]["serve"]]


def test_slim_deployment_runs_engine_bench_and_report(
    slim: Path, trained: Path, tmp_path: Path
) -> None:
    assert run(slim, "toolkit", "--version", cwd=tmp_path).stdout.startswith("toolkit ")
    shown = run(slim, "toolkit", "bench", "--cfg", "job", "-p", "batch_size", cwd=tmp_path)
    assert shown.stdout.strip() == "32", shown.stderr
    without = run(slim, "python", "-c", "import torch", cwd=tmp_path)
    assert "No module named 'torch'" in without.stderr

    settings = ["batch_size=2", "seq_len=16", "seconds=0.1"]
    bench = run(
        slim, "toolkit", "bench", f"onnx={trained}/export", *settings, "output_dir=b", cwd=tmp_path
    )
    assert bench.returncode == 0, bench.stderr
    record = json.loads((tmp_path / "b" / "record.json").read_text())
    assert record["speed"][0]["engine"] == "sparse"
    assert "torch" not in record["environment"]["versions"]

    report = run(slim, "toolkit", "report", "b", "output_dir=r", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "r" / "report.html").is_file()


def test_slim_deployment_says_what_a_verb_lacks(slim: Path, tmp_path: Path) -> None:
    train = run(slim, "toolkit", "train", cwd=tmp_path)
    assert train.returncode == 1
    assert "Traceback" not in train.stderr
    command = shlex.split(train.stderr.partition("which is not installed: ")[2])
    assert command[:2] == ["pip", "install"]
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    lacking = {Requirement(line).name for line in project["dependencies"]} - closure(requirements())
    assert {Requirement(line).name for line in command[2:]} == lacking  # one attempt suffices
    assert {"torch", "transformers"} <= lacking


def test_full_install_trains_exports_and_benches(trained: Path) -> None:
    record = json.loads((trained / "record.json").read_text())
    assert record["model"]["sparsity"]["encoder"] == pytest.approx(0.8, abs=0.01)
    assert record["speed"]
