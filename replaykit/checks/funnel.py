"""The funnel that each step ends in: rows made, rows dropped by each reason, rows kept.

54 made, duplicate 12, question_too_short 2, 40 kept
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from replaykit.data.record import Record
from replaykit.result import Result


class FunnelCounts(Result):
    """How many rows there were, how many were dropped by each reason, and how many were kept."""

    made: int
    dropped: dict[str, int]
    """By reason, most first."""
    kept: int


class Funnel:
    """Counts rows and the reasons to drop them. ``dropped`` receives each dropped row with its
    reason; without it, dropped rows are only counted.
    """

    def __init__(self, dropped: Callable[[Mapping[str, Any]], object] | None = None):
        self.made = 0
        self.counts: Counter[str] = Counter()
        self.first_unparsed = ""
        """What is wrong with the first row that could not be read; "" where all could be."""
        self._dropped = dropped

    def passes(self, record: Record, reason: str | None) -> bool:
        """Counts a new row; True where there is no reason to drop it."""
        self.made += 1
        if reason is not None:
            self.reject(record, reason)
        return reason is None

    def reject(self, record: Record, reason: str) -> None:
        """Drops a row that was counted before."""
        self.counts[reason] += 1
        if self._dropped is not None:
            self._dropped({"reason": reason, **record.to_json()})

    def unparsed(self, place: str, error: Exception) -> None:
        """Counts a row that could not be read: ``place`` is its file and line."""
        self.made += 1
        self.counts["unparsed"] += 1
        self.first_unparsed = self.first_unparsed or str(error)
        if self._dropped is not None:
            self._dropped({"reason": "unparsed", "place": place, "error": str(error)})

    @property
    def kept(self) -> int:
        return self.made - self.counts.total()

    def result(self) -> FunnelCounts:
        """The counts so far."""
        dropped = dict(self.counts.most_common())
        return FunnelCounts(made=self.made, dropped=dropped, kept=self.kept)

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
        return f"{self.made} made, {reasons or 'none dropped'}, {self.kept} kept"
