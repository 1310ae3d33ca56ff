"""Which point of a repair is kept.

    after step   old skills           new skill   gate
    0            0.31 below the base  0.98        lost          the tuned model
    50           0.04                 0.98        lost
    100          0.00                 0.97        kept          <- the best new skill of those kept
    150          0.00                 0.94        kept

Of the points of which ``gate`` says that every old skill is kept, the one with the best new skill.
Where there is none: of those whose old skills are measurably better than the tuned model's, and
whose new skill is not measurably worse by the margin, the one whose old skills gained most; a point
that has measurably lost an old skill comes after one of which that cannot be told. Where there is
none either, the tuned model stays.

It is chosen by the rows that it is reported on, so what is reported of it may be too good; other
rows tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from replaykit.data.record import TARGET
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import EvalResult, ModelScores
from replaykit.steps.repair.result import RepairPoint, RepairVerdict

TUNED = "tuned"
"""What the model that is repaired is called among the points of its repair."""


def name_of(step: int) -> str:
    """What the model after a step is called in an evaluation."""
    return TUNED if step == 0 else f"step-{step}"


def points_of(evaluation: EvalResult, steps: Sequence[int]) -> list[RepairPoint]:
    """The tuned model and the points after these steps, as they were measured."""
    models = {model.model: model for model in evaluation.models}
    return [_point(evaluation, models[name_of(step)], step) for step in (0, *steps)]


def _point(evaluation: EvalResult, model: ModelScores, step: int) -> RepairPoint:
    old_gain = None
    new_gain = None
    if step > 0:
        pair = evaluation.between(model.model, TUNED)
        old_gain = pair.old if pair.old is not None else pair.old_nats
        new_gain = pair.gain.get(TARGET)
    return RepairPoint(
        step=step,
        state=model.state,
        old=model.old,
        old_drop=model.old_drop,
        old_gain=old_gain,
        new=model.target,
        new_gain=new_gain,
    )


def choose(
    points: Sequence[RepairPoint], *, margin: float, new_in_nats: bool
) -> tuple[RepairVerdict, int | None]:
    """The verdict, and the step of the point that is kept; None where the tuned model stays."""
    tuned, *others = points
    if tuned.state == "kept":
        return "nothing_lost", None
    kept = [point for point in others if point.state == "kept"]
    if kept:
        return "repaired", max(kept, key=lambda point: _by_new_skill(point, new_in_nats)).step
    better = [point for point in others if _is_better(point, margin)]
    if better:
        return "better", max(better, key=_by_old_skills).step
    return "none", None


def _by_new_skill(point: RepairPoint, in_nats: bool) -> tuple[float, int]:
    """The best new skill first; of equals, and where it is not tested, the fewest steps."""
    if point.new is None:
        return 0.0, -point.step
    return -point.new.mean if in_nats else point.new.mean, -point.step


def _by_old_skills(point: RepairPoint) -> tuple[bool, float, int]:
    gain = point.old_gain.mean if point.old_gain is not None else 0.0
    return point.state != "lost", gain, -point.step


def _is_better(point: RepairPoint, margin: float) -> bool:
    """Whether the old skills are measurably better than the tuned model's, and the new one not
    measurably worse by the margin or more.
    """
    gain = point.old_gain
    if gain is None or not gain.known or gain.low <= 0:
        return False
    return not new_is_lost(point.new_gain, margin)


def new_is_lost(gain: Interval | None, margin: float) -> bool:
    """Whether the new skill is measurably worse than the tuned model's, and may be so by the margin
    or more.
    """
    return gain is not None and gain.known and gain.high < 0 and gain.low <= -margin
