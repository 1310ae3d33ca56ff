"""What any process does with rows of a pool: reads them, and checks each one by itself.

read(batch)[0]  ->  (b'{"id": "3f0c…", "messages": …}', "What is 2 + 2?")
check = RowChecks(Quality(), held_out, repeats.work())
check([b'{"id": "3f0c…", "messages": …}'])[0].reason  ->  "placeholder", or None
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np

from replaykit.checks import quality
from replaykit.checks.duplicates import Text, exchange
from replaykit.checks.funnel import Funnel
from replaykit.checks.overlap import Decontamination, Hit
from replaykit.data.files import Unread
from replaykit.data.formats import Batch
from replaykit.data.jsonl import to_line
from replaykit.data.record import Record, apart
from replaykit.recipe.select import Quality

# What the meta of a record says under names of the step's own.
OWN_META = frozenset({"rank", "score", "nearest", "terms", "twin", "match", "test"})
Prepare = Callable[[list[Text]], tuple[list[tuple[str, ...]], np.ndarray]]
"""What makes of rows' texts their forms and hashes: ``Repeats.work``."""


def read(batch: Batch | Sequence[Record]) -> list[tuple[bytes, str] | Unread]:
    """Each row of the batch, in order: its line, and its question."""
    items = batch.records() if isinstance(batch, Batch) else batch
    found = list[tuple[bytes, str] | Unread]()
    for item in items:
        if isinstance(item, Unread):
            found.append(item)
            continue
        record = item
        if not OWN_META.isdisjoint(record.meta):
            record = replace(record, meta=apart(record.meta, OWN_META))
        found.append((line_of(record), record.question))
    return found


@dataclass
class CheckedRow:
    """A row of the pool. One that has a reason to be dropped, or holds a test, is not compared with
    others, so it has no texts.
    """

    record: Record
    """The row as it would be given."""
    reason: str | None
    end_taken_off: bool
    """Whether an answer ended with a special token, written out."""
    hits: list[Hit] = field(default_factory=list)
    """What it holds of the evaluation sets."""
    texts: tuple[str, ...] = ()
    """What it asks and what it answers."""
    forms: tuple[str, ...] = ()
    """What is compared of the texts."""
    hashes: np.ndarray | None = None


@dataclass(frozen=True)
class RowChecks:
    """The checks of a recipe that look at one row alone."""

    quality: Quality
    held_out: Decontamination | None
    prepare: Prepare

    def __call__(self, lines: Sequence[bytes]) -> list[CheckedRow]:
        """Each row, in order."""
        rows = [self._judged(record_of_line(line)) for line in lines]
        good = [row for row in rows if row.reason is None]
        if self.held_out is not None:
            held = self.held_out.hits_of([row.record for row in good])
            for row, hits in zip(good, held, strict=True):
                row.hits = hits
        self._prepare([row for row in good if not row.hits])
        return rows

    def _judged(self, read: Record) -> CheckedRow:
        record = without_end(read, self.quality)
        return CheckedRow(record, quality.reason(record, self.quality), record is not read)

    def _prepare(self, rows: list[CheckedRow]) -> None:
        """Gives the rows what they are compared by."""
        if not rows:
            return
        for row in rows:
            row.texts = exchange(row.record)
        forms, hashes = self.prepare([row.texts for row in rows])
        for row, form, own in zip(rows, forms, hashes, strict=True):
            row.forms = form
            row.hashes = own


def without_end(record: Record, rules: Quality) -> Record:
    """The record as it is given: without the special token at the end of an answer, if that is
    asked for.
    """
    return quality.without_end(record) if rules.strip_end else record


def line_of(record: Record) -> bytes:
    """A record as it stands on one line of a JSONL file, without the line's end."""
    return to_line(record.to_json()).encode()


def record_of_line(line: bytes) -> Record:
    """The record of such a line."""
    return Record.from_json(json.loads(line))


class LineFunnel(Funnel):
    """A funnel that writes each dropped row, with its reason, to a file; most are lines already."""

    def __init__(self, stream: BinaryIO):
        super().__init__(lambda row: stream.write(to_line(row).encode() + b"\n"))
        self._stream = stream

    def reject_line(self, line: bytes, reason: str) -> None:
        """``reject`` for a row that ``line_of`` made."""
        self.counts[reason] += 1
        self._stream.write(f'{{"reason": {json.dumps(reason)}, '.encode() + line[1:] + b"\n")


def reject_line(funnel: Funnel, line: bytes, reason: str) -> None:
    """Drops a row that was counted before; any funnel takes it."""
    if isinstance(funnel, LineFunnel):
        funnel.reject_line(line, reason)
    else:
        funnel.reject(record_of_line(line), reason)
