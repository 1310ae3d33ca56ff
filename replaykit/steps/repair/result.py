"""What ``repair`` finds and makes."""

from __future__ import annotations

from typing import Literal

from replaykit.result import Noted, Result
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import EvalResult

RepairVerdict = Literal["repaired", "better", "none", "nothing_lost"]
"""repaired: the kept point keeps every old skill, as ``gate`` says it; better: none does, and the
kept point is measurably better at them than the tuned model; none: no point is; nothing_lost: the
tuned model keeps them all, so nothing was trained."""


class RepairPoint(Result):
    """The model after so many steps of the repair."""

    step: int
    """0 is the tuned model."""
    state: Literal["lost", "kept", "unknown"]
    """What ``gate`` says of its old skills together."""
    old: Interval | None
    """The mean score of the old skills; None where none is scored right or wrong."""
    old_drop: Interval | None
    """How much smaller that is than the base's, the items paired."""
    old_gain: Interval | None = None
    """How much better it is than the tuned model's; in nats a token where the old skills are scored
    by cross-entropy alone. None for the tuned model."""
    new: Interval | None
    """The new skill's score, of a cross_entropy skill in nats a token; None where it is not
    tested."""
    new_gain: Interval | None = None
    """How much better it is than the tuned model's, the items paired."""
    chosen: bool = False


class RepairResult(Noted):
    """A tuned model that was brought back towards its base, or was not."""

    verdict: RepairVerdict
    step: int | None
    """The step whose model is kept; None where the tuned model stays."""
    points: list[RepairPoint]
    """The tuned model first."""
    rows: int
    """Rows of the base's own that were trained on; 0 where nothing was trained."""
    kl: tuple[float, float] | None = None
    """The KL divergence of the model from the base in nats a token of those rows, in the first and
    in the last steps that were logged."""
    method: str
    learning_rate: float | None
    """None where nothing was trained."""
    margin: float
    unit: Literal["score", "nats"]
    """Of the old skills' gain."""
    new_unit: Literal["score", "nats"]
    model: str
    """The folder of the model to take, or the tuned model as it was given."""
    tuned: str
    base: str
    revision: str | None
    evaluation: EvalResult
    """The base, the tuned model and, where a point is kept, the repaired one on the same items."""

    @property
    def before(self) -> RepairPoint:
        """The tuned model."""
        return self.points[0]

    @property
    def after(self) -> RepairPoint | None:
        """The point that is kept; None where the tuned model stays."""
        return next((point for point in self.points if point.chosen), None)
