"""`record.json`: what one run was, what it made and how well it did. Documented in docs/record.md.

`record.schema.json` is the contract; every record is checked against it when written and when read.
"""

import json
import math
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from toolkit.environment import describe_machine
from toolkit.errors import InputError
from toolkit.files import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 1
SPEED_KEY = ("engine", "batch_size", "seq_len", "lengths", "num_threads", "isa")
SCHEMA_FILE = Path(__file__).with_name("record.schema.json")


def new_record(verb: str, config: "DataclassInstance") -> dict[str, Any]:
    """Start the record of a run: who, when, with what configuration, on which machine.

    The verb then fills `model`, `metrics`, `speed` and `size_bytes` as far as it knows them.

    Args:
        verb: `train`, `export` or `bench`.
        config: The verb's root dataclass of `toolkit.config`.

    Returns:
        A record that the schema accepts, with `run.finished` still None.
    """
    started = now()
    return {
        "schema_version": SCHEMA_VERSION,
        "run": {
            "verb": verb,
            "id": f"{started.replace(':', '').replace('-', '')}-{secrets.token_hex(4)}",
            "parent": None,
            "started": started,
            "finished": None,
            "seed": getattr(config, "seed", None),
            **_command(),
        },
        "config": plain(asdict(config)),
        "model": {},
        "metrics": {},
        "speed": [],
        "size_bytes": {},
        "environment": plain(describe_machine()),
    }


def describe_model(
    name: str,
    layers: int,
    weights: Mapping[str, tuple[Sequence[int], int]],
    parameters: int,
    zeros: int,
) -> dict[str, Any]:
    """Describe a model as `model` of a record.

    Args:
        name: Short name.
        layers: Encoder layers.
        weights: Shape and number of zeros of each prunable weight, by name.
        parameters: Elements of the whole model.
        zeros: Zeros among them.
    """
    sizes = {key: math.prod(shape) for key, (shape, _) in weights.items()}
    return {
        "name": name,
        "layers": layers,
        "parameters": parameters,
        "sparsity": {
            "encoder": sum(count for _, count in weights.values()) / sum(sizes.values()),
            "whole_model": zeros / parameters,
            "tensors": [
                {"name": key, "shape": list(shape), "sparsity": count / sizes[key]}
                for key, (shape, count) in weights.items()
            ],
        },
    }


def write_record(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Check the record and write it in one step: a reader finds the old file or the whole new one.

    `run.finished` is stamped if it is still None.

    Args:
        path: File to write; its folder is made if missing.
        record: As `new_record` returns it; changed only in `run.finished`.

    Raises:
        ValueError: The record breaks the schema (an error of the caller), naming the field.
    """
    if record["run"]["finished"] is None:
        record["run"]["finished"] = now()
    if broken := schema_violation(record):
        raise ValueError(f"the record to be written to {path} breaks the schema: {broken}")
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a record and check it.

    Args:
        path: A `record.json`, or the folder that holds it.

    Raises:
        InputError: There is no such file, it is no JSON, it breaks the schema, or a newer version
            of the toolkit wrote it.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "record.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"expected a record.json at {file}, but there is none: name the folder of a finished "
            "run, or the file itself"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}; "
            "it is damaged or was edited by hand, so run the command that wrote it again"
        ) from None
    version = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{file} has schema_version {version}, but this toolkit reads up to {SCHEMA_VERSION}: "
            "a newer toolkit wrote it, so upgrade this one"
        )
    if broken := schema_violation(record):
        raise InputError(f"{file} is not a record of this toolkit: {broken}")
    assert isinstance(record, dict)
    return record


def root_id(record: dict[str, Any]) -> str:
    """Name the run that made the model: train, export and bench of one model share it."""
    run = record["run"]
    return str(run["parent"] or run["id"])


def check_output(folder: Path, record: dict[str, Any] | None) -> None:
    """Refuse to write over the record of a training of another model, as a calibrated one is.

    Args:
        folder: Where a record is going to be written.
        record: Of the export that is measured, if it has one.

    Raises:
        InputError: The folder has such a record.
    """
    file = folder / "record.json"
    there = read_record(file) if file.exists() else None
    if there is None or there["run"]["verb"] != "train":
        return
    if record is None or root_id(record) != root_id(there):
        raise InputError(
            f"output_dir={folder} holds the record of a training that made another model than the "
            "one measured; give output_dir=DIR, a folder of its own"
        )


def speed_key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Name what an entry of `speed` measured: a newer one with the same key replaces it."""
    return tuple(entry[name] for name in SPEED_KEY)


def schema_violation(record: Any) -> str | None:
    """Describe the first field that breaks the schema, or return None if none does."""
    error = jsonschema.exceptions.best_match(_validator().iter_errors(record))
    if error is None:
        return None
    field = error.json_path.removeprefix("$").removeprefix(".") or "the whole file"
    message = error.message if len(error.message) < 200 else error.message[:200] + " …"
    return f"{field}: {message}"


def metrics_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Leave out what a record says beside its metrics: the task, and how many examples."""
    return {name: metrics[name] for name in metrics if name not in ("task", "num_examples")}


def plain(value: Any) -> Any:
    """Turn enums into their values, paths into strings and tuples into lists, all the way down."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _command() -> dict[str, str]:
    """Return the command line of this job as `command`, or nothing where Hydra did not start it."""
    from hydra.core.hydra_config import HydraConfig  # here: reading a record needs no Hydra

    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    verb, name = hydra.job.name, hydra.job.config_name
    chosen = [] if name in (verb, None) else ["-cn", name]
    return {"command": shlex.join(["toolkit", verb, *chosen, *hydra.overrides.task])}


@cache
def _validator() -> jsonschema.protocols.Validator:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)
