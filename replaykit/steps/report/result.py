"""What ``report`` writes."""

from __future__ import annotations

from replaykit.result import Result


class ReportResult(Result):
    """The page."""

    report: str
    """Its file."""
