"""Find the records below folders."""

from collections.abc import Sequence
from pathlib import Path

from toolkit.errors import InputError
from toolkit.present.compare import Records
from toolkit.progress import warn
from toolkit.record import read_record


def collect(paths: Sequence[str]) -> dict[str, Records]:
    """Read every `record.json` below the paths; warn of those that cannot be read.

    Returns:
        The records by path; one that two paths reach counts for the first alone.

    Raises:
        InputError: A path does not exist, or no readable record is found.
    """
    seen: set[Path] = set()
    records: dict[str, Records] = {path: [] for path in paths}
    for path in paths:
        if not Path(path).exists():
            raise InputError(f"expected records below {path}, but there is no such folder or file")
        files = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("record.json"))
        for file in files:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            try:
                records[path].append((file, read_record(file)))
            except InputError as error:
                warn(f"skipped {error}")
    if not any(records.values()):
        found = f"{len(seen)} unreadable ones" if seen else "none"
        raise InputError(
            f"expected at least one record.json below {', '.join(paths)}, found {found}: "
            "`toolkit train`, `bench` and `grid` write them"
        )
    return records
