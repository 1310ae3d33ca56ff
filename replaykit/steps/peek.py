"""Rows as they stand: of a file, of a step's folder, or of a suite.

    peek("select", folder=Path("runs/x"), n=1)    ->  the first row that select chose
    peek("old.csv", folder=..., seed=7)           ->  five rows of any file that replaykit reads
    peek("generate", folder=..., dropped=True)    ->  rows that were left out, each with its reason

Nothing is read into memory as a whole, whatever is drawn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaykit.changes import Change, changes
from replaykit.data.files import Row, json_lines
from replaykit.data.formats import read_records
from replaykit.data.record import SOURCES, TARGET, Record
from replaykit.errors import DataError, RunError, did_you_mean
from replaykit.result import Result
from replaykit.runs import INPUTS, MANIFEST
from replaykit.steps.mix.replay import source_of
from replaykit.suites import is_suite
from replaykit.text import printable

ROWS = "rows.jsonl"
DROPPED = "dropped.jsonl"
OF_SUITE = 1_000  # rows of a suite, which has no end, that are looked at
MOST = 2_000  # characters of a text on the terminal
LOSS = {"assistant", "text"}  # roles that are trained on, unless a turn's weight is 0
REFERENCE = "reference"  # in the meta of a rewritten row: the answer that was there before
Paint = Callable[[Change], str]
"""How a piece of a changed text is shown; its text is printable."""


class PeekResult(Result):
    """Some rows of a place."""

    place: str
    """The file, or what else was read."""
    rows: list[dict[str, Any]]
    """As they stand there; those of another format as records of replaykit."""
    matching: int
    """Rows that are there and are such as was asked for."""
    unread: int
    """Rows that cannot be read."""


@dataclass(frozen=True)
class Wanted:
    """Which rows."""

    n: int = 5
    source: str | None = None
    """Only of this source: a step, or a file of replay in a mixture."""
    reason: str | None = None
    """Only those that were dropped for this reason."""
    path: str | None = None
    """Only those that were rewritten this way, such as ``min-change``."""
    min_edit: float = 0.0
    """Only those of which at least this part was edited."""
    seed: int | None = None
    """Draws them; without it they are the first."""


def peek(
    what: str, folder: Path, wanted: Wanted, *, dropped: bool = False, split: str = "train"
) -> PeekResult:
    """Rows of a path, or of the step of this name in the run in ``folder``; with ``dropped`` those
    that the step left out.

    Raises DataError as ``read_records`` does and where no row is as wanted, and RunError for
    a step's folder that has no such rows.
    """
    unread = 0

    def passed_over(place: str, error: DataError) -> None:
        nonlocal unread
        unread += 1

    path = _file(what, folder, dropped)
    if path is not None:
        place = str(path)
        rows = (row for _, row in json_lines(path, passed_over))
    elif dropped:
        raise RunError(f"{what}: dropped rows are kept in the folder of a step, such as `select`")
    else:
        place = what
        limit = OF_SUITE if is_suite(what) else None
        records = read_records(what, TARGET, split=split, limit=limit, unparsed=passed_over)
        rows = (record.to_json() for record in records)
    chosen, matching, seen = _chosen(rows, wanted)
    if not chosen:
        raise DataError(_none(place, wanted, seen))
    return PeekResult(place=place, rows=chosen, matching=matching, unread=unread)


def _file(what: str, folder: Path, dropped: bool) -> Path | None:
    """The file of a step's rows, by its own path, by the step's folder, or by the step's name in
    the run; None for other data. Raises RunError for a step without such a file.
    """
    path = Path(what)
    if path.name in (ROWS, DROPPED) and path.is_file() and _is_step(path.parent):
        return path
    step = next((found for found in (path, folder / what) if _is_step(found)), None)
    if step is None:
        return None
    path = step / (DROPPED if dropped else ROWS)
    if path.exists():
        return path
    others = [found.parent.name for found in sorted(step.parent.glob(f"*/{path.name}"))]
    does = "dropped" if dropped else "made"
    raise RunError(
        f"{step}: no rows that it {does} are here; in {step.parent} they are of "
        f"{', '.join(others) or 'no step'}"
    )


def _is_step(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (MANIFEST, INPUTS))


def _chosen(
    rows: Iterator[Row], wanted: Wanted
) -> tuple[list[dict[str, Any]], int, dict[str, set[str]]]:
    """The rows, how many there are such as these, and the sources and reasons that were seen."""
    drawn = None if wanted.seed is None else random.Random(wanted.seed)
    kept: list[tuple[int, Row]] = []
    seen: dict[str, set[str]] = {"source": set(), "reason": set(), "path": set()}
    matching = 0
    for row in rows:
        source = _source(row)
        reason = str(row.get("reason", ""))
        meta = row.get("meta") or {}
        path = str(meta.get("path", ""))
        seen["source"].add(source)
        seen["reason"].add(reason)
        seen["path"].add(path)
        if wanted.source not in (None, source) or wanted.reason not in (None, reason):
            continue
        if wanted.path not in (None, path) or meta.get("edit", 0.0) < wanted.min_edit:
            continue
        matching += 1
        if len(kept) < wanted.n:
            kept.append((matching, row))
        elif drawn is not None:  # Algorithm R (Vitter 1985)
            place = drawn.randrange(matching)
            if place < wanted.n:
                kept[place] = (matching, row)
    kept.sort(key=lambda one: one[0])
    return [dict(row) for _, row in kept], matching, seen


def _source(row: Row) -> str:
    """The source of a row; "" of one that could not be read as a record."""
    if row.get("source") not in SOURCES or "messages" not in row:
        return ""
    return source_of(Record.from_json(row))


def _none(place: str, wanted: Wanted, seen: Mapping[str, set[str]]) -> str:
    """What is said where no row is such as is wanted."""
    named = {"reason": wanted.reason, "source": wanted.source, "path": wanted.path}
    for name, asked in named.items():
        if asked is not None and asked not in seen[name]:
            there = sorted(seen[name] - {""})
            hint = did_you_mean(asked, there)
            return f"{place}: no row of the {name} {asked}{hint}; there are {', '.join(there)}"
    if wanted.min_edit:
        return f"{place}: no such row is edited by {100 * wanted.min_edit:.0f} % or more"
    return f"{place}: there is no row in it"


# --- on the terminal ------------------------------------------------------------------------------


def bracketed(change: Change) -> str:
    """A piece as ``git diff --word-diff`` writes it."""
    match change.kind:
        case "removed":
            return f"[-{change.text}-]"
        case "added":
            return f"{{+{change.text}+}}"
    return change.text


def lines(found: PeekResult, paint: Paint = bracketed) -> Iterator[str]:
    """The rows as text that a terminal shows and does not obey: roles, thoughts, tools, what
    carries loss, what is known of each, and in a rewritten answer what was changed, by ``paint``.
    """
    for number, row in enumerate(found.rows, 1):
        yield " · ".join([f"row {number}", *map(printable, _facts(row))])
        meta = dict(row.get("meta") or {})
        before = meta.pop(REFERENCE, None) if "path" in meta else None
        messages = list(row.get("messages", ()))
        for place, message in enumerate(messages, 1):
            is_answer = place == len(messages) and isinstance(before, str)
            yield from _turn(message, before if is_answer else None, paint)
        for tool in row.get("tools", ()):
            yield _indented("tool", json.dumps(tool.get("function", tool), ensure_ascii=False))
        for key, value in meta.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield _indented(f"- {key}", text)
        yield ""
    read = f"{len(found.rows):,} of {found.matching:,} rows of {found.place}"
    if found.unread:
        read += f"; {found.unread:,} more cannot be read"
    yield printable(read)


def _facts(row: Mapping[str, Any]) -> Iterator[str]:
    """What is known of a row beside its messages and its meta."""
    for key in ("reason", "place", "error", "step", "source", "id"):
        if key in row:
            yield f"{key} {row[key]}"


def _turn(message: Mapping[str, Any], before: str | None, paint: Paint) -> Iterator[str]:
    """A turn; ``before`` is what its text was before it was rewritten."""
    role = " ".join(filter(None, (message["role"], message.get("name"))))
    if message["role"] in LOSS:
        role += " (no loss)" if message.get("weight") == 0 else " (loss)"
    if message.get("reasoning_content"):
        yield _indented(f"{role} thinks", message["reasoning_content"])
    calls = message.get("tool_calls") or ()
    text = message["content"]
    if before not in (None, text):
        yield _below(f"{role}, rewritten", _painted(before, text, paint))
    elif text or not calls:
        yield _indented(role, text)
    for call in calls:
        called = call["function"]
        arguments = json.dumps(called["arguments"], ensure_ascii=False)
        yield _indented(f"{role} calls", f"{called['name']} {arguments}")


def _painted(before: str, now: str, paint: Paint) -> str:
    found = changes(_cut(before), _cut(now))
    return "".join(paint(Change(kind, printable(text))) for kind, text in found)


def _indented(name: str, text: str) -> str:
    """A name and its text, which may be any."""
    return _below(printable(name), printable(_cut(text)))


def _cut(text: str) -> str:
    if len(text) <= MOST:
        return text
    return f"{text[:MOST]} … {len(text) - MOST:,} more characters; --json has all"


def _below(name: str, text: str) -> str:
    """Further lines of the text stand below the first."""
    return f"  {name}: " + text.replace("\n", "\n    ")
