"""Advice from short trainings: a curve that falls with the share, and the smallest share at which
its upper bound is below the margin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from replaykit.data.record import TARGET
from replaykit.hashing import derive_seed
from replaykit.recipe import Recipe
from replaykit.steps.evaluate.compare import shared_items
from replaykit.steps.evaluate.step import BASE
from replaykit.steps.inputs import tests
from replaykit.steps.report.numbers import known, percent, points
from replaykit.steps.sweep.curve import Taken, model_of
from replaykit.steps.sweep.pool import SPREAD, SkillTable, fitted
from replaykit.steps.sweep.words import between, plain, untold
from replaykit.steps.swept import AdviseResult, Fitted, Point, SweepResult

SHORT = (0.0, 0.01, 0.05, 0.1)
ONE_MORE = 0.2


def short_ratios(recipe: Recipe) -> Iterator[list[float]]:
    """The shares to try; then, where the recipe names none, those and one more."""
    if recipe.sweep.ratio:
        yield list(recipe.sweep.ratio)
        return
    yield [*SHORT]
    yield [*SHORT, ONE_MORE]


def advice(
    recipe: Recipe, taken: Taken, sweep: SweepResult, *, full_steps: int | None
) -> AdviseResult:
    """What the short trainings recommend."""
    measured = sorted(
        (point for point in sweep.points if known(point.drop)), key=lambda point: point.ratio
    )
    found: list[Fitted] = []
    if len(measured) > 1:
        found = fit(recipe, taken, sweep, measured)
    ratio, words = recommend(sweep, found)
    steps = f"by trainings of {sweep.steps:,} steps"
    if full_steps is not None:
        steps += f", of {full_steps:,} of a whole one"
    words = f"{words} ({steps}). {seeds_words(sweep)}".strip()
    return AdviseResult(
        sweep=sweep,
        full_steps=full_steps,
        fitted=found,
        ratio=ratio,
        words=words,
        notes=sweep.notes,
    )


def fit(
    recipe: Recipe, taken: Taken, sweep: SweepResult, measured: Sequence[Point]
) -> list[Fitted]:
    """The curve through the points, of the same skills as their means."""
    shared = shared_items(taken.models)
    trained = [
        [model_of(name, seed) for name, seed in taken.items if name == point.name]
        for point in measured
    ]
    tables = []
    for skill in sweep.mean_skills:
        tuned = [[shared[model][skill].scores for model in models] for models in trained]
        base = shared[BASE][skill]
        tables.append(SkillTable.of(tests(recipe)[skill], base.scores, tuned, base.tokens))
    by_seed = {}
    for point, models in zip(measured, trained, strict=True):
        alone = [
            [
                SkillTable.of(
                    tests(recipe)[skill],
                    shared[BASE][skill].scores,
                    [[shared[model][skill].scores]],
                    shared[BASE][skill].tokens,
                ).mean[0]
                for skill in sweep.mean_skills
            ]
            for model in models
        ]
        by_seed[point.ratio] = [float(np.mean(each)) for each in alone]
    shares = [point.ratio for point in measured]
    drops = fitted(shares, tables, by_seed, seed=derive_seed("advise", recipe.seed))
    return [Fitted(ratio=share, drop=drop) for share, drop in zip(shares, drops, strict=True)]


def recommend(sweep: SweepResult, curve: Sequence[Fitted]) -> tuple[float | None, str]:
    """The smallest share whose fitted bound is below the margin, or why nothing can be told."""
    why = _untellable(sweep)
    margin = points(sweep.margin, sweep.unit)
    if why:
        return None, f"Cannot tell, because {why}"
    replayed = [each for each in curve if each.ratio > 0]
    enough = [each for each in replayed if each.drop.high < sweep.margin]
    if not enough:
        best = min(replayed, key=lambda each: each.drop.high)
        return None, (
            f"Cannot tell, because no share of these is surely within {margin}: of "
            f"{percent(best.ratio)} the fitted drop is {between(best.drop, sweep.unit)}"
        )
    least = min(enough, key=lambda each: each.ratio)
    return least.ratio, (
        f"{percent(least.ratio)} replay: the fitted drop of the old skills is "
        f"{plain(least.drop.mean, sweep.unit)}, at most {plain(least.drop.high, sweep.unit)}, "
        f"below {margin}"
    )


def _untellable(sweep: SweepResult) -> str:
    """Why short trainings say nothing of the share; "" where they do."""
    old = [skill.skill for skill in sweep.skills if skill.role == "old"]
    if all(skill in sweep.left_out for skill in old):
        return untold(sweep)
    control = next((each for each in sweep.points if each.control == "no-replay"), None)
    if control is None or not known(control.drop):
        return "the control without replay could not be measured"
    if not any(each.control is None and known(each.drop) for each in sweep.points):
        return "no training with replay could be measured"
    if known(control.new_drop) and control.new_drop.high >= 0:
        return (
            "in so few steps the new skill is not learned measurably, so nothing is lost for it; "
            "ask for more of them (--steps)"
        )
    if control.drop.low <= 0 and not control.lost:
        return (
            "without replay nothing was lost measurably, so nothing is to be protected: a drop of "
            f"{between(control.drop, sweep.unit)}; more steps (--steps) or more items tell"
        )
    return ""


def seeds_words(sweep: SweepResult) -> str:
    """How far it holds for other seeds, and whether the new skill was looked at."""
    said = []
    measured = max((len(point.states) for point in sweep.points), default=0)
    if measured < SPREAD:
        said.append(f"From {measured} seed{'' if measured == 1 else 's'}: others are not in this.")
    if sweep.new_unit is None:
        said.append(f"The new skill is not tested (eval.{TARGET}).")
    failed = [point.name for point in sweep.failed]
    if failed:
        said.append(f"Failed: {', '.join(failed)}.")
    return " ".join(said)
