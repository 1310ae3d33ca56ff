"""How many answers decline, and how many repeat themselves, whatever they are scored by.

    with_rates(models, items)[1].rates["capital"]["declines"].rate.mean     # 0.31

A model that was tuned on few rows may decline what it used to answer, or go round in circles, and
a score says only that it is wrong. The rates are proportions with Wilson's interval, their drops
paired with Newcombe's (``statistics``); they are no part of a claim, so nothing corrects them for
their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replaykit.checks.scoring.behaviour import declines, repeats
from replaykit.steps.evaluate.claims import FLOOR
from replaykit.steps.evaluate.result import ModelScores, Rate
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.evaluate.statistics import paired_drop, proportion

BEHAVIOURS = {"declines": declines, "repeats": repeats}

Seen = Mapping[str, Mapping[str, Sequence[float]]]
"""Skill -> behaviour -> of each answer 1 where it does so, else 0."""


def with_rates(
    models: Sequence[ModelScores], items: Mapping[str, Mapping[str, Sequence[Item]]]
) -> list[ModelScores]:
    """The models' scores, the base's first, with the rates of their answers; ``items`` are those
    that have a score under every model, by model and skill.

    A skill of FLOOR answers and more is there where an answer of any model does so.
    """
    base = models[0]
    seen = {model.model: _seen(items[model.model]) for model in models}
    wanted = [
        (skill, name)
        for skill, of_skill in seen[base.model].items()
        for name in of_skill
        if any(any(of_model[skill][name]) for of_model in seen.values())
    ]
    found = []
    for model in models:
        before = None if model is base else seen[base.model]
        rates: dict[str, dict[str, Rate]] = {}
        for skill, name in wanted:
            rates.setdefault(skill, {})[name] = _rate(seen[model.model], before, skill, name)
        found.append(model.model_copy(update={"rates": rates}))
    return found


def _seen(items: Mapping[str, Sequence[Item]]) -> Seen:
    found = {}
    for skill, of_skill in items.items():
        # A classifier says labels, and a cross_entropy test has no answers.
        answers = [item.answer for item in of_skill if item.label is None]
        said = [answer for answer in answers if answer is not None]
        if len(said) >= FLOOR:
            found[skill] = {
                name: [float(does(answer)) for answer in said] for name, does in BEHAVIOURS.items()
            }
    return found


def _rate(now: Seen, before: Seen | None, skill: str, name: str) -> Rate:
    rate = proportion(now[skill][name]).rounded()
    if before is None:
        return Rate(rate=rate)
    drop = paired_drop(before[skill][name], now[skill][name])
    return Rate(rate=rate, drop=drop.rounded())
