"""What ``suites`` finds."""

from __future__ import annotations

from replaykit.result import Noted, Result
from replaykit.steps.evaluate.interval import Interval


class SuiteScore(Result):
    """A suite, and what a model scores on it."""

    suite: str
    what: str
    cannot_say: str
    """What nobody may conclude from it."""
    how: str
    """How answers are scored."""
    chance: float
    """The score of answers that know nothing of the question."""
    n: int
    """Items that were scored, or that were asked for where none is measured."""
    score: Interval | None
    """The model's; None where it was not measured."""
    detectable: float | None
    """The smallest true drop that so many items show four times in five; None where the score is
    below it, so that no such drop can be."""
    can: bool | None
    """Whether the model can do it, so that a test of it says something of what was lost."""


class SuitesResult(Noted):
    """The suites, with the scores of a model where one was named."""

    model: str | None
    items: int
    """Of each suite, at most."""
    gained: float
    """The part of the items that is taken to turn right by chance, for ``detectable``."""
    suites: list[SuiteScore]
