"""Where a replay row comes from: a step of the run, or rows of the user's own.

    own_replay("old.jsonl", lambda unparsed: read_records("old.jsonl", "select")).records[0].meta
    ->  {"line": 1, "replay_file": "old.jsonl"}

Rows of the user's own are old data, as what `select` chooses is, so their source is "select"; the
meta says which of them they are, for weights and skills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from replaykit.data.files import Unparsed
from replaykit.data.record import Record, apart, column_of, noted
from replaykit.recipe.tasks import BUFFER
from replaykit.steps.inputs import Readable, readable

REPLAY_FILE = "replay_file"
"""The key of a row's meta that names the file, the folder or the data set that it is of."""


def own_replay(
    name: str, read: Callable[[Unparsed], Iterable[Record]], unparsed: Unparsed | None = None
) -> Readable:
    """The rows that ``read`` gives as replay of this name.

    Raises DataError, and calls ``unparsed``, as ``readable`` does.
    """
    found = readable(name, read, unparsed)
    return Readable([noted(row, **{REPLAY_FILE: name}) for row in found.records], found.note)


def made_replay(rows: Iterable[Record]) -> list[Record]:
    """The rows of a step of the run, which are of no file: a column of the user's that is called
    ``replay_file`` says nothing of where a row comes from.
    """
    return [replace(row, meta=apart(row.meta, [REPLAY_FILE])) for row in rows]


def source_of(record: Record) -> str:
    """What mix.sources calls the source of a replay row: the user's own file, or the step."""
    return str(record.meta.get(REPLAY_FILE, record.source))


def skill_of(record: Record, column: str) -> str:
    """The skill that a replay row keeps alive: what the column of its meta names, or else the task
    that it is of in a buffer, or else its source.
    """
    source = source_of(record)
    if record.source == BUFFER:
        source = record.meta.get("task", source)
    return str(column_of(record, column, source))
