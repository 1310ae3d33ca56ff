"""Records as a ``datasets.Dataset``: every row has the same columns, with explicit features.

    id, messages, source, meta           where all records are of words alone
    messages[].reasoning_content, ...    where a turn of some record carries more
    tools                                where some record has tools
    step                                 of a mixture: the optimiser step, counted from 0

Meta, tools and the arguments of a call are JSON strings, since they differ from row to row while a
column has one type: Arrow would give every call the arguments of all others, as nulls.
``replaykit.data.formats`` reads them back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaykit.data.jsonl import to_line
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Message, Record
from replaykit.errors import CallError

if TYPE_CHECKING:
    import datasets

WORDS = ("role", "content")
# What else a turn may carry, in the order of the columns.
MORE = ("reasoning_content", "tool_calls", "tool_call_id", "name", "weight")


@dataclass(frozen=True)
class Schema:
    """Which keys the turns have, and whether there are tools."""

    turn: tuple[str, ...] = WORDS
    tools: bool = False

    @classmethod
    def of(cls, records: Iterable[Record]) -> Schema:
        """Those that some record needs."""
        found: set[str] = set()
        tools = False
        for record in records:
            found.update(*record.messages)
            tools = tools or bool(record.tools)
        return cls((*WORDS, *(key for key in MORE if key in found)), tools)

    @property
    def features(self) -> datasets.Features:
        """The type of each column."""
        import datasets

        text = datasets.Value("string")
        call = {"id": text, "type": text, "function": {"name": text, "arguments": text}}
        of_key: dict[str, Any] = dict.fromkeys((*WORDS, *MORE), text)
        of_key |= {"tool_calls": datasets.List(call), "weight": datasets.Value("int8")}
        columns: dict[str, Any] = {"id": text}
        columns["messages"] = datasets.List({key: of_key[key] for key in self.turn})
        if self.tools:
            columns["tools"] = text
        return datasets.Features(columns | {"source": text, "meta": text})

    def row(self, record: Record) -> dict[str, Any]:
        """The record as a row of such a Dataset."""
        row: dict[str, Any] = {
            "id": record.id,
            "messages": [self._turn(message) for message in record.messages],
        }
        if self.tools:
            row["tools"] = as_json([dict(tool) for tool in record.tools]) if record.tools else None
        return row | {"source": record.source, "meta": as_json(dict(record.meta))}

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {key: message.get(key) for key in self.turn}
        calls = message.get("tool_calls")
        if calls:
            turn["tool_calls"] = [
                {
                    "id": call.get("id"),
                    "type": call["type"],
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": as_json(dict(call["function"]["arguments"])),
                    },
                }
                for call in calls
            ]
        return turn


def to_dataset(
    records: Iterable[Record | PlannedRow], columns: Schema | None = None
) -> datasets.Dataset:
    """The records as a Dataset: id, messages, source, meta, and tools where there are any; the rows
    of a mixture with their step.

    ``columns`` are those of a larger set that the records are a part of; by default, their own.
    Raises CallError for what are neither records nor all rows of a mixture.
    """
    import datasets

    given = list(records)
    steps = [row.step for row in given if isinstance(row, PlannedRow)]
    rows = [row.record if isinstance(row, PlannedRow) else row for row in given]
    if not all(isinstance(row, Record) for row in rows) or len(steps) not in (0, len(rows)):
        raise CallError("to_dataset() takes records, or the rows of a mixture, and not both")
    columns = columns or Schema.of(rows)
    features = columns.features
    made = [columns.row(record) for record in rows]
    if steps:
        features["step"] = datasets.Value("int64")
        made = [{**row, "step": step} for row, step in zip(made, steps, strict=True)]
    return datasets.Dataset.from_dict(
        {name: [row[name] for row in made] for name in features}, features=features
    )


def as_json(value: object) -> str:
    """One line of JSON; what JSON does not know, such as a date, as its text."""
    return to_line(value)
