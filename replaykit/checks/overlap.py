"""Rows that hold a prompt of the evaluation: what is trained on must not be what is tested with.

    overlap = Overlap(record.prompt for record in held_out)
    overlap.find("Tom has 3 apples. ...")     ->  ("eval_overlap", the evaluation prompt that it holds), or None

    clean = Decontamination({"gsm8k": eval_items("lm_eval:gsm8k")}, n=10)
    clean.check(record)                       ->  Hit("eval_overlap", "gsm8k", "17", "the piece that both have"), or None
    clean.to_json()                           ->  how many rows go, and which items of the evaluation they held

Shared runs of 13 words are what GPT-3's data was cleaned by (Brown et al., arXiv 2005.14165,
appendix C). We differ in two ways, and both spare rows. A row is dropped for most of a prompt's
runs, not for a single one. And a run that stands in two prompts belongs to their template, or to a
passage that they share, so it says nothing of either; GPT-3's list left out what stood in more than
10 documents. Otherwise two long prompts that differ in one slot at the end would hold each other.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from replaykit.checks.evalsets import EvalItem
from replaykit.records import Record
from replaykit.text import WORD, normalise, words

SHOWN = 400  # characters of a matching piece that a report shows
EXAMPLES = 20  # that it shows of the rows, and of the items


class Overlap:
    """The evaluation's prompts, ready to be looked for: 16 bytes for each run of n words, and two
    copies of the text.

    A row that equals a prompt after ``text.normalise`` always holds it. A prompt of at least ``n``
    words is also held by a row in which its runs of n words stand, in any order and among other
    text: of each stretch of runs that no other prompt has, at least the share ``coverage``, and all
    where the stretch is of n runs or fewer, since these may be a single slot of a template. Prompts
    of the same runs count as one; one without a run of its own is only known by its whole text.
    """

    def __init__(self, prompts: Iterable[str], *, n: int = 13, coverage: float = 0.8):
        self.n = n
        self.prompts = list(prompts)
        self._whole: dict[str, int] = {}
        long: dict[bytes, tuple[int, np.ndarray]] = {}
        for number, prompt in enumerate(self.prompts):
            normal = normalise(prompt)
            if not normal or normal in self._whole:
                continue
            self._whole[normal] = number
            if len(runs := runs_of(prompt, n)):
                long.setdefault(runs.tobytes(), (number, runs))
        self._numbers = [number for number, _ in long.values()]
        self._index([runs for _, runs in long.values()], coverage)

    def find(self, text: str) -> tuple[str, str] | None:
        """("eval_overlap", the evaluation prompt) for a text that holds one, the earliest if
        several; otherwise None.
        """
        if (whole := self.equal(text)) is not None:
            return "eval_overlap", self.prompts[whole]
        held = self._held(self._places(runs_of(text, self.n)))
        return ("eval_overlap", self.prompts[self._numbers[held[0]]]) if len(held) else None

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
        owners, held = np.unique(
            self._owners[stretches[counts >= self._needed[stretches]]], return_counts=True
        )
        return owners[held == self._stretches_of[owners]]

    def _index(self, prompts: list[np.ndarray], coverage: float) -> None:
        """The runs that only one prompt has, by hash: the stretch of each, and of each stretch its
        owner and its need.
        """
        first = [
            np.unique(runs, return_index=True) for runs in prompts
        ]  # a run may stand twice in one prompt
        none = np.zeros(0, dtype=np.int64)
        hashes = np.concatenate([none.astype(np.uint64), *(runs for runs, _ in first)])
        places = np.concatenate([none, *(places for _, places in first)])
        owners = np.repeat(np.arange(len(first)), [len(runs) for runs, _ in first])
        _, which, times = np.unique(hashes, return_index=True, return_counts=True)
        own = which[times == 1]
        own = own[np.lexsort((places[own], owners[own]))]
        hashes = hashes[own]
        places = places[own]
        owners = owners[own]
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
    """Why a row is removed: the evaluation set and the item that it holds, and the longest piece of
    text that both have.

    The reason is "eval_overlap" for an item's prompt and "eval_answer_overlap" for its answer.
    """

    reason: str
    evalset: str
    item: str
    match: str


class Decontamination:
    """Rows against evaluation sets, both ways: which rows hold an item, and which items are held by
    how many rows.

    The text of a row is all of its conversation. An item that any message equals after
    ``text.normalise`` is held; one of ``n`` words (8 to 13) or more also by ``coverage`` of its
    runs, as ``Overlap`` says. With ``answers``, the answers of n words or more are looked for as
    well; a shorter one, such as "yes", says nothing. Each set is looked through for itself, so that
    two that share items do not hide each other's; of equal items within a set the first is named.
    Memory is that of the sets: of the rows only counts and the first one that held each item are
    kept.
    """

    def __init__(
        self,
        evalsets: Mapping[str, Iterable[EvalItem]],
        *,
        n: int = 13,
        coverage: float = 0.8,
        answers: bool = False,
    ):
        if not 8 <= n <= 13 or not 0 < coverage <= 1:
            raise ValueError(
                f"runs are of 8 to 13 words, not {n}, and the coverage is above 0 up to 1, not "
                f"{coverage}"
            )
        self.n = n
        self.coverage = coverage
        self.answers = answers
        self._items = {name: list(items) for name, items in evalsets.items()}
        self._prompts = {
            name: Overlap((item.prompt for item in items), n=n, coverage=coverage)
            for name, items in self._items.items()
        }
        self._answers = {
            name: Overlap((_long(item.answer, n) for item in items), n=n, coverage=coverage)
            for name, items in self._items.items()
            if answers
        }
        self.rows = 0
        self.reasons: Counter[str] = Counter()
        self._removed: Counter[str] = Counter()  # rows by set
        self._held: Counter[tuple[str, str]] = Counter()  # rows by set and item
        self._first: dict[tuple[str, str], tuple[str, Hit]] = {}

    def check(self, record: Record) -> Hit | None:
        """What the row holds, of several the first item of the first set; all are counted."""
        self.rows += 1
        hits = self.hits([message["content"] for message in record.messages])
        if not hits:
            return None
        self.reasons[hits[0].reason] += 1
        self._removed.update({hit.evalset for hit in hits})
        items = {(hit.evalset, hit.item): hit for hit in reversed(hits)}
        self._held.update(items.keys())
        for item in items.keys() - self._first.keys():
            self._first[item] = record.id, items[item]
        return hits[0]

    def hits(self, messages: list[str]) -> list[Hit]:
        """All items that a conversation holds, in the order of the sets and items, and those held
        by their answers last.
        """
        text = "\n".join(messages)
        parts = messages if len(messages) == 1 else [*messages, text]
        runs = runs_of(text, self.n)
        found = list[Hit]()
        for reason, overlaps in (
            ("eval_overlap", self._prompts),
            ("eval_answer_overlap", self._answers),
        ):
            for name, overlap in overlaps.items():
                equal = {
                    number: part for part in parts if (number := overlap.equal(part)) is not None
                }
                held = overlap.held(text, runs) | equal
                found += [
                    Hit(reason, name, self._items[name][number].id, held[number])
                    for number in sorted(held)
                ]
        return found

    def to_json(self, examples: int = EXAMPLES) -> dict[str, Any]:
        """For a manifest: the settings, how many rows were looked at and removed, each set, and the
        items most often held.

        ``rows`` of a set or an item are those that hold it, so a row that holds two counts for
        both.
        """
        hit = Counter(name for name, _ in self._held)
        most = sorted(self._held.items(), key=lambda item: -item[1])
        return {
            "n": self.n,
            "coverage": self.coverage,
            "answers": self.answers,
            "rows": self.rows,
            "removed": self.reasons.total(),
            "reasons": dict(self.reasons.most_common()),
            "sets": {
                name: {"items": len(items), "items_held": hit[name], "rows": self._removed[name]}
                for name, items in self._items.items()
            },
            "items": [
                {
                    "set": name,
                    "item": item,
                    "rows": rows,
                    "first_row": self._first[name, item][0],
                    "reason": self._first[name, item][1].reason,
                    "match": self._first[name, item][1].match[:SHOWN],
                }
                for (name, item), rows in islice(most, examples)
            ],
        }


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


@lru_cache
def _powers(n: int) -> np.ndarray:
    return np.array(
        [pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(1, n + 1)], dtype=np.uint64
    )


def _long(text: str, n: int) -> str:
    return text if len(words(text)) >= n else ""


def _piece(text: str, start: int, end: int) -> str:
    """The words of a text from the one number to before the other, as they are written, if this can
    be told.
    """
    wide = unicodedata.normalize("NFKC", text)
    folded = wide.casefold()
    found = list(islice(WORD.finditer(folded), start, end))
    source = (
        wide if len(wide) == len(folded) else folded
    )  # folding takes no letter away, so each stands where it stood
    return source[found[0].start() : found[-1].end()]
