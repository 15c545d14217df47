"""Every `toolkit` command in README and docs is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import REPO
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.configs import compose

from toolkit.cli import COMMANDS
from toolkit.overrides import rewrite

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """Find the command lines in a page's blocks, over several lines too, variables filled in."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", page.read_text(), re.M | re.S)
    text = "\n".join(blocks).replace("\\\n", " ")
    for name, value in re.findall(r'^([A-Z]+)="(.*)"$', text, re.M):
        text = text.replace(f"${name} ", f"{value} ")
    return [line for line in text.splitlines() if line.startswith("toolkit ")]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_compose(page: Path) -> None:
    for line in commands(page):
        _, verb, *words = shlex.split(line, comments=True)
        if verb in COMMANDS:
            compose(verb, *(word for word in plain(verb, words) if "output_dir=" not in word))
        else:
            assert verb in ("info", "--version", "VERB"), line


def test_pages_show_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30
