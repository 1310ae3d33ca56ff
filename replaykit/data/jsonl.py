"""Records and other rows as JSON Lines: what stands between the steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from replaykit.data.files import Row, json_lines
from replaykit.data.record import Record
from replaykit.errors import DataError

# Made once: json.dumps would make one for each row. What JSON does not know, such as a date, is
# written as its text.
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str)


def to_line(value: object) -> str:
    """The value as JSON on one line; dates and the like and Infinity as their text, NaN as null."""
    try:
        return ENCODER.encode(value)
    except ValueError:
        return ENCODER.encode(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


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
            stream.write(to_line(line) + "\n")
            count += 1
    os.replace(temporary, path)
    return count
