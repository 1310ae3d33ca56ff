"""What ``report`` writes."""

from __future__ import annotations

from replaykit.result import Result


class ReportResult(Result):
    """The page and its pictures."""

    report: str
    """The file of the page."""
    pictures: list[str]
    """The files of its pictures, SVG and, on request, PNG."""
