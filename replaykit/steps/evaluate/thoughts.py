"""What became of the thoughts before answers: how many are valid, and whether tuning lost them.

    base   96 valid, 4 cut                 tuned   12 valid, 88 missing

A score of answers alone hides that a model has stopped thinking, since easy questions are answered
without; counts of valid, empty, missing and cut thoughts show it (arXiv 2605.21127).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from replaykit.model.chat import Thought
from replaykit.steps.evaluate.interval import average
from replaykit.steps.evaluate.result import ModelScores, Thoughts
from replaykit.steps.evaluate.statistics import paired_drop, proportion

States = Mapping[str, Sequence[Thought | None]]
"""By skill, the thought of each answer in order; None where the model was not left to think, and
did not."""


def with_thoughts(models: Sequence[ModelScores], states: Mapping[str, States]) -> list[ModelScores]:
    """The models' scores, the base's first, with what became of their thoughts (by model).

    A skill is counted where some model thought, or was left to.
    """
    base = models[0]
    skills = [
        skill
        for skill in states[base.model]
        if any(any(of_model[skill]) for of_model in states.values())
    ]
    if not skills:
        return list(models)
    return [_thoughts(model, base, states, skills) for model in models]


def _thoughts(
    model: ModelScores, base: ModelScores, states: Mapping[str, States], skills: Sequence[str]
) -> ModelScores:
    valid = {
        name: {skill: _valid(states[name][skill]) for skill in skills}
        for name in (base.model, model.model)
    }
    parts = [proportion(valid[model.model][skill]) for skill in skills]
    found = {skill: _counted(states[model.model][skill]) for skill in skills}
    thinks = average(parts).rounded()
    if model is base:
        return model.model_copy(update={"thoughts": found, "thinks": thinks})
    drops = {
        skill: paired_drop(valid[base.model][skill], valid[model.model][skill]) for skill in skills
    }
    found = {
        skill: counts.model_copy(update={"drop": drops[skill].rounded()})
        for skill, counts in found.items()
    }
    drop = average(list(drops.values())).rounded()
    return model.model_copy(update={"thoughts": found, "thinks": thinks, "thinks_drop": drop})


def _valid(thoughts: Sequence[Thought | None]) -> list[float]:
    return [float(thought == "valid") for thought in thoughts]


def _counted(thoughts: Sequence[Thought | None]) -> Thoughts:
    counts = Counter(thought or "missing" for thought in thoughts)
    return Thoughts(
        valid=counts["valid"], empty=counts["empty"], missing=counts["missing"], cut=counts["cut"]
    )
