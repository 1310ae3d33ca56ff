"""Records and other rows as JSON Lines: what stands between the steps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from replaykit.data.files import Row, json_lines
from replaykit.data.record import Record
from replaykit.errors import DataError


def read_jsonl(path: str | Path) -> Iterator[Record]:
    """The records of a file that replaykit wrote. Raises DataError for a line that is none."""
    for number, row in json_lines(Path(path)):
        try:
            record = Record.from_json(row)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a record of replaykit: {error!r}") from error
        yield record


def write_jsonl(path: str | Path, rows: Iterable[Record | Row]) -> int:
    """Writes the rows, and returns how many there were.

    They go to a temporary name beside the path, which is renamed at the end, so a file that is
    there is whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            line = row.to_json() if isinstance(row, Record) else row
            stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            count += 1
    os.replace(temporary, path)
    return count
