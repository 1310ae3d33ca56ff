"""The rows of a run on the page: items that flipped with both answers, replay with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from replaykit.data.record import TARGET
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.report.flips import Flip, Flips, Way
from replaykit.steps.report.html.browse import (
    Case,
    answer,
    browser,
    conversation,
    first_words,
    turn,
)
from replaykit.steps.report.html.browse import shown as text_of
from replaykit.steps.report.replayed import Replayed, Used
from replaykit.text import printable

WAYS: dict[Way, str] = {"lost": "right → wrong", "gained": "wrong → right"}


def flipped(flips: Flips) -> str:
    """The list of flips; "" where there is nothing to say."""
    note = f" Note: {escape(flips.note)}." if flips.note else ""
    if not flips.shown:
        return f'<div class="card"><p>{note}</p></div>' if note else ""
    lost = sum(count for (_, _, way), count in flips.counts.items() if way == "lost")
    gained = flips.total - lost
    which = ""
    if flips.total > len(flips.shown):
        which = ", the first ones of each skill, model and direction"
    words = (
        f"{lost:,} answers went from right to wrong and {gained:,} from wrong to right, all skills "
        f"and models together; {len(flips.shown):,} of {flips.total:,} are shown{which}.{note}"
    )
    return browser([_flip(flip) for flip in flips.shown], words)


def _flip(flip: Flip) -> Case:
    skill = "new skill" if flip.skill == TARGET else flip.skill
    way = WAYS[flip.way]
    asked = ""
    reference = ""
    first = flip.base.answer or ""
    if flip.asked is not None:
        first = flip.asked.question
        *before, last = flip.asked.messages
        asked = conversation(before)
        reference = turn(last, "reference")
    sides = _side("base", flip.base) + _side(flip.model, flip.tuned)
    body = f'{asked}{reference}<div class="sides">{sides}</div>'
    heading = (
        f'<span class="way {flip.way}">{way}</span> <b>{escape(printable(skill))}</b> '
        f"<span>{escape(printable(flip.model))}</span> {first_words(first)}"
    )
    return Case({"skill": skill, "model": flip.model, "direction": way}, heading, body)


def _side(name: str, item: Item) -> str:
    """One model's answer."""
    right = "right" if item.score else "wrong"
    ends = ", cut at the token limit" if item.finish == "length" else ""
    parts = "".join(answer(item.answer or "", thought=item.reasoning, calls=list(item.calls or ())))
    title = f"{escape(printable(name))}: {right}{ends}"
    return f'<div class="side {right}"><h4>{title}</h4>{parts}</div>'


def replay_rows(mixtures: Sequence[Replayed]) -> str:
    """The sample of the replay that was trained on; "" where there was none."""
    cases = [_used(mixture, used) for mixture in mixtures for used in mixture.shown]
    if not cases:
        return ""
    counts = "; ".join(
        f"{escape(printable(mixture.mix))}: {len(mixture.shown):,} of {mixture.rows:,} different "
        f"rows, which come {mixture.slots:,} times"
        for mixture in mixtures
    )
    return browser(cases, f"A sample, drawn by the run's seed. {counts}.")


def _used(mixture: Replayed, used: Used) -> Case:
    often = "once" if used.times == 1 else f"{used.times:,} times"
    facts = [("source", used.source), ("why", used.reason), ("trained on", often)]
    if used.near is not None:
        facts.append(("near to", used.near))
    told = "".join(
        f"<dt>{escape(name)}</dt><dd>{text_of(value)}</dd>" for name, value in facts if value
    )
    body = f"<dl>{told}</dl>{conversation(used.record.messages)}"
    heading = (
        f"<b>{escape(printable(used.source))}</b> <span>{often}</span> "
        f"{first_words(used.record.question)}"
    )
    return Case({"mixture": mixture.mix, "source": used.source}, heading, body)
