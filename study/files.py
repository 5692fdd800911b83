"""Results are replaced by a finished one or not at all."""

import csv
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.input_error import InputError


def cannot_write(file: Path) -> str | None:
    """Why `file` could not be written in the end, to be told before hours of work; None where it can."""
    if file.is_dir():
        return "it is a folder"
    there = next(folder for folder in file.absolute().parents if folder.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        tempfile.TemporaryFile(dir=there).close()  # tried, as permissions do not tell of all that can be in the way
    except OSError:
        return f"{there} cannot be written"
    return None


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path to write to, beside `file`, whose place it takes at the end of the block.

    A block that is left by an exception leaves `file` as it was and nothing beside it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.stem}.tmp{file.suffix}")  # figures know their format by the suffix
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def with_kept(file: Path, rows: list[dict[str, Any]], key: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows together with those of `file` whose key none of them has, ordered by key; `file` need not exist.

    Raises InputError where `file` is another table.
    """

    def key_of(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[column]) for column in key)

    kept = []
    if file.exists():
        new = {key_of(row) for row in rows}
        with open(file, newline="", encoding="utf-8") as opened:
            table = csv.DictReader(opened)
            if list(table.fieldnames or ()) != list(rows[0]):
                raise InputError(f"{file}: must have the columns {', '.join(rows[0])}, to be added to.")
            kept = [row for row in table if key_of(row) not in new]
    return sorted(kept + rows, key=key_of)  # stable: a run's rows stay in their order


def write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    """The rows, with the first one's keys as columns."""
    with whole(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{file}: {len(rows)} rows")
