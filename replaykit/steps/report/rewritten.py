"""A sample of the target rows that were rewritten, each with the answer that was there before.

rewritten(folder / "rewrite", seed=1).shown[0]
->  Record(..., meta={"path": "min-change", "edit": 0.11, "reference": "The answer is 15."})
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from replaykit.data.files import json_lines
from replaykit.data.record import Record
from replaykit.hashing import derive_seed
from replaykit.steps.public.meta import public_meta

MOST = 60  # rows on a page
BEFORE = "reference"  # in the meta: the answer that was there before


@dataclass(frozen=True)
class Rewritten:
    """What a step made of the target."""

    paths: Mapping[str, int] = field(default_factory=dict)
    """Rows by path, most first."""
    shown: Sequence[Record] = ()
    """Of each path as many, in the order of the target."""


def rewritten(folder: Path, *, seed: int, most: int = MOST) -> Rewritten:
    """At most so many rows of the step ``rewrite`` in a folder, drawn by the seed."""
    places: dict[str, list[int]] = {}
    for place, (_, row) in enumerate(json_lines(folder / "rows.jsonl")):
        places.setdefault(row["meta"]["path"], []).append(place)
    if not places:
        return Rewritten()
    drawn = random.Random(derive_seed(seed, "report", "rewritten"))
    of_each = most // len(places)
    chosen = {
        place for own in places.values() for place in drawn.sample(own, min(of_each, len(own)))
    }
    shown = [
        _public(Record.from_json(row))
        for place, (_, row) in enumerate(json_lines(folder / "rows.jsonl"))
        if place in chosen
    ]
    paths = {path: len(own) for path, own in places.items()}
    return Rewritten(dict(sorted(paths.items(), key=lambda one: -one[1])), shown)


def _public(record: Record) -> Record:
    """The row with what replaykit knows of it, without the user's own columns."""
    (public,), _ = public_meta([record], ())
    if BEFORE not in record.meta:
        return public
    return replace(public, meta={**public.meta, BEFORE: record.meta[BEFORE]})
