"""How numbers are written: one form on the terminal, on the page and in sentences.

number(0.976)                              ->  "0.98"
number(2.3449, "nats")                     ->  "2.345"
interval(Interval(0.04, -0.01, 0.09))      ->  "−0.01 to 0.09"
percent(0.0498)                            ->  "4.98 %"
"""

from __future__ import annotations

import math
from typing import Literal, TypeGuard

from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import SkillFacts

Unit = Literal["score", "nats"]
DIGITS: dict[Unit, int] = {"score": 2, "nats": 3}
NOTHING = "–"  # stands where there is no number


def unit_of(skill: SkillFacts) -> Unit:
    """In what a skill is measured. Of nats fewer are better, of a score more."""
    return "nats" if skill.score == "cross_entropy" else "score"


def known(estimate: Interval | None) -> TypeGuard[Interval]:
    """Whether a mean and its interval are there, as finite numbers."""
    return estimate is not None and estimate.known


def number(value: float | None, unit: Unit = "score") -> str:
    """``0.98`` for a score, ``2.345`` for nats, a dash for what is not there."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:.{DIGITS[unit]}f}"
    if float(text) == 0:  # "-0.00" is no loss
        return text.lstrip("-")
    return text.replace("-", "−")  # a true minus is as wide as a digit, a hyphen is not


def with_unit(value: float, unit: Unit) -> str:
    """``0.97`` or ``2.345 nats``."""
    text = number(value, unit)
    if unit == "nats":
        text += " nats"
    return text


def points(value: float, unit: Unit) -> str:
    """A difference of scores in points, ``2.1 points``; of nats as they are."""
    if unit == "nats":
        return with_unit(value, unit)
    return f"{100 * value:.2f}".rstrip("0").rstrip(".").replace("-", "−") + " points"


def mean(estimate: Interval | None, unit: Unit = "score") -> str:
    """The mean alone; a dash where there is no estimate."""
    if estimate is None:
        return NOTHING
    return number(estimate.mean, unit)


def interval(estimate: Interval | None, unit: Unit = "score") -> str:
    """``0.93–1.00``; ``−0.01 to 0.09`` where a dash would meet a minus; "" for the unknown."""
    if not known(estimate):
        return ""
    low = number(estimate.low, unit)
    high = number(estimate.high, unit)
    between = " to " if "−" in low + high else "–"
    return f"{low}{between}{high}"


def percent(share: float | None) -> str:
    """``5 %``, ``4.98 %``, ``0.1 %``."""
    if share is None:
        return NOTHING
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"
