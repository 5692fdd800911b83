"""Results are replaced by a finished one or not at all."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    """The rows, with the first one's keys as columns."""
    with whole(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{file}: {len(rows)} rows")
