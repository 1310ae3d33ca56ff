"""What ``select`` finds."""

from __future__ import annotations

from typing import Any

from replaykit.checks.funnel import FunnelCounts
from replaykit.checks.overlap import Decontaminated
from replaykit.result import Noted, Result


class Histogram(Result):
    """How many rows have a score between two neighbouring edges."""

    counts: list[int]
    edges: list[float]
    """One more than counts."""


class ScoreSummary(Result):
    """The scores of the chosen rows, and the histogram of all rows that can be read."""

    highest: float
    median: float
    lowest: float
    histogram: Histogram


class SelectResult(Noted):
    """How many rows were chosen, from which pool, by which method, and what was left out."""

    n: int
    """Rows that were asked for."""
    rows: int
    """Rows that were chosen."""
    missing: int
    """Rows that the pool could not give."""
    method: str
    pool: str
    """The pool's path, or its id on the Hub."""
    scores: ScoreSummary | None
    """None where the method does not score."""
    funnel: FunnelCounts
    looked_at: int
    """Rows that were checked, in the order in which the method takes them, until there were enough.
    The bad and the repeated rows of the funnel are of these; the others were not looked at.
    """
    ends_taken_off: int
    """Rows that were looked at of which an answer ended with a special token, which was taken off.
    """
    decontamination: Decontaminated | None
    """None where no evaluation set was kept apart."""


class Explanation(Result):
    """Why a row of the pool was chosen, or was not. What is not known of the row is None."""

    id: str
    chosen: bool
    reason: str | None
    rank: int | None = None
    score: float | None = None
    terms: dict[str, float] | None = None
    twin: str | None = None
    """The text that the row repeats."""
    match: str | None = None
    """The text that the row shares with a test."""
    line: int | None = None
    text: list[dict[str, Any]]
    """The row's messages."""
    nearest: NearestRow | None = None


class NearestRow(Result):
    """The target row that a chosen row is nearest to."""

    id: str
    prompt: str | None
    """None where the target has no such row any more."""
