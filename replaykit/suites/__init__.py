"""Old skills on hand: each suite writes as many items as are wanted, from its own tables.

    >>> rows("suite:sums", 1)
    [{'prompt': 'What is 61 plus 27? ...', 'completion': '88'}]

A suite is named wherever rows are: ``eval.old: {sums: suite:sums}``. Item i is drawn from the
suite's name, a seed (0; "suite:sums@7" has seed 7) and i alone, and items that ask the same are
passed over, so the first 100 of 200 items are the 100 of 100. Items are rows as a user's own file
would have them; a column that its scorer needs (``choices``, ``setup``) stands beside the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import import_module
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from replaykit.errors import DataError, did_you_mean

PREFIX = "suite:"
ITEMS = 200
"""Of a suite, where no number is asked for: they show a drop of about a tenth."""
MOST = 10_000  # items of a suite
TRIES = 2_000  # items in a row that ask what was asked before; then the suite is at its end

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """An old skill whose items are written here."""

    name: str
    what: str
    """What it asks for, in a few words."""
    cannot_say: str
    """What nobody may conclude from it, in a sentence."""
    score: str
    """How answers are scored, as ``score`` of a recipe's test names it."""
    chance: float
    """The score of answers that know nothing of the question."""
    max_tokens: int
    """Of an answer, at most."""
    draw: Callable[[Random], Row]
    """An item: prompt and completion, or messages and tools."""


# By name: the module under ``suites`` whose SUITES has it.
MODULES = {
    "sums": "arithmetic",
    "facts": "facts",
    "reading": "reading",
    "common_sense": "common_sense",
    "translation": "translation",
    "sentiment": "sentiment",
    "word_problems": "word_problems",
    "code": "code",
    "instructions": "instructions",
    "json": "structured",
    "json_schema": "structured",
    "tools": "tools",
    "refusals": "refusals",
    "language": "language",
    "nano-nli": "nano",
    "nano-capital": "nano",
    "nano-json": "nano",
    "nano-topic": "nano",
    "nano-refusal": "nano",
    "nano-reverse": "nano",
}


def is_suite(path: str | Path) -> bool:
    """Whether a path names a suite and no file."""
    return str(path).startswith(PREFIX)


@cache
def suite_of(path: str) -> Suite:
    """The suite that a path names, ``suite:NAME`` or ``suite:NAME@SEED``. Raises DataError for one
    that does not exist.
    """
    name, _, seed = path.removeprefix(PREFIX).partition("@")
    if name not in MODULES:
        known = ", ".join(MODULES)
        raise DataError(f"{path}: there is no such suite{did_you_mean(name, MODULES)}: {known}")
    if seed and not seed.isdecimal():
        raise DataError(f"{path}: behind @ stands a seed, a whole number")
    module = import_module(f"replaykit.suites.{MODULES[name]}")
    found: Suite = module.SUITES[name]
    return found


def rows(path: str, n: int | None = None) -> list[Row]:
    """The first n items of a suite, without n ITEMS; a suite of a small table has fewer."""
    return list(islice(stream(path), ITEMS if n is None else n))


def stream(path: str) -> Iterator[Row]:
    """The items of a suite in order, each prompt once; a suite of a small table ends."""
    suite = suite_of(path)
    seed = path.partition("@")[2] or "0"
    seen: set[str] = set()
    number = 0
    last = 0
    while number - last < TRIES and len(seen) < MOST:
        row = suite.draw(Random(f"suite/{suite.name}/{seed}/{number}"))
        number += 1
        asked = json.dumps(row.get("prompt") or row["messages"][:-1], sort_keys=True)
        if asked not in seen:
            seen.add(asked)
            last = number
            yield row


@cache
def fingerprint(path: str) -> str:
    """What identifies the items of a suite: a hash of the first of them."""
    first = json.dumps(rows(path, 50), sort_keys=True, ensure_ascii=False)
    return blake2b(first.encode(), digest_size=16).hexdigest()
