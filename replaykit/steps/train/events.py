"""One test of a controller and what was decided; and all that a resumed training needs of them."""

from __future__ import annotations

from typing import Literal

from replaykit.result import Result
from replaykit.steps.evaluate.interval import Interval


class Event(Result):
    """One test and what was decided after it."""

    step: int
    """Optimiser steps that were done."""
    scores: dict[str, float]
    """By skill."""
    drops: dict[str, Interval]
    """By skill, as parts of the base's score."""
    worst: str | None
    """The skill whose drop has the highest lower bound."""
    max_drop: float
    target_loss: float | None
    """Nats a token."""
    ratio_before: float
    ratio: float
    remedy_before: bool | None
    """None where no remedy is controlled."""
    remedy: bool | None
    weights: dict[str, float] | None
    """Of skills, their sum 1; None where by_skill is off."""
    stop: bool
    reason: str
    """For people."""

    @property
    def changes(self) -> bool:
        """Whether something is other than before it, the weights of skills aside."""
        return self.stop or self.ratio != self.ratio_before or self.remedy != self.remedy_before


class DeciderState(Result):
    """A decider's state in a checkpoint."""

    base: dict[str, list[float]]
    """The items' scores under the untrained model, by skill."""
    start: float
    """The share of replay to begin with."""
    best_loss: float | None
    calm: int
    waited: int
    events: list[Event]


class ControllerState(Result):
    """A controller's state in a checkpoint."""

    items: str
    """A fingerprint of the tests' rows: scores are of no use for others."""
    kinds: dict[str, Literal["exact", "probability"]]
    """How each skill is scored."""
    decider: DeciderState
