"""A repair on the terminal: a row a point, then what became of it in sentences.

after step  old skills  below the base      against tuned   new skill  against tuned
0, tuned    0.66        0.31 0.25–0.37      –               0.98       –              lost
100         0.97        0.00 −0.01 to 0.01  0.31 0.25–0.37  0.97       −0.01 ...      kept, chosen
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.repair.result import RepairPoint, RepairResult
from replaykit.steps.report.gate import STATES
from replaykit.steps.report.numbers import NOTHING, Unit, interval, known, mean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


WIDE = 110  # columns of a terminal from which on an interval stands beside its mean


def show_repair(result: RepairResult, console: Console) -> None:
    from rich.text import Text

    gap = " " if console.width >= WIDE else "\n"
    console.print(_points(result, gap=gap))
    console.print(Text(repair_words(result)))
    for note in result.notes:
        console.print(Text(f"note  {note}"))


def repair_words(result: RepairResult) -> str:
    """What became of the model: which step is kept, and the old skills and the new one before and
    after.
    """
    before = result.before
    after = result.after
    match result.verdict:
        case "nothing_lost":
            return (
                f"The tuned model stays: it keeps every old skill ({_drop(before)}), so there is "
                f"nothing to repair."
            )
        case "none":
            return (
                f"The tuned model stays: no step keeps every old skill, and none is measurably "
                f"better at them ({_drop(before)}) with the new skill kept."
            )
        case "repaired":
            said = "every old skill's drop is below the margin"
        case "better":
            said = "none keeps every old skill, and it is measurably better at them"
    assert after is not None, "with these verdicts a point is kept"
    said = f"The model after {after.step:,} steps is kept: {said}. {_change(result, after)}"
    return f"{said} It is in {result.model}."


def _change(result: RepairResult, after: RepairPoint) -> str:
    """``The old skills were 0.31 (...) below the base, and are 0.00 (...) below it; ...``."""
    before = result.before
    said = f"Old skills: {_drop(before)} before, {_drop(after)} now"
    if before.old_drop is None and after.old_gain is not None:
        said = f"Old skills: {_with_interval(after.old_gain, result.unit)} better than before"
    if before.new is not None:
        said += (
            f"; new skill: {_with_interval(before.new, result.new_unit)} before, "
            f"{_with_interval(after.new, result.new_unit)} now"
        )
    return f"{said}."


def _drop(point: RepairPoint) -> str:
    if not known(point.old_drop):
        return "what they lost is not known"
    return f"{_with_interval(point.old_drop, 'score')} below the base"


def _with_interval(found: Interval | None, unit: Unit) -> str:
    if not known(found):
        return NOTHING
    return f"{mean(found, unit)} ({interval(found, unit)})"


def _points(result: RepairResult, *, gap: str) -> Table:
    """One row a point; the gap stands between a number and its interval."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def cell(found: Interval | None, unit: Unit) -> Text:
        text = Text(mean(found, unit))
        if known(found):
            text.append(gap + interval(found, unit), style="dim")
        return text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(Text("after step"))
    for column in ("old skills", "below the base", "against tuned", "new skill", "against tuned"):
        table.add_column(Text(column, justify="right"), justify="right", overflow="fold")
    table.add_column(Text(""))
    for point in result.points:
        word = STATES[point.state]
        if point.chosen:
            word += ", chosen"
        table.add_row(
            Text("0, tuned" if point.step == 0 else f"{point.step:,}"),
            Text(mean(point.old)),
            cell(point.old_drop, "score"),
            cell(point.old_gain, result.unit),
            Text(mean(point.new, result.new_unit)),
            cell(point.new_gain, result.new_unit),
            Text(word),
        )
    return table
