"""What a controller decided: its share of replay and its worst drop by step, and each change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from replaykit.result import Result
from replaykit.steps.report.html.blocks import card
from replaykit.steps.report.html.svg import Scale, line, polyline, svg, text, x_axis, y_axis
from replaykit.steps.report.numbers import percent
from replaykit.steps.train.events import Event
from replaykit.steps.train.result import TrainResult

LEAST = -0.2  # the picture shows no drop below this, which is a gain, and none above 1


def decisions(results: Mapping[str, Result]) -> Iterator[str]:
    """A card for each training with a controller."""
    for name, result in results.items():
        if isinstance(result, TrainResult) and result.events:
            yield _card(name, result.events)


def _card(name: str, events: Sequence[Event]) -> str:
    share = f"{percent(events[0].ratio_before)} to {percent(events[-1].ratio)}"
    words = (
        f"<p>{len(events):,} tests of old skills, the share of replay from {share}. A drop is the "
        "part of its base score that the worst skill has lost; lines are its bounds, and a lower "
        "one beyond the dashed line acts.</p>"
    )
    picture = svg(400, 366, f"Decisions of {name} by step", [*_shares(events), *_drops(events)])
    changes = "".join(
        f"<dt>step {event.step:,}</dt><dd>{escape(event.reason)}</dd>"
        for event in events
        if event.changes
    )
    below = f"<dl>{changes}</dl>" if changes else "<p>Nothing changed.</p>"
    return card(name, f"{words}{picture}{below}")


def _marks(event: Event) -> list[str]:
    """What the event changed beside the share of replay, in words as short as a mark in a
    picture.
    """
    marks = []
    if event.remedy != event.remedy_before:
        marks.append("remedy on" if event.remedy else "remedy off")
    if event.stop:
        marks.append("training ends")
    return marks


def _shares(events: Sequence[Event]) -> Iterator[str]:
    """The share of replay in per cent as a line of steps, and a mark at each change, with its
    reason.
    """
    x = _by_step(events)
    ratios = [ratio for event in events for ratio in (event.ratio_before, event.ratio)]
    # Per cent, and 15 % of room above the highest; a run that never had replay has an axis too.
    y = Scale(0, 115 * max(ratios) or 1, 136, 26)
    yield from y_axis(y, 44, 386, "share of replay, %")
    points = [(x(0), y(100 * ratios[0]))]
    for event in events:  # two points each: the share changes at the test, not on the way there
        points += [(x(event.step), y(100 * ratio)) for ratio in (event.ratio_before, event.ratio)]
    yield polyline(points, "var(--c1)")
    for event in events:
        if event.changes:
            yield from _change(event, x(event.step), y(100 * event.ratio))


def _change(event: Event, x: float, y: float) -> Iterator[str]:
    tip = f"<title>step {event.step:,}: {escape(event.reason)}</title>"
    yield f'<circle cx="{x:g}" cy="{y:g}" r="4" style="fill:var(--c1)">{tip}</circle>'
    side = 7
    anchor = "start"
    if x > 300:  # there is no room to the right
        side = -7
        anchor = "end"
    for place, mark in enumerate(_marks(event)):
        below = y + 16 + 13 * place
        if mark == "remedy off":  # above, where the line does not go on
            below = y - 8
        yield text(x + side, below, mark, f'class="halo" text-anchor="{anchor}"')


def _drops(events: Sequence[Event]) -> Iterator[str]:
    """The worst skill's drop at each test with its bounds, in per cent; small drops are above."""
    found = [(event, event.drops[event.worst]) for event in events if event.worst is not None]
    x = _by_step(events)
    limit = 100 * events[0].max_drop  # the dashed line, which stands in the picture's upper half
    most = max([2 * limit, *(100 * min(drop.high, 1.0) for _, drop in found)])
    least = min([0.0, *(100 * max(drop.low, LEAST) for _, drop in found)])
    y = Scale(most, least - 0.06 * (most - least), 322, 176)
    yield from x_axis(x, 166, 330, "step")
    yield from y_axis(y, 44, 386, "worst drop, % ↑ better")
    yield line(x(0), y(limit), 386, y(limit), 'style="stroke:var(--red)" stroke-dasharray="5 4"')
    for event, drop in found:
        at = x(event.step)
        low, high = (y(100 * min(max(end, LEAST), 1.0)) for end in (drop.low, drop.high))
        colour = "var(--red)" if drop.low > event.max_drop else "var(--base)"
        yield line(at, low, at, high, f'style="stroke:{colour}" stroke-width="2"')
        tip = (
            f"step {event.step:,}: {event.worst}, {percent(drop.mean)} "
            f"({percent(drop.low)} at least)"
        )
        yield (
            f'<circle cx="{at:g}" cy="{y(100 * drop.mean):g}" r="4" style="fill:{colour}">'
            f"<title>{escape(tip)}</title></circle>"
        )


def _by_step(events: Sequence[Event]) -> Scale:
    return Scale(0, events[-1].step, 44, 380)
