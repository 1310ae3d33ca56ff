"""What ``rewrite`` makes."""

from __future__ import annotations

from replaykit.result import Noted


class RewriteResult(Noted):
    """How many target rows took which path."""

    rows: int
    paths: dict[str, int]
    """Rows by path, most first; rows that kept the reference are counted under the reason."""
    method: str
    model: str
