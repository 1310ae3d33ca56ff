"""The share of replay as a function of progress: what ``mix.schedule`` asks for at each point of
the training.

    ratio_at(Schedule(shape="linear", to=0.3), 0.15, 0.5)      ->  0.225

Progress runs from 0 to 1: the part of the target rows that are drawn, or of the slots that are
filled where their number is fixed. The plan takes the share at each slot's progress, so that each
step has the share of its own moment. Nothing published says which shape is best.
"""

from __future__ import annotations

import math

from replaykit.recipe.mix import Schedule


def ratio_at(schedule: Schedule | None, ratio: float, progress: float) -> float:
    """The share asked for at a progress from 0 to 1. ``ratio`` is that of the beginning; without a
    schedule it stays.

    linear and cosine go from ``ratio`` to ``to``, cosine slowly at both ends (half a wave, as
    SGDR's learning rate does: Loshchilov and Hutter, arXiv 1608.03983, equation 5). warm-down stays
    at ``ratio`` up to the part ``hold``, and falls from there in a straight line to ``to``, or to
    0. steps has the share of the last of its points that was passed.
    """
    if schedule is None:
        return ratio
    # Linear and cosine always have a ``to``; warm-down falls to 0 without one.
    last = schedule.to or 0.0
    match schedule.shape:
        case "linear":
            return ratio + (last - ratio) * progress
        case "cosine":
            return ratio + (last - ratio) * (1 - math.cos(math.pi * progress)) / 2
        case "warm-down":
            return ratio + (last - ratio) * max(0.0, progress - schedule.hold) / (1 - schedule.hold)
        case "steps":
            points = schedule.at or {}
            passed = [part for part in points if part <= progress]
            return points[max(passed)] if passed else ratio


def most(schedule: Schedule | None, ratio: float) -> float:
    """The largest share that is asked for at any time."""
    # Each shape has it at an end or at one of its points.
    points = [0.0, 1.0]
    if schedule is not None:
        points += schedule.at or {}
    return max(ratio_at(schedule, ratio, point) for point in points)


def describe(schedule: Schedule | None) -> str:
    """The schedule in words, to stand behind the first share; empty for a constant one."""
    if schedule is None:
        return ""
    last = _percent(schedule.to or 0.0)
    match schedule.shape:
        case "steps":
            points = sorted((schedule.at or {}).items())
            shares = [
                f"{_percent(share)} from {_percent(part)} of the training on"
                for part, share in points
            ]
            return f"then {', '.join(shares)}"
        case "warm-down":
            return f"falling to {last} from {_percent(schedule.hold)} of the training on"
        case shape:
            return f"{shape} to {last}"


def _percent(part: float) -> str:
    return f"{100 * part:.4g} %"
