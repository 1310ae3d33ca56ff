"""Results in words: the verdict on a run, and what its intervals do not exclude.

    Without replay the old skills fell from 0.97 to 0.10; with 5 % replay (generated) they stayed at 0.94, and the new
    skill was learned equally well (0.97 against 0.96).

Every phrase follows from 95 % intervals: "fell" and "better" need one that excludes no change, and
"no forgetting" needs every old skill's drop to be below ``MARGIN``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

if TYPE_CHECKING:
    pass

MARGIN = 0.02  # a drop below this, at the interval's upper end, is called no forgetting

Unit = Literal["score", "nats"]
Numbers = Mapping[str, Any]  # {"mean", "low", "high"}
Model = Mapping[str, Any]  # one entry of an evaluation's "models"


def known(numbers: Numbers | None) -> TypeGuard[Numbers]:
    """Whether a mean and its interval are there, as finite numbers."""
    values = [(numbers or {}).get(key) for key in ("mean", "low", "high")]
    return all(value is not None and math.isfinite(value) for value in values)


def number(value: float | None, unit: Unit = "score") -> str:
    """``0.98`` for a score, ``2.345`` for nats, a dash for what is not there."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{3 if unit == 'nats' else 2}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def interval(numbers: Numbers | None, unit: Unit = "score") -> str:
    """``0.93–1.00``; ``−0.01 to 0.09`` where a dash would meet a minus."""
    if not known(numbers):
        return ""
    low = number(numbers["low"], unit)
    high = number(numbers["high"], unit)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def percent(share: float | None) -> str:
    """``5 %``, ``4.98 %``, ``0.1 %``."""
    return "–" if share is None else f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"


def unit_of(skill: Mapping[str, Any]) -> Unit:
    """In what a skill of the evaluation is measured; fewer nats are better."""
    return "nats" if skill["score"] == "cross_entropy" else "score"


@dataclass(frozen=True)
class Side:
    """The old skills, or the new one: each model's mean with its interval. ``rise`` is nats above
    the base model.
    """

    title: str
    unit: Unit
    of: Mapping[str, Numbers]
    rise: bool = False

    def better(self, name: str, other: str) -> bool:
        """Whether the whole interval of one model is better than the other's."""
        if self.unit == "nats":
            name, other = other, name
        return bool(self.of[name]["low"] > self.of[other]["high"])

    def goodness(self, name: str) -> float:
        """The mean, with a sign that makes more the better."""
        if name not in self.of:
            return -math.inf if self.of else 0.0
        return float(self.of[name]["mean"]) * (-1 if self.unit == "nats" else 1)

    def text(self, name: str) -> str:
        """``0.97`` or ``2.345 nats``."""
        return number(self.of[name]["mean"], self.unit) + " nats" * (self.unit == "nats")


def old_side(evaluation: Mapping[str, Any]) -> Side:
    """The mean of the right/wrong scored old skills; where there are none, the mean rise of
    cross-entropy over base.

    The interval of a mean rise takes the skills as independent, which they are: each has its own
    test rows.
    """
    scored = {
        model["model"]: model["old"] for model in evaluation["models"] if known(model.get("old"))
    }
    if scored:
        return Side("old skills", "score", scored)
    names = [skill["skill"] for skill in evaluation["skills"] if skill["role"] == "old"]
    found: dict[str, Numbers] = {}
    for model in evaluation["models"]:
        drops = [drop for name in names if known(drop := model.get("drop", {}).get(name))]
        if drops:
            mean = sum(drop["mean"] for drop in drops) / len(drops)
            below = math.hypot(*(drop["mean"] - drop["low"] for drop in drops)) / len(drops)
            above = math.hypot(*(drop["high"] - drop["mean"] for drop in drops)) / len(drops)
            found[model["model"]] = {"mean": mean, "low": mean - below, "high": mean + above}
    if found:
        found[base_of(evaluation)["model"]] = {"mean": 0.0, "low": 0.0, "high": 0.0}
    return Side("old data, rise in nats", "nats", found, rise=True)


def new_side(evaluation: Mapping[str, Any]) -> Side:
    """The new skill's score, or its cross-entropy."""
    for skill in evaluation["skills"]:
        if skill["role"] == "target":
            numbers = {
                m["model"]: m.get("target") or m["scores"].get(skill["skill"])
                for m in evaluation["models"]
            }
            title = "new skill" + ", nats" * (unit_of(skill) == "nats")
            return Side(
                title,
                unit_of(skill),
                {name: found for name, found in numbers.items() if known(found)},
            )
    return Side("new skill", "score", {})


def base_of(evaluation: Mapping[str, Any]) -> Model:
    """The model before tuning."""
    models: Sequence[Model] = evaluation["models"] or [{"model": "base", "scores": {}}]
    return next((model for model in models if model["model"] == "base"), models[0])


def arms_of(evaluation: Mapping[str, Any]) -> list[Model]:
    """The tuned models."""
    base = base_of(evaluation)
    return [model for model in evaluation["models"] if model is not base]


def share_of(model: Model) -> float | None:
    """The share of replay that came out, or the one asked for."""
    return cast(
        "float | None", model.get("ratio") if model.get("share") is None else model["share"]
    )


def replayed(evaluation: Mapping[str, Any]) -> list[Model]:
    """The tuned models that saw replay."""
    return [arm for arm in arms_of(evaluation) if share_of(arm) != 0]


def best_arm(evaluation: Mapping[str, Any]) -> Model | None:
    """The arm with replay that does best on old and new together; without any, the arm that there
    is.
    """
    old = old_side(evaluation)
    new = new_side(evaluation)
    arms = replayed(evaluation) or arms_of(evaluation)
    return max(
        arms, key=lambda arm: old.goodness(arm["model"]) + new.goodness(arm["model"]), default=None
    )


def lost(model: Model, old: Side) -> bool:
    """Whether a loss on the old skills is measurable: the interval of their retention, or of the
    rise, says so.
    """
    if old.unit == "score" and model.get("retention"):
        return bool(model["retention"]["high"] < 1)
    return bool(old.rise and model["model"] in old.of and old.of[model["model"]]["low"] > 0)


def verdict(evaluation: Mapping[str, Any]) -> str:
    """One sentence: what became of the old skills without replay and with it, and whether the new
    one was learned.
    """
    best = best_arm(evaluation)
    old = old_side(evaluation)
    new = new_side(evaluation)
    if best is None:
        only = "Only the base model" if evaluation["models"] else "No model"
        return f"{only} was evaluated: forgetting is not known."
    control = next((arm for arm in arms_of(evaluation) if share_of(arm) == 0), None)
    if control is None or control is best:
        return _one_arm(evaluation, best, old, new)
    parts = ["What became of the old skills is not known"]
    if best["model"] in old.of and control["model"] in old.of:
        parts = [_protected(evaluation, control, best, old)]
    if best["model"] in new.of and control["model"] in new.of:
        parts.append(_learned(base_of(evaluation), control, best, new))
    return ", ".join(parts) + "."


def caution(evaluation: Mapping[str, Any]) -> str:
    """What the intervals do and do not exclude for the best arm; "no forgetting" only where they
    allow it.
    """
    best = best_arm(evaluation)
    old = old_side(evaluation)
    kinds = {
        skill["skill"]: unit_of(skill) for skill in evaluation["skills"] if skill["role"] == "old"
    }
    drops = {name: drop for name in kinds if known(drop := (best or {}).get("drop", {}).get(name))}
    if best is None or not drops:
        return ""
    worst = max(drops, key=lambda name: drops[name]["high"])
    who = _with(best)
    most = number(drops[worst]["high"], kinds[worst]) + " nats" * (kinds[worst] == "nats")
    if set(drops) == set(kinds) and drops[worst]["high"] < MARGIN:
        return (
            f"{who}: no forgetting; every old skill's drop is below {MARGIN}, with 95 % confidence."
        )
    if lost(best, old) or any(drop["low"] > 0 for drop in drops.values()):
        kept = best.get("retention")
        shown = f": retention {number(kept['mean'])} ({interval(kept)})" if kept else ""
        return f"{who} some forgetting is measurable{shown}; {worst} may have lost up to {most}."
    return (
        f"{who} no loss is measurable, but {worst} may have lost up to {most}; more test rows "
        f"would tell."
    )


def _with(model: Model, *rivals: Model) -> str:
    """``Without replay``; ``With 5 % replay (generated)``; with rivals, that it is the best of
    them.
    """
    share = share_of(model)
    best = f", the best of {len(rivals)}" if len(rivals) > 1 else ""
    return (
        "Without replay"
        if share == 0
        else f"With {percent(share) + ' ' if share else ''}replay ({model['model']}{best})"
    )


def _one_arm(evaluation: Mapping[str, Any], arm: Model, old: Side, new: Side) -> str:
    base = base_of(evaluation)["model"]
    name = arm["model"]
    parts = [_moved(base, arm, old)] if name in old.of else []
    parts += (
        [f"the new skill went from {new.text(base)} to {new.text(name)}"] if name in new.of else []
    )
    other = "no run with" if share_of(arm) == 0 else "no run without"
    moved = " and ".join(parts) or "nothing was measured"
    unknown = "so what replay contributes is not known"
    return f"{_with(arm, *replayed(evaluation))} {moved}; {other} replay was evaluated, {unknown}."


def _moved(base: str, arm: Model, old: Side) -> str:
    """What became of the old skills in one arm."""
    value = old.text(arm["model"])
    sure = lost(arm, old)
    if old.rise:
        return f"the cross-entropy of old data {'rose' if sure else 'changed'} by {value}"
    return f"the old skills {'fell' if sure else 'went'} from {old.text(base)} to {value}"


def _protected(evaluation: Mapping[str, Any], control: Model, best: Model, old: Side) -> str:
    """Both arms in one clause, and whether replay made the difference."""
    base = base_of(evaluation)["model"]
    without = control["model"]
    name = best["model"]
    who = _with(best, *replayed(evaluation)).replace("With", "with", 1)
    value = old.text(name)
    start = f"Without replay {_moved(base, control, old)}"
    came = f"{who} {'it changed by' if old.rise else 'they came to'} {value}"
    if old.better(without, name):
        return f"{start}; {came}: replay made it worse"
    if not lost(control, old):
        return f"{start}, no measurable loss, so there was little to protect; {came}"
    if not old.better(name, without):
        so = (
            ": replay did not help"
            if old.goodness(name) <= old.goodness(without)
            else ", too near for this test to tell"
        )
        return f"{start}; {came}{so}"
    if not lost(best, old) or (best.get("retention") or {"mean": 0})["mean"] >= 0.9:
        return f"{start}; {came if old.rise else f'{who} they stayed at {value}'}"
    if 2 * old.goodness(name) < old.goodness(base) + old.goodness(without):
        return f"{start}; {came}, a smaller loss"
    return f"{start}; {who} {'it rose by only' if old.rise else 'they fell only to'} {value}"


def _learned(base: Model, control: Model, best: Model, new: Side) -> str:
    """The new skill with replay against without it, if it was learned at all."""
    before = base["model"]
    without = control["model"]
    name = best["model"]
    if not new.better(name, before):
        return (
            f"but the new skill shows no measurable gain ({new.text(name)}, base "
            f"{new.text(before)})"
        )
    both = f"({new.text(name)} against {new.text(without)})"
    if new.better(without, name):
        return f"but the new skill was learned less well {both}"
    if new.better(name, without):
        return f"and the new skill was learned better {both}"
    near = abs(new.of[name]["mean"] - new.of[without]["mean"]) <= MARGIN
    return (
        f"and the new skill was learned "
        f"{'equally well' if near else 'with no clear difference'} {both}"
    )
