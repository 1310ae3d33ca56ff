"""Which rows of a pool are taken, once it is known how near each is: n of a stream in memory for
about n.

    rows = [(0, 0.9), (1, 0.1), (2, 0.4), (3, 0.8)]     # (address, score, anything else)
    nearest(rows, 2)         ->  [(0, 0.9), (3, 0.8)]
    spread(rows, 2, seed=1)                             # a random two, in any order of the rows

An address is the number of the row in the pool. The choice depends on the set of rows alone, not on
their order or on the pieces in which they come. What ``nearest`` and ``spread`` choose of the parts
of a pool, chosen from again together, is what they choose of the whole; so parts may be read by
different processes.

``mmr``, ``k_centre`` and ``herding`` compare rows with one another, so they take candidates that
fit in memory: vectors of length 1, one a row, as a numpy array or a scipy sparse matrix. They give
positions in the order in which they chose them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from replaykit.errors import DataError
from replaykit.hashing import derive_seed

Row = tuple[int, float, *tuple[Any, ...]]  # address, score, and what the caller wants back
# What a heap keeps the largest of: a value, minus the address (of equals the earlier), the row.
Entry = tuple[float, int, Row]
Shares = Literal["equal", "proportional"]
Vectors = Any  # a numpy array or a scipy sparse matrix, [rows, dimensions]
# Similarities of candidates are rounded to 1e-6, so that no choice hangs on the last bit of a sum.
DIGITS = 6


# --- from a stream --------------------------------------------------------------------------------


def nearest(rows: Iterable[Row], n: int) -> list[Row]:
    """The n rows of the highest scores, best first; of equal scores the smaller address. All rows
    if there are fewer.

    Memory for n rows; time of a comparison for most rows. Raises DataError for a score that is not
    a number.
    """
    return heapq.nsmallest(n, _numbers(rows), key=_by_score)


def spread(rows: Iterable[Row], n: int, *, seed: int) -> list[Row]:
    """n rows at random, in random order: those whose addresses have the smallest hashes.

    Whatever n, the order is the same, so a larger n goes on where a smaller one ended. Memory for n
    rows.
    """
    return heapq.nsmallest(n, rows, key=lambda row: _draw(seed, row))


def near_and_far(rows: Iterable[Row], n: int, *, near: float = 0.5, seed: int) -> list[Row]:
    """``near`` of the n rows are the nearest, best first; the others are spread over the rest of
    the pool.

    What is far from the target is forgotten first, since nothing in the training recalls it.
    "Spread" is a random choice (``spread``) of all that are not among the nearest: each rank of
    score has the same chance, and so each tenth of the ranks gets about a tenth of the rows. With
    ``near`` 1 this is ``nearest``, with 0 it is ``spread``. Memory for 2 n rows: of the n smallest
    hashes, no more can be among the nearest than are there.
    """
    if not 0 <= near <= 1:
        raise DataError(f"near: a part of the rows, from 0 to 1 (got {near})")
    best: list[Entry] = []
    drawn: list[Entry] = []
    part = math.floor(near * n + 0.5)
    for row in _numbers(rows):
        _keep(best, (row[1], -row[0], row), part)
        _keep(drawn, _entry(seed, row), n)
    # Drawn from all rows, so those that are among the nearest are left out.
    taken = {row[0] for _, _, row in best}
    others = [row for _, _, row in sorted(drawn, reverse=True) if row[0] not in taken]
    return [row for _, _, row in sorted(best, reverse=True)] + others[: n - part]


def stratified(
    rows: Iterable[Row],
    n: int,
    *,
    by: Callable[[Row], Hashable],
    shares: Shares = "proportional",
    seed: int,
) -> list[Row]:
    """n rows at random with a share for each stratum, in random order; ``by`` gives the stratum of
    a row.

    Equal shares: as many of each as of any other, but for one; a stratum that has fewer gives all,
    and the others have the shortfall. Proportional shares: by the method of Webster and
    Sainte-Laguë, of which a larger n never takes a row away (a largest remainder may); a stratum
    too small for one row in n gets none. Of a stratum, the rows with the smallest hashes. Memory
    for 2 n rows and one for each stratum; with proportional shares for up to n rows of each, since
    a stratum that ends the pool may need them all.
    """
    kept: dict[Hashable, list[Entry]] = {}
    counts: dict[Hashable, int] = {}
    firsts: dict[Hashable, int] = {}  # the first address of each stratum
    most = n  # rows that are kept of a stratum
    held = 0  # rows that are kept of all
    for row in rows:
        stratum = by(row)
        counts[stratum] = counts.get(stratum, 0) + 1
        firsts[stratum] = min(firsts.get(stratum, row[0]), row[0])
        held += _keep(kept.setdefault(stratum, []), _entry(seed, row), most)
        if shares == "equal" and held > 2 * (n + len(kept)):
            # More rows make no stratum's equal share larger, so what is over the largest share by
            # now is not needed.
            most = max(allot(counts, n, shares, firsts).values())
            kept = {stratum: heapq.nlargest(most, heap)[::-1] for stratum, heap in kept.items()}
            held = sum(map(len, kept.values()))
    wanted = allot(counts, n, shares, firsts)
    chosen = [
        entry for stratum, heap in kept.items() for entry in heapq.nlargest(wanted[stratum], heap)
    ]
    return [row for _, _, row in sorted(chosen, reverse=True)]


def allot(
    counts: Mapping[Hashable, int], n: int, shares: Shares, firsts: Mapping[Hashable, int]
) -> dict[Hashable, int]:
    """How many rows of each stratum make n, or all there are. One row after the other goes to the
    stratum that has the best claim: with equal shares the one with the fewest so far, with
    proportional shares the one with the most rows for each 2 k + 1, k being those it has. Of equal
    claims the stratum first in the pool has the better. Time n log strata.

    >>> allot({"a": 90, "b": 9, "c": 1}, 10, "proportional", {"a": 0, "b": 1, "c": 2})
    {'a': 9, 'b': 1, 'c': 0}
    >>> allot({"a": 90, "b": 9, "c": 1}, 10, "equal", {"a": 0, "b": 1, "c": 2})
    {'a': 5, 'b': 4, 'c': 1}
    """

    def claim(stratum: Hashable) -> Fraction | int:  # the smallest is the best
        if shares == "equal":
            return given[stratum]
        return -Fraction(counts[stratum], 2 * given[stratum] + 1)

    order = sorted(counts, key=firsts.__getitem__)
    given: dict[Hashable, int] = dict.fromkeys(counts, 0)
    heap = [(claim(stratum), place) for place, stratum in enumerate(order)]
    heapq.heapify(heap)
    for _ in range(min(n, sum(counts.values()))):
        _, place = heapq.heappop(heap)
        given[order[place]] += 1
        if given[order[place]] < counts[order[place]]:
            heapq.heappush(heap, (claim(order[place]), place))
    return given


def _by_score(row: Row) -> tuple[float, int]:
    return -row[1], row[0]


def _entry(seed: int, row: Row) -> Entry:
    draw, address = _draw(seed, row)
    return -draw, -address, row


def _keep(heap: list[Entry], entry: Entry, size: int) -> bool:
    """Puts the entry into a heap of so many largest ones; whether the heap has one more now."""
    if len(heap) < size:
        heapq.heappush(heap, entry)
        return True
    if heap:
        heapq.heappushpop(heap, entry)
    return False


def _draw(seed: int, row: Row) -> tuple[int, int]:
    """What rows are in random order by: a seeded hash of the address; then the address itself,
    should two be equal.
    """
    return derive_seed(seed, "select", row[0]), row[0]


def _numbers(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        if math.isnan(row[1]):
            raise DataError(f"row {row[0]} of the pool has a score that is not a number")
        yield row


# --- from candidates ------------------------------------------------------------------------------


def mmr(vectors: Vectors, scores: np.ndarray, n: int, *, balance: float = 0.5) -> list[int]:
    """n candidates that are near the target and unlike one another, by maximal marginal relevance.

    Each next one is argmax of ``balance * score - (1 - balance) * max over the chosen of cosine``,
    of equals the earlier (Carbonell and Goldstein, SIGIR 1998). 1 is ``nearest``. A negative cosine
    counts as 0: nothing is gained by being opposite. n x candidates comparisons. (Comparing only
    those that could still be the best was slower: single rows of a sparse matrix take long to
    reach.)
    """
    if not 0 <= balance <= 1:
        raise DataError(
            f"balance: from 0, unlike one another, to 1, near the target (got {balance})"
        )
    near = balance * np.asarray(scores, dtype=np.float64)
    alike = np.zeros(len(near))  # the largest cosine with those chosen
    chosen: list[int] = []
    while len(chosen) < min(n, len(near)):
        chosen.append(int((near - (1 - balance) * alike).argmax()))
        near[chosen[-1]] = -np.inf  # it is not chosen again
        alike = np.maximum(alike, _cosines(vectors, chosen[-1]))
    return chosen


def k_centre(vectors: Vectors, n: int) -> list[int]:
    """n candidates such that every candidate is near one of them: first the first, then each time
    the farthest from those chosen.

    Its largest distance to a chosen one is at most twice that of the best n (Gonzalez, "Clustering
    to minimize the maximum intercluster distance", 1985; as the core set of Sener and Savarese,
    arXiv 1708.00489). Distance is Euclidean, which falls as the cosine rises; of equally far ones
    the earlier. n x candidates comparisons. Outliers are chosen first.
    """
    rows = vectors.shape[0]
    if not rows:
        return []
    chosen = [0]
    alike = _cosines(vectors, 0)
    alike[0] = np.inf
    while len(chosen) < min(n, rows):
        chosen.append(int(alike.argmin()))
        alike = np.maximum(alike, _cosines(vectors, chosen[-1]))
        alike[chosen[-1]] = np.inf
    return chosen[:n]


def herding(vectors: Vectors, n: int) -> list[int]:
    """n candidates whose mean follows the mean of all: the next one is argmax of <w, x>, and then w
    grows by mean - x, w being the mean at first (Welling, "Herding dynamical weights to learn",
    ICML 2009; as here, for choosing rows: Chen, Welling and Smola, "Super-samples from kernel
    herding", UAI 2010).

    Unlike there, no row is chosen twice. Of equals the earlier. n x candidates comparisons.
    """
    rows = vectors.shape[0]
    if not rows:
        return []
    mean = np.asarray(vectors.mean(axis=0), dtype=np.float64).ravel()
    towards = np.asarray(vectors @ mean).ravel()
    taken = np.zeros(rows)  # the sum of cosines with those chosen
    chosen: list[int] = []
    while len(chosen) < min(n, rows):
        value = np.round((len(chosen) + 1) * towards - taken, DIGITS)
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        taken += _cosines(vectors, chosen[-1])
    return chosen


def _cosines(vectors: Vectors, one: int) -> np.ndarray:
    """Of each row its inner product with one of them, rounded to 1e-6."""
    other = vectors[[one]]
    if not isinstance(other, np.ndarray):
        other = other.toarray()
    return np.round(np.asarray(vectors @ other[0], dtype=np.float64), DIGITS)
