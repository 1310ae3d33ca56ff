"""The blocks that the page is built of: cards, grids, tables, and the colours of models.

Each function gives HTML; an empty block is "", so that nothing is shown where nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.report.verdict import arms_of, base_of, control_of

Colours = Mapping[str, str]  # by model, or by source of rows
BASE = "var(--base)"
PALETTE = [f"var(--c{place})" for place in range(1, 7)]


class Lost(str):
    """A table cell that is tinted, since it shows a loss."""


class Shaded(str):
    """A table cell that is shaded, the darker the higher its value from 0 to 1."""

    value: float
    framed: bool

    @classmethod
    def of(cls, text: str, value: float, *, framed: bool = False) -> Shaded:
        """The cell of this HTML; a framed one has a border too."""
        cell = cls(text)
        cell.value = value
        cell.framed = framed
        return cell


def grid(cards: Iterable[str], kind: str = "grid") -> str:
    content = "".join(cards)
    if not content:
        return ""
    return f'<div class="{kind}">{content}</div>'


def card(title: str, content: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3>{content}</div>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table of cells that are HTML already; the first of a row is its heading."""
    body = ""
    for first, *cells in rows:
        data = "".join(_cell(cell) for cell in cells)
        body += f'<tr><th scope="row">{first}</th>{data}</tr>\n'
    if not body:
        return ""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    whole = f"<table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>"
    below = ""
    if note:
        below = f"<p>{note}</p>"
    return f'<div class="card"><div class="scroll">{whole}</div>{below}</div>'


def _cell(cell: str) -> str:
    if isinstance(cell, Lost):
        return f'<td class="lost">{cell}</td>'
    if isinstance(cell, Shaded):
        kind = "shade framed" if cell.framed else "shade"
        return f'<td class="{kind}" style="--s:{100 * cell.value:.0f}%">{cell}</td>'
    return f"<td>{cell}</td>"


def colours_of(evaluation: EvalResult) -> dict[str, str]:
    """Each model's colour: grey for base, red for the first arm without replay, the palette for
    the others.
    """
    found = {base_of(evaluation).model: BASE}
    control = control_of(evaluation)
    if control is not None:
        found[control.model] = "var(--red)"
    others = [arm.model for arm in arms_of(evaluation) if arm.model not in found]
    for place, name in enumerate(others):
        found[name] = PALETTE[place % len(PALETTE)]
    return found


def label(name: str, colours: Colours) -> str:
    """A model's name behind a dot of its colour."""
    kind = ""
    if colours[name] == BASE:  # a ring, so that it is told from the others without colours too
        kind = ' class="base"'
    return f'<span{kind} style="--c:{colours[name]}"><span class="dot"></span>{escape(name)}</span>'
