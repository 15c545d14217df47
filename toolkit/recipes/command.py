"""`recipe_file=FILE` and `recipe_save=FILE` of `toolkit train`: a recipe from anywhere for Hydra.

The overlay becomes an option of the group `recipe`, `file/NAME`, so that whatever works with the
recipes that are ours works with it.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

from toolkit.errors import InputError, UsageError
from toolkit.files import read_text, write_text
from toolkit.recipes.conversion import Overlay, convert
from toolkit.recipes.reading import read_values

MAX_BYTES = 1_000_000
HEADER = "# @package _global_"  # how an overlay of ours begins
FILE, SAVE = "recipe_file=", "recipe_save="
# Options that replace what the recipe says of their group; `teacher` only says whose.
REPLACED = ("depth", "sparsity", "quantization", "trainer")


def take_recipes(args: Sequence[str]) -> list[str] | None:
    """Replace `recipe_file=` among the arguments of `train` by an option of `recipe`.

    Args:
        args: Of the command line. With `-m`, several files are separated by commas.

    Returns:
        The arguments for Hydra, or None: `recipe_save=` has saved the recipe, nothing is to be run.

    Raises:
        InputError: The file cannot be read or carried over.
        UsageError: The arguments exclude one another.
    """
    given = [arg for arg in args if arg.startswith(FILE)]
    saved = [arg for arg in args if arg.startswith(SAVE)]
    if not given and not saved:
        return list(args)
    if len(given) != 1:
        raise UsageError(f"expected one recipe_file=FILE; got {len(given)}")
    if any(arg.startswith("recipe=") for arg in args):
        raise UsageError("recipe= and recipe_file= are two recipes: give one of them")
    if saved:
        others = [arg for arg in args if arg not in given + saved]
        if others or len(saved) > 1:
            raise UsageError(
                "recipe_save=FILE saves a recipe as it is, and trains nothing: expected it with "
                f"recipe_file=FILE alone; got {shlex.join(others or saved)}"
            )
        _save(Path(_bare(given[0], FILE)), Path(_bare(saved[0], SAVE)))
        return None
    chosen = {arg.partition("=")[0] for arg in args if "=" in arg}
    options = []
    for number, name in enumerate(_files(_bare(given[0], FILE), args)):
        overlay = load_overlay(Path(name))
        for note in overlay.notes:
            print(f"note: {note}", file=sys.stderr, flush=True)
        option = re.sub(r"[^\w-]", "_", Path(name).stem) + (f"_{number}" if number else "")
        ConfigStore.instance().store(
            option, _without(overlay.values, chosen), group="recipe/file", package="_global_"
        )
        options.append(f"file/{option}")
    return [f"recipe={','.join(options)}" if arg in given else arg for arg in args]


def load_overlay(path: Path) -> Overlay:
    """Read a recipe: SparseML's as YAML or Markdown, or an overlay of ours.

    Raises:
        InputError: It is no file, too large, or neither.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file; expected a recipe, such as recipe.md or recipe.yaml")
    if path.exists() and path.stat().st_size > MAX_BYTES:
        size = path.stat().st_size
        raise InputError(f"{path} has {size} bytes; a recipe has at most {MAX_BYTES}")
    text = read_text(path, "recipe_file")
    if not text.startswith(HEADER):
        return convert(text, path.name)
    return Overlay(read_values(text, path.name), [])


def _save(path: Path, target: Path) -> None:
    """Write a recipe as an overlay of ours.

    Raises:
        UsageError: There is a file of that name already.
    """
    if target.exists():
        raise UsageError(f"recipe_save={target} exists already: choose another name")
    overlay = load_overlay(path)
    lines = [
        HEADER,
        f"# toolkit train {shlex.quote(f'{FILE}{target}')}",
        f"# Carried over from {path.name}.",
        *(f"# {note}" for note in overlay.notes),
    ]
    body = yaml.safe_dump(overlay.values, sort_keys=False, default_flow_style=None, width=100)
    write_text(target, "\n".join(lines) + "\n" + body)
    for note in overlay.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    print(f"{target} is {path.name} as a recipe of ours: toolkit train recipe_file={target}")


def _without(values: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
    """Leave out the groups for which the command line names an option."""
    gone = chosen & set(REPLACED)
    defaults = [
        each
        for each in values.get("defaults", [])
        if not (isinstance(each, dict) and {key.rpartition("/")[2] for key in each} & gone)
    ]
    gone |= {"rates"} if "trainer" in gone else set()
    kept = {key: value for key, value in values.items() if key not in {"defaults", *gone}}
    return {"defaults": defaults} | kept


def _files(value: str, args: Sequence[str]) -> list[str]:
    is_sweep = {"-m", "--multirun"} & set(args) and not Path(value).exists()
    return value.split(",") if is_sweep else [value]


def _bare(arg: str, key: str) -> str:
    """Return what follows the key, without quotes."""
    value = arg.removeprefix(key)
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    value = value[1:-1] if is_quoted else value
    if not value:
        raise UsageError(f"{key[:-1]} needs the name of a file")
    return value
