"""The pictures of the page by themselves, as SVG or PNG files or in a notebook."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from replaykit.errors import DataError, MissingExtra, RunError
from replaykit.result import Result
from replaykit.runs import read_json
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.report.html.blocks import colours_of
from replaykit.steps.report.html.decisions import decisions
from replaykit.steps.report.html.pictures import dumbbell_picture, losses, scatter
from replaykit.steps.report.html.style import STYLE
from replaykit.steps.train.result import TrainResult
from replaykit.text import printable
from replaykit.written import LIST, replaced

# The page's rules that a picture uses; outside of the page nobody sets its size.
RULES = "svg{font:12px system-ui,sans-serif}" + "".join(
    rule
    for rule in re.findall(r"^(?:text|\.tick|\.halo|\.rule|\.mark)\{[^}]*\}", STYLE, re.MULTILINE)
)
BLANK = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"></svg>'
WORD = BLANK.replace("></svg>", '><text x="2" y="16" font-family="sans-serif">x</text></svg>')
VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
EDGE = 12  # around a picture
VARIABLE = re.compile(r"var\((--[\w-]+)\)")


@dataclass(frozen=True)
class Plot:
    """A picture. A notebook shows it by itself."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Writes the SVG file."""
        path = Path(path)
        path.write_text(self.svg, encoding="utf-8")
        return path


def plot(evaluation: EvalResult) -> Plot:
    """Learned against kept, a point a model, in the page's light colours.

    Raises DataError where fewer than two models were measured on both old and new skills.
    """
    found = alone(scatter(evaluation, colours_of(evaluation)))
    if not found:
        raise DataError("a plot needs two models that were tested on old skills and on the target")
    return Plot(found)


def alone(card: str) -> str:
    """The picture in a piece of the page as a file of its own, in the light colours; "" where there
    is none.
    """
    found = re.search(r"<svg.*</svg>", card, re.DOTALL)
    if found is None:
        return ""
    # Of a name with control characters an SVG file would be no XML.
    picture = printable(_with_head(found[0]))
    return VARIABLE.sub(lambda name: _light_colours()[name[1]], picture)


def pictures(results: Mapping[str, Result]) -> dict[str, str]:
    """The pictures of a run as SVG, by the name of their file without its end: learned against
    kept, base against tuned, the loss and the decisions of each training.
    """
    cards: dict[str, str] = {}
    for result in results.values():
        if isinstance(result, EvalResult):
            colours = colours_of(result)
            cards["learned-against-kept"] = scatter(result, colours)
            cards["base-against-tuned"] = dumbbell_picture(result, colours, key=True)
    trained = {name: found for name, found in results.items() if isinstance(found, TrainResult)}
    logged = [f"loss-{name}" for name, found in trained.items() if found.losses]
    cards |= dict(zip(logged, losses(results), strict=True))
    steered = [f"decisions-{name}" for name, found in trained.items() if found.events]
    cards |= dict(zip(steered, decisions(results), strict=True))
    made = {re.sub(r"[^\w.-]+", "-", name): alone(card) for name, card in cards.items()}
    return {name: picture for name, picture in made.items() if picture}


def as_png(svg: str) -> bytes:
    """The picture in pixels, twice the size of its SVG.

    Raises MissingExtra without resvg, and RunError where this machine has no font for its words.
    """
    try:
        import resvg_py
    except ImportError:
        raise MissingExtra("resvg_py", "plots") from None
    # A picture without its words would say nothing, and resvg leaves out what it has no font for.
    if resvg_py.svg_to_bytes(svg_string=WORD) == resvg_py.svg_to_bytes(svg_string=BLANK):
        raise RunError(
            "a PNG needs a font, and this machine has none; install one, such as the package "
            "fonts-dejavu-core, or leave --png out: the SVG files need none"
        )
    # Twice the width that _with_head sets.
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=2))


def write_pictures(folder: Path, found: Mapping[str, str], *, png: bool) -> list[Path]:
    """Writes the pictures into the folder, and removes those of ours that are there and are not
    among them. Raises as ``as_png`` and ``replaced`` do.
    """
    files = {f"{name}.svg": picture.encode("utf-8", "replace") for name, picture in found.items()}
    if png:
        files |= {f"{name}.png": as_png(picture) for name, picture in found.items()}
    before = read_json(folder / LIST) or {}
    if not files and not before:
        return []
    with replaced(folder, [*files, *(name for name in before if name not in files)]) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)
    return [folder / name for name in files]


def _with_head(picture: str) -> str:
    """The picture with what a file of its own needs: a namespace, a size, its rules, a ground that
    is wider than it.
    """
    start, _, rest = picture.partition(">")
    size = VIEW.search(start)
    assert size is not None
    wide, high = (float(length) + 2 * EDGE for length in size.groups())
    box = f'width="{wide:g}" height="{high:g}"'
    ground = f'<rect x="-{EDGE}" y="-{EDGE}" {box} fill="var(--card)"/>'
    start = start.replace(size[0], f'viewBox="-{EDGE} -{EDGE} {wide:g} {high:g}"')
    head = start.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" width="640"', 1)
    return f"{head}><style>{RULES}</style>{ground}{rest}"


def _light_colours() -> dict[str, str]:
    light = STYLE.partition("@media")[0]
    return dict(re.findall(r"(--[\w-]+):(#\w+)", light))
