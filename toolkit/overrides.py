"""Command-line arguments on their way to Hydra, and Hydra's complaints on their way back.

Every name that is wrong is answered with the nearest valid ones, in one sentence.
"""

import dataclasses
import os
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from toolkit.errors import UsageError, nearest

# Hydra's flags that take the next argument as their value.
VALUE_FLAGS = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
    "--config-dir", "-cd", "--experimental-rerun", "--info", "-i",
}  # fmt: skip


def rewrite(verb: str, args: Sequence[str]) -> list[str]:
    """Translate a verb's arguments to what Hydra understands.

    - `report`: positional paths become `paths=[…]`, and `select=` takes its `>=` literally.
    - `train`: any argument of TrainingArguments may be given, so `trainer.KEY=` also adds keys.
    """
    if verb == "report":
        args = _gather_paths(args)
        return [
            f"select={_quote(arg[7:])}" if re.match("select=[^'\"]*[<>=]", arg) else arg
            for arg in args
        ]
    if verb == "train":
        return [f"++{arg}" if arg.startswith("trainer.") else arg for arg in args]
    return list(args)


def default_dir(moment: str, *, _root_: DictConfig) -> str:
    """Name the folder of a run that was not given any (the resolver of `conf/run.yaml`).

    An export lies beside its checkpoint; everything else is named after the moment.

    Raises:
        UsageError: Several processes train together, and would find different moments.
    """
    hydra = _root_.get("hydra") or HydraConfig.get()  # `--cfg job` shows the rest alone
    if "trainer" in _root_ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "several processes (torchrun, accelerate) need output_dir=DIR: "
            "the default is named after the time, which may differ between them"
        )
    if hydra.mode is RunMode.MULTIRUN:
        return f"multirun/{moment}"
    checkpoint = OmegaConf.select(_root_, "checkpoint", default=None)
    if checkpoint is not None and Path(checkpoint).is_dir():
        return str(Path(checkpoint).resolve().parent / "export")
    return f"outputs/{hydra.job.name}/{moment}"


OmegaConf.register_new_resolver("default_dir", default_dir, replace=True)


def schema_keys(root: type, prefix: str = "") -> list[str]:
    """List the dotted names of all fields below a root dataclass."""
    keys = []
    for name, annotation in typing.get_type_hints(root).items():
        keys.append(prefix + name)
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            keys += schema_keys(annotation, f"{prefix}{name}.")
    return keys


def convert(verb: str, root: type, config: DictConfig) -> Any:
    """Turn a composed configuration into the root dataclass, every value checked.

    Raises:
        UsageError: A key is no field, a value is missing, of a wrong type or out of its range.
    """
    try:
        typed = OmegaConf.structured(root)
        # Merged again as plain values, because `+key=value` had opened the schema.
        plain = OmegaConf.to_container(config, resolve=False)
        return OmegaConf.to_object(OmegaConf.merge(typed, plain))
    except MissingMandatoryValue as error:
        raise UsageError(f"{verb} needs {error.full_key}: give {error.full_key}=VALUE") from None
    except (ValueError, OmegaConfBaseException) as error:  # ValueError: a range in config.py
        raise UsageError(explain(verb, root, (), error)) from None


def explain(verb: str, root: type, args: Sequence[str], error: BaseException) -> str:
    """Turn an error of Hydra's into one sentence that names what is nearest to the wrong name.

    Args:
        verb: The command.
        root: Its root dataclass.
        args: Its command line, to find what the error leaves unnamed.
        error: What Hydra or OmegaConf raised.
    """
    reason: BaseException | None = error
    while reason and not isinstance(reason, UsageError):  # OmegaConf wraps what a resolver says
        reason = reason.__cause__ or reason.__context__
    if reason:
        return str(reason)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"'{option}' is no option of {group}; {nearest(option, error.options)}"
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read {error.override!r}: expected key=value, the value "
            "in quotes if it holds blanks or brackets (\"key='a b'\")"
        )
    text = _sentence(error)
    if listed := re.search(r"Ambiguous value for argument '(.+?)=(.+?)';", text):
        return (
            f"{listed[1]} takes one value, got {listed[2]}: add -m to run once for each, "
            f"or write {listed[1]}=[{listed[2]}] if a list is meant"
        )
    if text.startswith("Config group override must be a string"):
        numbers = [arg for arg in args if re.fullmatch(r"\w+=(\d\S*|null|true|false)", arg, re.I)]
        return f"a group takes the name of one of its options; got {' or '.join(numbers)}"
    unknown = re.search(r"Could not override '([^']+)'|group '([^']+)' does not exist", text)
    key = next(filter(None, unknown.groups())) if unknown else getattr(error, "full_key", None)
    keys = schema_keys(root) + ["recipe"] * (verb == "train")  # the one group that is no field
    if key and key.partition("@")[0] not in keys:
        if key.startswith("model.config."):  # open, because each architecture has keys of its own
            return f"model.config has no key '{key[13:]}' here; write +{key}=VALUE to add it"
        return f"{verb} has no key '{key}'; {nearest(key, keys)}"
    return text


def _sentence(error: BaseException) -> str:
    """Join an error's message and its cause's, without the lines that only name Python types."""
    lines = []
    for part in (error, error.__cause__):
        lines += str(part or "").strip().splitlines()
    kept = [
        line.strip().rstrip(".")
        for line in lines
        if not re.match(r"\s*(object_type|reference_type|full_key|provider|Config search)\b", line)
    ]
    text = "; ".join(dict.fromkeys(line for line in kept if line)) or type(error).__name__
    return re.sub(r"^Error merging override (.*?); ", r"\1: ", text)


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
    return [*others, f"paths=[{','.join(map(_quote, paths))}]"] if paths else others


def _quote(text: str) -> str:
    """Quote for Hydra's override grammar, with OmegaConf's interpolation taken literally."""
    return QuotedString(text.replace("${", "\\${"), Quote.single).with_quotes()
