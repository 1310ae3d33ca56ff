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
from typing import Any

from replaykit.checks.verify import Readings
from replaykit.data.record import Record

Scorer = Callable[[str, Record], Readings]

SCORERS = {
    "exact": "replaykit.checks.scoring.answers:exact",
    "normalised": "replaykit.checks.scoring.words:normalised",
    "numeric": "replaykit.checks.scoring.answers:numeric",
    "symbolic": "replaykit.checks.scoring.answers:symbolic",
    "json": "replaykit.checks.scoring.answers:as_json",
    "choice": "replaykit.checks.scoring.choice:written",
    "contains": "replaykit.checks.scoring.words:contains",
    "regex": "replaykit.checks.scoring.words:matches",
    "f1": "replaykit.checks.scoring.words:f1",
    "rouge_l": "replaykit.checks.scoring.overlap:rouge_l",
    "bleu": "replaykit.checks.scoring.overlap:bleu",
    "json_schema": "replaykit.checks.scoring.schema:json_schema",
    "code": "replaykit.checks.scoring.code:code",
    "refusal": "replaykit.checks.scoring.behaviour:refuses",
    "language": "replaykit.checks.scoring.behaviour:language",
    "instructions": "replaykit.checks.scoring.instructions:instructions",
}
# Whether a row can be read, where that is not seen by scoring its reference: a function from the
# row that raises as the scorer does.
CHECKS = {"code": "replaykit.checks.scoring.code:check"}


def readings_of(score: str, answer: str, record: Record) -> Readings:
    """Both readings of an answer without its thought. Raises ValueError for a row whose reference
    cannot be read in the way of the scorer, MissingExtra for a package that is not installed.
    """
    scorer: Scorer = _function(SCORERS[score])
    return scorer(answer, record)


def check(score: str, record: Record) -> None:
    """Raises as ``readings_of`` does for a row that cannot be scored, whatever is answered."""
    if score in CHECKS:
        _function(CHECKS[score])(record)
    else:
        readings_of(score, record.answer, record)


def _function(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)
