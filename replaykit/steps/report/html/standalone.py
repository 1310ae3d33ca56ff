"""A picture of the page by itself, as an SVG file or in a notebook."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from replaykit.errors import DataError
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.report.html.blocks import colours_of
from replaykit.steps.report.html.pictures import scatter
from replaykit.steps.report.html.style import STYLE

# The page's rules that a picture uses; outside of the page nobody sets its size.
RULES = "svg{font:12px system-ui,sans-serif}" + "".join(
    rule for rule in re.findall(r"^(?:text|\.tick|\.halo|\.rule)\{[^}]*\}", STYLE, re.MULTILINE)
)
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
    found = re.search(r"<svg.*</svg>", scatter(evaluation, colours_of(evaluation)), re.DOTALL)
    if found is None:
        raise DataError("a plot needs two models that were tested on old skills and on the target")
    picture = _with_head(found[0])
    return Plot(VARIABLE.sub(lambda name: _light_colours()[name[1]], picture))


def _with_head(picture: str) -> str:
    """The picture with what a file of its own needs: a namespace, a size, its rules, a ground."""
    start, _, rest = picture.partition(">")
    ground = '<rect width="100%" height="100%" fill="var(--card)"/>'
    head = start.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" width="640"', 1)
    return f"{head}><style>{RULES}</style>{ground}{rest}"


def _light_colours() -> dict[str, str]:
    light = STYLE.partition("@media")[0]
    return dict(re.findall(r"(--[\w-]+):(#\w+)", light))
