"""The record: written whole, checked twice, documented."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from toolkit import record as records
from toolkit.config import Scenario
from toolkit.errors import InputError

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Config:
    seed: int
    against: list[Scenario]
    where: Path


def make() -> dict[str, Any]:
    return records.new_record("bench", Config(3, [Scenario.latency], Path("a/b")))


def test_write_then_read_gives_the_same_record(tmp_path: Path) -> None:
    record = make()
    record["metrics"] = {"accuracy": 91.5, "num_examples": 872, "task": "sst2"}
    records.write_record(tmp_path / "new" / "record.json", record)
    assert records.read_record(tmp_path / "new") == record
    assert record["run"]["finished"] >= record["run"]["started"]
    assert record["run"]["seed"] == 3
    assert record["config"] == {"seed": 3, "against": ["latency"], "where": "a/b"}
    assert record["environment"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["record.json"]


def test_ids_differ() -> None:
    assert make()["run"]["id"] != make()["run"]["id"]


def test_a_record_that_breaks_the_schema_is_not_written(tmp_path: Path) -> None:
    record = make()
    record["metrics"] = {"accuracy": "high"}
    with pytest.raises(ValueError, match=r"metrics\.accuracy: 'high' is not of type 'number'"):
        records.write_record(tmp_path / "record.json", record)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make()
    records.write_record(tmp_path / "record.json", record)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        records.write_record(tmp_path / "record.json", make())
    assert records.read_record(tmp_path) == record
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r.update(schema_version=2), "schema_version 2, but this toolkit reads up to 1"),
        (lambda r: r.pop("speed"), "'speed' is a required property"),
        (lambda r: r["run"].update(verb="fly"), r"run\.verb: 'fly' is not one of"),
        (lambda r: r["model"].update(layers=-1), r"model\.layers: -1 is less than"),
        (lambda r: r["speed"].append({}), r"speed\[0\]"),
        (lambda r: r.update(extra=1), "'extra' was unexpected"),
    ],
)
def test_reading_names_what_is_wrong(tmp_path: Path, change: Any, sentence: str) -> None:
    record = make()
    change(record)
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=sentence):
        records.read_record(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_json_that_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(InputError, match="is not of type 'object'"):
        records.read_record(tmp_path)


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{\n "run": {,\n}')
    with pytest.raises(InputError, match="line 2, column 10"):
        records.read_record(tmp_path / "record.json")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is none"):
        records.read_record(tmp_path)
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        records.read_record(tmp_path)


def test_root_id_is_shared_by_train_and_bench() -> None:
    train, bench = make(), make()
    bench["run"]["parent"] = train["run"]["id"]
    assert records.root_id(train) == records.root_id(bench) == train["run"]["id"]


def schema_fields(schema: dict[str, Any], path: str = "") -> set[str]:
    found = set()
    for name, part in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        found |= (
            {here} | schema_fields(part, here) | schema_fields(part.get("items", {}), here + "[]")
        )
    return found


def test_documentation_names_the_fields_of_the_schema() -> None:
    text = (REPOSITORY / "docs" / "record.md").read_text()
    documented = re.findall(r"^\| `([a-z0-9_.\[\]]+)` \|", text.split("## Fields")[1], re.MULTILINE)
    schema = json.loads(records.SCHEMA_FILE.read_text())
    assert len(documented) == len(set(documented))
    assert set(documented) == schema_fields(schema)
