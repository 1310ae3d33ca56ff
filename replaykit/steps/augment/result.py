"""What ``augment`` makes."""

from __future__ import annotations

from replaykit.result import Noted, Result


class PathCounts(Result):
    """What one way of making rows came to."""

    made: int
    """Rows."""
    refused: dict[str, int]
    """Target rows of which none was made, by reason, most first."""
    edit: float | None
    """The mean normalised edit distance of the questions from their parents', 0 to 1; None where
    no row was made."""


class AugmentResult(Noted):
    """How many rows were made of the target, and why not more."""

    target: int
    """Target rows."""
    drawn: int
    """Of these those that were to be augmented."""
    rows: int
    """Rows that were made."""
    paths: dict[str, PathCounts]
    """By back-translation and counterfactual."""
