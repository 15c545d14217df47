"""Every command in README and docs is one that the command line takes, and `make nightly` runs it.

A nightly run goes through the pages, each in a folder of its own, from top to bottom, so that a
command finds what those above it made. Overrides are appended to make it short, and to name small
data and a small model in place of the hub's; nothing else is changed.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, REPO
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.configs import TINY, TINY_MODEL, compose
from support.recipes import EPOCHS, MAGNITUDE, recipe
from support.serving import write_export

from toolkit.cli import COMMANDS
from toolkit.overrides import rewrite

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]

# Commands that do not run here, by a part of their line, and why.
NOT_RUN = {
    "make ": "CI runs the targets, .ci/run",
    "pip wheel": "test_packaging.py does it without the network",
    "pip install 'toolkit[serve]'": "asks a registry",
    "deepsparse": "needs Python 3.11 and packages of its own",
    "report_to=wandb": "the service's package is not among ours",
    "report_to=mlflow": "the service's package is not among ours",
    "curl http": "asks the server above, which has ended",
    "serve run": "test_deployment.py runs the deployment on a local cluster",
    "ray st": "starts and stops a cluster of several machines",
    "ray_cluster": "needs that cluster",
    "numactl": "starts the reader's own script on a machine of several nodes",
}
# Runs that a page's first command already reads.
GIVEN = {"quantization": ["teacher"], "report": ["old", "new"], "serving": ["student"]}
# What … stands for, where a command needs more than defaults.
MEANT = {
    "sweeps": "model=local model.path=FINE_TUNED task=sst2 sparsity=prune70 resume=true",
}
SMALL_SHAPE = [
    *("model.config.vocab_size=1000", "model.config.hidden_size=64"),
    *("model.config.num_attention_heads=4", "model.config.intermediate_size=128"),
]


def lines(page: Path) -> list[str]:
    """Find the lines of a page's blocks of commands, joined, with their variables' values."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    text = "\n".join(block for language, block in blocks if not language).replace("\\\n", " ")
    variables = re.compile(r'^([A-Z]+)="(.*)"\n', re.M)
    for name, value in variables.findall(text):
        text = text.replace(f"${name} ", f"{value} ")
    return [line for line in variables.sub("", text).splitlines() if line]


def commands(page: Path) -> list[str]:
    """Find those that call `toolkit`."""
    found = [re.sub(r"^[A-Z_]+=\S+ ", "", line) for line in lines(page)]
    return [line for line in found if line.startswith("toolkit ")]


def plain(verb: str, words: list[str]) -> list[str]:
    """Leave out flags, what stands for more, and optional parts; take a sweep's first values."""
    parser, found = OverridesParser.create(), []
    words = [word.strip("[]") if "=" not in word.partition("[")[0] else word for word in words]
    words = [word for word in words if word not in ("-m", "--cfg", "job", "…", "-v", "-q")]
    words = [word for word in words if not word.startswith("recipe_")]  # files of the reader's own
    for word in rewrite(verb, words):
        override = parser.parse_override(word)
        if override.is_sweep_override():
            word = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        found.append(word)
    return found


def composed(verb: str, words: list[str]) -> Any:
    """Compose a documented command, as far as it stands there."""
    return compose(verb, *(word for word in plain(verb, words) if "output_dir=" not in word))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_compose(page: Path) -> None:
    for line in commands(page):
        _, verb, *words = shlex.split(line, comments=True)
        if verb in COMMANDS:
            composed(verb, words)
        else:
            assert verb in ("info", "--version", "VERB"), line


def test_pages_show_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30


def test_what_is_not_run_is_in_the_pages() -> None:
    shown = [line for page in PAGES for line in lines(page)]
    assert [part for part in NOT_RUN if not any(part in line for line in shown)] == []


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what a reader has: a fine-tuned model, its export and record, files, data sets."""
    folder = tmp_path_factory.mktemp("shelf")
    rows = [{"review": text, "text": text, "opinion": opinion, "one": text, "two": "soup",
             "score": score, "words": text.split(), "tags": ["O", "B-PER", "I-PER", "O"],
             "question": "How?", "context": text, "answers": "good",
             "sentence1": text, "sentence2": "the soup"}
            for text, opinion, score in (("the soup was good", "praise", 4),
                                         ("the bread was good", "praise", 3),
                                         ("the wait was good", "complaint", 1))] * 120  # fmt: skip
    own = folder / "own"
    own.mkdir()
    (own / "own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, keys, separator in (
        ("own.csv", ("review", "text", "opinion"), ","),
        ("pairs.csv", ("sentence1", "sentence2", "score"), ","),
        ("pairs.tsv", ("sentence1", "sentence2", "score"), "\t"),
    ):
        table = [separator.join(keys), *(separator.join(str(r[k]) for k in keys) for r in rows)]
        (own / name).write_text("\n".join(table) + "\n")
    for name in ("texts.txt", "sst2.txt"):
        (own / name).write_text("".join(f"{row['text']}\n" for row in rows))
    for name in ("bert-prune80.md", "a.md", "b.yaml"):
        text = recipe(EPOCHS, ("GMPruningModifier", MAGNITUDE))
        (own / name).write_text(f"---\n{text}---\n" if name.endswith("md") else text)

    data = folder / "data"
    data.mkdir()
    answers = [{"text": "good", "answer_start": 13}]
    questions = [{"id": str(i), "question": "How?", "answers": answers} for i in range(32)]
    squad = {"data": [{"paragraphs": [{"context": "the soup was good", "qas": questions}]}]}
    for name in ("train", "dev"):
        glue = "sentence\tlabel\tQuality\t#1 String\t#2 String\n"
        glue += "".join(
            f"the soup was good {i}\t{i % 2}\t{i % 2}\tsoup\tgood\n" for i in range(128)
        )
        (data / f"{name}.tsv").write_text(glue)
        (data / f"{name}-v1.1.json").write_text(json.dumps(squad))

    shape = ["hidden_size=64", "num_hidden_layers=12", "max_position_embeddings=512"]
    words = [*TINY, *(f"model.config.{fact}" for fact in shape), "then=[export,bench]"]
    words += ["sparsity=prune70", "sparsity.final_sparsity=0.5", "sparsity.start_epoch=0"]
    words += ["sparsity.end_epoch=0.5", "bench.seconds=0.1", f"output_dir={folder}/run"]
    call("train", *words, cwd=folder)
    words = [*TINY[len(TINY_MODEL) :], "task=squad", f"task.data_dir={data}", "model=local"]
    words += [f"model.path={folder}/run/checkpoint", f"output_dir={folder}/squad"]
    call("train", *words, cwd=folder)
    shutil.copy(folder / "run" / "export" / "model.onnx", own)
    write_export(folder / "EXPORT", "base")
    return folder


def call(*words: str, cwd: Path) -> None:
    subprocess.run([COMMAND, *words], cwd=cwd, check=True, capture_output=True, timeout=300)


def shortened(line: str, page: str, shelf: Path) -> str:
    """Append what makes a command short, and what it would ask the hub for."""
    line = re.sub(r"\s+#\s.*", "", line).replace("[values=fp16]", "values=fp16")
    line = line.replace("…", MEANT.get(page, ""))
    _, *words = shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", line))
    if line.startswith("python tests/support/load.py"):
        return f"{line} --seconds 1 --rates 20"
    if line.startswith("python -m toolkit.scaling"):
        return f"{line} --quick --rounds 1"
    if "toolkit" not in line or words[0] not in COMMANDS or "recipe_save=" in line:
        return line
    verb, more = words[0], []
    config = composed(verb, words[1:])
    if (task := getattr(config, "task", None)) and task.path and not task.train_file:
        more.append(f"task.data_dir={shelf}/data")
    if task:
        more += ["task.max_train_samples=128", "task.max_eval_samples=32"]
    model: Any = getattr(config, "model", None)
    if verb in ("bench", "grid") and not getattr(config, "onnx", None) and model.name != "demo":
        more += SMALL_SHAPE
    if verb in ("train", "export") and model.path and str(model.path).count("/") == 1:
        more.append(f"model.path={shelf}/run/checkpoint")
    if verb == "train":
        more += ["trainer.use_cpu=true", "bench.seconds=0.1", "sparsity.num_calibration=16"]
        more += ["sparsity.fisher.num_gradients=16"]
        if config.sparsity.target_speedup:
            more.append("sparsity.target_speedup=1.2")
        if config.trainer["num_train_epochs"] > 6:
            more += ["trainer.num_train_epochs=3", "sparsity.update_frequency=0.5"]
            more += ["sparsity.start_epoch=0", "sparsity.end_epoch=2"]
    if verb == "bench":
        more += ["seconds=0.1", "seq_len=32"]
    if verb == "grid":
        more += ["rounds=1", "seq_len=32"]
    if verb == "serve":
        more += ["serve.port=0"]
    if "search=" in line:
        more += ["hydra.sweeper.n_trials=2"]
    flag = " --cfg job" if "--cfg job" in line else ""  # Hydra takes no override behind it
    return f"{line.replace(flag, '')} {shlex.join(more)}{flag}"


@pytest.mark.nightly
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, shelf: Path, tmp_path: Path) -> None:
    shutil.copytree(shelf / "own", tmp_path, dirs_exist_ok=True)
    for name in ("FINE_TUNED", "DENSE", "SPARSE", "TEACHER", "ID_OR_DIR", "DIR", "FLOAT"):
        task = "squad" if (page.stem, name) == ("recipes", "DIR") else "run"
        shutil.copytree(shelf / task / "checkpoint", tmp_path / name)
    shutil.copytree(shelf / "run", tmp_path / "RUN")
    (tmp_path / "EXPORT").symlink_to(shelf / "EXPORT")
    (tmp_path / "tests").symlink_to(REPO / "tests")
    for name in GIVEN.get(page.stem, []):
        shutil.copytree(shelf / "run", tmp_path / "runs" / name)
    path = f"{COMMAND.parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}
    exports, failures = "", []
    for line in lines(page):
        if any(part in line for part in NOT_RUN):
            continue
        if line.startswith("export "):
            exports += f"{line}; "
            continue
        command, code = shortened(line, page.stem, shelf), 0
        if line.startswith("toolkit serve"):
            command, code = f"timeout --preserve-status 30 {command}", 128 + signal.SIGTERM
        print(command, flush=True)
        done = subprocess.run(
            ["bash", "-c", exports + command],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        # a model that has learnt nothing may miss a gate
        missed = done.returncode == 3 and re.search("select=|floor=", line)
        answered = code == 0 or '"url"' in done.stdout  # of a server
        if (done.returncode != code and not missed) or not answered:
            failures.append(f"{command}\n{done.stdout}")
            print(done.stdout, flush=True)
    assert not failures, "\n".join(failures)
