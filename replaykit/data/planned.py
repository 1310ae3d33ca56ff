"""The rows of a mixture in training order, each with its optimiser step.

{"step": 0, "id": "3f0c…", "messages": [...], "source": "target", "meta": {...}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record
from replaykit.errors import DataError


@dataclass(frozen=True)
class PlannedRow:
    """A record and the optimiser step that it is trained in, counted from 0."""

    step: int
    record: Record


def write_plan(path: Path, rows: Iterable[PlannedRow]) -> int:
    """Writes the rows as JSON Lines; returns how many there were."""
    return write_jsonl(path, ({"step": row.step, **row.record.to_json()} for row in rows))


def read_plan(path: Path) -> list[PlannedRow]:
    """The rows of a mixture. Raises DataError for a line that is none."""
    rows = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
                rows.append(PlannedRow(row["step"], Record.from_json(row)))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number}: not a row of a mixture: {error!r}") from error
    return rows
