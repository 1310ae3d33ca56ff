"""Which points a sweep trains: pure functions of the recipe.

    sweep: {ratio: [0, 0.05], over: {mix.sources: [[select], [generate]]}}

    no-replay                      ratio 0; what replay is and where it comes from means nothing
    ratio-0.05_sources-select      every ratio with every value of the other keys
    ratio-0.05_sources-generate
    target-alone                   the controls
    all-old

**Equal compute**: with ``train.steps`` a mixture has just steps x batch_rows rows, replay in place
of target rows, which repeat evenly. So every point is trained with the same number of steps, that
of the point with the most, and ``no-replay`` has extra target rows in place of the replay of the
others: it is the control of compute. ``target-alone`` has the target as often as ``train.epochs``
says and no more: what a user without replay would do. ``all-old`` takes half of its rows from the
whole pool, or more where a share of the sweep is larger.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from replaykit.errors import RecipeError
from replaykit.recipe import Recipe, need
from replaykit.recipe.load import changed
from replaykit.recipe.sweep import SWEPT
from replaykit.steps.swept import Control

RATIOS = (0.0, 0.01, 0.05, 0.1)
HALF = 0.5  # of the rows of all-old, at least
WHOLE = 10**9  # rows to select: all that a pool has
OF_REPLAY = ("mix", "select", "generate")  # sections without meaning where nothing is replayed
# Sections by which replay or target are made.
OF_SOURCES = ("select", "generate", "rewrite", "augment")


@dataclass(frozen=True, eq=False)
class Planned:
    """A point before it is trained."""

    name: str
    values: Mapping[str, Any]
    """By key of the recipe, the ratio too."""
    control: Control | None = None
    more: Mapping[str, Any] | None = None
    """What is changed besides, to make it what it is."""
    against: str | None = None
    """The name of its control: the same training without replay."""

    @property
    def ratio(self) -> float:
        return float(self.values["mix.ratio"])

    @property
    def own_length(self) -> bool:
        """Whether it has the recipe's epochs instead of the steps of all others."""
        return self.control == "target-alone"

    @property
    def own_sources(self) -> bool:
        """Whether its replay, or its target, is made otherwise than the run's."""
        keys = {*self.values, *(self.more or {})}
        return any(key.partition(".")[0] in OF_SOURCES for key in keys)

    def recipe(self, run: Recipe, *, steps: int | None, **settings: Any) -> Recipe:
        """The run's recipe with what this point changes; ``steps`` is None for the recipe's own
        length. Raises RecipeError where there is no such recipe.
        """
        changes = {"arms": {}, "mix.schedule": None, **self.values, **(self.more or {})}
        if steps is not None and not self.own_length:
            changes["train.steps"] = steps
        made = changed(run, changes | settings)
        if self.ratio > 0:
            return made
        # A training without replay can have all remedies but those that do nothing then.
        needy = {f"train.remedies.{name}": None for name in made.train.remedies.need_replay}
        return changed(made, needy)

    def baseline(self) -> dict[str, Any]:
        """The values of its control without replay."""
        others = {
            key: value
            for key, value in self.values.items()
            if key.partition(".")[0] not in OF_REPLAY
        }
        return {"mix.ratio": 0.0, **others}


def planned(recipe: Recipe) -> list[Planned]:
    """The points in the order in which they are trained: controls without replay, then the smallest
    share first, then the other controls.
    """
    settings = recipe.sweep
    ratios = ratios_of(recipe)
    grid = [
        dict(zip(settings.over, each, strict=True)) for each in product(*settings.over.values())
    ]
    controls = _without(recipe, grid)
    points = list(dict.fromkeys(controls.values()))  # in order, each once
    for ratio in ratios[1:]:
        for others in grid:
            point = Planned("", {"mix.ratio": ratio, **others})
            name = _name(point.values, points)
            against = controls[_key(point.baseline())].name
            points.append(replace(point, name=name, against=against))
    if settings.controls:
        plain = controls.get(_key({"mix.ratio": 0.0}))
        without = None if plain is None else plain.name
        points += (replace(each, against=without) for each in _controls(recipe, max(ratios)))
    return points


def _without(recipe: Recipe, grid: Sequence[Mapping[str, Any]]) -> dict[str, Planned]:
    """The controls without replay by their values; one and the same for values that make the same
    training.
    """
    found: dict[str, Planned] = {}
    trainings: dict[str, Planned] = {}
    for others in grid:
        values = Planned("", {"mix.ratio": 0.0, **others}).baseline()
        if _key(values) in found:
            continue
        point = Planned(_name(values, list(trainings.values())), values, "no-replay")
        try:
            training = _key(point.recipe(recipe, steps=1).model_dump())
        except RecipeError:
            training = point.name  # why is said where it is trained
        found[_key(values)] = trainings.setdefault(training, point)
    return found


def _key(values: Mapping[str, Any]) -> str:
    """Values as a text, by which they are told from others."""
    return json.dumps(values, sort_keys=True, default=str)


def ratios_of(recipe: Recipe) -> list[float]:
    """The shares of the sweep, 0 among them, the least first."""
    given: Sequence[float] = recipe.sweep.ratio
    if not given:
        given = [recipe.mix.ratio] if recipe.sweep.over else RATIOS
    return sorted({0.0, *given})


def _controls(recipe: Recipe, highest: float) -> Iterator[Planned]:
    stated = recipe.sweep.steps is not None or recipe.train.steps is not None
    if not stated and recipe.mix.budget == "add" and highest > 0:
        yield Planned("target-alone", {"mix.ratio": 0.0}, "target-alone")
    if recipe.select is not None:
        more = {
            "mix.sources": ["select"],
            "select.method": "random",
            "select.n": WHOLE,
            "select.per_target": None,
        }
        yield Planned("all-old", {"mix.ratio": max(HALF, highest)}, "all-old", more)


def _name(values: Mapping[str, Any], taken: Sequence[Planned]) -> str:
    """``ratio-0.05_sources-select``: what a point's folder is called, each otherwise."""
    parts = []
    for key, value in values.items():
        if key == "mix.ratio":
            parts.append(f"ratio-{value:g}" if value else "no-replay")
            continue
        words = re.sub(r"[^A-Za-z0-9.]+", "-", str(value)).strip("-.") or "none"
        parts.append(f"{key.rpartition('.')[2]}-{words[:60]}")
    name = "_".join(parts)
    names = {point.name for point in taken}
    number = 2
    unique = name
    while unique in names:
        unique = f"{name}-{number}"
        number += 1
    return unique


def check(recipe: Recipe, step: str) -> None:
    """Raises RecipeError for what cannot be swept, with what to type."""
    need(recipe, step, "model", "target", "eval")
    problems = []
    if not recipe.eval.old:
        problems.append(
            f"{step} needs held-out rows of old skills, or nobody knows what replay keeps: "
            "eval: {old: {capital: capitals.jsonl}} (--old capital=capitals.jsonl)"
        )
    if recipe.train.controller is not None:
        problems.append(
            "train.controller: it moves the share itself, and this compares shares; leave it out "
            "(--set train.controller=null)"
        )
    problems += list(_without_replay(recipe, step))
    if problems:
        raise RecipeError("the recipe", problems)


def _without_replay(recipe: Recipe, step: str) -> Iterator[str]:
    from replaykit.steps.mix.step import replay_sources

    swept = {key.partition(".")[0] for key in recipe.sweep.over}
    if "mix.sources" in recipe.sweep.over or swept & set(SWEPT[:2]):
        return
    if not replay_sources(recipe, recipe.mix.model_copy(update={"ratio": HALF, "schedule": None})):
        yield (
            f"{step} needs replay: select: {{pool: old.jsonl}}, generate: {{n: 2000}}, or rows of "
            "your own in mix.sources"
        )
