"""What was changed between two texts, word by word.

    changes("It is 12 apples.", "It is 11 apples.")
    ->  [("same", "It is "), ("removed", "12"), ("added", "11"), ("same", " apples.")]

The pieces that are not "added" are together the text before, those that are not "removed" the text
now, to the character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Literal, NamedTuple

from rapidfuzz.distance import Levenshtein

from replaykit.text import WORD

PART = re.compile(rf"{WORD.pattern}|\s+|.", re.DOTALL)
Kind = Literal["same", "removed", "added"]


class Change(NamedTuple):
    """A piece of the one text, of the other, or of both."""

    kind: Kind
    text: str


def changes(before: str, now: str) -> list[Change]:
    """The pieces in order; where something is replaced, what was removed comes first."""
    old = PART.findall(before)
    new = PART.findall(now)
    pairs: list[tuple[str, str]] = []
    for step in Levenshtein.opcodes(old, new):
        removed = "".join(old[step.src_start : step.src_end])
        added = "".join(new[step.dest_start : step.dest_end])
        pairs.append((removed, added))
    return list(_pieces(pairs))


def _pieces(pairs: list[tuple[str, str]]) -> Iterator[Change]:
    """The pairs of a removed and an added text as pieces. Two changes with nothing between them but
    a space are one, which reads better than both.
    """
    last = len(pairs) - 1
    same = [
        removed == added and (bool(removed.strip()) or place in (0, last))
        for place, (removed, added) in enumerate(pairs)
    ]
    for kept, group in groupby(zip(same, pairs, strict=True), key=lambda one: one[0]):
        found = [pair for _, pair in group]
        removed = "".join(pair[0] for pair in found)
        added = "".join(pair[1] for pair in found)
        if kept:
            yield Change("same", removed)
            continue
        if removed:
            yield Change("removed", removed)
        if added:
            yield Change("added", added)
