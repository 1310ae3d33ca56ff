"""What ``rewrite`` makes."""

from __future__ import annotations

from pydantic import Field

from replaykit.result import Noted, Result
from replaykit.steps.score.result import Perplexity


class Trial(Result):
    """What a method made of the pilot rows of ``auto``."""

    method: str
    rows: int
    accepted: int
    perplexity: float
    """The mean over the rows, those of which it accepted nothing with their reference."""


class RewriteResult(Noted):
    """How many target rows took which path, and how probable the base finds their answers."""

    rows: int
    paths: dict[str, int]
    """Rows by path, most first; rows that kept the reference are counted under the reason."""
    method: str
    """By which the rows were rewritten; with auto the one that was chosen."""
    model: str
    masked: int = 0
    """Rows that kept the reference, of which training masks the most surprising tokens."""
    trials: list[Trial] = Field(default=[])
    """Of auto: each method on the same rows."""
    perplexity: dict[str, Perplexity] = Field(default={})
    """Of all references, under "reference", and of the new answers by path, the least probable
    first. ``above`` is the part of the tokens that selective token masking would mask."""
    edit: float | None = None
    """The mean distance of the rows that min-change rewrote from what the model said."""
    reference_edit: float | None = None
    """The mean distance of their references from it."""
    editor_tokens: tuple[int, int] | None = None
    """That a chat server's editor read and wrote this time, as it counts them."""


class RewriteEstimate(Result):
    """What rewriting will ask at most: as if no row were right before the last try."""

    rows: int
    replies: int
    """Of the model itself."""
    edits: int
    """Requests to the editor."""
    editor: str
    server: str | None
    """Where the rows' questions and answers go; None: they stay here."""
    tokens_read: int
    """By the editor, four letters a token."""
    tokens_written: int
    """By the editor, as many as an edit may have."""
    cost: float | None
    """In the currency of the prices; None where no prices are given."""
