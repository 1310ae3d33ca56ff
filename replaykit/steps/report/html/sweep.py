"""How much replay is enough: the drop of the old skills by share with its band, the new skill
beside it, and a table of the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from replaykit.result import Result
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.report.html.blocks import BASE, PALETTE, card, grid, table
from replaykit.steps.report.html.svg import (
    Scale,
    line,
    polyline,
    scale_of,
    svg,
    text,
    x_axis,
    y_axis,
)
from replaykit.steps.report.numbers import NOTHING, Unit, interval, known, mean, percent, points
from replaykit.steps.report.sweeps import state_words
from replaykit.steps.swept import AdviseResult, Point, SweepResult

RED = "var(--red)"
Places = Sequence[tuple[float, Interval]]  # a share, and what was measured there


def sweeps(results: Mapping[str, Result]) -> str:
    """A block for each sweep and each advice of a run; "" where there is none."""
    found = []
    for result in results.values():
        if isinstance(result, SweepResult):
            found.append(sweep_block(result))
        elif isinstance(result, AdviseResult):
            found.append(advice_block(result))
    return "\n".join(found)


def sweep_block(sweep: SweepResult) -> str:
    """The sentence, the two pictures, the points."""
    pictures = grid([_old_picture(sweep, []), _new_picture(sweep)])
    return f"<p>{escape(sweep.words)}</p>{pictures}{_table(sweep)}"


def advice_block(found: AdviseResult) -> str:
    """The same with the curve that was fitted."""
    fit = [(each.ratio, each.drop) for each in found.fitted]
    pictures = grid([_old_picture(found.sweep, fit), _new_picture(found.sweep)])
    words = escape(found.words)
    if found.line is not None:
        words += f" <code>{escape(found.line)}</code>"
    return f"<p>{words}</p>{pictures}{_table(found.sweep)}"


def series_of(sweep: SweepResult) -> dict[str, list[Point]]:
    """The points that belong to one curve, by what it is called: those whose other values are the
    same, the least share first, with the control without replay where it begins.
    """
    controls = [each for each in sweep.points if each.control == "no-replay"]
    found: dict[str, list[Point]] = {}
    for point in sweep.points:
        if point.control is None and known(point.drop):
            found.setdefault(point.others or "replay", []).append(point)
    for curve in found.values():
        own = curve[0].values
        curve += [
            control
            for control in controls
            if all(
                own.get(key) == value for key, value in control.values.items() if key != "mix.ratio"
            )
        ]
        curve.sort(key=lambda point: point.ratio)
    return found or {"replay": controls}


def _old_picture(sweep: SweepResult, fit: Places) -> str:
    curves = {
        name: [(point.ratio, point.drop) for point in curve if known(point.drop)]
        for name, curve in series_of(sweep).items()
    }
    title = "drop of the old skills"
    unit = ", nats" if sweep.unit == "nats" else ""
    words = (
        f"<p>Share of replay against what is lost; pale: 95 % intervals. Dashed: the margin, "
        f"{points(sweep.margin, sweep.unit)}.</p>"
    )
    return _picture(f"{title}{unit}", curves, words, sweep, fit=fit, margin=True)


def _new_picture(sweep: SweepResult) -> str:
    if sweep.new_unit is None:
        return ""
    curves = {
        name: [(point.ratio, point.new) for point in curve if known(point.new)]
        for name, curve in series_of(sweep).items()
    }
    unit = ", nats" if sweep.new_unit == "nats" else ""
    words = "<p>Share of replay against what was learned; pale: 95 % intervals.</p>"
    return _picture(f"new skill{unit}", curves, words, sweep, fit=[], margin=False)


def _picture(
    title: str,
    curves: Mapping[str, Places],
    words: str,
    sweep: SweepResult,
    *,
    fit: Places,
    margin: bool,
) -> str:
    """Curves over the share; with ``margin`` what is above its line is kept."""
    every = [place for curve in [*curves.values(), fit] for place in curve]
    if not every:
        return ""
    right = max(share for share, _ in every) or 0.1
    x = Scale(0, right, 50, 386)
    y = _scale([found for _, found in every], sweep, margin=margin)
    parts = x_axis(x, 28, 330, "share of replay") + y_axis(y, 50, 394, f"{title} ↑ better")
    if margin:
        at = y(sweep.margin)
        parts.append(line(50, at, 394, at, f'style="stroke:{RED}" stroke-dasharray="5 4"'))
    if fit:
        parts.append(_band(fit, x, y, BASE))
        parts.append(polyline([(x(share), y(found.mean)) for share, found in fit], BASE))
    key = []
    for place, (name, curve) in enumerate(curves.items()):
        colour = PALETTE[place % len(PALETTE)]
        parts += _curve(curve, x, y, colour, joined=not fit)
        key.append(f'<span style="--c:{colour}"><span class="dot"></span>{escape(name)}</span>')
    shown = f'<p class="key">{"".join(key)}</p>' if len(key) > 1 else ""
    return card(title, f"{words}{shown}{svg(400, 370, f'{title} by share of replay', parts)}")


def _scale(values: Sequence[Interval], sweep: SweepResult, *, margin: bool) -> Scale:
    """The best is at the top: of drops the least."""
    if not margin:
        return scale_of(values, sweep.new_unit or "score", 322, 36)
    low = min(0.0, *(value.low for value in values))
    high = max(sweep.margin, *(value.high for value in values))
    room = 0.06 * (high - low)
    return Scale(high + room, low - room, 322, 36)


def _band(curve: Places, x: Scale, y: Scale, colour: str) -> str:
    above = [f"{x(share):g},{y(found.high):g}" for share, found in curve]
    below = [f"{x(share):g},{y(found.low):g}" for share, found in reversed(curve)]
    path = " ".join([*above, *below])
    return f'<polygon points="{path}" style="fill:{colour}" fill-opacity=".15"/>'


def _curve(curve: Places, x: Scale, y: Scale, colour: str, *, joined: bool) -> list[str]:
    """Points with their intervals; joined ones have a line and a band."""
    parts = []
    if joined and len(curve) > 1:
        parts.append(_band(curve, x, y, colour))
        parts.append(polyline([(x(share), y(found.mean)) for share, found in curve], colour))
    for share, found in curve:
        px = x(share)
        how = f'style="stroke:{colour}" stroke-width="2" stroke-opacity=".5"'
        parts.append(line(px, y(found.low), px, y(found.high), how))
        tip = f"{percent(share)}: {mean(found)} ({interval(found)})"
        parts.append(
            f'<circle cx="{px:g}" cy="{y(found.mean):g}" r="5" style="fill:{colour}">'
            f"<title>{escape(tip)}</title></circle>"
        )
    if not curve:
        parts.append(text(60, 60, "nothing was measured", 'class="tick"'))
    return parts


def _table(sweep: SweepResult) -> str:
    new_unit: Unit = sweep.new_unit or "score"
    head = ["Point", "Replay", "Steps", "Drop of old", "Worst old skill", "New skill"]
    head += ["Against no replay", ""]
    rows = []
    for point in sweep.points:
        worst = NOTHING
        if point.worst is not None:
            worst = escape(point.worst.skill) + f" {_cell(point.worst.drop, sweep.unit)}"
        share = None if point.share is None else round(point.share, 4)
        failed = "".join(f"<small>{escape(error)}</small>" for error in point.errors.values())
        steps = NOTHING if point.steps is None else f"{point.steps:,}"
        rows.append([
            escape(point.name), percent(share), steps, _cell(point.drop, sweep.unit), worst,
            _cell(point.new, new_unit), _cell(point.new_gain, new_unit),
            f"{state_words(point)}{failed}",
        ])  # fmt: skip
    note = (
        f"Every point has {sweep.steps:,} optimiser steps of as many rows, but for target-alone, "
        "which has the target's own epochs; no-replay has more target rows in place of replay. "
        "Below a mean: its 95 % interval, items and seeds paired."
    )
    return table(head, rows, note)


def _cell(found: Interval | None, unit: Unit) -> str:
    return f"{mean(found, unit)}<small>{interval(found, unit)}</small>"
