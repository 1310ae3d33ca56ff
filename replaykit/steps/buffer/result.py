"""What ``buffer`` keeps."""

from __future__ import annotations

from pydantic import Field

from replaykit.result import Noted, Result


class Answered(Result):
    """What became of the answers that the latest model gave anew."""

    asked: int
    """Rows of the buffer."""
    replaced: int
    """Answers that its task's test finds right, in the place of the old ones."""
    same: int
    """Of these, those that say what the old one said."""
    kept: dict[str, int] = Field(default={})
    """Rows that keep the answer that they had, by reason: wrong, cut (at the test's max_tokens),
    thought_missing (the old answer has a thought, the new one none), too_long (for the model) or
    unverifiable (the test cannot score it)."""
    no_room: int = 0
    """Rows that are left out then, since with new answers, and the first ones beside them in the
    meta, all are larger than the buffer's bytes."""


class BufferResult(Noted):
    """The buffer before a stage."""

    method: str
    unit: str
    """What is bounded: rows or bytes."""
    limit: int
    rows: int
    bytes: int
    """Of rows.jsonl."""
    tasks: dict[str, int]
    """Rows of each earlier task."""
    offered: int
    """Different rows of the last task that were trained on, and could have come in."""
    too_large: int
    """Of these, rows that are larger than the whole buffer."""
    answers: Answered | None
    """None where the answers are the tasks' own."""
