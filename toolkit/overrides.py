"""Command-line arguments on their way to Hydra, and Hydra's complaints on their way back.

Every name that is wrong is answered with the nearest valid ones, in one sentence.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from toolkit.config import from_plain, schema_keys
from toolkit.errors import UsageError, nearest
from toolkit.progress import VERBOSITY

# Hydra's flags that take the next argument as their value.
VALUE_FLAGS = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
    "--config-dir", "-cd", "--experimental-rerun", "--info", "-i",
}  # fmt: skip
# What the extra `sweep` brings.
PLUGINS = {
    "hydra/launcher": ("joblib", "ray", "submitit_local", "submitit_slurm"),
    "hydra/sweeper": ("optuna",),
}


def rewrite(verb: str, args: Sequence[str]) -> list[str]:
    """Translate a verb's arguments to what Hydra understands.

    - `report`: positional paths become `paths=[…]`, and `select=` takes its `>=` literally.
    - `train`: any argument of TrainingArguments may be given, so `trainer.KEY=` also adds keys.
    - `export`: `format=` and `values=` are those of its own group.
    """
    if verb == "report":
        is_condition = re.compile("select=[^'\"]*[<>=]").match
        return [
            f"select={quote(arg[7:])}" if is_condition(arg) else arg for arg in _gather_paths(args)
        ]
    if verb == "export":
        return [re.sub("^(format|values)=", r"export.\1=", arg) for arg in args]
    return [f"++{arg}" if verb == "train" and arg.startswith("trainer.") else arg for arg in args]


def take_verbosity(args: Sequence[str]) -> list[str]:
    """Turn the flags -q and -v into what says so to Hydra, and to the environment for ourselves.

    Returns:
        The arguments without the flags; -v lets Hydra show our lines for debugging, -q silences it.

    Raises:
        UsageError: Both are given.
    """
    others = [arg for arg in args if arg not in ("-q", "-v")]
    if "-q" in args and "-v" in args:
        raise UsageError("-q asks for less, -v for more: give one of them")
    more = []
    if "-v" in args:
        os.environ[VERBOSITY] = "verbose"
        more = ["hydra.verbose=[toolkit]"]
    if "-q" in args:
        os.environ[VERBOSITY] = "quiet"
        more = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    # beside the others: no flag may stand between overrides
    places = [i for i, arg in enumerate(others) if "=" in arg and not arg.startswith("-")]
    place = places[0] if places else len(others)
    return [*others[:place], *more, *others[place:]]


def default_dir(moment: str, *, _root_: DictConfig) -> str:
    """Name the folder of a run that was given no `output_dir`; `conf/run.yaml` resolves it.

    An export lies beside its checkpoint; everything else is named after the moment.

    Raises:
        UsageError: Several processes train together: the moment may differ between them.
    """
    if "trainer" in _root_ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "several processes (torchrun, accelerate) need output_dir=DIR: "
            "the default is named after the time, which may differ between them"
        )
    hydra = _root_.get("hydra") or HydraConfig.get()  # `--cfg job` shows the rest alone
    if hydra.mode is RunMode.MULTIRUN:
        return f"multirun/{moment}"
    checkpoint = OmegaConf.select(_root_, "checkpoint", default=None)
    if checkpoint is not None and Path(checkpoint).is_dir():
        return str(Path(checkpoint).resolve().parent / "export")
    return f"outputs/{hydra.job.name}/{moment}"


OmegaConf.register_new_resolver("default_dir", default_dir, replace=True)


def convert(verb: str, root: type, config: DictConfig) -> Any:
    """Turn a composed configuration into the root dataclass, every value checked.

    Raises:
        UsageError: A key is no field, a value is missing, of a wrong type or out of its range.
    """
    try:  # as plain values, because `+key=value` had opened the schema
        values: Any = OmegaConf.to_container(config, resolve=False)
        return from_plain(root, values)
    except MissingMandatoryValue as error:
        raise UsageError(f"{verb} needs {error.full_key}: give {error.full_key}=VALUE") from error
    except (ValueError, OmegaConfBaseException) as error:  # ValueError: a range in config.py
        raise UsageError(explain(verb, root, (), error)) from error


def explain(verb: str, root: type, args: Sequence[str], error: BaseException) -> str:
    """Turn what Hydra raised into one sentence that names what is nearest to the wrong name.

    Args:
        verb: The command.
        root: Its root dataclass.
        args: Its command line, to find what the error leaves unnamed.
        error: An error of Hydra's or OmegaConf's.
    """
    keys = schema_keys(root)
    if verb == "train":  # groups that are no field, and what becomes an option of one
        keys += ["recipe", "recipe_file", "recipe_save", "search"]
    reason: BaseException | None = error
    while reason and not isinstance(reason, UsageError):  # OmegaConf wraps what a resolver says
        reason = reason.__cause__ or reason.__context__
    if reason:
        return str(reason)
    for part in (error, error.__cause__):
        if isinstance(part, MissingConfigException) and part.missing_cfg_file:
            group, _, option = part.missing_cfg_file.rpartition("/")
            if option in PLUGINS.get(group, ()):
                return f"{group}={option} is not installed: pip install 'toolkit[sweep]'"
            if not part.options:
                continue
            return f"'{option}' is no option of {group}; {nearest(option, part.options)}"
        if isinstance(part, OverrideParseException):
            quoted = "the value in quotes if it holds blanks, brackets or = (\"key='a b'\")"
            return f"cannot read {part.override!r}: expected key=value, {quoted}"
        if isinstance(part, OmegaConfBaseException) and (key := part.full_key):
            if not isinstance(part, (ConfigKeyError, ConfigAttributeError)):
                given = "" if part.value is None else f"={part.value}"
                return f"{key}{given}: {str(part).splitlines()[0]}"
            if part.object_type is dict:  # open, because what it configures has keys of its own
                parent, _, last = key.rpartition(".")
                return f"{parent} has no key '{last}' here; write +{key}=VALUE to add it"
            asked = [each.key_or_group for each in parse(args)]
            key = next((whole for whole in asked if whole.startswith(key)), key)
            return f"{verb} has no key '{key}'; {nearest(key, keys)}"
    for override in parse(args):
        key, given = override.key_or_group, str(override.input_line).partition("=")[2]
        if override.is_sweep_override() and not {"-m", "--multirun"} & set(args):
            return (
                f"{key} takes one value, got {given}: add -m to run once for each, or write "
                f"{key}=[{given}] for a list, \"{key}='{given}'\" for a text"
            )
        if (files("toolkit.conf") / key).is_dir() and type(override.value()) not in (str, dict):
            return f"a group takes the name of one of its options; got {override.input_line}"
        if key not in keys and not key.startswith("hydra"):
            return f"{verb} has no key '{key}'; {nearest(key, keys)}"
    # Hydra's own words, without its list of folders
    lines = (str(error) or type(error).__name__).partition("Config search path")[0].splitlines()
    return "; ".join(line.strip().rstrip(".") for line in lines if line.strip())


def parse(args: Sequence[str]) -> list[Override]:
    """Read what among the arguments is an override."""
    parser, found = OverridesParser.create(), []
    for arg in args:
        with suppress(HydraException):
            found.append(parser.parse_override(arg))
    return found


def quote(text: str) -> str:
    """Quote for Hydra's override grammar, with OmegaConf's interpolation taken literally."""
    return QuotedString(text.replace("${", "\\${"), Quote.single).with_quotes()


def _gather_paths(args: Sequence[str]) -> list[str]:
    """Move what is no flag, no flag's value and no override into one `paths=[…]`.

    A sweep's folders may be named by their overrides: what exists is a path, `=` or not.
    """
    paths, others, is_value = [], [], False
    for arg in args:
        if not is_value and not arg.startswith("-") and ("=" not in arg or Path(arg).exists()):
            paths.append(arg)
        else:
            others.append(arg)
        is_value = arg in VALUE_FLAGS
    return [*others, f"paths=[{','.join(map(quote, paths))}]"] if paths else others
