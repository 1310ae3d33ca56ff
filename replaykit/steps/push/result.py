"""What ``push`` publishes."""

from __future__ import annotations

from pydantic import Field

from replaykit.result import Noted


class PushResult(Noted):
    """A data set that is ready in a folder, and where it was uploaded to."""

    repo: str
    folder: str
    rows: dict[str, int]
    """By source."""
    files: list[str]
    left_out: list[str] = Field(default=[])
    """Columns of the rows that are not published."""
    license: str = "unknown"
    """As the Hub names it."""
    url: str | None = None
    """None where nothing was uploaded."""
