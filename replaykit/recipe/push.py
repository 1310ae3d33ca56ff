"""Where the replay data is published."""

from __future__ import annotations

from replaykit.recipe.base import Strict


class Push(Strict):
    """Where the replay data is published."""

    repo: str | None = None
    """The Hub data set, owner/name; null: the command names it."""
    private: bool = True
    """Whether a new data set is private."""
    columns: list[str] = []
    """Columns of the pool's or the prompts' rows that are published too; empty: none. What
    replaykit itself wrote of a row, such as its rank and its score, always is."""
    license: str | None = None
    """The licence of the data set, as the Hub names it, such as apache-2.0; null: that of the
    model's card and of the pool's card, where these lie here, else unknown."""
