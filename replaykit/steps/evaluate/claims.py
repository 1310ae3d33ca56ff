"""What may be said of each model: that it lost an old skill, that it kept it, or neither.

    claims_of(tests, base, tuned, drops, margin=0.02)["nli"].state     # "lost"

A skill is **lost** where a one-sided test finds a loss at ALPHA, corrected by Holm's method for all
old skills of the model: with nothing lost anywhere, one is called lost in at most 2.5 % of runs,
and in as many the mean of them, which is tested beside them. It is **kept** where the 95 % interval
of its drop ends below the margin; no correction is needed for "all are kept", which needs every one
of them. Of fewer than FLOOR rows nothing is said, and of a skill that the base hardly has, or has
no better than by chance, it is not said that it was kept. Everything else is unknown, with the drop
that so many rows would have shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from replaykit.data.record import TARGET
from replaykit.recipe.evaluate import MEMORY, Test
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import Claim, State
from replaykit.steps.evaluate.statistics import (
    are_binary,
    detectable_drop,
    detectable_fall,
    detectable_rise,
    holm,
    loss_p,
    paired_drop,
    proportion,
    rise_p,
)
from replaykit.suites import is_suite, suite_of

if TYPE_CHECKING:
    from replaykit.steps.evaluate.compare import Scored

NO_CLAIM = (TARGET, MEMORY)
"""The tests of which nothing is claimed: a tuned model always learns, and always drifts."""
ALPHA = 0.025  # one-sided, as the lower bound of a 95 % interval
FLOOR = 20  # rows of a skill
LEAST = 0.2  # the base's score, at the lower end of its interval, from which on a skill can be kept

Shared = Mapping[str, Mapping[str, "Scored"]]  # model -> skill -> its items
Drops = Mapping[str, Interval]  # by skill


def claims_of(
    tests: Mapping[str, Test],
    base: Mapping[str, Scored],
    tuned: Mapping[str, Scored],
    drops: Drops,
    margin: float,
) -> dict[str, Claim]:
    """What may be said of one tuned model, by skill; of the new skill only what changed."""
    tested = {
        skill: _p(test, base[skill], tuned[skill])
        for skill, test in tests.items()
        if skill not in NO_CLAIM and len(base[skill].scores) >= FLOOR
    }
    adjusted = holm(tested)
    forms = {
        skill: (form_kept(base[skill]), form_kept(tuned[skill]))
        for skill in tested
        if base[skill].strict
    }
    of_form = holm({skill: loss_p(*kept) for skill, kept in forms.items()})
    alpha = ALPHA / max(len(tested), 1)
    found = {}
    for skill, test in tests.items():
        before = base[skill]
        after = tuned[skill]
        lost = None
        gained = None
        if test.score != "cross_entropy":
            lost, gained = flips(before, after)
        state: State | None = None
        if skill not in NO_CLAIM:
            state = _state(test, before, drops[skill], adjusted.get(skill), margin)
        found[skill] = Claim(
            state=state,
            p=_rounded(adjusted.get(skill)),
            detectable=_rounded(_detectable(test, before, after, alpha)),
            lost=lost,
            gained=gained,
            form=paired_drop(*forms[skill]).rounded() if skill in forms else None,
            form_p=_rounded(of_form.get(skill)),
        )
    return found


def holding(claims: Mapping[str, Claim], again: Mapping[str, Claim]) -> dict[str, Claim]:
    """The claims that hold against both scorings of the base: what is said of a skill stays where
    both say it, and is unknown where they differ.
    """
    found = {}
    for skill, claim in claims.items():
        other = again[skill]
        update: dict[str, object] = {
            name: _larger(getattr(claim, name), getattr(other, name))
            for name in ("p", "detectable", "form_p")
        }
        if claim.state != other.state:
            update["state"] = "unknown"
        found[skill] = claim.model_copy(update=update)
    return found


def _larger(one: float | None, other: float | None) -> float | None:
    return one if other is None or (one is not None and one >= other) else other


def form_kept(items: Scored) -> list[float]:
    """By item, how little of its score it owes to the lenient reading: 0 where only that finds the
    answer right, 1 where both agree, and 2 of a choice that is written right and not most probable.
    """
    pairs = zip(items.scores, items.strict, strict=True)
    return [1 - (score - strict) for score, strict in pairs]


def can_do(test: Test, scores: Sequence[float]) -> bool:
    """Whether a model can do a skill, by its scores: the lower end of the interval is LEAST or
    more, and above what knows nothing of the question scores in the suite.
    """
    low = proportion(scores).low
    chance = 0.0
    if is_suite(test.path) and suite_of(test.path).score == test.score:
        chance = suite_of(test.path).chance
    return low >= LEAST and low > chance


def flips(before: Scored, after: Scored) -> tuple[int, int]:
    """How many items went from right to wrong, and from wrong to right."""
    pairs = list(zip(before.scores, after.scores, strict=True))
    return sum(1 for x, y in pairs if x > y), sum(1 for x, y in pairs if x < y)


def _p(test: Test, before: Scored, after: Scored) -> float:
    if test.score == "cross_entropy":
        return rise_p(before.scores, after.scores, before.tokens)
    return loss_p(before.scores, after.scores)


def _state(test: Test, before: Scored, drop: Interval, p: float | None, margin: float) -> State:
    if p is None:
        return "too_few"
    if not drop.known:
        return "unknown"
    able = test.score == "cross_entropy" or can_do(test, before.scores)
    if able and drop.high < margin:
        return "kept"
    if p <= ALPHA:
        return "lost"
    return "unknown" if able else "base_cannot"


def _detectable(test: Test, before: Scored, after: Scored, alpha: float) -> float | None:
    """The smallest true drop that a test of so many rows finds four times in five."""
    if test.score == "cross_entropy":
        return detectable_rise(before.scores, after.scores, before.tokens, alpha=alpha)
    items = len(before.scores)
    if not are_binary(before.scores, after.scores):
        return detectable_fall(before.scores, after.scores, alpha=alpha)
    lost, gained = flips(before, after)
    return detectable_drop(items, gained=min(lost, gained) / items, alpha=alpha)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
