"""Texts that stood before, word for word or nearly so, found in one pass over any number of rows in bounded memory.

    twins = Twins(0.9, read=lambda row: questions[row]["text"])
    twins.find(0, "What is 2 + 2?")     ->  None, and remembered
    twins.find(1, "what is  2+2 ?")     ->  ("duplicate", 0)

Candidates come from MinHash signatures cut into bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.3 and
3.4), and each is then read back and compared exactly: no pair is dropped that is less similar than was asked for.
Unlike the indexes of datasketch and rensa, what is remembered does not grow: a table of fixed size holds row numbers, and
in a full bucket the oldest row makes room. One quiet core takes 26,000 GSM8K questions a second at a threshold of 0.9, and
5,000 prompts of P3, which are four times as long and a fifth of them near duplicates that are read back.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable

import numpy as np

from replaykit.text import normalise

SHINGLE = 5  # characters
PERMUTATIONS = 128  # of a signature, at most
RECALL = 0.99  # the chance that a pair just as similar as the threshold shares a band
WAYS = 8  # slots of a bucket: one line of 64 bytes in the processor's cache
ROW = np.uint64(2**32 - 1)  # the low half of a slot is a row number plus 1, the high half the tag of its hash
ODD = np.uint64(0x9E3779B97F4A7C15)
POWERS = np.array([pow(int(ODD), power, 2**64) for power in range(SHINGLE)], dtype=np.uint64)


class Twins:
    """Remembers the rows that are new, and names the earlier row that a row is like.

    ``threshold`` is the Jaccard similarity of the two sets of 5-character shingles from which on a text is a near
    duplicate, or None for exact duplicates only. ``read`` gives the text of a row that was remembered. Row numbers are
    below 2**32 - 1 and differ; the same rows in the same order give the same verdicts in any process.

    A near duplicate just at the threshold is found with probability 0.99, a closer one more surely (below a threshold of
    0.035: less), until the ``slots`` fill and new rows push out the oldest. The default takes 192 MiB; at a threshold of
    0.9 the oldest rows' near duplicates were found to 0.997 after 1 million rows and to 0.45 after 2 million. An exact
    duplicate is missed only if 8 later rows fell into its bucket: one in a million at 1 million rows, one in a thousand
    at 3 million; without a threshold, at three times as many rows.
    """

    def __init__(self, threshold: float | None, read: Callable[[int], str], *, slots: int = 3 * 2**23):
        self.threshold = threshold
        self._read = read
        self.bands, self.rows = bands_for(threshold) if threshold is not None else (0, 0)
        self._table = Table(slots, self.bands)
        drawn = np.random.default_rng(1).integers(2**63, size=(self.bands, self.rows), dtype=np.uint64)
        self._factors = drawn | np.uint64(1)  # a band's hash is its inner product with these, modulo 2**64

    def find(self, row: int, text: str) -> tuple[str, int] | None:
        """("duplicate", earlier row) if the texts are equal after ``text.normalise``, ("near_duplicate", earlier row) if
        they are at least as similar as the threshold; otherwise None, and the row is remembered."""
        normal = normalise(text)
        hashes = self._hashes(normal)
        same, alike = self._table.get(hashes)
        for earlier in same:
            if normalise(self._read(earlier)) == normal:
                return "duplicate", earlier
        if alike and (near := self._similar(normal, Counter(alike))) is not None:
            return "near_duplicate", near
        self._table.put(hashes, row)
        return None

    def _similar(self, normal: str, shared: Counter[int]) -> int | None:
        """The first row as similar as the threshold; those that share the most bands are read first, then the earliest."""
        own = shingles(normal)
        for earlier in sorted(shared, key=lambda row: (-shared[row], row)):
            other = shingles(normalise(self._read(earlier)))
            both = len(own & other)
            if both / (len(own) + len(other) - both) >= (self.threshold or 0):
                return earlier
        return None

    def _hashes(self, normal: str) -> np.ndarray:
        """64 bits of the whole text and 64 of each band of its signature, [1 + bands]; the same in every process."""
        hashes = np.empty(1 + self.bands, dtype=np.uint64)
        hashes[0] = int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        if self.bands:
            hashes[1:] = _mix((self._signature(normal) * self._factors).sum(axis=1, dtype=np.uint64))
        return hashes

    def _signature(self, normal: str) -> np.ndarray:
        """The MinHash signature of the text's shingles, [bands, rows]."""
        from rensa import RMinHash

        letters = np.frombuffer(normal.ljust(SHINGLE, "\0").encode("utf-32-le", "surrogatepass"), dtype="<u4")
        tokens = _mix(np.convolve(letters.astype(np.uint64), POWERS, "valid"))  # one of 64 bits for each shingle
        flat = RMinHash.digest_matrix_from_flat_token_hashes(tokens, [0, len(tokens)], self.bands * self.rows, 1)
        return np.array(flat.to_rows(), dtype=np.uint64).reshape(self.bands, self.rows)


class Table:
    """Row numbers under 64-bit hashes, in buckets of 8 slots where the least row number gives way.

    A third of the slots is for the first hash of a row, so that the others cannot push it out; without others, all are.
    """

    def __init__(self, slots: int, others: int):
        first = max(1, slots // WAYS // (3 if others else 1))
        rest = max(1, slots // WAYS - first) if others else 0
        self._sizes = np.array([first] + [rest] * others, dtype=np.uint64)
        self._starts = np.array([0] + [first] * others, dtype=np.uint64)
        self._slots = np.zeros((first + rest, WAYS), dtype=np.uint64)

    def get(self, hashes: np.ndarray) -> tuple[list[int], list[int]]:
        """The rows under the first hash, and those under the others, once for each that they share."""
        found = self._slots[hashes % self._sizes + self._starts]
        hits = ((found | ROW) == (hashes | ROW)[:, None]) & (found & ROW > 0)
        if not hits.any():
            return [], []
        rows = (found & ROW) - np.uint64(1)
        return rows[0][hits[0]].tolist(), rows[1:][hits[1:]].tolist()

    def put(self, hashes: np.ndarray, row: int) -> None:
        buckets = hashes % self._sizes + self._starts
        oldest = (self._slots[buckets] & ROW).argmin(axis=1)
        self._slots[buckets, oldest] = (hashes & ~ROW) | np.uint64(row + 1)


def bands_for(threshold: float) -> tuple[int, int]:
    """How a signature is cut: so many bands of so many rows.

    A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s**r)**b. Of the cuts that find 0.99
    at the threshold this is the one with the most rows to a band, which brings the fewest other pairs to compare.

    >>> bands_for(0.9)
    (12, 10)
    """
    cuts = [(PERMUTATIONS // rows, rows) for rows in range(1, PERMUTATIONS + 1)]
    good = [(bands, rows) for bands, rows in cuts if 1 - (1 - threshold**rows) ** bands >= RECALL]
    return good[-1] if good else cuts[0]


def shingles(normal: str) -> set[str]:
    """Every run of 5 characters; a shorter text is its own one."""
    return {normal[start : start + SHINGLE] for start in range(max(1, len(normal) - SHINGLE + 1))}


def _mix(hashes: np.ndarray) -> np.ndarray:
    """Spreads every bit over all: sums of products are well mixed in their upper bits only."""
    hashes = (hashes ^ (hashes >> np.uint64(32))) * ODD
    return hashes ^ (hashes >> np.uint64(29))
