"""Rows that hold a prompt of the evaluation: what is trained on must not be what is tested with.

    overlap = Overlap(record.prompt for record in held_out)
    overlap.find("Tom has 3 apples. ...")     ->  ("eval_overlap", the evaluation prompt that it holds), or None

Shared runs of 13 words are what GPT-3's data was cleaned by (Brown et al., arXiv 2005.14165, appendix C). We differ in two
ways, and both spare rows. A row is dropped for most of a prompt's runs, not for a single one. And a run that stands in two
prompts belongs to their template, or to a passage that they share, so it says nothing of either; GPT-3's list left out
what stood in more than 10 documents. Otherwise two long prompts that differ in one slot at the end would hold each other.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

from replaykit.text import normalise, words


class Overlap:
    """The evaluation's prompts, ready to be looked for: 16 bytes for each run of n words, and two copies of the text.

    A row that equals a prompt after ``text.normalise`` always holds it. A prompt of at least ``n`` words is also held by a
    row in which its runs of n words stand, in any order and among other text: of each stretch of runs that no other prompt
    has, at least the share ``coverage``, and all where the stretch is of n runs or fewer, since these may be a single slot
    of a template. Prompts of the same runs count as one; one without a run of its own is only known by its whole text.
    """

    def __init__(self, prompts: Iterable[str], *, n: int = 13, coverage: float = 0.8):
        self.n = n
        self._powers = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(1, n + 1)], dtype=np.uint64)
        self._whole: dict[str, str] = {}
        long: dict[bytes, tuple[str, np.ndarray]] = {}
        for prompt in prompts:
            normal = normalise(prompt)
            if not normal or normal in self._whole:
                continue
            self._whole[normal] = prompt
            if len(runs := self._runs(prompt)):
                long.setdefault(runs.tobytes(), (prompt, runs))
        self._prompts = [prompt for prompt, _ in long.values()]
        self._index([runs for _, runs in long.values()], coverage)

    def find(self, text: str) -> tuple[str, str] | None:
        """("eval_overlap", the evaluation prompt) for a text that holds one, the earliest if several; otherwise None."""
        if (whole := self._whole.get(normalise(text))) is not None:
            return "eval_overlap", whole
        if not len(self._hashes) or not len(runs := np.unique(self._runs(text))):
            return None
        places = np.searchsorted(self._hashes, runs)
        places[places == len(self._hashes)] = 0
        stretches, counts = np.unique(self._stretches[places[self._hashes[places] == runs]], return_counts=True)
        owners, held = np.unique(self._owners[stretches[counts >= self._needed[stretches]]], return_counts=True)
        owners = owners[held == self._stretches_of[owners]]
        return ("eval_overlap", self._prompts[owners[0]]) if len(owners) else None

    def _index(self, prompts: list[np.ndarray], coverage: float) -> None:
        """The runs that only one prompt has, by hash: the stretch of each, and of each stretch its owner and its need."""
        first = [np.unique(runs, return_index=True) for runs in prompts]  # a run may stand twice in one prompt
        none = np.zeros(0, dtype=np.int64)
        hashes = np.concatenate([none.astype(np.uint64), *(runs for runs, _ in first)])
        places = np.concatenate([none, *(places for _, places in first)])
        owners = np.repeat(np.arange(len(first)), [len(runs) for runs, _ in first])
        _, which, times = np.unique(hashes, return_index=True, return_counts=True)
        own = which[times == 1]
        own = own[np.lexsort((places[own], owners[own]))]
        hashes, places, owners = hashes[own], places[own], owners[own]
        follows = (np.diff(owners, prepend=-1) == 0) & (np.diff(places, prepend=-1) == 1)
        stretches = np.cumsum(~follows) - 1
        self._owners = owners[~follows]
        self._stretches_of = np.bincount(self._owners, minlength=len(prompts))
        sizes = np.bincount(stretches, minlength=len(self._owners))
        self._needed = np.where(sizes <= self.n, sizes, np.ceil(coverage * sizes))
        order = np.argsort(hashes)
        self._hashes, self._stretches = hashes[order], stretches[order]

    def _runs(self, text: str) -> np.ndarray:
        """The runs of n words in order, as 64-bit hashes: CRC-32 of each word, combined by a polynomial."""
        sums = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words(text)], dtype=np.uint64)
        if len(sums) < self.n:
            return sums[:0]
        return np.lib.stride_tricks.sliding_window_view(sums, self.n) @ self._powers
