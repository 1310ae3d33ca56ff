"""Where a replay row comes from: a step of the run, or rows of the user's own.

    own_replay(read_records("old.jsonl", "select"), "old.jsonl", funnel)[0].meta
    ->  {"line": 1, "replay_file": "old.jsonl"}

Rows of the user's own are old data, as what `select` chooses is, so their source is "select"; the
meta says which of them they are, for weights and skills.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from replaykit.checks.funnel import Funnel
from replaykit.data.record import Record
from replaykit.errors import DataError

REPLAY_FILE = "replay_file"
"""The key of a row's meta that names the file, the folder or the data set that it is of."""


def own_replay(rows: Iterable[Record], name: str, funnel: Funnel) -> list[Record]:
    """The rows as replay of this name.

    Raises DataError where there are none; the funnel, which counts the rows that could not be read,
    knows why.
    """
    found = [replace(row, meta={**row.meta, REPLAY_FILE: name}) for row in rows]
    if not found:
        why = ""
        if funnel.first_unparsed:
            why = f"; the first that cannot be: {funnel.first_unparsed}"
        raise DataError(f"{name}: there is no row in it that can be read as replay{why}")
    return found


def source_of(record: Record) -> str:
    """What mix.sources calls the source of a replay row: the user's own file, or the step."""
    return str(record.meta.get(REPLAY_FILE, record.source))


def skill_of(record: Record, column: str) -> str:
    """The skill that a replay row keeps alive: what the column of its meta names, or else its
    source.
    """
    return str(record.meta.get(column, source_of(record)))
