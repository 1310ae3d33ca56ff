"""What ``push`` publishes."""

from __future__ import annotations

from replaykit.result import Result


class PushResult(Result):
    """A data set that is ready in a folder, and where it was uploaded to."""

    repo: str
    folder: str
    rows: dict[str, int]
    """By source."""
    files: list[str]
    url: str | None = None
    """None where nothing was uploaded."""
