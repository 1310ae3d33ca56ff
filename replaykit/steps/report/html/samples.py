"""The cards of the replay data: what was dropped and why, scores, what the checks did to the
sample, and what a judge says of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape

from replaykit.checks.fidelity import Fidelity, ItemFidelity
from replaykit.checks.funnel import FunnelCounts
from replaykit.result import Result
from replaykit.steps.buffer.result import BufferResult
from replaykit.steps.generate.result import GenerateResult
from replaykit.steps.mix.result import MixResult
from replaykit.steps.report.html.blocks import card
from replaykit.steps.report.sequence import buffer_rows
from replaykit.steps.select.result import ScoreSummary, SelectResult

TITLES = {
    "length": "length of questions, characters",
    "category": "category of questions, by their words",
    "answers": "length of answers, characters",
    "refusals": "answers that refuse",
}
WIDTH = 360  # of the histogram of scores
HEIGHT = 90


def replay_cards(name: str, result: Result) -> Iterator[str]:
    """The cards of a step that chooses or makes rows."""
    match result:
        case SelectResult():
            words = f"Looked at: {result.looked_at:,}. The bad and the repeated rows are of these."
            yield _funnel(name, result.funnel, words)
            if result.scores is not None:
                yield _scores(name, result.scores)
        case GenerateResult():
            funnel = _funnel(name, result.funnel)
            if result.tags:  # both in one column, since the card beside them is a long one
                yield f'<div class="stack">{funnel}{_tags(name, result.tags)}</div>'
            else:
                yield funnel
            yield from _answers(name, result)
            yield _fidelity(name, result.fidelity)
        case MixResult():
            yield _funnel(name, result.funnel)
        case BufferResult():
            facts = "".join(
                f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>"
                for what, text in buffer_rows(result)
            )
            yield card(name, f"<dl>{facts}</dl>")


def _funnel(name: str, funnel: FunnelCounts, words: str = "") -> str:
    rows = [("made", funnel.made, "--base")]
    rows += [(reason, count, "--red") for reason, count in funnel.dropped.items()]
    rows.append(("kept", funnel.kept, "--c2"))
    bars = ""
    for label, count, colour in rows:
        part = 100 * count / max(funnel.made, 1)  # of a pool without rows too
        bars += (
            f'<span>{escape(label)}</span><i style="--c:var({colour});width:{part:.1f}%"></i>'
            f"<span>{count:,}</span>"
        )
    said = f"<p>{escape(words)}</p>" if words else ""
    return card(name, f'<div class="bars">{bars}</div>{said}')


def _answers(name: str, result: GenerateResult) -> Iterator[str]:
    """What answers hold beside words, where they were asked for more."""
    body = ""
    if result.thoughts is not None:
        body += f"<p>Thoughts: {escape(result.thoughts.words)}.</p>"
        if result.thoughts.warning is not None:
            warning = escape(result.thoughts.warning)
            body += f'<p class="item"><span class="far">{warning}.</span></p>'
    if result.calls is not None:
        body += f"<p>Calls: {escape(result.calls.words)}.</p>"
    if body:
        yield card(f"{name}: thoughts and calls", body)
    if result.verified is not None:
        yield card(f"{name}: whose answers", f"<p>{escape(result.verified.words)}.</p>")


def _scores(name: str, scores: ScoreSummary) -> str:
    """The histogram of all scores, as heights; the chosen rows' lowest score is the cut."""
    counts = scores.histogram.counts
    edges = scores.histogram.edges
    # Few rows are near: beside the bars of the many theirs would not be seen, hence logarithms.
    most = math.log1p(max(counts)) or 1.0
    step = WIDTH / len(counts)
    bars = ""
    for place, count in enumerate(counts):
        tall = HEIGHT * math.log1p(count) / most
        # Green from the cut on, where the chosen rows are.
        colour = "var(--c2)" if edges[place] >= scores.lowest else "var(--base)"
        bars += (
            f'<rect x="{place * step:.1f}" y="{HEIGHT - tall:.1f}" width="{step - 1:.1f}" '
            f'height="{tall:.1f}" fill="{colour}"/>'
        )
    cut = WIDTH * scores.lowest / (edges[-1] or 1.0)
    bars += (
        f'<line x1="{cut:.1f}" x2="{cut:.1f}" y1="0" y2="{HEIGHT}" stroke="var(--red)" '
        'stroke-dasharray="3 3"/>'
    )
    words = (
        f"Similarity of all rows, from 0 to {edges[-1]:.2f}, heights logarithmic; the lowest of "
        f"those chosen is {scores.lowest:.3f}, their median {scores.median:.3f}."
    )
    picture = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram of scores">'
        f"{bars}</svg>"
    )
    return card(f"{name}: scores", f"{picture}<p>{escape(words)}</p>")


def _fidelity(name: str, fidelity: Fidelity) -> str:
    """For each item two bars a word: grey is its share of the drawn rows, the other its share of
    those kept.
    """
    title = f"{name}: drawn against kept"
    if not fidelity.items:
        return card(title, f"<p>No comparison: {escape(fidelity.note or '')}.</p>")
    body = (
        f"<p>{fidelity.rows:,} of {fidelity.drawn:,} rows drawn were compared, "
        f"{fidelity.kept:,} of them kept. Grey: share of the drawn rows. Green: share of the "
        "kept. A distance of 0 is no change.</p>"
    )
    for warning in fidelity.warnings:
        body += f'<p class="item"><span class="far">{escape(warning)}.</span></p>'
    for item, found in fidelity.items.items():
        body += _item(TITLES.get(item, item), found)
    return card(title, body)


def _item(title: str, found: ItemFidelity) -> str:
    distance = f"distance {found.distance:.3f}, by chance up to {found.chance:.3f}"
    if found.distance > found.chance:
        distance += ' <span class="far">more than chance</span>'
    body = f'<p class="item"><b>{escape(title)}</b> {distance}</p>\n<div class="bars pairs">'
    most = max([*found.raw, *found.kept])
    for word, raw, kept in zip(found.words, found.raw, found.kept, strict=True):
        bars = _bar(raw, most, "--base") + _bar(kept, most, "--c2")
        shares = f"{100 * raw:.1f} → {100 * kept:.1f} %"
        body += f'<span>{escape(word)}</span><div class="pair">{bars}</div><span>{shares}</span>'
    return f"{body}</div>"


def _bar(share: float, most: float, colour: str) -> str:
    kind = ""
    if share == 0:  # a bar has a least width, but not where there is nothing
        kind = " class=none"
    return f'<i{kind} style="--c:var({colour});width:{100 * share / most:.1f}%"></i>'


def _tags(name: str, tags: Mapping[str, Mapping[str, int]]) -> str:
    """For each tag a bar a word; what the judge did not say in a readable way is red."""
    body = ""
    for tag, counts in tags.items():
        body += f'<p class="item"><b>{escape(tag)}</b></p>\n<div class="bars">'
        most = max(counts.values())
        for word, count in counts.items():
            colour = "--red" if word == "unparsed" else "--c1"
            style = f"--c:var({colour});width:{100 * count / most:.1f}%"
            body += f'<span>{escape(word)}</span><i style="{style}"></i><span>{count:,}</span>'
        body += "</div>"
    return card(f"{name}: what a judge says of the kept rows", body)
