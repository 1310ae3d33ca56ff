"""The pictures of an evaluation and of the trainings: learned against kept, base against tuned,
losses by step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from replaykit.data.record import TARGET
from replaykit.recipe.evaluate import MEMORY
from replaykit.result import Result
from replaykit.steps.evaluate.result import EvalResult, ModelScores
from replaykit.steps.report.html.blocks import BASE, PALETTE, Colours, card, label
from replaykit.steps.report.html.svg import (
    Point,
    Scale,
    line,
    polyline,
    scale_of,
    svg,
    text,
    x_axis,
    y_axis,
)
from replaykit.steps.report.numbers import Unit, interval, known, percent, unit_of
from replaykit.steps.report.verdict import Side, arms_of, base_of, new_side, old_side, share_of
from replaykit.steps.train.result import TrainResult

Box = tuple[float, float, float, float]  # left, top, right, bottom
KEY_ROW = 18  # of two models in the key of a picture that stands alone
ROW = 11  # of one arm in the picture of base against tuned
LOSS_POINTS = 300  # of a line of losses, about; a long training is thinned


# --- learned against kept -------------------------------------------------------------------------


def scatter(evaluation: EvalResult, colours: Colours) -> str:
    """A point a model: old skills kept to the right, new skill learned upwards; bars are the
    intervals.
    """
    old = old_side(evaluation)
    new = new_side(evaluation)
    names = [name for name in colours if name in old.of and name in new.of]
    if len(names) < 2:  # a single point says nothing
        return ""
    x = scale_of([old.of[name] for name in names], old.unit, 44, 386)
    y = scale_of([new.of[name] for name in names], new.unit, 322, 36)
    right = "old data: rise of cross-entropy, nats" if old.rise else "old skills kept: mean score"
    up = "new skill: cross-entropy, nats" if new.unit == "nats" else "new skill learned: score"
    parts = x_axis(x, 28, 330, f"{right} → better") + y_axis(y, 36, 394, f"{up} ↑ better")
    places: dict[str, Point] = {}
    taken: list[Box] = []
    dots = []
    for name in names:
        kept = old.of[name]
        learned = new.of[name]
        px = x(kept.mean)
        py = y(learned.mean)
        places[name] = (px, py)
        bars = [(x(kept.low), py, x(kept.high), py), (px, y(learned.high), px, y(learned.low))]
        how = f'style="stroke:{colours[name]}" stroke-width="2" stroke-opacity=".6"'
        parts += [line(*bar, how) for bar in bars]
        dots.append(_dot(name, px, py, colours[name], _tip(name, old, new)))
        # Names go where neither a bar nor a dot is.
        for x1, y1, x2, y2 in [*bars, (px - 7, py - 7, px + 7, py + 7)]:
            taken.append((x1 - 1, y1 - 1, x2 + 1, y2 + 1))
    parts += dots  # above all bars, also those of later models
    models = {model.model: model for model in evaluation.models}
    for name, place in places.items():
        parts.append(_placed(_named(models[name]), place, colours[name], taken))
    words = (
        "<p>A point is a model. Up: better at the new task; right: better at the old. Lines: "
        "95 % intervals.</p>"
    )
    picture = svg(400, 370, f"{up}; {right}; a point a model", parts)
    return card("Learned against kept", words + picture)


def _dot(name: str, px: float, py: float, colour: str, tip: str) -> str:
    fill = colour
    if colour == BASE:  # a ring, as in the tables
        fill = "var(--card)"
    return (
        f'<circle cx="{px}" cy="{py}" r="6" style="fill:{fill};stroke:{colour}" '
        f'stroke-width="2.5"><title>{escape(tip)}</title></circle>'
    )


def _tip(name: str, old: Side, new: Side) -> str:
    kept = f"old {old.text(name)} ({interval(old.of[name], old.unit)})"
    learned = f"new {new.text(name)} ({interval(new.of[name], new.unit)})"
    return f"{name}: {kept}, {learned}"


def _named(model: ModelScores) -> str:
    """The model's name, with its share of replay unless the name says it."""
    share = share_of(model)
    if not share or model.model.endswith(str(model.ratio)):
        return model.model
    return f"{model.model}, {percent(share)}"


def _placed(words: str, point: Point, colour: str, taken: list[Box]) -> str:
    """The text near the point, where it covers least of what is taken; its own place is taken
    then.
    """
    px, py = point

    def box(far: float, degrees: int) -> Box:
        cos = math.cos(math.radians(degrees))
        wide = 7 * len(words)  # a letter of 12 px takes about 7
        # To the right of the point the text begins there, to the left it ends there.
        left = px + far * cos - wide * (1 - round(cos, 1)) / 2
        middle = py + far * math.sin(math.radians(degrees))
        return left, middle - 7, left + wide, middle + 7

    def cost(place: tuple[int, int]) -> float:
        x1, y1, x2, y2 = box(*place)
        covered = sum(
            max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b))
            for a, b, c, d in taken
        )
        # To leave the picture is worse than to cover something; of equals, the nearer place.
        outside = max(0, 38 - x1) + max(0, x2 - 398) + max(0, 20 - y1) + max(0, y2 - 328)
        return covered + 100 * outside + place[0]

    places = [(far, degrees) for far in (12, 24, 40, 60, 80) for degrees in range(0, 360, 30)]
    best = min(places, key=cost)
    x1, y1, x2, y2 = box(*best)
    taken.append((x1, y1, x2, y2))
    written = text(x1, y2 - 3, words, f'class="halo" style="fill:{colour}"')
    if best[0] <= 24:  # so near that it cannot be taken for another's
        return written
    # So far away that a line must say which point is meant.
    nearest = (min(max(px, x1), x2), min(max(py, y1), y2))
    return line(px, py, *nearest, f'style="stroke:{colour}"') + written


# --- from base to tuned ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Dumbbells:
    """Base against each arm, one skill after the other."""

    base: ModelScores
    arms: Sequence[ModelScores]
    colours: Colours

    def draw(self, x: Scale, y: float, skill: str) -> Iterator[str]:
        """The lines of one skill, from y downwards."""
        start = self.base.scores.get(skill)
        for row, arm in enumerate(self.arms):
            end = arm.scores.get(skill)
            at = y + 6.5 + ROW * row
            colour = self.colours[arm.model]
            if known(end):
                how = f'style="stroke:{colour}"'
                band = f'{how} stroke-width="7" stroke-opacity=".25" stroke-linecap="round"'
                yield line(x(end.low), at, x(end.high), at, band)
                if known(start):
                    yield line(x(start.mean), at, x(end.mean), at, f'{how} stroke-width="2"')
                yield f'<circle cx="{x(end.mean)}" cy="{at:g}" r="4" style="fill:{colour}"/>'
        if known(start):
            at = x(start.mean)
            bottom = y + 2 + ROW * len(self.arms)
            yield line(at, y, at, bottom, 'class="mark" stroke-width="3"')


def dumbbells(evaluation: EvalResult, colours: Colours) -> str:
    """For each skill a line from base to each arm."""
    picture = dumbbell_picture(evaluation, colours)
    if not picture:
        return ""
    key = "".join(label(name, colours) for name in colours)
    words = (
        "<p>From base (upright grey bar) to each tuned model (dot); the pale band is its 95 % "
        "interval.</p>"
    )
    return card("From base to tuned", f'{words}<p class="key">{key}</p>{picture}')


def dumbbell_picture(evaluation: EvalResult, colours: Colours, *, key: bool = False) -> str:
    """The picture alone, with a key of its own where it stands alone; scores and nats have axes of
    their own.
    """
    lines = Dumbbells(base_of(evaluation), arms_of(evaluation), colours)
    if not lines.arms:
        return ""
    units: dict[Unit, str] = {
        "score": "score → better",
        "nats": "cross-entropy, nats per token → better",
    }
    parts = _key(colours) if key else []
    top = KEY_ROW * math.ceil(len(colours) / 2) + 8.0 if key else 0.0
    start = top
    for unit, title in units.items():
        skills = [skill for skill in evaluation.skills if unit_of(skill) == unit]
        measured = [
            model.scores.get(skill.skill) for skill in skills for model in evaluation.models
        ]
        estimates = [estimate for estimate in measured if known(estimate)]
        if not estimates:
            continue
        x = scale_of(estimates, unit, 8, 388)
        height = 24 + ROW * len(lines.arms)
        bottom = top + height * len(skills) + 4
        parts += x_axis(x, top, bottom, title)
        for place, skill in enumerate(skills):
            y = top + height * place
            shown = skill.skill
            if skill.role == TARGET:
                shown += " (new)"
            if skill.role == MEMORY:
                shown += " (drift)"
            parts.append(text(0, y + 14, shown, 'class="halo"'))
            parts += lines.draw(x, y + 20, skill.skill)
        top = bottom + 48  # room for the numbers and the title of the axis
    if top == start:
        return ""
    return svg(400, top - 8, "Each skill, base against tuned", parts)


def _key(colours: Colours) -> list[str]:
    """The models with their colours, in two columns."""
    parts = []
    for place, (name, colour) in enumerate(colours.items()):
        x = 200 * (place % 2)
        y = KEY_ROW * (place // 2 + 1)
        fill = "var(--card)" if colour == BASE else colour
        parts.append(
            f'<circle cx="{x + 8}" cy="{y - 4}" r="4" style="fill:{fill};stroke:{colour}" '
            'stroke-width="2"/>'
        )
        parts.append(text(x + 18, y, name))
    return parts


# --- losses ---------------------------------------------------------------------------------------


def losses(results: Mapping[str, Result]) -> list[str]:
    """One picture a training: the loss of each source by step, all on one scale and in the same
    colours.
    """
    trained = {name: found for name, found in results.items() if isinstance(found, TrainResult)}
    runs = {name: found.losses for name, found in trained.items() if found.losses}
    rows = [row for run in runs.values() for row in run]
    keys = {key for row in rows for key in row if key.startswith("loss/")}
    sources = sorted(keys - {"loss/target"})
    # "loss" is drawn only where no source has a loss of its own, so the ink is used once.
    colours = {"loss": "var(--ink)", "loss/target": "var(--ink)"}
    colours |= dict(zip(sources, PALETTE[3:], strict=False))
    logged = [row.get(key, 0.0) for row in rows for key in colours]
    most = max(filter(math.isfinite, logged), default=1)
    return [_loss(name, run, most, colours) for name, run in runs.items()]


def _loss(name: str, rows: Sequence[Mapping[str, float]], most: float, colours: Colours) -> str:
    x = Scale(0, max(row["step"] for row in rows), 34, 256)
    y = Scale(0, most * 1.05 or 1, 190, 24)
    parts = x_axis(x, 20, 190, "step") + y_axis(y, 34, 256, "loss")
    keys = [key for key in colours if key != "loss"]
    if not any(key in row for row in rows for key in keys):
        keys = ["loss"]
    ends = []
    for key in keys:
        finite = [row for row in rows if math.isfinite(row.get(key, math.nan))]
        every = max(1, len(finite) // LOSS_POINTS)
        points = [(x(row["step"]), y(row[key])) for row in finite[::every]]
        if len(points) == 1:  # a line of one point is not seen
            ((px, py),) = points
            parts.append(f'<circle cx="{px:g}" cy="{py:g}" r="4" style="fill:{colours[key]}"/>')
        elif points:
            parts.append(polyline(points, colours[key]))
        if points:
            ends.append((points[-1][1], key))
    lowest = 208.0
    for at, key in sorted(ends, reverse=True):
        lowest = min(at + 4, lowest - 14)  # names of lines that end close together do not overlap
        parts.append(text(261, lowest, key.removeprefix("loss/"), f'style="fill:{colours[key]}"'))
    return card(name, svg(320, 228, f"Loss of {name} by step and source", parts))
