"""Results in words: the verdict on a run, and what its intervals do not exclude.

    Without replay the old skills fell from 0.97 to 0.10; with 5 % replay (generated) they stayed
    at 0.94, and the new skill was learned equally well (0.97 against 0.96).

Every phrase follows from 95 % intervals: "fell" and "better" need one that excludes no change, and
"no forgetting" needs every old skill's drop to be below ``MARGIN``, and no thoughts to be lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replaykit.data.record import TARGET
from replaykit.steps.evaluate.interval import MARGIN, Interval, average
from replaykit.steps.evaluate.result import EvalResult, ModelScores
from replaykit.steps.report.numbers import (
    Unit,
    interval,
    known,
    number,
    percent,
    unit_of,
    with_unit,
)


@dataclass(frozen=True)
class Side:
    """The old skills, or the new one: each model's mean with its interval."""

    title: str
    unit: Unit
    of: Mapping[str, Interval]
    """By model."""
    rise: bool = False
    """The numbers are nats above the base model."""

    def better(self, name: str, other: str) -> bool:
        """Whether the whole interval of one model is better than the other's."""
        if self.unit == "nats":  # fewer are better
            return self.of[other].low > self.of[name].high
        return self.of[name].low > self.of[other].high

    def goodness(self, name: str) -> float:
        """The mean, with a sign that makes more the better."""
        if not self.of:
            return 0.0  # nothing was measured, so no model is better
        if name not in self.of:
            return -math.inf  # the model diverged
        mean = self.of[name].mean
        return -mean if self.unit == "nats" else mean

    def text(self, name: str) -> str:
        """``0.97`` or ``2.345 nats``."""
        return with_unit(self.of[name].mean, self.unit)


def old_side(evaluation: EvalResult) -> Side:
    """The mean of the right/wrong scored old skills; where there are none, the mean rise of
    cross-entropy over base.

    The interval of a mean rise takes the skills as independent, which they are: each has its own
    test rows.
    """
    scored = {model.model: model.old for model in evaluation.models if known(model.old)}
    if scored:
        return Side("old skills", "score", scored)
    rises: dict[str, Interval] = {}
    for model in evaluation.models:
        drops = list(old_drops(evaluation, model).values())
        if drops:
            rises[model.model] = average(drops)
    if rises:  # of the base over itself there is none, and no doubt about it
        rises[base_of(evaluation).model] = Interval(0.0, 0.0, 0.0)
    return Side("old data, rise in nats", "nats", rises, rise=True)


def new_side(evaluation: EvalResult) -> Side:
    """The new skill's score, or its cross-entropy."""
    title = "new skill"
    unit: Unit = "score"
    for skill in evaluation.skills:
        if skill.role == TARGET:
            unit = unit_of(skill)
    if unit == "nats":
        title += ", nats"
    return Side(title, unit, {m.model: m.target for m in evaluation.models if known(m.target)})


def old_drops(evaluation: EvalResult, model: ModelScores) -> dict[str, Interval]:
    """The drop of each old skill of which one is known."""
    found = {}
    for skill in evaluation.skills:
        drop = model.drop.get(skill.skill)
        if skill.role == "old" and known(drop):
            found[skill.skill] = drop
    return found


def base_of(evaluation: EvalResult) -> ModelScores:
    """The model before tuning."""
    if not evaluation.models:
        return ModelScores(model="base", scores={}, old=None, target=None)
    return evaluation.models[0]


def arms_of(evaluation: EvalResult) -> Sequence[ModelScores]:
    """The tuned models."""
    return evaluation.models[1:]


def share_of(model: ModelScores) -> float | None:
    """The share of replay that came out, or the one asked for."""
    if model.share is None:
        return model.ratio
    return model.share


def replayed(evaluation: EvalResult) -> list[ModelScores]:
    """The tuned models that saw replay."""
    return [arm for arm in arms_of(evaluation) if share_of(arm) != 0]


def control_of(evaluation: EvalResult) -> ModelScores | None:
    """The first arm without replay."""
    return next((arm for arm in arms_of(evaluation) if share_of(arm) == 0), None)


def best_arm(evaluation: EvalResult) -> ModelScores | None:
    """The arm with replay that does best on old and new together; without any, the arm that there
    is.
    """
    old = old_side(evaluation)
    new = new_side(evaluation)
    arms = replayed(evaluation) or arms_of(evaluation)

    def goodness(arm: ModelScores) -> float:
        return old.goodness(arm.model) + new.goodness(arm.model)

    return max(arms, key=goodness, default=None)


def lost(model: ModelScores, old: Side) -> bool:
    """Whether a loss on the old skills is measurable: the interval of their retention, or of the
    rise, says so.
    """
    # Retention comes from the paired drops, so its interval tells more than those of two means.
    if old.unit == "score" and model.retention is not None:
        return model.retention.high < 1
    return old.rise and model.model in old.of and old.of[model.model].low > 0


def may_have_lost(model: ModelScores, old: Side) -> bool:
    """Whether the interval leaves room for a loss of more than ``MARGIN`` on the old skills."""
    if old.unit == "score" and model.retention is not None:
        return model.retention.low < 1 - MARGIN
    return not (old.rise and model.model in old.of and old.of[model.model].high < MARGIN)


def lost_thoughts(model: ModelScores) -> bool:
    """Whether the model measurably thinks less often than the base: in the mean, or about some
    skill.
    """
    drops = [model.thinks_drop, *(thoughts.drop for thoughts in model.thoughts.values())]
    return any(drop is not None and drop.low > 0 for drop in drops)


def verdict(evaluation: EvalResult) -> str:
    """One sentence: what became of the old skills without replay and with it, and whether the new
    one was learned; then one for each model that thinks less often than the base.
    """
    said = [_on_scores(evaluation)]
    base = base_of(evaluation)
    said += [_on_thoughts(base, arm) for arm in arms_of(evaluation) if lost_thoughts(arm)]
    return " ".join(said)


def _on_thoughts(base: ModelScores, arm: ModelScores) -> str:
    """How often a model thinks that thinks less often than the base."""
    about = ""
    now = arm.thinks
    before = base.thinks
    assert now is not None
    assert before is not None
    shares = (now.mean, before.mean)
    if arm.thinks_drop is None or arm.thinks_drop.low <= 0:
        drops = {
            skill: thoughts.drop.low
            for skill, thoughts in arm.thoughts.items()
            if thoughts.drop is not None
        }
        worst = max(drops, key=lambda skill: drops[skill])
        about = f" to {worst}"
        shares = (arm.thoughts[worst].share, base.thoughts[worst].share)
    now_said, before_said = (percent(round(share, 3)) for share in shares)
    return (
        f"{_with(arm)} the model thinks in {now_said} of its answers{about}; the base in "
        f"{before_said}."
    )


def _on_scores(evaluation: EvalResult) -> str:
    best = best_arm(evaluation)
    if not evaluation.models:
        return "No model was evaluated: forgetting is not known."
    if best is None:
        return "Only the base model was evaluated: forgetting is not known."
    old = old_side(evaluation)
    new = new_side(evaluation)
    control = control_of(evaluation)
    # A control without a rival shows what forgetting is, but not what replay does about it.
    if control is None or control is best:
        return _one_arm(evaluation, best, old, new)
    # A model that diverged has no number, and no clause either.
    parts = ["What became of the old skills is not known"]
    if best.model in old.of and control.model in old.of:
        parts = [_protected(evaluation, control, best, old)]
    if best.model in new.of and control.model in new.of:
        parts.append(_learned(base_of(evaluation).model, control.model, best.model, new))
    return ", ".join(parts) + "."


def caution(evaluation: EvalResult) -> str:
    """What the intervals do and do not exclude for the best arm; "no forgetting" only where they
    allow it.
    """
    best = best_arm(evaluation)
    if best is None:
        return ""
    drops = old_drops(evaluation, best)
    if not drops:
        return ""
    units = {skill.skill: unit_of(skill) for skill in evaluation.skills if skill.role == "old"}
    worst = max(drops, key=lambda name: drops[name].high)
    who = _with(best)
    # A skill whose drop is not known may have lost anything.
    if drops.keys() == units.keys() and drops[worst].high < MARGIN:
        found = "no forgetting"
        if lost_thoughts(best):
            found = "the scores are kept, though thoughts are lost"
        return f"{who}: {found}; every old skill's drop is below {MARGIN}, with 95 % confidence."
    most = with_unit(drops[worst].high, units[worst])
    if lost(best, old_side(evaluation)) or any(drop.low > 0 for drop in drops.values()):
        shown = ""
        if best.retention is not None:
            shown = f": retention {number(best.retention.mean)} ({interval(best.retention)})"
        return f"{who} some forgetting is measurable{shown}; {worst} may have lost up to {most}."
    return (
        f"{who} no loss is measurable, but {worst} may have lost up to {most}; more test rows "
        "would tell."
    )


def _with(model: ModelScores, rivals: Sequence[ModelScores] = ()) -> str:
    """``Without replay``; ``With 5 % replay (generated)``; with rivals, that it is the best of
    them.
    """
    share = share_of(model)
    if share == 0:
        return "Without replay"
    amount = ""
    if share is not None:
        amount = f"{percent(share)} "
    best = ""
    if len(rivals) > 1:
        best = f", the best of {len(rivals)}"
    return f"With {amount}replay ({model.model}{best})"


def _one_arm(evaluation: EvalResult, arm: ModelScores, old: Side, new: Side) -> str:
    base = base_of(evaluation).model
    name = arm.model
    parts = []
    if name in old.of:
        parts.append(_moved(base, arm, old))
    if name in new.of:
        parts.append(f"the new skill went from {new.text(base)} to {new.text(name)}")
    moved = " and ".join(parts) or "nothing was measured"
    other = "no run with" if share_of(arm) == 0 else "no run without"
    who = _with(arm, replayed(evaluation))
    unknown = "so what replay contributes is not known"
    return f"{who} {moved}; {other} replay was evaluated, {unknown}."


def _moved(base: str, arm: ModelScores, old: Side) -> str:
    """What became of the old skills in one arm."""
    value = old.text(arm.model)
    sure = lost(arm, old)
    if old.rise:
        verb = "rose" if sure else "changed"
        return f"the cross-entropy of old data {verb} by {value}"
    verb = "fell" if sure else "went"
    return f"the old skills {verb} from {old.text(base)} to {value}"


def _protected(evaluation: EvalResult, control: ModelScores, best: ModelScores, old: Side) -> str:
    """Both arms in one clause, and whether replay made the difference."""
    base = base_of(evaluation).model
    without = control.model
    name = best.model
    who = _with(best, replayed(evaluation)).replace("With", "with", 1)  # within the sentence
    value = old.text(name)
    start = f"Without replay {_moved(base, control, old)}"
    came = f"{who} they came to {value}"
    stayed = f"{who} they stayed at {value}"
    fell = f"{who} they fell only to {value}"
    if old.rise:
        came = f"{who} it changed by {value}"
        stayed = came
        fell = f"{who} it rose by only {value}"
    # From what must be said first to what is left: a harm, nothing to protect, no difference that
    # this test can tell, then how much of the loss was kept off.
    if old.better(without, name):
        return f"{start}; {came}: replay made it worse"
    if not lost(control, old):
        if may_have_lost(control, old):
            return f"{start}, which this test cannot tell from no loss; {came}"
        return f"{start}, no measurable loss, so there was little to protect; {came}"
    if not old.better(name, without):
        if old.goodness(name) <= old.goodness(without):
            return f"{start}; {came}: replay did not help"
        return f"{start}; {came}, too near for this test to tell"
    kept = best.retention is not None and best.retention.mean >= 0.9
    if kept or not lost(best, old):
        return f"{start}; {stayed}"
    # Nearer to the model without replay than to the base.
    if 2 * old.goodness(name) < old.goodness(base) + old.goodness(without):
        return f"{start}; {came}, a smaller loss"
    return f"{start}; {fell}"


def _learned(base: str, without: str, name: str, new: Side) -> str:
    """The new skill with replay against without it, if it was learned at all."""
    # That two models learned alike says nothing where neither learned anything.
    if not new.better(name, base):
        return (
            f"but the new skill shows no measurable gain ({new.text(name)}, base {new.text(base)})"
        )
    both = f"({new.text(name)} against {new.text(without)})"
    if new.better(without, name):
        return f"but the new skill was learned less well {both}"
    if new.better(name, without):
        return f"and the new skill was learned better {both}"
    if abs(new.of[name].mean - new.of[without].mean) <= MARGIN:
        return f"and the new skill was learned equally well {both}"
    return f"and the new skill was learned with no clear difference {both}"
