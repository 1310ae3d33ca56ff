"""The funnel every step ends in: made, then dropped by each reason, then kept. Dropped rows stay to
be looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from replaykit.records import Record


class Funnel:
    """Counts verdicts; ``dropped`` receives each dropped row with its reason (by default nothing is
    kept of it).
    """

    def __init__(self, dropped: Callable[[Mapping[str, Any]], object] | None = None):
        self.made = 0
        self.counts: Counter[str] = Counter()
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
        """Counts a row that could not be read, where it stands and why."""
        self.made += 1
        self.counts["unparsed"] += 1
        if self._dropped is not None:
            self._dropped({"reason": "unparsed", "place": place, "error": str(error)})

    @property
    def kept(self) -> int:
        return self.made - self.counts.total()

    def to_json(self) -> dict[str, Any]:
        return {"made": self.made, "dropped": dict(self.counts.most_common()), "kept": self.kept}

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
        return f"{self.made} made, {reasons or 'none dropped'}, {self.kept} kept"
