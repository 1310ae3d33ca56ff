"""What ``sweep`` and ``advise`` find: points of a curve, and what may be said of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from replaykit.result import Noted, Result
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import SkillFacts, State

Control = Literal["no-replay", "target-alone", "all-old"]
Decision = Literal["keeps", "nothing_lost", "none_keeps", "cannot_tell"]


class MeasureResult(Result):
    """One model's items are written."""

    items: int
    notes: list[str] = Field(default=[])


class SkillDrop(Result):
    """An old skill and how much smaller its score is than the base's; of nats the rise."""

    skill: str
    drop: Interval


class Point(Result):
    """One choice of settings, trained with each seed and measured on the same items as all others.

    Intervals hold the items' variance, and from three seeds on that of the seeds too.
    """

    name: str
    values: dict[str, Any]
    """By key of the recipe, what is swept."""
    ratio: float
    """The share of replay that was asked for."""
    control: Control | None
    share: float | None = None
    """The share that came out, in the unit of the ratio, the mean over the seeds."""
    sources: list[str] = Field(default=[])
    """Where its replay came from."""
    steps: int | None = None
    rows: int | None = None
    """Rows that were trained on, repeated ones counted."""
    states: dict[str, Literal["lost", "kept", "unknown"]] = Field(default={})
    """By seed that was measured: what may be said of all old skills together."""
    drop: Interval | None = None
    """Of the mean of the old skills of which something can be told."""
    worst: SkillDrop | None = None
    """The old skill with the largest drop."""
    drops: dict[str, Interval] = Field(default={})
    """By old skill."""
    new: Interval | None = None
    """The new skill's score; of a cross_entropy skill nats a token."""
    new_drop: Interval | None = None
    """How much smaller it is than the base's: what was learned is below 0."""
    new_gain: Interval | None = None
    """How much better it is than without replay, the items and seeds paired."""
    errors: dict[str, str] = Field(default={})
    """By seed that failed: why."""

    @property
    def others(self) -> str:
        """What is swept beside the ratio, as a recipe has it: ``sources [generate]``."""
        import yaml

        said = []
        for key, value in self.values.items():
            if key != "mix.ratio":
                text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
                written = text.removesuffix("...\n").strip()
                said.append(f"{key.rpartition('.')[2]} {written}")
        return ", ".join(said)

    @property
    def measured(self) -> bool:
        return self.drop is not None

    @property
    def lost(self) -> bool:
        """Whether a loss is measurable in half of the trainings or more."""
        found = list(self.states.values())
        return bool(found) and 2 * found.count("lost") >= len(found)


class SweepResult(Noted):
    """The points in the order in which they were trained, and the smallest share that is enough."""

    points: list[Point]
    seeds: list[int]
    steps: int
    """Optimiser steps of every point but ``target-alone``."""
    unit: Literal["score", "nats"]
    """Of the old skills' drops."""
    new_unit: Literal["score", "nats"] | None
    """Of the new skill; None where it is not tested."""
    margin: float
    skills: list[SkillFacts]
    base: dict[str, Interval]
    """By skill, the untuned model's score."""
    mean_skills: list[str]
    """The old skills of which ``Point.drop`` is the mean."""
    left_out: dict[str, State]
    """Old skills that are no part of the mean: of too few rows, or which the base hardly has."""
    decision: Decision
    chosen: str | None
    """The point with the smallest share whose bound is below the margin."""
    words: str

    def point(self, name: str) -> Point:
        """Raises KeyError where there is none of this name."""
        found = {point.name: point for point in self.points}
        return found[name]

    @property
    def could_do_more(self) -> bool:
        """Whether a larger share may help: something is lost, and what is left can be told."""
        return self.decision in ("none_keeps", "cannot_tell") and not set(self.mean_skills) <= set(
            self.left_out
        )

    @property
    def failed(self) -> list[Point]:
        """Those of which a training or a measurement failed."""
        return [point for point in self.points if point.errors]


class Fitted(Result):
    """One share of the fit."""

    ratio: float
    drop: Interval
    """It never rises with the share."""


class AdviseResult(Noted):
    """The share that short trainings recommend."""

    sweep: SweepResult
    full_steps: int | None
    """Of the whole training; those of the short ones are in ``sweep``. None where their number was
    stated."""
    fitted: list[Fitted]
    """The least share first."""
    ratio: float | None
    """What is recommended; None where nothing can be told."""
    words: str

    @property
    def line(self) -> str | None:
        """What to write into the recipe."""
        return None if self.ratio is None else f"mix: {{ratio: {self.ratio:g}}}"
