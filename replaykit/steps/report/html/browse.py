"""Lists of rows on the page that can be opened and filtered.

Without scripts each row opens and closes by itself; with them the bar above filters. The one script
is ours and the policy of the page allows it by its hash: nothing that stands in a row can run, be
fetched or be sent. What comes from a row is text of an element, and the attributes that the script
reads are numbers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from replaykit.changes import Change, changes
from replaykit.data.record import Message
from replaykit.text import printable

MOST = 2_000  # characters of one text
FIRST = 110  # characters of a text that stand in a row's heading

SCRIPT = """
for (const block of document.querySelectorAll(".browse")) {
  const bar = block.querySelector(".filters");
  const cases = [...block.querySelectorAll(".case")];
  const texts = cases.map((one) => one.textContent.toLowerCase());
  const show = () => {
    const words = bar.querySelector("input").value.trim().toLowerCase();
    const wanted = [...bar.querySelectorAll("select")].filter((select) => select.value);
    let count = 0;
    cases.forEach((one, place) => {
      const fits = texts[place].includes(words)
        && wanted.every((select) => one.getAttribute("data-" + select.name) === select.value);
      one.hidden = !fits;
      count += fits;
    });
    bar.querySelector("output").textContent = count + " of " + cases.length;
  };
  bar.addEventListener("input", show);
  bar.hidden = false;
  show();
}
"""
HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


@dataclass(frozen=True)
class Case:
    """A row of a list: what it is filtered by, what stands in its heading, and what it holds."""

    facts: Mapping[str, str]
    """By filter."""
    heading: str
    """HTML."""
    body: str
    """HTML."""


def browser(cases: Sequence[Case], words: str) -> str:
    """The list with its filters, one for each fact of which there are several values; ``words`` is
    HTML that stands above.
    """
    values: dict[str, list[str]] = {}
    for case in cases:
        for name, value in case.facts.items():
            seen = values.setdefault(name, [])
            if value not in seen:
                seen.append(value)
    several = {name: seen for name, seen in values.items() if len(seen) > 1}
    body = "".join(_case(case, several) for case in cases)
    selects = "".join(_select(name, seen) for name, seen in several.items())
    search = '<label>Search <input type="search" autocomplete="off" spellcheck="false"></label>'
    bar = f'<div class="filters" role="search" hidden>{selects}{search}<output></output></div>'
    return f'<div class="card browse"><p>{words}</p>{bar}<div class="list">{body}</div></div>\n'


def _select(name: str, values: Sequence[str]) -> str:
    options = "".join(
        f'<option value="{place}">{escape(printable(value))}</option>'
        for place, value in enumerate(values)
    )
    return (
        f'<label>{escape(name.capitalize())} <select name="{escape(name)}">'
        f'<option value="">all</option>{options}</select></label>'
    )


def _case(case: Case, several: Mapping[str, Sequence[str]]) -> str:
    facts = "".join(
        f' data-{escape(name)}="{seen.index(case.facts[name])}"' for name, seen in several.items()
    )
    return f'<details class="case"{facts}><summary>{case.heading}</summary>{case.body}</details>\n'


def first_words(text: str) -> str:
    """The beginning of a text in one line, as HTML."""
    line = " ".join(printable(text).split())
    if len(line) > FIRST:
        line = line[:FIRST] + " …"
    return f'<bdi class="first">{escape(line)}</bdi>'


def shown(text: str) -> str:
    """A text of a row or a model with its line breaks, as HTML; of a long one the beginning."""
    text = printable(text.replace("\r\n", "\n"))
    more = ""
    if len(text) > MOST:
        more = f"<small>… {len(text) - MOST:,} more characters</small>"
        text = text[:MOST]
    if not text.strip():
        return '<div class="said empty">(nothing)</div>'
    return f'<div class="said" dir="auto">{escape(text)}{more}</div>'


def both(before: str, now: str) -> tuple[str, str]:
    """Two texts as HTML, what was removed marked in the one and what was added in the other; of
    long ones the beginnings.
    """
    found = changes(before[:MOST], now[:MOST])
    return _marked(found, "added", before), _marked(found, "removed", now)


def _marked(found: Sequence[Change], without: str, whole: str) -> str:
    tags = {"removed": "del", "added": "ins"}
    parts = []
    for kind, text in found:
        words = escape(printable(text.replace("\r\n", "\n")))
        if kind in tags:
            words = f"<{tags[kind]}>{words}</{tags[kind]}>"
        if kind != without:
            parts.append(words)
    more = ""
    if len(whole) > MOST:
        more = f"<small>… {len(whole) - MOST:,} more characters</small>"
    if not parts:
        return '<div class="said empty">(nothing)</div>'
    return f'<div class="said" dir="auto">{"".join(parts)}{more}</div>'


def conversation(messages: Iterable[Message]) -> str:
    """Turns one below the other."""
    return "".join(turn(message, _role(message)) for message in messages)


def _role(message: Message) -> str:
    """Who speaks."""
    words = " ".join(filter(None, (message["role"], message.get("name"))))
    return words + ", no loss" if message.get("weight") == 0 else words


def turn(message: Message, title: str) -> str:
    """What is said in a turn, below a title."""
    parts = "".join(
        answer(
            message["content"],
            thought=message.get("reasoning_content"),
            calls=[call["function"] for call in message.get("tool_calls", ())],
        )
    )
    return f'<div class="turn"><h4>{escape(printable(title))}</h4>{parts}</div>'


def answer(
    text: str, *, thought: str | None = None, calls: Sequence[Mapping[str, Any]] = ()
) -> Iterator[str]:
    """An answer with what stands before and beside it, as HTML."""
    if thought:
        yield f'<div class="thought"><small>thought</small>{shown(thought)}</div>'
    if text or not calls:
        yield shown(text)
    for call in calls:
        words = f"{call.get('name')} {json.dumps(call.get('arguments'), ensure_ascii=False)}"
        yield f'<div class="call"><small>call</small>{shown(words)}</div>'
