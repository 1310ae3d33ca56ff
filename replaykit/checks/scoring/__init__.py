"""How answers in words are scored against their reference, by name.

    >>> readings_of("exact", "Paris.", record).lenient       # record's answer is "Paris"
    1.0

A scorer takes an answer and the row, and gives two readings of 0 to 1: the lenient one is the
score, the strict one wants the asked form too. What it needs stands in the row: the reference
answer, and columns beside it. The modules are imported when they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from replaykit.checks.verify import Readings
from replaykit.data.record import Record

Scorer = Callable[[str, Record], Readings]

SCORERS = {
    "exact": "replaykit.checks.scoring.answers:exact",
    "numeric": "replaykit.checks.scoring.answers:numeric",
    "json": "replaykit.checks.scoring.answers:as_json",
    "instructions": "replaykit.checks.scoring.instructions:instructions",
}


def readings_of(score: str, answer: str, record: Record) -> Readings:
    """Both readings of an answer without its thought. Raises ValueError for a row whose reference
    cannot be read in the way of the scorer, MissingExtra for a package that is not installed.
    """
    module, _, function = SCORERS[score].partition(":")
    scorer: Scorer = getattr(import_module(module), function)
    return scorer(answer, record)
