"""What ``eval`` finds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from replaykit.result import Result
from replaykit.steps.evaluate.interval import Interval


class SkillFacts(Result):
    """A skill that was tested."""

    skill: str
    role: Literal["old", "target"]
    score: str
    """How answers are scored: exact, numeric, json or cross_entropy."""
    n: int
    """Items that have a score under every model."""
    unscored: int
    """Items that are too long for a model."""


class WorstSkill(Result):
    """The old skill that was kept least."""

    skill: str
    retention: float


class ModelScores(Result):
    """One model on all skills. What compares it with the base is absent from the base itself."""

    model: str
    ratio: float | None = None
    """The share of replay that was asked for; None where nothing is known of the training."""
    share: float | None = None
    """The share of replay that came out, in the unit of the ratio."""
    steps: int | None = None
    scores: dict[str, Interval]
    """By skill; of a cross_entropy skill in nats a token. Of a right/wrong skill it is the lenient
    reading: the answer counts, however it is written."""
    strict: dict[str, Interval] = Field(default={})
    """By right/wrong skill, the strict reading: the answer is also written as the reference is."""
    old: Interval | None
    """The mean of the old skills that are scored right or wrong."""
    target: Interval | None
    drop: dict[str, Interval] = Field(default={})
    """Base minus tuned by skill, the items paired; of a cross_entropy skill the rise in nats."""
    old_drop: Interval | None = None
    retention: Interval | None = None
    """Tuned over base, of the old skills that are scored right or wrong."""
    worst: WorstSkill | None = None


class EvalResult(Result):
    """All models on all skills; the base comes first."""

    skills: list[SkillFacts]
    models: list[ModelScores]
