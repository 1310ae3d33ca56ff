"""One HTML file that says what a run found: the verdict, pictures, tables, and how it was made.

Nothing is fetched: styles and pictures are inside, and the same input gives the same bytes. The
pictures are SVG in the page's own colours, so they follow light and dark mode; in each of them up
and right is better, so an axis in nats runs backwards. A model has one colour everywhere: grey for
base, red for the arm without replay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from replaykit.report.verdict import (
    Model,
    Numbers,
    Unit,
    arms_of,
    base_of,
    caution,
    interval,
    known,
    new_side,
    number,
    old_side,
    percent,
    share_of,
    unit_of,
    verdict,
)

STYLE = """
:root{color-scheme:light dark;--page:#f7f6f3;--card:#fff;--ink:#1f2428;--soft:#5f6a73;--line:#dfdfda;--base:#7b858d;
--red:#c8452b;--c1:#2467b8;--c2:#0e8070;--c3:#a63d8b;--c4:#96690b;--c5:#6450c4;--c6:#4d7c1a;--tint:#c8452b17}
@media(prefers-color-scheme:dark){:root{--page:#131619;--card:#1b1f23;--ink:#e4e7e9;--soft:#9aa5ad;--line:#30363c;--base:
#98a3ab;--red:#f0795d;--c1:#6caaf2;--c2:#45c3b0;--c3:#e685cb;--c4:#dcab4a;--c5:#a898f5;--c6:#9bc95c;--tint:#f0795d22}}
*{box-sizing:border-box} body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:1120px;margin:auto;padding:2.5rem 1.25rem 4rem} header{max-width:56rem;overflow-wrap:anywhere}
h1{font-size:1rem;font-weight:600;margin:0 0 .9rem;color:var(--soft)} h2{font-size:1.2rem;margin:2.75rem 0 .9rem}
h3{font-size:1rem;margin:0 0 .3rem;overflow-wrap:anywhere} p{margin:0 0 .6rem;color:var(--soft);font-size:.9rem}
header p{font-size:1rem;text-wrap:pretty} small{font-size:.8rem;color:var(--soft)}
header .verdict{font-size:clamp(1.2rem,2.6vw,1.6rem);line-height:1.4;font-weight:600;color:var(--ink);margin:0 0 1rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.25rem;align-items:start}
.three{grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr))} .card p:last-child{margin:.6rem 0 0}
.card{background:var(--card);min-width:0;border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.2rem}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif} text{fill:var(--ink)} .tick{fill:var(--soft)}
.halo{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round;font-weight:600}
.rule{stroke:var(--line)} .mark{stroke:var(--base)} .key{display:flex;flex-wrap:wrap;gap:.1rem 1rem}
.dot{display:inline-block;width:.65em;height:.65em;border-radius:50%;margin-right:.4em;background:var(--c)}
.base .dot{background:none;border:2px solid var(--c)} .lost{background:var(--tint)} .lost b{color:var(--red)}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.925rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.5rem .75rem;border-top:1px solid var(--line);vertical-align:top;white-space:nowrap}
thead th{border:0;color:var(--soft);font-weight:500;vertical-align:bottom} td small,th small{display:block}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card);min-width:7.5rem;padding-left:0;
white-space:normal;overflow-wrap:anywhere} th small{font-weight:400} .scroll,pre{overflow-x:auto}
.bars{display:grid;gap:.35rem .8rem;align-items:center;grid-template-columns:minmax(6rem,auto) 1fr auto;
font-size:.9rem;overflow-wrap:anywhere} .bars span:nth-child(3n){text-align:right}
.bars i{display:block;height:.7rem;border-radius:3px;background:var(--c);min-width:2px} .pair i{height:.4rem;margin:1px 0}
.stack{display:grid;gap:1.25rem;min-width:0} .card .item{margin:1rem 0 .4rem} .item b{color:var(--ink)}
.item .far{color:var(--red)} .pairs{grid-template-columns:minmax(5rem,32%) minmax(3rem,1fr) auto} .pair i.none{min-width:0}
dt{color:var(--soft)} dd{margin:0}
dl{display:grid;grid-template-columns:auto 1fr;gap:.2rem 1.2rem;margin:0;font-size:.9rem;overflow-wrap:anywhere}
pre{font:.85rem/1.5 ui-monospace,monospace;margin:0}
@media(max-width:600px){main{padding:1.5rem .8rem 3rem} .card{padding:1rem .9rem} th,td{padding:.5rem}
td small+small{white-space:normal} td small *{display:inline-block;white-space:nowrap} th:first-child{min-width:6.5rem}}
"""
STEPS = ("select", "generate", "rewrite", "mix", "train", "eval")
Colours = Mapping[str, str]  # of models
Box = tuple[float, float, float, float]  # left, top, right, bottom
PALETTE = [f"var(--c{place})" for place in range(1, 7)]


def write_report(
    path: Path,
    *,
    title: str,
    evaluation: Mapping[str, Any],
    manifests: Mapping[str, Mapping[str, Any]],
    recipe_yaml: str,
) -> Path:
    """Writes the page and returns its path. ``manifests`` are the finished steps' by folder
    name.
    """
    colours = _colours(evaluation)
    order = sorted(
        manifests, key=partial(_place, [model["model"] for model in evaluation["models"]])
    )
    steps = {name: {**manifests[name], **manifests[name].get("result", {})} for name in order}
    recipe = _card("Recipe", f"<pre>{escape(recipe_yaml)}</pre>") if recipe_yaml.strip() else ""
    sections = [
        (
            "What was learned, what was kept",
            _grid([_scatter(evaluation, colours), _dumbbells(evaluation, colours)]),
        ),
        ("Model by model", _comparison(evaluation, colours)),
        ("Skill by skill", _by_skill(evaluation, colours)),
        ("Training loss", _grid(_losses(steps), "grid three")),
        ("What the controller decided", _grid(_decisions(steps))),
        (
            "The replay data",
            _grid(card for name, step in steps.items() for card in _replay(name, step)),
        ),
        ("The mix", _mixes({name: step for name, step in steps.items() if "requested" in step})),
        ("How it was made", _grid([recipe, _made(steps)])),
    ]
    body = "\n".join(
        f"<section><h2>{heading}</h2>\n{content}</section>"
        for heading, content in sections
        if content
    )
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)} · replaykit</title><style>{STYLE}</style></head><body><main>
<header><h1>{escape(title)}</h1><p class="verdict">{escape(verdict(evaluation))}</p>
<p>{escape(caution(evaluation))}</p></header>
{body}
</main></body></html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page.encode("utf-8", "replace"))
    return path


def _place(models: Sequence[str], name: str) -> tuple[int, int, str]:
    """Where a step stands: steps as they run, arms as they were evaluated."""
    step, _, arm = name.partition("-")
    return (
        STEPS.index(step) if step in STEPS else -1,
        models.index(arm) if arm in models else -1,
        name,
    )


def _grid(cards: Iterable[str], kind: str = "grid") -> str:
    found = "".join(cards)
    return f'<div class="{kind}">{found}</div>' if found else ""


def _card(title: str, content: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3>{content}</div>\n'


def _colours(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Each model's colour: grey for base, red for the first arm without replay, the palette for the
    others.
    """
    arms = arms_of(evaluation)
    found = {base_of(evaluation)["model"]: "var(--base)"}
    found |= {arm["model"]: "var(--red)" for arm in [arm for arm in arms if share_of(arm) == 0][:1]}
    others = [arm["model"] for arm in arms if arm["model"] not in found]
    return found | {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(others)}


def _label(name: str, colours: Colours) -> str:
    """A model's name behind a dot of its colour."""
    kind = ' class="base"' if colours[name] == "var(--base)" else ""
    return f'<span{kind} style="--c:{colours[name]}"><span class="dot"></span>{escape(name)}</span>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table of cells that are HTML already; the first of a row is its heading. A leading "!"
    marks a loss.
    """
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = ""
    for first, *cells in rows:
        tds = (
            f'<td class="lost">{cell[1:]}</td>' if cell[:1] == "!" else f"<td>{cell}</td>"
            for cell in cells
        )
        body += f'<tr><th scope="row">{first}</th>{"".join(tds)}</tr>\n'
    table = f"<table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>"
    return (
        f'<div class="card"><div '
        f'class="scroll">{table}</div>{f"<p>{note}</p>" if note else ""}</div>'
        if body
        else ""
    )


def _value(numbers: Numbers | None, unit: Unit = "score") -> str:
    """A mean with its interval below."""
    mean = number((numbers or {}).get("mean"), unit)
    return f"{mean}<small>{interval(numbers, unit)}</small>" if interval(numbers) else mean


def _comparison(evaluation: Mapping[str, Any], colours: Colours) -> str:
    old = old_side(evaluation)
    new = new_side(evaluation)
    rows = []
    columns = 7 if any(model.get("retention") for model in evaluation["models"]) else 5
    for model in evaluation["models"]:
        name = model["model"]
        worst = model.get("worst")
        steps = f"{model['steps']:,}" if model.get("steps") is not None else "–"
        cells = [_value(side.of.get(name), side.unit) for side in (new, old)]
        cells.append(_value(model.get("retention")))
        cells.append(
            f"{number(worst['retention'])}<small>{escape(worst['skill'])}</small>" if worst else "–"
        )
        rows.append([_label(name, colours), percent(share_of(model)), steps, *cells][:columns])
    head = [
        "Model",
        "Replay",
        "Steps",
        new.title.capitalize(),
        old.title.capitalize(),
        "Retention",
        "Worst old skill",
    ]
    note = (
        "Below a mean: its 95 % interval. Replay: its share of the loss. Retention: tuned over "
        "base, on old skills."
    )
    return _table(head[:columns], rows, note)


def _by_skill(evaluation: Mapping[str, Any], colours: Colours) -> str:
    def cell(model: Model, name: str, unit: Unit, old: bool) -> str:
        drop = model.get("drop", {}).get(name)
        text = _value(model["scores"].get(name), unit)
        if not drop or not old:
            return text
        flag, word = ("!", "b") if drop["low"] > 0 else ("", "span")
        shown = f"{'rise' if unit == 'nats' else 'drop'} {number(drop['mean'], unit)}"
        return (
            f"{flag}{text}<small><{word}>{shown}</{word}> "
            f"<span>({interval(drop, unit)})</span></small>"
        )

    rows = []
    for skill in evaluation["skills"]:
        name = skill["skill"]
        unit = unit_of(skill)
        old = skill["role"] == "old"
        kind = "nats, fewer are better" if unit == "nats" else escape(skill["score"])
        without = (
            f", {skill['unscored']:,} more too long for the model" if skill.get("unscored") else ""
        )
        first = (
            f"{escape(name)}<small>{'' if old else 'new skill, '}{kind}, {skill['n']:,} "
            f"rows{without}</small>"
        )
        rows.append([first, *(cell(model, name, unit, old) for model in evaluation["models"])])
    note = (
        "Drop, rise: the change for the worse against base, on the same rows. Tinted: all of "
        "the interval is a loss."
    )
    return _table(
        ["Skill", *(_label(model["model"], colours) for model in evaluation["models"])], rows, note
    )


@dataclass(frozen=True)
class Scale:
    """From numbers to pixels along one axis: ``worst`` is drawn at ``start``, ``best`` at
    ``end``.
    """

    worst: float
    best: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(
            self.start + (value - self.worst) / (self.best - self.worst) * (self.end - self.start),
            1,
        )

    def ticks(self) -> list[float]:
        """At most six round numbers."""
        low, high = sorted((self.worst, self.best))
        size = 10 ** math.floor(math.log10(high - low)) / 10
        step = next(
            size * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (size * factor) <= 5.5
        )
        return [
            step * place
            for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        ]


def _scale(values: Iterable[Numbers], unit: Unit, start: float, end: float) -> Scale:
    """An axis that holds all intervals: 0 to 1 for scores, unless they all lie close together."""
    ends = [numbers[key] for numbers in values for key in ("low", "high", "mean")]
    low = min(ends)
    high = max(ends)
    room = max(0.06 * (high - low), 0.03)
    if unit == "nats":
        return Scale(high + room, low - room, start, end)
    return (
        Scale(0, 1, start, end)
        if high - low > 0.4
        else Scale(max(0, low - room), min(1, high + room), start, end)
    )


def _svg(width: int, height: float, title: str, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    box = f"0 0 {width} {height:g}"
    return f'<svg viewBox="{box}" role="img"><title>{escape(title)}</title>\n{body}\n</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, how: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" {how}/>'


def _text(x: float, y: float, text: str, how: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {how}>{escape(text)}</text>'


def _x_axis(scale: Scale, top: float, bottom: float, title: str) -> list[str]:
    parts = [_line(scale(tick), top, scale(tick), bottom, 'class="rule"') for tick in scale.ticks()]
    parts += [
        _text(scale(t), bottom + 16, f"{t:.4g}", 'class="tick" text-anchor="middle"')
        for t in scale.ticks()
    ]
    return [*parts, _text(scale.end, bottom + 34, title, 'text-anchor="end"')]


def _y_axis(scale: Scale, left: float, right: float, title: str) -> list[str]:
    parts = [_line(left, scale(tick), right, scale(tick), 'class="rule"') for tick in scale.ticks()]
    parts += [
        _text(left - 7, scale(t) + 4, f"{t:.4g}", 'class="tick" text-anchor="end"')
        for t in scale.ticks()
    ]
    return [*parts, _text(left - 30, min(scale.start, scale.end) - 14, title)]


def _scatter(evaluation: Mapping[str, Any], colours: Colours) -> str:
    """A point a model: old skills kept to the right, new skill learned upwards; bars are the
    intervals.
    """
    old = old_side(evaluation)
    new = new_side(evaluation)
    names = [name for name in colours if name in old.of and name in new.of]
    if len(names) < 2:
        return ""
    x = _scale([old.of[name] for name in names], old.unit, 44, 386)
    y = _scale([new.of[name] for name in names], new.unit, 322, 36)
    right = "old data: rise of cross-entropy, nats" if old.rise else "old skills kept: mean score"
    up = "new skill: cross-entropy, nats" if new.unit == "nats" else "new skill learned: score"
    parts = _x_axis(x, 28, 330, f"{right} → better") + _y_axis(y, 36, 394, f"{up} ↑ better")
    places = {}
    taken = []
    points = []
    for name in names:
        a = old.of[name]
        b = new.of[name]
        colour = colours[name]
        px, py = places[name] = x(a["mean"]), y(b["mean"])
        ends = [(x(a["low"]), py, x(a["high"]), py), (px, y(b["high"]), px, y(b["low"]))]
        taken += [
            (x1 - 1, y1 - 1, x2 + 1, y2 + 1)
            for x1, y1, x2, y2 in [*ends, (px - 7, py - 7, px + 7, py + 7)]
        ]
        parts += [
            _line(*end, f'style="stroke:{colour}" stroke-width="2" stroke-opacity=".6"')
            for end in ends
        ]
        tip = (
            f"{name}: old {old.text(name)} ({interval(a, old.unit)}), new {new.text(name)} "
            f"({interval(b, new.unit)})"
        )
        fill = "var(--card)" if colour == "var(--base)" else colour
        dot = (
            f'<circle cx="{px}" cy="{py}" r="6" style="fill:{fill};stroke:{colour}" '
            f'stroke-width="2.5">'
        )
        points.append(f"{dot}<title>{escape(tip)}</title></circle>")
    parts += points
    for name, (px, py) in places.items():
        model = next(model for model in evaluation["models"] if model["model"] == name)
        said = not share_of(model) or name.endswith(str(model.get("ratio")))
        text = name if said else f"{name}, {percent(share_of(model))}"
        parts.append(_placed(text, px, py, colours[name], taken))
    words = (
        "<p>A point is a model. Up: better at the new task; right: better at the old. Lines: "
        "95 % intervals.</p>"
    )
    return _card(
        "Learned against kept", words + _svg(400, 370, f"{up}; {right}; a point a model", parts)
    )


def _placed(text: str, px: float, py: float, colour: str, taken: list[Box]) -> str:
    """The text near the point, where it covers least of what is taken; its own place is taken
    then.
    """

    def box(far: float, degrees: int) -> Box:
        cos = math.cos(math.radians(degrees))
        wide = 7 * len(text)
        left = px + far * cos - wide * (1 - round(cos, 1)) / 2
        middle = py + far * math.sin(math.radians(degrees))
        return left, middle - 7, left + wide, middle + 7

    def cost(place: tuple[int, int]) -> float:
        x1, y1, x2, y2 = box(*place)
        covered = sum(
            max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b))
            for a, b, c, d in taken
        )
        return (
            covered
            + 100 * (max(0, 38 - x1) + max(0, x2 - 398) + max(0, 20 - y1) + max(0, y2 - 328))
            + place[0]
        )

    best = min(
        ((far, degrees) for far in (12, 24, 40, 60, 80) for degrees in range(0, 360, 30)), key=cost
    )
    x1, y1, x2, y2 = box(*best)
    taken.append((x1, y1, x2, y2))
    lead = (
        _line(px, py, min(max(px, x1), x2), min(max(py, y1), y2), f'style="stroke:{colour}"')
        if best[0] > 24
        else ""
    )
    return lead + _text(x1, y2 - 3, text, f'class="halo" style="fill:{colour}"')


def _dumbbells(evaluation: Mapping[str, Any], colours: Colours) -> str:
    """For each skill a line from base to each arm; scores and nats have axes of their own."""
    base = base_of(evaluation)
    arms = arms_of(evaluation)
    top = 0.0
    parts: list[str] = []
    units: dict[Unit, str] = {
        "score": "score → better",
        "nats": "cross-entropy, nats per token → better",
    }
    for unit, title in units.items() if arms else ():
        skills = [skill for skill in evaluation["skills"] if unit_of(skill) == unit]
        measured = [
            model["scores"].get(skill["skill"])
            for skill in skills
            for model in evaluation["models"]
        ]
        if not any(known(numbers) for numbers in measured):
            continue
        x = _scale(filter(known, measured), unit, 8, 388)
        height = 24 + 11 * len(arms)
        bottom = top + height * len(skills) + 4
        parts += _x_axis(x, top, bottom, title)
        for place, skill in enumerate(skills):
            shown = skill["skill"] + (" (new)" if skill["role"] == "target" else "")
            parts.append(_text(0, top + height * place + 14, shown, 'class="halo"'))
            parts += _dumbbell(x, top + height * place + 20, skill["skill"], base, arms, colours)
        top = bottom + 48
    key = "".join(_label(name, colours) for name in colours)
    words = (
        "<p>From base (upright grey bar) to each tuned model (dot); the pale band is its 95 % "
        "interval.</p>"
    )
    picture = _svg(400, top - 8, "Each skill, base against tuned", parts)
    return _card("From base to tuned", f'{words}<p class="key">{key}</p>{picture}') if parts else ""


def _dumbbell(
    x: Scale, y: float, skill: str, base: Model, arms: Sequence[Model], colours: Colours
) -> Iterator[str]:
    start = base["scores"].get(skill)
    for row, arm in enumerate(arms):
        end = arm["scores"].get(skill)
        at = y + 6.5 + 11 * row
        how = f'style="stroke:{colours[arm["model"]]}"'
        if known(end):
            band = f'{how} stroke-width="7" stroke-opacity=".25" stroke-linecap="round"'
            yield _line(x(end["low"]), at, x(end["high"]), at, band)
            yield (
                _line(x(start["mean"]), at, x(end["mean"]), at, f'{how} stroke-width="2"')
                if known(start)
                else ""
            )
            yield (
                f'<circle cx="{x(end["mean"])}" cy="{at:g}" r="4" '
                f'style="fill:{colours[arm["model"]]}"/>'
            )
    if known(start):
        yield _line(
            x(start["mean"]),
            y,
            x(start["mean"]),
            y + 2 + 11 * len(arms),
            'class="mark" stroke-width="3"',
        )


def _losses(steps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One picture a training: the loss of each source by step, all on one scale and in the same
    colours.
    """
    runs = {name: step["losses"] for name, step in steps.items() if step.get("losses")}
    rows = [row for run in runs.values() for row in run]
    sources = sorted(
        {key for row in rows for key in row if key.startswith("loss/")} - {"loss/target"}
    )
    colours = {"loss": "var(--ink)", "loss/target": "var(--ink)"} | dict(
        zip(sources, PALETTE[3:], strict=False)
    )
    most = max(
        (value for row in rows for key in colours if math.isfinite(value := row.get(key, 0))),
        default=1,
    )
    return [_loss(name, run, most, colours) for name, run in runs.items()]


def _loss(name: str, rows: Sequence[Mapping[str, float]], most: float, colours: Colours) -> str:
    x = Scale(0, max(row["step"] for row in rows), 34, 256)
    y = Scale(0, most * 1.05 or 1, 190, 24)
    parts = _x_axis(x, 20, 190, "step") + _y_axis(y, 34, 256, "loss")
    ends = []
    several = any(key in row for row in rows for key in colours if key != "loss")
    for key in [key for key in colours if key != "loss"] if several else ["loss"]:
        known = [row for row in rows if math.isfinite(row.get(key, math.nan))]
        points = [(x(row["step"]), y(row[key])) for row in known[:: max(1, len(known) // 300)]]
        line = " ".join(f"{at:g},{value:g}" for at, value in points)
        parts.append(
            f'<polyline points="{line}" fill="none" style="stroke:{colours[key]}" '
            f'stroke-width="2"/>'
        )
        ends += [(points[-1][1], key)] if points else []
    lowest = 208.0
    for at, key in sorted(ends, reverse=True):
        lowest = min(at + 4, lowest - 14)
        parts.append(_text(261, lowest, key.removeprefix("loss/"), f'style="fill:{colours[key]}"'))
    return _card(name, _svg(320, 228, f"Loss of {name} by step and source", parts))


def _decisions(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A card for each training with a controller: its share of replay and its worst drop by step,
    and what it changed.
    """
    for name, step in steps.items():
        if events := step.get("events"):
            share = f"{percent(events[0]['ratio_before'])} to {percent(events[-1]['ratio'])}"
            words = (
                f"<p>{len(events):,} tests of old skills, the share of replay from {share}. A drop "
                f"is the part of its base "
                f"score that the worst skill has lost; lines are its bounds, and a lower one "
                f"beyond the dashed line acts.</p>"
            )
            changes = [event for event in events if _changed(event)]
            said = "".join(
                f"<dt>step {event['step']:,}</dt><dd>{escape(event['reason'])}</dd>"
                for event in changes
            )
            picture = _svg(
                400, 366, f"Decisions of {name} by step", [*_shares(events), *_drops(events)]
            )
            yield _card(
                name,
                f"{words}{picture}<dl>{said}</dl>"
                if said
                else f"{words}{picture}<p>Nothing changed.</p>",
            )


def _changed(event: Mapping[str, Any]) -> list[str]:
    """In words as short as a mark in a picture what the event changed."""
    marks = ["more replay"] if event["ratio"] > event["ratio_before"] else []
    marks += ["less replay"] if event["ratio"] < event["ratio_before"] else []
    marks += (
        [f"remedy {'on' if event['remedy'] else 'off'}"]
        if event["remedy"] != event["remedy_before"]
        else []
    )
    return marks + (["training ends"] if event["stop"] else [])


def _shares(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The share of replay in per cent as a line of steps, and a mark at each change, with its
    reason.
    """
    x = _by_step(events)
    ratios = [ratio for event in events for ratio in (event["ratio_before"], event["ratio"])]
    y = Scale(0, 115 * max(ratios) or 1, 136, 26)
    yield from _y_axis(y, 44, 386, "share of replay, %")
    points = [(x(0), y(100 * ratios[0]))]
    for event in events:
        points += [(x(event["step"]), y(100 * event[key])) for key in ("ratio_before", "ratio")]
    line = " ".join(f"{at:g},{value:g}" for at, value in points)
    yield f'<polyline points="{line}" fill="none" style="stroke:var(--c1)" stroke-width="2"/>'
    for event in events:
        if marks := _changed(event):
            at = x(event["step"])
            value = y(100 * event["ratio"])
            tip = f"<title>step {event['step']:,}: {escape(event['reason'])}</title>"
            yield f'<circle cx="{at:g}" cy="{value:g}" r="4" style="fill:var(--c1)">{tip}</circle>'
            for place, mark in enumerate(mark for mark in marks if "replay" not in mark):
                side, how = (-7, "end") if at > 300 else (7, "start")
                below = (
                    value + 16 + 13 * place if mark != "remedy off" else value - 8
                )  # where the line does not go on
                yield _text(at + side, below, mark, f'class="halo" text-anchor="{how}"')


def _drops(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The worst skill's drop at each test with its bounds, in per cent; small drops are above."""
    found = [
        (event, event["drops"][event["worst"]]) for event in events if event["worst"] is not None
    ]
    x = _by_step(events)
    limit = 100 * events[0]["max_drop"]
    most = max([2 * limit, *(100 * min(drop["high"], 1.0) for _, drop in found)])
    least = min([0.0, *(100 * max(drop["low"], -0.2) for _, drop in found)])
    y = Scale(most, least - 0.06 * (most - least), 322, 176)
    yield from _x_axis(x, 166, 330, "step") + _y_axis(y, 44, 386, "worst drop, % ↑ better")
    yield _line(x(0), y(limit), 386, y(limit), 'style="stroke:var(--red)" stroke-dasharray="5 4"')
    for event, drop in found:
        ends = [y(100 * min(max(drop[key], -0.2), 1.0)) for key in ("low", "high")]
        colour = "var(--red)" if drop["low"] > event["max_drop"] else "var(--base)"
        at = x(event["step"])
        how = f'style="stroke:{colour}" stroke-width="2"'
        tip = (
            f"step {event['step']:,}: {event['worst']}, {percent(drop['mean'])} "
            f"({percent(drop['low'])} at least)"
        )
        yield _line(at, ends[0], at, ends[1], how)
        dot = f'<circle cx="{at:g}" cy="{y(100 * drop["mean"]):g}" r="4" style="fill:{colour}">'
        yield f"{dot}<title>{escape(tip)}</title></circle>"


def _by_step(events: Sequence[Mapping[str, Any]]) -> Scale:
    return Scale(0, events[-1]["step"], 44, 380)


def _funnel(name: str, funnel: Mapping[str, Any]) -> str:
    made = funnel["made"]
    rows = [
        ("made", made, "--base"),
        *((reason, count, "--red") for reason, count in funnel["dropped"].items()),
    ]
    bars = ""
    for label, count, colour in [*rows, ("kept", funnel["kept"], "--c2")]:
        part = 100 * count / made if made else 0
        bars += (
            f"<span>{escape(label)}</span><i "
            f'style="--c:var({colour});width:{part:.1f}%"></i><span>{count:,}</span>'
        )
    return _card(name, f'<div class="bars">{bars}</div>')


def _replay(name: str, step: Mapping[str, Any]) -> Iterator[str]:
    """The cards of a step that makes replay: its funnel, what a judge said of it, what its checks
    did to the sample.
    """
    funnel = _funnel(name, step["funnel"]) if step.get("funnel") else ""
    if step.get("tags"):
        yield f'<div class="stack">{funnel}{_tags(name, step["tags"])}</div>'
    else:
        yield funnel
    if step.get("fidelity"):
        yield _fidelity(name, step["fidelity"])
    if step.get("scores"):
        yield _scores(name, step["scores"])


def _scores(name: str, scores: Mapping[str, Any]) -> str:
    """The histogram of all scores, as heights; the chosen rows' lowest score is the cut."""
    counts = scores["histogram"]["counts"]
    edges = scores["histogram"]["edges"]
    width = 360
    height = 90
    most = math.log1p(max(counts)) or 1.0
    step = width / len(counts)
    cut = width * scores["lowest"] / (edges[-1] or 1.0)
    bars = ""
    for place, count in enumerate(counts):
        tall = (
            height * math.log1p(count) / most
        )  # few rows are near: their bars would not be seen beside those of the many
        colour = "var(--c2)" if edges[place] >= scores["lowest"] else "var(--base)"
        at = (
            f'x="{place * step:.1f}" y="{height - tall:.1f}" width="{step - 1:.1f}" '
            f'height="{tall:.1f}"'
        )
        bars += f'<rect {at} fill="{colour}"/>'
    line = (
        f'<line x1="{cut:.1f}" x2="{cut:.1f}" y1="0" y2="{height}" stroke="var(--red)" '
        f'stroke-dasharray="3 3"/>'
    )
    said = (
        f"Similarity of all rows after the checks, from 0 to {edges[-1]:.2f}, heights logarithmic; "
        f"the lowest of those "
        f"chosen is {scores['lowest']:.3f}, their median {scores['median']:.3f}."
    )
    picture = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="histogram of '
        f'scores">{bars}{line}</svg>'
    )
    return _card(f"{name}: scores", f"{picture}<p>{escape(said)}</p>")


def _fidelity(name: str, fidelity: Mapping[str, Any]) -> str:
    """For each item two bars a word: grey is its share of the drawn rows, the other its share of
    those kept.
    """
    compared = (
        f"{fidelity['rows']:,} of {fidelity['drawn']:,} rows drawn were compared, "
        f"{fidelity['kept']:,} of them kept."
    )
    if not fidelity["items"]:
        return _card(
            f"{name}: drawn against kept",
            f"<p>No comparison: {escape(fidelity['note'] or '')}.</p>",
        )
    body = (
        f"<p>{compared} Grey: share of the drawn rows. Green: share of the kept. A distance of "
        f"0 is no change.</p>"
    )
    for item, found in fidelity["items"].items():
        far = (
            ' <span class="far">more than chance</span>'
            if found["distance"] > found["chance"]
            else ""
        )
        title = {
            "length": "length of questions, characters",
            "category": "category of questions, by their words",
        }
        distance = f"distance {found['distance']:.3f}, by chance up to {found['chance']:.3f}"
        body += (
            f'<p class="item"><b>{escape(title.get(item, item))}</b> '
            f"{distance}{far}</p>\n<div "
            f'class="bars pairs">'
        )
        most = max([*found["raw"], *found["kept"]])
        for word, raw, kept in zip(found["words"], found["raw"], found["kept"], strict=True):
            bars = "".join(
                f"<i{'' if share else ' class=none'} "
                f'style="--c:var({colour});width:{100 * share / most:.1f}%"></i>'
                for share, colour in ((raw, "--base"), (kept, "--c2"))
            )
            shares = f"{100 * raw:.1f} → {100 * kept:.1f} %"
            body += (
                f'<span>{escape(word)}</span><div class="pair">{bars}</div><span>{shares}</span>'
            )
        body += "</div>"
    return _card(f"{name}: drawn against kept", body)


def _tags(name: str, tags: Mapping[str, Mapping[str, int]]) -> str:
    """For each tag a bar a word; what the judge did not say in a readable way is red."""
    body = ""
    for tag, counts in tags.items():
        body += f'<p class="item"><b>{escape(tag)}</b></p>\n<div class="bars">'
        for word, count in counts.items():
            style = f"--c:var({'--red' if word == 'unparsed' else '--c1'});width:{100 * count / max(counts.values()):.1f}%"
            body += f'<span>{escape(word)}</span><i style="{style}"></i><span>{count:,}</span>'
        body += "</div>"
    return _card(f"{name}: what a judge says of the kept rows", body)


def _mixes(mixes: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    notes = []
    for name, mix in mixes.items():
        share = [percent(mix["share"].get(unit)) for unit in ("loss_tokens", "tokens", "rows")]
        counts = [f"{mix[key]:,}" for key in ("target_rows", "replay_rows")]
        times = ", ".join(
            f"{escape(source)} {times:.2f}×" for source, times in mix.get("repeats", {}).items()
        )
        last = percent(mix.get("last_share", {}).get(mix.get("unit")))
        off = f"{mix['furthest_step']['rows']:.2f}" if "furthest_step" in mix else "–"
        cost = f"{mix['cost']:.3f}×" if "cost" in mix else "–"
        rows.append(
            [
                escape(name),
                escape(mix.get("asked") or percent(mix["requested"])),
                *share,
                last,
                off,
                *counts,
                times,
                cost,
            ]
        )
        notes += [f"{name}: {note}." for note in mix.get("notes", [])]
        if mix.get("not_shown"):
            notes.append(
                f"{name}: {mix['not_shown']:,} of the {mix['available']['target']:,} target rows "
                f"never come."
            )
    head = [
        "Mix",
        "Asked for",
        "Of loss tokens",
        "Of tokens",
        "Of rows",
        "Last fifth",
        "Furthest step",
        "Target rows",
        "Replay rows",
        "Each row seen",
        "Cost",
    ]
    legend = (
        "Furthest step: how far a step is from its share, in rows. Cost: all tokens over "
        "those of the target alone."
    )
    return _table(head, rows, escape(" ".join([legend, *notes])))


def _made(steps: Mapping[str, Mapping[str, Any]]) -> str:
    """When, how long and with what: the seconds of each step, the versions and the machines."""
    rows = []
    for name, step in steps.items():
        seconds = f"{step['seconds']:,.1f} s" if "seconds" in step else ""
        rows.append(
            (
                name,
                ", ".join(filter(None, [seconds, step.get("finished", "")[:16].replace("T", " ")])),
            )
        )
    versions = {
        f"{name} {version}"
        for step in steps.values()
        for name, version in step.get("versions", {}).items()
    }
    machines = {step["machine"] for step in steps.values() if step.get("machine")}
    rows += [("versions", ", ".join(sorted(versions))), ("machine", "; ".join(sorted(machines)))]
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows if text
    )
    return _card("Steps", f"<dl>{items}</dl>") if items else ""
