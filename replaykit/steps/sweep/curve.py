"""The points of a sweep from the items of its models, and which share is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from replaykit.data.record import TARGET
from replaykit.recipe import Recipe
from replaykit.recipe.evaluate import Test
from replaykit.steps.evaluate.claims import FLOOR, can_do
from replaykit.steps.evaluate.compare import Items, Scored, compare, shared_items
from replaykit.steps.evaluate.interval import average
from replaykit.steps.evaluate.result import EvalResult, ModelScores, State
from replaykit.steps.evaluate.step import BASE
from replaykit.steps.inputs import tests
from replaykit.steps.mix.result import MixResult
from replaykit.steps.report.numbers import Unit, known, unit_of
from replaykit.steps.sweep.plan import Planned
from replaykit.steps.sweep.pool import pooled
from replaykit.steps.sweep.words import sentence, surely_within
from replaykit.steps.swept import Decision, Point, SkillDrop, SweepResult

Training = tuple[str, int]  # the name of a point, and a seed


@dataclass
class Taken:
    """What a sweep has measured, and what failed."""

    base: Items = field(default_factory=dict)
    items: dict[Training, Items] = field(default_factory=dict)
    mixed: dict[Training, MixResult] = field(default_factory=dict)
    errors: dict[Training, str] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, Items]:
        """The items by model, the base first."""
        return {BASE: self.base} | {model_of(*each): items for each, items in self.items.items()}


@dataclass(frozen=True)
class Old:
    """The old skills of the mean, and those left out of it."""

    skills: list[str]
    unit: Unit
    left_out: dict[str, State]


def model_of(name: str, seed: int) -> str:
    """What a training's model is called among those that are compared."""
    return f"{name}/{seed}"


def old_of(evaluation: EvalResult, wanted: Mapping[str, Test], base: Mapping[str, Scored]) -> Old:
    """The mean is over the old skills that are scored right or wrong, or where there are none over
    those in nats; without skills of too few rows, or that the base, of the items ``base``, cannot
    do.

    Where nothing else is left, they are in it, and nothing is claimed.
    """
    left_out: dict[str, State] = {}
    units: dict[str, Unit] = {}
    for skill in evaluation.skills:
        if skill.role != "old":
            continue
        units[skill.skill] = unit_of(skill)
        if skill.n < FLOOR:
            left_out[skill.skill] = "too_few"
        elif unit_of(skill) == "score" and not can_do(
            wanted[skill.skill], base[skill.skill].scores
        ):
            left_out[skill.skill] = "base_cannot"
    able = {skill: unit for skill, unit in units.items() if skill not in left_out} or units
    unit: Unit = "score" if "score" in able.values() else "nats"
    return Old([skill for skill, own in able.items() if own == unit], unit, left_out)


def curve(
    recipe: Recipe, points: Sequence[Planned], taken: Taken, *, seeds: list[int], steps: int
) -> SweepResult:
    """What was found at every point. At least one training was measured."""
    mixed = {model_of(*each): mixture for each, mixture in taken.mixed.items()}
    wanted = tests(recipe)
    evaluation = compare(wanted, taken.models, mixed, recipe.eval.margin)
    old = old_of(evaluation, wanted, shared_items(taken.models)[BASE])
    made = [_point(point, taken, evaluation, old) for point in points]
    units = {skill.skill: unit_of(skill) for skill in evaluation.skills}
    telling = any(skill not in old.left_out for skill in old.skills)
    decision, chosen = decide(made, evaluation.margin, telling=telling)
    found = SweepResult(
        points=made,
        seeds=seeds,
        steps=steps,
        unit=old.unit,
        new_unit=units.get(TARGET),
        margin=evaluation.margin,
        skills=evaluation.skills,
        base=evaluation.models[0].scores,
        mean_skills=old.skills,
        left_out=old.left_out,
        decision=decision,
        chosen=chosen,
        words="",
        notes=evaluation.notes,
    )
    return found.model_copy(update={"words": sentence(found)})


def _point(point: Planned, taken: Taken, evaluation: EvalResult, old: Old) -> Point:
    models = {model.model: model for model in evaluation.models}
    seeds = [seed for name, seed in taken.items if name == point.name]
    own = {seed: models[model_of(point.name, seed)] for seed in seeds}
    made = Point(
        name=point.name,
        values=dict(point.values),
        ratio=point.ratio,
        control=point.control,
        errors={
            str(seed): text for (name, seed), text in taken.errors.items() if name == point.name
        },
    )
    if not own:
        return made
    mixtures = [taken.mixed[point.name, seed] for seed in seeds]
    tuned = list(own.values())
    skills = [skill.skill for skill in evaluation.skills if skill.role != TARGET]
    drops = {skill: pooled([model.drop[skill] for model in tuned]) for skill in skills}
    worst = max(old.skills, key=lambda skill: drops[skill].mean)
    means = [average([model.drop[skill] for skill in old.skills]) for model in tuned]
    found = {
        "share": sum(model.share or 0.0 for model in tuned) / len(tuned),
        "sources": list(mixtures[0].sources),
        "steps": mixtures[0].steps,
        "rows": mixtures[0].target_rows + mixtures[0].replay_rows,
        "states": {str(seed): model.state for seed, model in own.items()},
        "drop": pooled(means),
        "worst": SkillDrop(skill=worst, drop=drops[worst]),
        "drops": drops,
        **_new_skill(point, own, evaluation),
    }
    return made.model_copy(update=found)


def _new_skill(
    point: Planned, own: Mapping[int, ModelScores], evaluation: EvalResult
) -> dict[str, object]:
    """The new skill, and what it gains against the control without replay; empty where it is not
    tested.
    """
    tuned = list(own.values())
    if TARGET not in tuned[0].scores:
        return {}
    found: dict[str, object] = {
        "new": pooled([model.scores[TARGET] for model in tuned]),
        "new_drop": pooled([model.drop[TARGET] for model in tuned]),
    }
    if point.against is None:
        return found
    there = {model.model for model in evaluation.models}
    gains = [
        evaluation.between(model.model, model_of(point.against, seed)).gain[TARGET]
        for seed, model in own.items()
        if model_of(point.against, seed) in there
    ]
    if gains:
        found["new_gain"] = pooled(gains)
    return found


def decide(points: Sequence[Point], margin: float, *, telling: bool) -> tuple[Decision, str | None]:
    """The smallest share whose upper bound of the drop is below the margin, and of which no loss of
    a skill is measurable, as of every larger one; of equal shares the one that learned more.

    Shares are gone through from the largest down to the first that does not keep, so that several
    of them are no several chances: with the smallest of any, of four shares that all lost exactly
    the margin one was said to keep in 8 % of simulated sweeps, of eight in 12 %.

    ``telling`` is whether there is a skill of which something can be told.
    """
    known_ones = [point for point in points if known(point.drop)]
    controls = [point for point in known_ones if point.control == "no-replay"]
    replayed = [point for point in known_ones if point.control is None]
    if not telling:
        return "cannot_tell", None
    if controls and all(surely_within(point, margin) for point in controls):
        return "nothing_lost", None
    enough = [point for line in _lines(replayed) for point in _kept_from_above(line, margin)]
    if enough:
        least = min(enough, key=lambda point: (point.ratio, _lag(point)))
        return "keeps", least.name
    if replayed and all(_loses(point, margin) for point in replayed):
        return "none_keeps", None
    return "cannot_tell", None


def _lines(points: Sequence[Point]) -> list[list[Point]]:
    """The points that differ in nothing but the share, the largest first."""
    found: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: -point.ratio):
        found.setdefault(point.others, []).append(point)
    return list(found.values())


def _kept_from_above(line: Sequence[Point], margin: float) -> list[Point]:
    return list(takewhile(lambda point: surely_within(point, margin), line))


def _loses(point: Point, margin: float) -> bool:
    return known(point.drop) and (point.drop.low > margin or point.lost)


def _lag(point: Point) -> float:
    """How much less was learned than without replay."""
    return 0.0 if point.new_gain is None else -point.new_gain.mean
