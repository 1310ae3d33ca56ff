"""Answers against the reference answer: the same text, the same number, the same JSON."""

from __future__ import annotations

from replaykit.checks.verify import Readings, readings
from replaykit.data.record import Record


def exact(answer: str, record: Record) -> Readings:
    return readings(answer, record.answer, how="exact")


def numeric(answer: str, record: Record) -> Readings:
    return readings(answer, record.answer, how="numeric")


def as_json(answer: str, record: Record) -> Readings:
    return readings(answer, record.answer, how="json")
