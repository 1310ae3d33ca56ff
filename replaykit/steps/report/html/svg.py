"""What pictures are drawn with: scales, axes, lines, texts. Lengths are in units of the viewBox."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.report.numbers import Unit

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """From numbers to places along one axis: ``worst`` is drawn at ``start``, ``best`` at
    ``end``.
    """

    worst: float
    best: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (value - self.worst) / (self.best - self.worst)
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """At most six round numbers."""
        low, high = sorted((self.worst, self.best))
        # From a tenth of the power of ten below the range, the first step that is coarse enough.
        size = 10 ** math.floor(math.log10(high - low)) / 10
        steps = (size * factor for factor in (1, 2, 5, 10, 20))
        step = next(step for step in steps if (high - low) / step <= 5.5)
        # 1e-9: an end of the axis is a tick even where it was rounded off by a hair.
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        return [step * place for place in range(first, last + 1)]


def scale_of(values: Iterable[Interval], unit: Unit, start: float, end: float) -> Scale:
    """An axis that holds all intervals: 0 to 1 for scores, unless they all lie close together."""
    ends = [end for value in values for end in (value.low, value.high, value.mean)]
    low = min(ends)
    high = max(ends)
    # Some room beyond the ends, and an axis of some length where all values are the same.
    room = max(0.06 * (high - low), 0.03)
    if unit == "nats":  # fewer are better
        return Scale(high + room, low - room, start, end)
    if high - low > 0.4:
        return Scale(0, 1, start, end)
    return Scale(max(0, low - room), min(1, high + room), start, end)


def svg(width: int, height: float, title: str, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    box = f"0 0 {width} {height:g}"
    return f'<svg viewBox="{box}" role="img"><title>{escape(title)}</title>\n{body}\n</svg>'


def line(x1: float, y1: float, x2: float, y2: float, how: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" {how}/>'


def polyline(points: Iterable[Point], colour: str) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{path}" fill="none" style="stroke:{colour}" stroke-width="2"/>'


def text(x: float, y: float, words: str, how: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {how}>{escape(words)}</text>'


def x_axis(scale: Scale, top: float, bottom: float, title: str) -> list[str]:
    """Rules, the numbers below them, and the title at the right end."""
    ticks = scale.ticks()
    how = 'class="tick" text-anchor="middle"'
    parts = [line(scale(tick), top, scale(tick), bottom, 'class="rule"') for tick in ticks]
    parts += [text(scale(tick), bottom + 16, f"{tick:.4g}", how) for tick in ticks]
    return [*parts, text(scale.end, bottom + 34, title, 'text-anchor="end"')]


def y_axis(scale: Scale, left: float, right: float, title: str) -> list[str]:
    """Rules, the numbers left of them, and the title above."""
    ticks = scale.ticks()
    how = 'class="tick" text-anchor="end"'
    parts = [line(left, scale(tick), right, scale(tick), 'class="rule"') for tick in ticks]
    parts += [text(left - 7, scale(tick) + 4, f"{tick:.4g}", how) for tick in ticks]
    return [*parts, text(left - 30, min(scale.start, scale.end) - 14, title)]
