"""Sphinx: the pages of this folder as a site (`make docs`), links between them checked."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import toolkit
import toolkit.config
import toolkit.overrides  # resolves the default of output_dir
from toolkit.cli import COMMANDS

project = "toolkit"
version = release = toolkit.__version__
copyright = "the toolkit's authors, Apache-2.0"
extensions = ["myst_parser"]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}
html_show_sourcelink = False
templates_path: list[str] = []
exclude_patterns = ["build"]
# `toolkit train …` in a block without a language is a command line, not Python
highlight_language = "none"

CONFIGURATION = Path(__file__).parent / "configuration.md"  # made anew with every build
HEAD = """# Configuration

Every key of every verb, with its default and meaning, from `toolkit/config.py` and `conf/`.
`toolkit VERB --help` lists the options of each group, `toolkit VERB --cfg job` shows what
would run.
"""


def write_configuration() -> None:
    """Write the page of all keys: the dataclasses' own words beside the YAML's values."""
    known: set[type] = set()
    page = [HEAD]
    for verb in COMMANDS:
        root = getattr(toolkit.config, f"{verb.capitalize()}Root")
        values = _defaults(verb)
        page.append(f"## toolkit {verb}\n")
        plain = [field.name for field in fields(root) if not is_dataclass(_type(root, field.name))]
        page += _table(root, plain, values, prefix="")
        for field in fields(root):
            group = _type(root, field.name)
            if is_dataclass(group) and group not in known:
                known.add(group)  # a group that several verbs share is told once
                page.append(f"### {field.name}\n")
                page.append(f"{_summary(group)}\n")
                page += _group(group, values.get(field.name) or {}, f"{field.name}.")
    CONFIGURATION.write_text("\n".join(page), encoding="utf-8")


def _group(group: type, values: dict[str, Any], prefix: str) -> list[str]:
    names = [field.name for field in fields(group)]
    plain = [name for name in names if not is_dataclass(_type(group, name))]
    lines = _table(group, plain, values, prefix)
    for name in names:
        inner = _type(group, name)
        if is_dataclass(inner):
            lines += _group(inner, values.get(name) or {}, f"{prefix}{name}.")
    return lines


def _table(owner: type, names: list[str], values: dict[str, Any], prefix: str) -> list[str]:
    if not names:
        return []
    meanings = {}
    for base in reversed(owner.__mro__):
        meanings |= _attributes(base.__doc__ or "")
    rows = ["| key | default | |", "|---|---|---|"]
    for name in names:
        text = meanings.get(name, "").replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {_shown(values.get(name))} | {text} |")
    return [*rows, ""]


def _attributes(doc: str) -> dict[str, str]:
    """Read the `Attributes:` of a docstring, name by name."""
    _, _, section = doc.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if match := re.match(r" {8}(\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.startswith(" " * 12):
            found[name] += f" {line.strip()}"
    return found


def _summary(group: type) -> str:
    return " ".join((group.__doc__ or "").partition("Attributes:")[0].split())


def _type(owner: type, name: str) -> Any:
    return get_type_hints(owner)[name]


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return "" if value is None else f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _defaults(verb: str) -> dict[str, Any]:
    for each in COMMANDS:
        node = getattr(toolkit.config, f"{each.capitalize()}Root")
        ConfigStore.instance().store(name=f"{each}_schema", node=node)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("toolkit.conf", version_base="1.3"):
        values: Any = OmegaConf.to_container(hydra.compose(verb), resolve=False, enum_to_str=True)
    return {str(name): value for name, value in values.items()}


def link_pages(app: Any, path: Path, parent: str, content: list[str]) -> None:
    """Let README's link to CONTRIBUTING.md lead to the page that includes it."""
    content[0] = content[0].replace("](CONTRIBUTING.md", "](contributing.md")


def setup(app: Any) -> None:
    write_configuration()
    app.connect("include-read", link_pages)
