"""In which order a method takes the rows of a pool, and which it chooses of those that are good.

    nearest(np.array([0.9, 0.1, 0.4, 0.8]))                 ->  [0, 3, 2, 1]
    spread(range(4), seed=1)                                 # all four, in random order
    stratified({0: "a", 1: "a", 2: "b", 3: "b"}, 2, ...)     # one of each

A row is its place in the pool: a number that stays the same whatever is chosen.

``mmr``, ``k_centre`` and ``herding`` compare rows with one another, so they take candidates that
fit in memory: vectors of length 1, one a row, as a numpy array or a scipy sparse matrix. They give
positions in the order in which they chose them.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from replaykit.errors import DataError
from replaykit.hashing import derive_seed

Shares = Literal["equal", "proportional"]
Vectors = Any  # a numpy array or a scipy sparse matrix, [rows, dimensions]
# Similarities of candidates are rounded to 1e-6, so that no choice hangs on the last bit of a sum.
DIGITS = 6
WORD = re.compile(r"(?u)\b\w+\b")


# --- orders of a pool -----------------------------------------------------------------------------


def nearest(scores: np.ndarray) -> np.ndarray:
    """All places, int64: those of the highest scores first, of equal scores the earlier."""
    return np.argsort(-scores, kind="stable")


def spread(places: Sequence[int], *, seed: int) -> np.ndarray:
    """The places in random order, int64: by ascending seeded hashes of the places.

    Which of two comes first does not depend on the others, so a larger choice goes on where a
    smaller one ended.
    """
    draws = (derive_seed(seed, "select", place) for place in places)
    order = np.argsort(np.fromiter(draws, dtype=np.int64, count=len(places)), kind="stable")
    return np.asarray(places, dtype=np.int64)[order]


def stratified(
    strata: Mapping[int, Hashable], n: int, *, shares: Shares = "proportional", seed: int
) -> list[int]:
    """n places at random with a share for each stratum, in random order. ``strata`` has the stratum
    of each place.

    Equal shares: as many of each as of any other, but for one; a stratum that has fewer gives all,
    and the others have the shortfall. Proportional shares: by the method of Webster and
    Sainte-Laguë, of which a larger n never takes a row away (a largest remainder may); a stratum
    too small for one row in n gets none. Of a stratum, the first ones that ``spread`` gives.
    """
    wanted = allot(Counter(strata.values()), n, shares)
    chosen = []
    for place in spread(list(strata), seed=seed).tolist():
        if wanted[strata[place]]:
            wanted[strata[place]] -= 1
            chosen.append(place)
    return chosen


def allot(counts: Mapping[Hashable, int], n: int, shares: Shares) -> dict[Hashable, int]:
    """How many rows of each stratum make n, or all there are. One row after the other goes to the
    stratum that has the best claim: with equal shares the one with the fewest so far, with
    proportional shares the one with the most rows for each 2 k + 1, k being those it has. Of equal
    claims the stratum that stands first has the better. Time n log strata.

    >>> allot({"a": 90, "b": 9, "c": 1}, 10, "proportional")
    {'a': 9, 'b': 1, 'c': 0}
    >>> allot({"a": 90, "b": 9, "c": 1}, 10, "equal")
    {'a': 5, 'b': 4, 'c': 1}
    """

    def claim(stratum: Hashable) -> Fraction | int:  # the smallest is the best
        if shares == "equal":
            return given[stratum]
        return -Fraction(counts[stratum], 2 * given[stratum] + 1)

    order = list(counts)
    given: dict[Hashable, int] = dict.fromkeys(counts, 0)
    heap = [(claim(stratum), place) for place, stratum in enumerate(order)]
    heapq.heapify(heap)
    for _ in range(min(n, sum(counts.values()))):
        _, place = heapq.heappop(heap)
        given[order[place]] += 1
        if given[order[place]] < counts[order[place]]:
            heapq.heappush(heap, (claim(order[place]), place))
    return given


# --- from candidates ------------------------------------------------------------------------------


def tfidf(texts: Sequence[str]) -> Vectors:
    """TF-IDF vectors of the texts, fitted on them: scikit-learn's, of length 1, sparse; without any
    word, of zeros.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(WORD.search(text) for text in texts):
        return csr_matrix((len(texts), 1))
    return TfidfVectorizer(sublinear_tf=True, token_pattern=WORD.pattern).fit_transform(texts)


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

    Unlike there, no row is chosen twice. Of equals the earlier. n x candidates comparisons. For
    vectors of length 1 this is the herding of iCaRL, whose next one brings the mean of those chosen
    nearest to the mean of all (Rebuffi et al., arXiv 1611.10010, algorithm 4).
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
