"""A sample of the replay rows that a mixture trains on, each with where it came from and why.

replayed(folder / "mix-selected", "mix-selected", seed=1, most=40).shown[0]
->  Used(Record(...), source="select", times=2, near="My foot hurts.")
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaykit.data.files import json_lines
from replaykit.data.record import FINISH, TARGET, Record
from replaykit.hashing import derive_seed
from replaykit.steps.mix.replay import REPLAY_FILE, source_of
from replaykit.steps.public.meta import public_meta
from replaykit.steps.public.settings import named

MOST = 40  # rows of a mixture on a page
MOST_IN_ALL = 240  # of all mixtures together
FEWEST = 6  # of each, however many mixtures there are
WORDS = 5  # that a row shares with the target, which are named


@dataclass(frozen=True)
class Used:
    """A replay row."""

    record: Record
    """Of its meta what replaykit wrote."""
    source: str
    """The step that it is of, or a file of the user's."""
    times: int
    """How often the mixture has it."""
    near: str | None
    """The question of the target row that it was chosen for, where the mixture has that row."""

    @property
    def reason(self) -> str:
        """Why it is there."""
        return "; ".join(_reasons(self.record))


@dataclass(frozen=True)
class Replayed:
    """The replay of one mixture."""

    mix: str
    """The mixture's folder."""
    rows: int
    """Different rows."""
    slots: int
    """Rows, each counted as often as it comes."""
    shown: Sequence[Used]
    """In the order in which they first come."""


def replayed(folder: Path, name: str, *, seed: int, most: int = MOST) -> Replayed:
    """At most so many of the replay rows of the mixture in a folder, drawn by the seed."""
    times = Counter[str]()
    for row in _rows(folder):
        if row["source"] != TARGET:
            times[row["id"]] += 1
    drawn = random.Random(derive_seed(seed, "report", name))
    chosen = set(drawn.sample(list(times), min(most, len(times))))
    found: dict[str, Record] = {}
    for row in _rows(folder):
        if row["id"] in chosen and row["id"] not in found:
            found[row["id"]] = Record.from_json(row)
    nearest = {record.meta.get("nearest") for record in found.values()}
    near = {
        row["id"]: Record.from_json(row).question for row in _rows(folder) if row["id"] in nearest
    }
    shown = []
    for key, record in found.items():
        source = source_of(record)
        if REPLAY_FILE in record.meta:
            source = named(source)
        (public,), _ = public_meta([record], ())
        used = Used(public, source, times[key], near.get(record.meta.get("nearest", "")))
        shown.append(used)
    return Replayed(name, len(times), times.total(), shown)


def _rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    for _, row in json_lines(folder / "rows.jsonl"):
        yield row


def _reasons(record: Record) -> Iterator[str]:
    meta = record.meta
    match record.source:
        case "select":
            yield from _selected(meta)
        case "generate":
            yield "the model's answer" if "parent" in meta else "the model's question and answer"
            if "temperature" in meta:
                yield f"question drawn at temperature {meta['temperature']:g}"
            if "system" in meta:
                yield f"steered to {meta['system']}"
            yield "cut at the token limit" if meta.get(FINISH) == "length" else "ended by itself"
        case "rewrite":
            yield f"the model's own words, by way of {meta.get('path', 'rewriting')}"
        case "buffer":
            yield f"kept of the task {meta.get('task', 'before')}"
    if "edit" in meta:
        yield f"{100 * float(meta['edit']):.0f} % edited"
    if "parent" in meta:
        yield f"made of row {meta['parent']}"


def _selected(meta: Mapping[str, Any]) -> Iterator[str]:
    if "line" in meta:
        yield f"row {meta['line']} of its file"
    if "rank" in meta:
        yield f"rank {meta['rank']}"
    if isinstance(meta.get("score"), int | float):
        yield f"similarity {meta['score']:.3f}"
    terms = meta.get("terms")
    if isinstance(terms, Mapping) and terms:
        yield f"shares {json.dumps(list(terms)[:WORDS], ensure_ascii=False)[1:-1]}"
