"""What ``describe`` makes."""

from __future__ import annotations

from replaykit.checks.funnel import FunnelCounts
from replaykit.result import Noted


class DescribeResult(Noted):
    """How many rows got an answer, and where they are."""

    rows: int
    """Rows that came out."""
    file: str
    """In the step's folder: rows.jsonl, or rows.parquet where the columns have types of
    ``datasets``."""
    column: str
    """The column with the instruction and the answer."""
    columns: list[str]
    """The columns that were there before, none of which was changed."""
    instructions: dict[str, int]
    """The rows of each instruction, most first."""
    model: str
    funnel: FunnelCounts
