"""A sweep, or advice, in a sentence.

    5 % of the model's own rows keeps the mean of the old skills within 2 points (upper bound 1.4;
    the most is lost of json, 0.7, up to 3.1) at a cost of 0.3 (−0.5 to 1.1) in the new one.

What is said follows from the bounds, as ``curve.decide`` does.
"""

from __future__ import annotations

from collections.abc import Sequence

from replaykit.steps.evaluate.claims import FLOOR
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.report.numbers import NOTHING, Unit, known, number, percent, points
from replaykit.steps.sweep.pool import SPREAD
from replaykit.steps.swept import Point, SweepResult

SOURCES = {"generate": "of the model's own rows", "select": "of selected old rows"}
SHOWN = 160  # characters of an error


def sentence(sweep: SweepResult) -> str:
    """The finding; then how sure it is of other seeds; then what failed."""
    said = [_finding(sweep)]
    measured = max((len(point.states) for point in sweep.points), default=0)
    if measured == 1:
        said.append("One seed: how far another training would lie from it is not in these bounds.")
    elif measured < SPREAD:
        said.append(
            f"{measured} seeds are few: the bounds are those of the items alone; from {SPREAD} "
            "seeds on they hold the seeds' spread too."
        )
    if sweep.failed:
        said.append(_failures(sweep.failed))
    return " ".join(said)


def _finding(sweep: SweepResult) -> str:
    margin = points(sweep.margin, sweep.unit)
    controls = [point for point in sweep.points if point.control == "no-replay"]
    replayed = [point for point in sweep.points if point.control is None and known(point.drop)]
    if sweep.decision == "keeps" and sweep.chosen is not None:
        chosen = sweep.point(sweep.chosen)
        mean = "the mean of the old skills" if len(chosen.drops) > 1 else "the old skills"
        kept = f"{called(chosen)} keeps {mean} within {margin} ({_bounds(chosen, sweep)})"
        return f"{kept}{_cost(chosen, sweep)}."
    if sweep.decision == "nothing_lost":
        return (
            f"Without replay the old skills stay within {margin} ({_bounds(controls[0], sweep)}), "
            f"so there is nothing to protect here{_unlearned(controls[0])}."
        )
    if sweep.decision == "none_keeps":
        best = least(replayed)
        return (
            f"No share of these keeps the old skills within {margin}; the best, {called(best)}, "
            f"loses {drop_words(best, sweep)}{_cost(best, sweep)}."
        )
    return f"Cannot tell, because {reason(sweep)}."


def reason(sweep: SweepResult) -> str:
    """Why nothing can be told."""
    old = [skill for skill in sweep.skills if skill.role == "old"]
    if all(skill.skill in sweep.left_out for skill in old):
        return untold(sweep)
    replayed = [point for point in sweep.points if point.control is None and known(point.drop)]
    if not replayed:
        return "no training with replay could be measured"
    best = least(replayed)
    within = [point for point in replayed if surely_within(point, sweep.margin)]
    if within:
        return (
            f"{called(within[0])} keeps within {points(sweep.margin, sweep.unit)}, and a larger "
            "share does not, so it may be by chance; more items a skill, or more seeds, tell"
        )
    items = min(skill.n for skill in old if skill.skill not in sweep.left_out)
    return (
        f"no bound is below {points(sweep.margin, sweep.unit)}: the best, {called(best)}, loses "
        f"{drop_words(best, sweep)}; more than {items:,} items a skill, or more seeds, make the "
        "bounds narrower"
    )


def surely_within(point: Point, margin: float) -> bool:
    """Whether the mean drop is below the margin for sure, and no loss is measurable beside it."""
    return known(point.drop) and point.drop.high < margin and not point.lost


def _unlearned(control: Point) -> str:
    """That the new skill was not learned, where it was not, so that nothing was lost for it."""
    if known(control.new_drop) and control.new_drop.high >= 0:
        return (
            "; but the new skill was not learned measurably either: ask for more steps (--steps), "
            "since what is not learned displaces nothing"
        )
    return ""


def untold(sweep: SweepResult) -> str:
    """That no old skill has enough rows and is one which the base has."""
    few = [name for name, state in sweep.left_out.items() if state == "too_few"]
    unable = [name for name, state in sweep.left_out.items() if state == "base_cannot"]
    said = []
    if few:
        said.append(f"{', '.join(few)}: fewer than {FLOOR} items, of which nothing can be told")
    if unable:
        scores = ", ".join(f"{name} ({number(sweep.base[name].mean)})" for name in unable)
        said.append(f"the base hardly has {scores}, and can hardly lose it")
    return "; ".join(said)


def least(found: list[Point]) -> Point:
    """The point that loses least."""
    return min(found, key=lambda point: point.drop.mean if known(point.drop) else 1e9)


def called(point: Point) -> str:
    """``5 % of the model's own rows``, ``5 % replay (unit tokens)``."""
    if point.control == "no-replay":
        return "no replay"
    what = "replay"
    if len(point.sources) == 1:
        what = SOURCES.get(point.sources[0], f"of {point.sources[0]}")
        point = _without_sources(point)  # they are said already
    beside = f" ({point.others})" if point.others else ""
    return f"{percent(point.ratio)} {what}{beside}"


def _without_sources(point: Point) -> Point:
    values = {key: value for key, value in point.values.items() if key != "mix.sources"}
    return point.model_copy(update={"values": values})


def plain(value: float, unit: Unit) -> str:
    """Points or nats without their name: ``1.4``."""
    return points(value, unit).removesuffix(" points").removesuffix(" nats")


def between(found: Interval | None, unit: Unit) -> str:
    """``0.3 (−0.5 to 1.1)``, in points or nats; a dash where it is not known."""
    if not known(found):
        return NOTHING
    low = plain(found.low, unit)
    high = plain(found.high, unit)
    return f"{plain(found.mean, unit)} ({low} to {high})"


def drop_words(point: Point, sweep: SweepResult) -> str:
    """``5.2 points (3.1 to 7.4)``."""
    return between(point.drop, sweep.unit).replace(
        " (", " nats (" if sweep.unit == "nats" else " points (", 1
    )


def _bounds(point: Point, sweep: SweepResult) -> str:
    """The upper bound, and where there are several skills the one that lost most."""
    assert known(point.drop)
    said = f"upper bound {plain(point.drop.high, sweep.unit)}"
    if point.worst is None or len(point.drops) < 2 or not known(point.worst.drop):
        return said
    worst = point.worst
    most = plain(worst.drop.high, sweep.unit)
    return (
        f"{said}; the most is lost of {worst.skill}, {plain(worst.drop.mean, sweep.unit)}, up to "
        f"{most}"
    )


def _cost(point: Point, sweep: SweepResult) -> str:
    """What it costs in the new skill, against the control without replay."""
    if sweep.new_unit is None:
        return "; the new skill is not tested"
    if not known(point.new_gain):
        return "; what it costs in the new skill is not known, since no control was measured"
    return f" at a cost of {between(-point.new_gain, sweep.new_unit)} in the new one"


def _failures(failed: Sequence[Point]) -> str:
    """Which points failed, and why the first did."""
    names = ", ".join(point.name for point in failed)
    seed, error = next(iter(failed[0].errors.items()))
    first = " ".join(error.split())
    if len(first) > SHOWN:
        first = f"{first[: SHOWN - 3]}..."
    which = "" if len(failed) == 1 else "the first, "
    return f"Failed: {names} ({which}seed {seed}: {first.rstrip('.')})."
