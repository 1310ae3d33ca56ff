"""Rows that hold a prompt of the evaluation: what is trained on must not be what is tested with.

    overlap = Overlap(record.prompt for record in held_out)
    overlap.find("Tom has 3 apples. ...")
                             ->  ("eval_overlap", the evaluation prompt that it holds), or None

    clean = Decontamination({"gsm8k": eval_items("lm_eval:gsm8k")})
    clean.check(record)      ->  Hit("gsm8k", item="17", match="the piece that both have"), or None
    clean.result()           ->  how many rows go, and which items of the evaluation they held

GPT-3's data was cleaned by shared runs of 13 words (Brown et al., arXiv 2005.14165, appendix C).
This differs in two ways, and both spare rows. A row is dropped for most of a prompt's runs, not for
a single one. And a run that stands in two prompts belongs to their template, or to a passage that
they share, so it says nothing of either; GPT-3's list left out what stood in more than 10
documents. Otherwise two long prompts that differ in one slot at the end would hold each other.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import ClassVar

import numpy as np

from replaykit.checks.evalsets import EvalItem
from replaykit.data.record import Record
from replaykit.mixing import powers
from replaykit.result import Result
from replaykit.text import WORD, normalise, words

REASON = "eval_overlap"  # to drop a row
RUN = 13  # words
COVERAGE = 0.8  # of the runs of a prompt, from which on a row holds it
SHOWN = 400  # characters of a matching piece that the result has
EXAMPLES = 20  # items that the result has


class Overlap:
    """The evaluation's prompts, ready to be looked for: 16 bytes for each run of n words, and two
    copies of the text.

    A row that equals a prompt after ``text.normalise`` always holds it. A prompt of at least ``n``
    words is also held by a row in which its runs of n words stand, in any order and among other
    text: of each stretch of runs that no other prompt has, at least the share ``coverage``, and all
    where the stretch is of n runs or fewer, since these may be a single slot of a template. Prompts
    of the same runs count as one; one without a run of its own is only known by its whole text.
    """

    def __init__(self, prompts: Iterable[str], *, n: int = RUN, coverage: float = COVERAGE):
        self.n = n
        self.prompts = list(prompts)
        self._whole: dict[str, int] = {}
        long: dict[bytes, tuple[int, np.ndarray]] = {}
        for number, prompt in enumerate(self.prompts):
            normal = normalise(prompt)
            if not normal or normal in self._whole:
                continue
            self._whole[normal] = number
            runs = runs_of(prompt, n)
            if len(runs):
                long.setdefault(runs.tobytes(), (number, runs))
        self._numbers = [number for number, _ in long.values()]
        self._index([runs for _, runs in long.values()], coverage)

    def find(self, text: str) -> tuple[str, str] | None:
        """("eval_overlap", the evaluation prompt) for a text that holds one, the earliest if
        several; otherwise None.
        """
        number = self.equal(text)
        if number is None:
            held = self._held(self._places(runs_of(text, self.n)))
            if not len(held):
                return None
            number = self._numbers[held[0]]
        return REASON, self.prompts[number]

    def equal(self, text: str) -> int | None:
        """The number of the prompt that the text equals after ``text.normalise``, or None."""
        return self._whole.get(normalise(text))

    def held(self, text: str, runs: np.ndarray) -> dict[int, str]:
        """The numbers of all prompts whose runs the text holds, in order, each with the longest
        piece that both have.

        ``runs`` are the text's, as ``runs_of`` gives them. That the text may equal a short prompt
        is not looked at.
        """
        places = self._places(runs)
        found = {}
        for owner in self._held(places).tolist():
            # Where in the text runs of this prompt stand; the longest piece has the most in a row.
            mine = np.flatnonzero((places >= 0) & (self._owners[self._stretches[places]] == owner))
            longest = max(np.split(mine, np.flatnonzero(np.diff(mine) > 1) + 1), key=len)
            found[self._numbers[owner]] = _piece(text, int(longest[0]), int(longest[-1]) + self.n)
        return found

    def _places(self, runs: np.ndarray) -> np.ndarray:
        """Where in the index each run of a text stands, or -1."""
        if not len(self._hashes) or not len(runs):
            return np.zeros(0, dtype=np.int64)
        places = np.searchsorted(self._hashes, runs)
        places[places == len(self._hashes)] = 0
        return np.where(self._hashes[places] == runs, places, -1)

    def _held(self, places: np.ndarray) -> np.ndarray:
        """The prompts that have enough of their runs among these, in order."""
        there = places[places >= 0]
        if not len(there):
            return there
        stretches, counts = np.unique(self._stretches[np.unique(there)], return_counts=True)
        enough = stretches[counts >= self._needed[stretches]]
        owners, held = np.unique(self._owners[enough], return_counts=True)
        # Held is a prompt of which every stretch is there.
        return owners[held == self._stretches_of[owners]]

    def _index(self, prompts: list[np.ndarray], coverage: float) -> None:
        """The runs that only one prompt has, sorted by hash, and the stretch of each run. Of each
        stretch the prompt that owns it, and how many of its runs are needed.
        """
        # A run may stand twice in one prompt: its first place counts.
        first = [np.unique(runs, return_index=True) for runs in prompts]
        none = np.zeros(0, dtype=np.int64)
        hashes = np.concatenate([none.astype(np.uint64), *(runs for runs, _ in first)])
        places = np.concatenate([none, *(places for _, places in first)])
        owners = np.repeat(np.arange(len(first)), [len(runs) for runs, _ in first])
        # Only runs of a single prompt count: others are of a template or of a shared passage.
        _, which, times = np.unique(hashes, return_index=True, return_counts=True)
        own = which[times == 1]
        own = own[np.lexsort((places[own], owners[own]))]
        hashes = hashes[own]
        places = places[own]
        owners = owners[own]
        # A stretch is of own runs that follow one another in a prompt.
        follows = (np.diff(owners, prepend=-1) == 0) & (np.diff(places, prepend=-1) == 1)
        stretches = np.cumsum(~follows) - 1
        self._owners = owners[~follows]
        self._stretches_of = np.bincount(self._owners, minlength=len(prompts))
        sizes = np.bincount(stretches, minlength=len(self._owners))
        self._needed = np.where(sizes <= self.n, sizes, np.ceil(coverage * sizes))
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._stretches = stretches[order]


@dataclass(frozen=True)
class Hit:
    """The evaluation set and the item that a row holds, and the longest piece of text that both
    have.
    """

    reason: ClassVar[str] = REASON
    evalset: str
    item: str
    match: str


class HeldSet(Result):
    """An evaluation set that was kept apart."""

    items: int
    items_held: int
    """Items that a row held."""
    rows: int
    """Rows that held one of them; a row that holds items of two sets counts for both."""


class HeldItem(Result):
    """An item of an evaluation set that rows held."""

    set: str
    item: str
    rows: int
    first_row: str | None
    """The id of the first of them."""
    match: str
    """The text that both have."""


class Decontaminated(Result):
    """What was kept apart from the evaluation sets."""

    rows: int
    """Rows that were looked at."""
    removed: int
    sets: dict[str, HeldSet]
    items: list[HeldItem]
    """The items that most rows held."""


class Decontamination:
    """Rows against evaluation sets: which rows hold an item, and which items are held by how many
    rows.

    The text of a row is all of its conversation. An item that any message equals after
    ``text.normalise`` is held; one of 13 words or more also by 0.8 of its runs, as ``Overlap``
    says. Each set is looked through for itself, so that two that share items do not hide each
    other's; of equal items within a set the first is named. Memory is that of the sets: of the rows
    only counts and the first one that held each item are kept.
    """

    def __init__(self, evalsets: Mapping[str, Iterable[EvalItem]]):
        self._items = {name: list(items) for name, items in evalsets.items()}
        self._prompts = {
            name: Overlap(item.prompt for item in items) for name, items in self._items.items()
        }
        self._rows = 0
        self._removed = 0
        self._rows_of_set: Counter[str] = Counter()
        self._rows_of_item: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], tuple[str, Hit]] = {}

    def check(self, record: Record) -> Hit | None:
        """What the row holds, of several the first item of the first set; all are counted."""
        self._rows += 1
        hits = self._hits([message["content"] for message in record.messages])
        if not hits:
            return None
        self._removed += 1
        self._rows_of_set.update({hit.evalset for hit in hits})
        items = {(hit.evalset, hit.item): hit for hit in reversed(hits)}
        self._rows_of_item.update(items.keys())
        for item in items.keys() - self._first.keys():
            self._first[item] = record.id, items[item]
        return hits[0]

    def _hits(self, messages: list[str]) -> list[Hit]:
        """All items that a conversation holds, in the order of the sets and items."""
        text = "\n".join(messages)
        parts = messages if len(messages) == 1 else [*messages, text]
        runs = runs_of(text, RUN)
        found = list[Hit]()
        for name, overlap in self._prompts.items():
            held = overlap.held(text, runs)
            for part in parts:
                number = overlap.equal(part)
                if number is not None:
                    held[number] = part
            for number in sorted(held):
                found.append(Hit(name, self._items[name][number].id, held[number]))
        return found

    def result(self) -> Decontaminated:
        """How many rows were looked at and removed, each set, and the items most often held."""
        held = Counter(name for name, _ in self._rows_of_item)
        most = sorted(self._rows_of_item.items(), key=lambda item: -item[1])
        sets = {
            name: HeldSet(items=len(items), items_held=held[name], rows=self._rows_of_set[name])
            for name, items in self._items.items()
        }
        return Decontaminated(
            rows=self._rows,
            removed=self._removed,
            sets=sets,
            items=[self._held_item(name, item, rows) for (name, item), rows in most[:EXAMPLES]],
        )

    def _held_item(self, name: str, item: str, rows: int) -> HeldItem:
        row, hit = self._first[name, item]
        return HeldItem(set=name, item=item, rows=rows, first_row=row, match=hit.match[:SHOWN])


def runs_of(text: str, n: int) -> np.ndarray:
    """The runs of n words in order, as 64-bit hashes: CRC-32 of each word, combined by a
    polynomial.
    """
    sums = np.array([_word(word) for word in words(text)], dtype=np.uint64)
    if len(sums) < n:
        return sums[:0]
    return np.lib.stride_tricks.sliding_window_view(sums, n) @ _powers(n)


@lru_cache(1 << 17)
def _word(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


@cache
def _powers(n: int) -> np.ndarray:
    return powers(n)


def _piece(text: str, start: int, end: int) -> str:
    """The words of a text from the one number to before the other, as they are written, if this can
    be told.
    """
    wide = unicodedata.normalize("NFKC", text)
    folded = wide.casefold()
    found = list(islice(WORD.finditer(folded), start, end))
    # Folding makes no text shorter, so where the length is the same each letter kept its place.
    source = wide if len(wide) == len(folded) else folded
    return source[found[0].start() : found[-1].end()]
