"""The rows of a run on the page: items that flipped with both answers, replay with its reason, and
rewritten answers beside those that were there before.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from replaykit.data.record import TARGET, Record
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.report.flips import Flip, Flips, Way
from replaykit.steps.report.html.browse import (
    Case,
    answer,
    both,
    browser,
    conversation,
    first_words,
    turn,
)
from replaykit.steps.report.html.browse import shown as text_of
from replaykit.steps.report.numbers import percent
from replaykit.steps.report.replayed import Replayed, Used
from replaykit.steps.report.rewritten import BEFORE, Rewritten
from replaykit.text import printable

SIZES = {0.0: "none", 0.1: "up to 10 %", 0.3: "up to 30 %", 0.6: "up to 60 %", 1.0: "more"}
"""What an edit is called by the largest distance that it may have."""
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


def rewritten_rows(found: Rewritten) -> str:
    """The sample of rewritten target rows; "" where none were rewritten."""
    if not found.shown:
        return ""
    total = sum(found.paths.values())
    paths = "; ".join(f"{count:,} {escape(printable(path))}" for path, count in found.paths.items())
    words = (
        f"{len(found.shown):,} of {total:,} rows, as many of each way, drawn by the run's seed. "
        f"All rows: {paths}."
    )
    return browser([_rewritten(record) for record in found.shown], words)


def _rewritten(record: Record) -> Case:
    path = str(record.meta["path"])
    edit = record.meta.get("edit")
    size = "not measured"
    told = ""
    if edit is not None:
        size = next(name for most, name in SIZES.items() if edit <= most)
        told = f"{percent(edit)} edited"
    reason = str(record.meta.get("why", ""))
    *before, last = record.messages
    body = conversation(before)
    was = record.meta.get(BEFORE)
    if isinstance(was, str) and was != last["content"]:
        old, new = both(was, last["content"])
        sides = [("before", old), (f"now, by {path}", new)]
        parts = "".join(
            f'<div class="side"><h4>{escape(printable(title))}</h4>{text}</div>'
            for title, text in sides
        )
        body += f'<div class="sides">{parts}</div>'
    else:
        body += turn(last, f"the reference stays: {reason}" if reason else path)
    heading = (
        f"<b>{escape(printable(path))}</b> <span>{escape(printable(told or reason))}</span> "
        f"{first_words(record.question)}"
    )
    return Case({"way": path, "edit": size}, heading, body)
