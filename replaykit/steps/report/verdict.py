"""Results in words: the verdict on a run, and what its intervals do not exclude.

    Without replay the old skills fell from 0.97 to 0.10; with 5 % replay (generated) they stayed
    at 0.94, and the new skill was learned equally well (0.97 against 0.96).

Every phrase follows from 95 % intervals: "fell" and "better" need one that excludes no change, the
items of two arms paired with one another; "equally well" and "did not help" need one that excludes
a change of the margin. A skill is called lost after Holm's correction for all of them, and "no
forgetting" needs every old skill's drop to be below the margin, and no thoughts to be lost
(``evaluate.claims``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replaykit.data.record import TARGET
from replaykit.recipe.evaluate import MEMORY
from replaykit.steps.evaluate.claims import ALPHA, FLOOR
from replaykit.steps.evaluate.interval import Interval, average
from replaykit.steps.evaluate.result import EvalResult, ModelScores
from replaykit.steps.report.numbers import (
    Unit,
    interval,
    known,
    number,
    percent,
    points,
    unit_of,
    with_unit,
)

NAMED = 3  # skills in one sentence


@dataclass(frozen=True)
class Side:
    """The old skills, or the new one: each model's mean with its interval."""

    title: str
    unit: Unit
    of: Mapping[str, Interval]
    """By model."""
    rise: bool = False
    """The numbers are nats above the base model."""

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
    """The tuned models for which replay was asked, whether or not any came."""
    return [arm for arm in arms_of(evaluation) if arm.ratio or share_of(arm) != 0]


def control_of(evaluation: EvalResult) -> ModelScores | None:
    """The first arm that was to have no replay."""
    with_replay = replayed(evaluation)
    return next((arm for arm in arms_of(evaluation) if arm not in with_replay), None)


def best_arm(evaluation: EvalResult) -> ModelScores | None:
    """The arm with replay that learned the new skill best, of those that kept every old one; where
    none did, of those that lost least.

    Without replay anywhere, of the arms that there are. What was lost and what was learned are not
    added up: they may be of different units, and which weighs more is not ours to say.
    """
    old = old_side(evaluation)
    new = new_side(evaluation)
    arms = replayed(evaluation) or arms_of(evaluation)
    kept = [arm for arm in arms if arm.state == "kept"]
    if kept:
        return max(kept, key=lambda arm: new.goodness(arm.model))

    def goodness(arm: ModelScores) -> tuple[float, int, float]:
        return old.goodness(arm.model), -len(lost_skills(arm)), new.goodness(arm.model)

    return max(arms, key=goodness, default=None)


def lost_skills(model: ModelScores) -> list[str]:
    """The old skills of which a loss is measurable, the surest first."""
    lost = [name for name, claim in model.claims.items() if claim.state == "lost"]
    return sorted(lost, key=lambda name: model.claims[name].p or 0.0)


def lost(model: ModelScores, old: Side) -> bool:
    """Whether a loss in the mean of the old skills is measurable: the interval of their retention,
    or of the rise, says so, and none of them has too few rows.
    """
    if any(claim.state == "too_few" for claim in model.claims.values()):
        return False
    # Retention comes from the paired drops, so its interval tells more than those of two means.
    if old.unit == "score" and model.retention is not None:
        return model.retention.high < 1
    return old.rise and model.model in old.of and old.of[model.model].low > 0


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
        parts.append(_learned(evaluation, control, best, new))
    return ", ".join(parts) + "."


def caution(evaluation: EvalResult) -> str:
    """What the intervals do and do not exclude for the best arm; "no forgetting" only where they
    allow it.
    """
    best = best_arm(evaluation)
    return "" if best is None else caution_on(evaluation, best)


def caution_on(evaluation: EvalResult, best: ModelScores) -> str:
    """The same for any tuned model; "" where no drop of an old skill is known."""
    if not any(skill.role == "old" for skill in evaluation.skills):
        untested = "No old skill was tested (eval.old), so what was lost is not known."
        return " ".join([untested, *_drift(best), *_noise(evaluation)])
    if not old_drops(evaluation, best):
        return ""
    who = _with(best)
    said = []
    of_state = {
        state: [name for name, claim in best.claims.items() if claim.state == state]
        for state in ("unknown", "too_few", "base_cannot")
    }
    if best.state == "kept":
        found = "no forgetting"
        if lost_thoughts(best):
            found = "the scores are kept, though thoughts are lost"
        every = "every old skill's drop"
        if of_state["base_cannot"]:
            every = "the drop of every old skill that the base has"
        margin = points(evaluation.margin, "score")
        said.append(f"{who}: {found}; {every} is below {margin}, with 95 % confidence.")
    elif best.state == "lost" or lost(best, old_side(evaluation)):
        said.append(_forgotten(evaluation, best, who))
    else:
        said.append(f"{who} no loss is measurable.")
    said += _form_lost(evaluation, best)
    if of_state["unknown"]:
        said.append(_undecided(evaluation, best, of_state["unknown"]))
    facts = {skill.skill: skill for skill in evaluation.skills}
    if of_state["too_few"]:
        rows = ", ".join(f"{name} has {facts[name].n:,}" for name in of_state["too_few"])
        said.append(f"Of fewer than {FLOOR} rows nothing can be told: {rows}.")
    if of_state["base_cannot"]:
        base = base_of(evaluation)
        scores = ", ".join(
            f"{name} ({number(base.scores[name].mean)})" for name in of_state["base_cannot"]
        )
        said.append(f"What the base hardly has, it can hardly lose: {scores}.")
    said += _drift(best)
    said += _noise(evaluation)
    return " ".join(said)


def _form_lost(evaluation: EvalResult, model: ModelScores) -> list[str]:
    """Of skills whose answers are measurably less often written as asked, by how much, and how much
    knowledge went beside it.
    """
    found = []
    for name, claim in model.claims.items():
        if claim.form is None or claim.form_p is None or claim.form_p > ALPHA:
            continue
        found.append(
            f"{name} lost form: {points(claim.form.mean, 'score')} ({_bounds(claim.form)}) more of "
            f"its right answers are not written as asked; of knowledge it lost "
            f"{points(model.drop[name].mean, 'score')} ({_bounds(model.drop[name])})."
        )
    return found


def _bounds(drop: Interval) -> str:
    return f"{points(drop.low, 'score')} to {points(drop.high, 'score')}"


def _drift(model: ModelScores) -> list[str]:
    """How far the model is from the base on what the base says itself, where that was measured."""
    drift = model.drop.get(MEMORY)
    if not known(drift):
        return []
    return [
        f"Its drift from the base is {with_unit(drift.mean, 'nats')} a token "
        f"({interval(drift, 'nats')}), measured on rows that the base wrote."
    ]


def _noise(evaluation: EvalResult) -> list[str]:
    """What differs where the base was scored twice."""
    if not evaluation.noise:
        return []
    differ = sum(noise.differ for noise in evaluation.noise.values())
    items = sum(noise.n for noise in evaluation.noise.values())
    return [
        f"The base was scored twice: {differ:,} of {items:,} items differ, and what is said here "
        f"holds against both."
    ]


def _forgotten(evaluation: EvalResult, model: ModelScores, who: str) -> str:
    """That something is lost, and of which skills."""
    shown = ""
    if model.retention is not None:
        shown = f": retention {number(model.retention.mean)} ({interval(model.retention)})"
    names = [_skill_lost(evaluation, model, name) for name in lost_skills(model)]
    if not names:
        return f"{who} some forgetting is measurable in the mean{shown}."
    return f"{who} some forgetting is measurable{shown}; lost: {_listed(names)}."


def _skill_lost(evaluation: EvalResult, model: ModelScores, name: str) -> str:
    """``json (1.00 to 0.50: 102 items went wrong, 2 right)``."""
    unit = _unit(model, name)
    before = base_of(evaluation).scores[name].mean
    after = model.scores[name].mean
    moved = f"{name} ({number(before, unit)} to {with_unit(after, unit)}"
    claim = model.claims[name]
    if claim.lost is None:
        return f"{moved})"
    return f"{moved}: {claim.lost:,} items went wrong, {claim.gained:,} right)"


def _undecided(evaluation: EvalResult, model: ModelScores, names: Sequence[str]) -> str:
    """Of the skills that are neither lost nor kept, the one that may have lost most."""

    def reach(name: str) -> float:
        drop = model.drop.get(name)
        return drop.high if known(drop) else math.inf

    worst = max(names, key=reach)
    unit = _unit(model, worst)
    if not known(model.drop.get(worst)):
        return f"What became of {worst} is not known."
    most = points(model.drop[worst].high, unit)
    others = f", the most of {len(names)} skills that are undecided" if len(names) > 1 else ""
    said = f"{worst} may have lost up to {most}{others}"
    detectable = model.claims[worst].detectable
    if detectable is None:
        return f"{said}."
    rows = next(skill.n for skill in evaluation.skills if skill.skill == worst)
    drop = points(detectable, unit)
    return f"{said}; {rows:,} rows show a true drop of {drop} four times in five."


def _listed(names: Sequence[str]) -> str:
    """At most three, and how many more there are."""
    shown = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        shown += f" and {len(names) - NAMED} more"
    return shown


def _unit(model: ModelScores, name: str) -> Unit:
    """In what an old skill is measured: items that turn right or wrong are counted of a score."""
    return "nats" if model.claims[name].lost is None else "score"


def _with(model: ModelScores, rivals: Sequence[ModelScores] = ()) -> str:
    """``Without replay``; ``With 5 % replay (generated)``; with rivals, that it is the best of
    them.
    """
    share = share_of(model)
    if share is None:
        return f"In {model.model}"
    if share == 0 and model.ratio:
        return f"With {percent(model.ratio)} replay asked for and none in it ({model.model})"
    if share == 0:
        return "Without replay"
    best = ""
    if len(rivals) > 1:
        best = f", the best of {len(rivals)}"
    return f"With {percent(share)} replay ({model.model}{best})"


def _one_arm(evaluation: EvalResult, arm: ModelScores, old: Side, new: Side) -> str:
    base = base_of(evaluation).model
    name = arm.model
    parts = []
    if name in old.of:
        parts.append(_moved(evaluation, arm, old))
    if name in new.of:
        parts.append(f"the new skill {_from_to('is', 'went', new.text(base), new.text(name))}")
    moved = " and ".join(parts) or "no skill was tested"
    control = control_of(evaluation)
    other = "no run with" if control is not None else "no run without"
    who = _with(arm, replayed(evaluation))
    if share_of(arm) is None:  # of a model that was trained elsewhere
        return f"{who} {moved}."
    unknown = "so what replay contributes is not known"
    return f"{who} {moved}; {other} replay was evaluated, {unknown}."


def _moved(evaluation: EvalResult, arm: ModelScores, old: Side) -> str:
    """What became of the old skills in one arm: in the mean, and of those of which a loss is
    measurable though the mean does not show it, or is of another unit.
    """
    base = base_of(evaluation).model
    value = old.text(arm.model)
    sure = lost(arm, old)
    if old.rise:
        verb = "rose" if sure else "changed"
        said = f"the cross-entropy of old data {verb} by {value}"
    else:
        verb = "fell" if sure else "went"
        said = f"the old skills {_from_to('are', verb, old.text(base), value)}"
    beside = _beside(evaluation, arm, old)
    return f"{said}, and something is lost of {beside}" if beside else said


def _from_to(be: str, verb: str, before: str, now: str) -> str:
    """``went from 0.10 to 0.84``, or ``is at 0.00 as before`` where both are written the same."""
    return f"{be} at {now} as before" if before == now else f"{verb} from {before} to {now}"


def _beside(evaluation: EvalResult, arm: ModelScores, old: Side) -> str:
    """The skills of which something is lost that the mean does not show, or is of another unit; ""
    where there are none.
    """
    sure = lost(arm, old)
    names = [name for name in lost_skills(arm) if not sure or _unit(arm, name) != old.unit]
    return _listed([_change(evaluation, arm, name) for name in names])


def _change(evaluation: EvalResult, arm: ModelScores, name: str) -> str:
    """``chat (2.000 to 6.000 nats)``."""
    unit = _unit(arm, name)
    before = number(base_of(evaluation).scores[name].mean, unit)
    return f"{name} ({before} to {with_unit(arm.scores[name].mean, unit)})"


def _protected(evaluation: EvalResult, control: ModelScores, best: ModelScores, old: Side) -> str:
    """Both arms in one clause, and whether replay made the difference."""
    name = best.model
    who = _with(best, replayed(evaluation)).replace("With", "with", 1)  # within the sentence
    value = old.text(name)
    start = f"Without replay {_moved(evaluation, control, old)}"
    came = f"{who} they came to {value}"
    stayed = f"{who} they stayed at {value}"
    fell = f"{who} they fell only to {value}"
    if old.rise:
        came = f"{who} it changed by {value}"
        stayed = came
        fell = f"{who} it rose by only {value}"
    beside = _beside(evaluation, best, old)
    though = f", though something is lost of {beside}" if beside else ""
    pair = evaluation.between(name, control.model)
    gain = pair.old if old.unit == "score" else pair.old_nats
    assert gain is not None  # both have the mean that it is of
    # From what must be said first to what is left: a harm, nothing to protect, no difference that
    # this test can tell, then how much of the loss was kept off.
    if gain.high < 0:
        return f"{start}; {came}: replay made it worse{though}"
    if not lost(control, old) and not lost_skills(control):
        if control.state == "kept":
            return f"{start}, no measurable loss, so there was little to protect; {came}{though}"
        return f"{start}, which this test cannot tell from no loss; {came}{though}"
    if gain.low <= 0:
        if gain.high < evaluation.margin:
            return f"{start}; {came}: replay did not help{though}"
        return f"{start}; {came}, too near for this test to tell{though}"
    kept = best.retention is not None and best.retention.mean >= 0.9
    if kept or not lost(best, old):
        return f"{start}; {stayed}{though}"
    # Nearer to the model without replay than to the base.
    base = base_of(evaluation).model
    if 2 * old.goodness(name) < old.goodness(base) + old.goodness(control.model):
        return f"{start}; {came}, a smaller loss{though}"
    return f"{start}; {fell}{though}"


def _learned(evaluation: EvalResult, control: ModelScores, best: ModelScores, new: Side) -> str:
    """The new skill with replay against without it, if it was learned at all."""
    base = base_of(evaluation).model
    name = best.model
    # That two models learned alike says nothing where neither learned anything.
    if best.drop[TARGET].high >= 0:
        return (
            f"but the new skill shows no measurable gain ({new.text(name)}, base {new.text(base)})"
        )
    both = f"({new.text(name)} against {new.text(control.model)})"
    gain = evaluation.between(name, control.model).gain[TARGET]
    if gain.low > -evaluation.margin:
        how = "learned better" if gain.low > 0 else "learned equally well"
        return f"and the new skill was {how} {both}"
    if gain.high < 0:
        return f"but the new skill was learned less well {both}"
    return f"and the new skill was learned with no clear difference {both}"
