"""A sweep and advice on the terminal: a row a point, then the sentence.

point       replay  old skills drop      worst       new skill  against no replay
no-replay   0 %     0.41 0.33 to 0.49    json 0.80   0.96                            lost
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replaykit.result import Noted
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.report.numbers import NOTHING, Unit, interval, known, mean, percent
from replaykit.steps.swept import AdviseResult, Point, SweepResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

WORDS = {"lost": "lost", "kept": "kept", "unknown": "cannot tell"}


def show_sweep(sweep: SweepResult, console: Console) -> None:
    from rich.text import Text

    console.print(_points(sweep))
    console.print(Text(sweep.words))
    _notes(sweep, console)


def show_advice(found: AdviseResult, console: Console) -> None:
    from rich.text import Text

    console.print(_points(found.sweep, {each.ratio: each.drop for each in found.fitted}))
    console.print(Text(found.words))
    _notes(found, console)


def _notes(result: Noted, console: Console) -> None:
    from rich.text import Text

    for note in result.notes:
        console.print(Text(f"note  {note}"))


def state_words(point: Point) -> str:
    """``kept``, ``lost, 2 of 3 seeds``, or that it failed."""
    said = []
    found = list(point.states.values())
    for state, word in WORDS.items():
        count = sum(each == state for each in found)
        if count and count == len(found):
            said.append(word)
        elif count:
            said.append(f"{word} {count} of {len(found)}")
    if point.errors:
        said.append(f"failed with {len(point.errors)}" if found else "failed")
    return ", ".join(said)


def _points(sweep: SweepResult, fit: dict[float, Interval] | None = None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    new_unit: Unit = sweep.new_unit or "score"
    columns = ["replay", _heading("drop of old", sweep.unit)]
    if fit is not None:
        columns.append("fitted")
    columns += ["worst", _heading("new skill", new_unit), "against no replay", ""]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(Text("point"), overflow="fold")
    for column in columns:
        table.add_column(Text(column, justify="right"), justify="right", overflow="fold")
    for point in sweep.points:
        cells = [Text(percent(_rounded(point.share))), _cell(point.drop, sweep.unit)]
        if fit is not None:
            cells.append(_cell(fit.get(point.ratio), sweep.unit))
        worst = NOTHING
        if point.worst is not None:
            worst = f"{point.worst.skill} {mean(point.worst.drop, sweep.unit)}"
        cells += [Text(worst), _cell(point.new, new_unit), _cell(point.new_gain, new_unit)]
        style = "bold" if point.name == sweep.chosen else ""
        table.add_row(Text(point.name, style=style), *cells, Text(state_words(point)))
    return table


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _heading(words: str, unit: Unit) -> str:
    return f"{words}, nats" if unit == "nats" else words


def _cell(estimate: Interval | None, unit: Unit) -> Text:
    from rich.text import Text

    text = Text(mean(estimate, unit))
    if known(estimate):
        text.append(f"\n{interval(estimate, unit)}", style="dim")
    return text
