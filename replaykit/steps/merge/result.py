"""What ``merge`` makes."""

from __future__ import annotations

from replaykit.result import Noted, Result
from replaykit.steps.evaluate.interval import Interval


class AlphaRow(Result):
    """The average at one alpha, measured."""

    alpha: float
    target: float
    """The new skill's score."""
    old: float
    """The mean score of the old skills."""
    old_drop: Interval
    """How much smaller that is than the base's."""
    allowed: bool
    """Whether the upper bound of the drop is within the margin."""
    chosen: bool = False


class MergeResult(Noted):
    """An average of base and tuned models."""

    method: str
    alpha: float
    changed: int | None
    """Tensors that are other than the base's; None after a sweep."""
    table: list[AlphaRow] | None
    """Of a sweep."""
    model: str
    """The folder of the average."""
    base: str
    revision: str | None
