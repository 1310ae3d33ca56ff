"""What ``eval`` finds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from replaykit.result import Noted, Result
from replaykit.steps.evaluate.interval import Interval


class SkillFacts(Result):
    """A skill that was tested."""

    skill: str
    role: Literal["old", "target"]
    score: str
    """How answers are scored: exact, numeric, json, tool_call, label or cross_entropy."""
    n: int
    """Items that have a score under every model."""
    unscored: int
    """Items that are too long for a model."""


class WorstSkill(Result):
    """The old skill that was kept least."""

    skill: str
    retention: float


class Thoughts(Result):
    """What became of the thoughts before one model's answers to one skill."""

    valid: int
    """Something stands between the marks, and they are closed."""
    empty: int
    """Nothing does."""
    missing: int
    """There are no marks."""
    cut: int
    """The thought has no end, so there is no answer."""
    drop: Interval | None = None
    """How much smaller the part of valid thoughts is than the base's, the items paired."""

    @property
    def share(self) -> float:
        """The part of valid thoughts."""
        return self.valid / (self.valid + self.empty + self.missing + self.cut)


class ClassScores(Result):
    """A text classifier on one skill, label by label. What compares it with the base is absent from
    the base itself.
    """

    macro_f1: Interval
    """The mean of the labels' F1."""
    macro_f1_drop: Interval | None = None
    """Base minus tuned, the rows paired."""
    micro_f1: Interval | None = None
    """F1 of all decisions together; None where each row has one label, and it is the accuracy."""
    micro_f1_drop: Interval | None = None
    recall: dict[str, Interval]
    """By label, the part of its rows that are given it."""
    recall_drop: dict[str, Interval] = Field(default={})
    elsewhere: Interval | None = None
    """The part of rows that are given a label which none of the skill's rows has, such as one of
    the new task: what is lost there may still be known. None where no model gives one."""
    elsewhere_drop: Interval | None = None

    @property
    def figures(self) -> dict[str, tuple[Interval, Interval | None]]:
        """All of them by name, each with its drop where there is one."""
        found = {"macro F1": (self.macro_f1, self.macro_f1_drop)}
        if self.micro_f1 is not None:
            found["micro F1"] = (self.micro_f1, self.micro_f1_drop)
        for label, recall in self.recall.items():
            found[f"recall of {label}"] = (recall, self.recall_drop.get(label))
        if self.elsewhere is not None:
            found["label that no row has"] = (self.elsewhere, self.elsewhere_drop)
        return found


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
    thoughts: dict[str, Thoughts] = Field(default={})
    """By skill that some model thought about, or was left to."""
    classes: dict[str, ClassScores] = Field(default={})
    """By skill whose answers are labels."""
    thinks: Interval | None = None
    """The part of answers with a valid thought, the mean of those skills."""
    thinks_drop: Interval | None = None
    """How much smaller that is than the base's, the items paired."""
    old: Interval | None
    """The mean of the old skills that are scored right or wrong."""
    target: Interval | None
    drop: dict[str, Interval] = Field(default={})
    """Base minus tuned by skill, the items paired; of a cross_entropy skill the rise in nats."""
    old_drop: Interval | None = None
    retention: Interval | None = None
    """Tuned over base, of the old skills that are scored right or wrong."""
    worst: WorstSkill | None = None


class EvalResult(Noted):
    """All models on all skills; the base comes first."""

    skills: list[SkillFacts]
    models: list[ModelScores]
