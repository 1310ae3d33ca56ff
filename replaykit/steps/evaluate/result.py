"""What ``eval`` finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from replaykit.recipe.evaluate import MARGIN
from replaykit.result import Noted, Result
from replaykit.steps.evaluate.interval import Interval


class SkillFacts(Result):
    """A skill that was tested."""

    skill: str
    role: Literal["old", "target", "memory"]
    score: str
    """How answers are scored: exact, numeric, json, tool_call, label, cross_entropy, ...; lm_eval
    is the metric of the task that a note names."""
    n: int
    """Items that have a score under every model."""
    unscored: int
    """Items that are too long for a model, or of which a judge's reply could not be read."""


State = Literal["lost", "kept", "unknown", "too_few", "base_cannot"]
"""What may be said of an old skill: that something of it is lost, that it lost no more than the
margin, neither; or nothing, since it has too few rows, or the base hardly has it."""


class Claim(Result):
    """What may be said of a skill under a tuned model, the items paired with the base's."""

    state: State | None
    """None for the new skill."""
    p: float | None
    """Of a loss, one-sided, corrected for the number of old skills; None where it is not tested."""
    detectable: float | None
    """The smallest true drop, or rise in nats, that so many rows show four times in five."""
    lost: int | None
    """Items that the base has right and the model wrong; None for a cross_entropy skill."""
    gained: int | None
    """Items that the base has wrong and the model right."""
    form: Interval | None = None
    """Of the drop in the strict reading the part that is form alone: how many more answers count
    only where they need not be written as asked. The rest is the drop of the score, knowledge."""
    form_p: float | None = None
    """Of a loss of form, one-sided, corrected as ``p`` is."""


def state_of(claims: Mapping[str, Claim]) -> Literal["lost", "kept", "unknown"]:
    """What may be said of all old skills together: that they are kept only where each one is, or
    the base hardly has it.
    """
    states = {claim.state for claim in claims.values() if claim.state is not None}
    if "lost" in states:
        return "lost"
    if "kept" in states and states <= {"kept", "base_cannot"}:
        return "kept"
    return "unknown"


class WorstSkill(Result):
    """The old skill whose loss is surest: the lower bound of its drop is the highest."""

    skill: str
    retention: float


class Noise(Result):
    """A skill under the base model, scored twice."""

    n: int
    differ: int
    """Items whose score is not the same both times."""
    drop: Interval
    """How much lower it was the second time; of a cross_entropy skill the rise in nats."""


class Pair(Result):
    """Two tuned models on the same items. A gain is positive where the first is better."""

    first: str
    second: str
    gain: dict[str, Interval]
    """By skill; of a cross_entropy skill in nats a token."""
    old: Interval | None
    """The mean over the old skills that are scored right or wrong."""
    old_nats: Interval | None
    """The mean over the old skills that are scored by cross-entropy."""

    def turned(self) -> Pair:
        """The same from the other side."""
        return Pair(
            first=self.second,
            second=self.first,
            gain={skill: -gain for skill, gain in self.gain.items()},
            old=None if self.old is None else -self.old,
            old_nats=None if self.old_nats is None else -self.old_nats,
        )


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


class Rate(Result):
    """How many of one model's answers to one skill decline, or repeat themselves."""

    rate: Interval
    drop: Interval | None = None
    """How much smaller it is than the base's, the items paired: below 0 where more do so."""

    @property
    def changed(self) -> bool:
        """Whether the 95 % interval of the drop leaves out 0."""
        return self.drop is not None and (self.drop.low > 0 or self.drop.high < 0)


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
    rates: dict[str, dict[str, Rate]] = Field(default={})
    """By skill, the rate of answers that do so by its name, "declines" or "repeats"; absent where
    no model's answers do, or where there are too few."""
    thinks: Interval | None = None
    """The part of answers with a valid thought, the mean of those skills."""
    thinks_drop: Interval | None = None
    """How much smaller that is than the base's, the items paired."""
    old: Interval | None
    """The mean of the old skills that are scored right or wrong."""
    target: Interval | None
    drop: dict[str, Interval] = Field(default={})
    """Base minus tuned by skill, the items paired; of a cross_entropy skill the rise in nats."""
    claims: dict[str, Claim] = Field(default={})
    """By skill."""
    old_drop: Interval | None = None
    retention: Interval | None = None
    """Tuned over base, of the old skills that are scored right or wrong."""
    worst: WorstSkill | None = None

    @property
    def state(self) -> Literal["lost", "kept", "unknown"]:
        """What may be said of all old skills together: something is lost where a skill is, or where
        their mean is lower, the interval of its drop above 0.
        """
        found = state_of(self.claims)
        few = any(claim.state == "too_few" for claim in self.claims.values())
        drop = self.old_drop
        if found == "unknown" and not few and drop is not None and drop.known and drop.low > 0:
            return "lost"
        return found


class EvalResult(Noted):
    """All models on all skills; the base comes first."""

    skills: list[SkillFacts]
    models: list[ModelScores]
    margin: float = MARGIN
    """A drop below it, in points of a score or nats a token, is called none."""
    pairs: list[Pair] = Field(default=[])
    """The tuned models with one another."""
    noise: dict[str, Noise] = Field(default={})
    """By skill, where the base was scored twice (eval.twice): claims hold against both times."""

    @property
    def changed_rates(self) -> list[tuple[str, str]]:
        """Skill and name of the rates that some model has changed."""
        return list(
            dict.fromkeys(
                (skill, name)
                for model in self.models
                for skill, rates in model.rates.items()
                for name, rate in rates.items()
                if rate.changed
            )
        )

    def between(self, first: str, second: str) -> Pair:
        """How much better the first is than the second. Raises KeyError where they were not
        compared.
        """
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                return pair.turned()
        raise KeyError(f"{first} was not compared with {second}")
