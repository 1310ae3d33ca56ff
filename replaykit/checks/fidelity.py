"""Did the checks bend the sample? What the model wrote is compared with what was kept of it, by
length, language and category.

    {"rows": 1712, "kept": 1500, "items": {
        "language": {"words": ["en", "de"], "raw": [0.9, 0.1], "kept": [0.91, 0.09],
                     "distance": 0.01, "expected": 0.004, "chance": 0.012}, ...}, ...}

Replay protects what the model can do because it is a fair sample of it. So a check that drops most
short questions, say, or most of one language does harm. ``distance`` is the total variation
distance between the two distributions: the share of the kept rows that would have to be others to
match the raw ones, from 0 to 1.

What chance alone does is simulated, with 2,000 random subsets of the raw rows, each as large as the
kept rows. (Over words that is a multivariate hypergeometric draw, with a fixed seed.) ``expected``
is the mean distance of such subsets, ``chance`` the 95th percentile: a distance up to it is no sign
of a shift. With three items, one is beyond it by luck in one run of seven.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np

from replaykit.checks.texts import language
from replaykit.result import Result

# Of the simulated subsets and of the clusters. It is fixed, so that one sample has one summary.
SEED = 1
SUBSETS = 2000
FEWEST_ROWS = 50  # fewer raw rows say nothing about a distribution
BINS = 8  # of question length, with as many raw rows each as ties allow
CLUSTERS = 8
DIMENSIONS = 20
ROWS_PER_CLUSTER = 25  # fewer rows make fewer clusters
RAREST_LANGUAGE = 0.01  # of the rows; rarer ones are "other"
TERMS = 3  # of a cluster's label
NOT_A_LANGUAGE = {"zxx": "unclear"}

# Runs of letters or digits. Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer put no spaces
# between words. The vowel signs of the Indic scripts are named as they are no letters to Python.
UNSPACED = (
    "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
RUNS = re.compile(rf"([{UNSPACED}]+)|(\d+)|((?:[^\W\d_{UNSPACED}]|[\u0900-\u0dff]){{2,}})")


class Row(NamedTuple):
    """What the comparison needs of a row."""

    question: str
    answer_chars: int | None
    kept: bool


class ItemFidelity(Result):
    """Length, language or category of the questions, drawn against kept."""

    words: list[str]
    raw: list[float]
    """The share of each word among the drawn rows."""
    kept: list[float]
    """The share of each word among the kept rows."""
    distance: float
    """Total variation distance of the two, from 0 to 1."""
    expected: float
    """The mean distance of a random subset of the drawn rows."""
    chance: float
    """The 95th percentile of that: a distance up to it is no sign of a shift."""


class Fidelity(Result):
    """Whether the checks bent the sample."""

    drawn: int
    """Rows that were given."""
    rows: int
    """Rows of them that are in the sample."""
    kept: int
    """Rows of the sample that were kept."""
    answer_chars: float | None
    """The median length of the kept answers, in characters."""
    note: str | None
    """Why there is no comparison, where there is none."""
    items: dict[str, ItemFidelity]


@dataclass
class RawSample:
    """Rows spread evenly over all that were drawn, kept or not: those whose number is a multiple of
    the stride.

    The stride doubles when there are more than ``size``. So between half of size and size rows are
    held in the end, and only their numbers decide which.
    """

    size: int = 2000
    stride: int = field(default=1, init=False)
    seen: int = field(default=0, init=False)
    """How many rows were given."""
    rows: list[tuple[int, Row]] = field(default_factory=list, init=False)
    """The held rows with their numbers."""

    def add(self, row: int, question: str, answer_chars: int | None, kept: bool) -> None:
        """Takes a row with its number, which several answers to one question share.

        ``answer_chars`` is None for a question that was not answered.
        """
        self.seen += 1
        if row % self.stride:
            return
        self.rows.append((row, Row(question, answer_chars, kept)))
        # Row 0 stays with any stride, so where only its answers are held, none can be left out.
        while len(self.rows) > self.size and any(number > 0 for number, _ in self.rows):
            self.stride *= 2
            self.rows = [held for held in self.rows if held[0] % self.stride == 0]

    def summary(self) -> Fidelity:
        """The comparison, rows in the order of their numbers."""
        rows = [row for _, row in sorted(self.rows, key=lambda held: held[0])]
        kept = np.array([row.kept for row in rows], dtype=bool)
        answers = [row.answer_chars for row in rows if row.kept and row.answer_chars is not None]
        answer_chars = median(answers) if answers else None
        items: dict[str, ItemFidelity] = {}
        note = None
        if len(rows) < FEWEST_ROWS:
            note = f"{len(rows)} rows are too few to compare; {FEWEST_ROWS} are needed"
        elif not kept.any():
            note = "no row was kept"
        else:
            items = _compared([row.question for row in rows], kept)
        return Fidelity(
            drawn=self.seen,
            rows=len(rows),
            kept=int(kept.sum()),
            answer_chars=answer_chars,
            note=note,
            items=items,
        )


def _compared(questions: Sequence[str], kept: np.ndarray) -> dict[str, ItemFidelity]:
    parts = {
        "length": _lengths(questions),
        "language": _languages(questions),
        "category": _categories(questions),
    }
    return {item: _compare(*part, kept) for item, part in parts.items() if part is not None}


def _compare(words: Sequence[str], places: np.ndarray, kept: np.ndarray) -> ItemFidelity:
    """The distributions of the raw and of the kept rows over the words, and how far they are apart.

    ``places`` has a place in ``words`` for each row, ``kept`` whether the row was kept.
    """
    raw = np.bincount(places, minlength=len(words))
    some = np.bincount(places[kept], minlength=len(words))
    raw_shares = raw / raw.sum()
    kept_shares = some / some.sum()
    subsets = np.random.default_rng(SEED).multivariate_hypergeometric(raw, some.sum(), size=SUBSETS)
    by_chance = _distance(subsets / some.sum(), raw_shares)
    return ItemFidelity(
        words=list(words),
        raw=_rounded(raw_shares),
        kept=_rounded(kept_shares),
        distance=round(float(_distance(kept_shares, raw_shares)), 4),
        expected=round(float(by_chance.mean()), 4),
        chance=round(float(np.quantile(by_chance, 0.95)), 4),
    )


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The total variation distance of distributions over the last axis."""
    return np.abs(one - other).sum(axis=-1) / 2


def _rounded(shares: np.ndarray) -> list[float]:
    return [round(float(share), 4) for share in shares]


def _lengths(questions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Bins with equally many questions, by their characters: "3–21", "22–34", ... Returns the bins,
    and the bin of each question.
    """
    sizes = np.array([len(question) for question in questions])
    cuts = np.unique(np.quantile(sizes, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    places = np.unique(np.searchsorted(cuts, sizes), return_inverse=True)[1]
    words = []
    for place in range(places.max() + 1):
        least = sizes[places == place].min()
        most = sizes[places == place].max()
        words.append(f"{least}" if least == most else f"{least}–{most}")
    return words, places


def _languages(questions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """ISO 639-1 codes, the most frequent first, the rare ones together as "other", "unclear" where
    one cannot tell.
    """
    codes = [language(question) for question in questions]
    codes = [NOT_A_LANGUAGE.get(code, code) for code in codes]
    counts = Counter(codes)
    words = [code for code, count in counts.most_common() if count >= RAREST_LANGUAGE * len(codes)]
    places = {code: place for place, code in enumerate(words)}
    other = len(words)
    if other < len(counts):
        words.append("other")
    return words, np.array([places.get(code, other) for code in codes])


def _categories(questions: Sequence[str]) -> tuple[list[str], np.ndarray] | None:
    """Clusters of the questions, the largest first, each named by its top terms; None where no term
    occurs twice.

    The vectors are TF-IDF, reduced to 20 dimensions (otherwise one cluster takes half of the rows),
    and k-means clusters them.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    settings = {
        "sublinear_tf": True,
        "min_df": 2,
        "max_df": 0.5,
        "max_features": 4000,
        "dtype": np.float32,
    }
    vectoriser = TfidfVectorizer(analyzer=_terms, **settings)
    try:
        matrix = vectoriser.fit_transform(questions)
    except ValueError:
        # scikit-learn's "no terms remain": none is in two questions and not in most of them.
        return None
    svd = TruncatedSVD(min(DIMENSIONS, matrix.shape[1]), random_state=SEED)
    dense = normalize(svd.fit_transform(matrix))
    clusters = min(CLUSTERS, len(questions) // ROWS_PER_CLUSTER)
    means = MiniBatchKMeans(clusters, n_init=3, batch_size=512, random_state=SEED)
    placed = means.fit_predict(dense)
    terms = vectoriser.get_feature_names_out()
    overall = np.asarray(matrix.mean(axis=0)).ravel()
    places = np.zeros(len(questions), dtype=np.int64)
    words = []
    for place, (cluster, _) in enumerate(Counter(placed.tolist()).most_common()):
        places[placed == cluster] = place
        # The most frequent terms would be the same in many clusters. So a cluster is named by the
        # terms that are more frequent in it than overall.
        more = np.asarray(matrix[placed == cluster].mean(axis=0)).ravel() - overall
        order = np.argsort(-more, kind="stable")[:TERMS]
        top = [str(terms[term]) for term in order if more[term] > 0]
        words.append(", ".join(top) or "the rest")
    return words, places


def _terms(text: str) -> list[str]:
    """Lower-case words but the English stop words; pairs of letters where words have no spaces; "#"
    for any number.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    terms = []
    for run, number, word in RUNS.findall(text.casefold()):
        if word:
            terms.append(word)
        elif number:
            terms.append("#")
        else:
            terms += [run[k : k + 2] for k in range(max(1, len(run) - 1))]
    return [term for term in terms if term not in ENGLISH_STOP_WORDS]
