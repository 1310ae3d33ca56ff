"""Where the replay data is published."""

from __future__ import annotations

from replaykit.recipe.base import Strict


class Push(Strict):
    """Where the replay data is published."""

    repo: str | None = None
    """The Hub data set, owner/name; null: the command names it."""
    private: bool = True
    """Whether a new data set is private."""
