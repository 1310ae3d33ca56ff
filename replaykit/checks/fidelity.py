"""Did the filters bend the sample? What the model wrote against what was kept of it: length,
language, category.

    {"rows": 1712, "kept": 1500, "items": {"language": {"words": ["en", "de"], "raw": [0.9, 0.1], "kept": [0.91, 0.09],
     "distance": 0.01, "expected": 0.004, "chance": 0.012}, ...}, ...}

Replay protects what the model can do by being a fair sample of it, so a filter that drops, say,
most short questions or most of one language does harm. ``distance`` is the total variation distance
between the two distributions: the share of kept rows that would have to be others to match the raw
ones, from 0 to 1.

What chance alone does is simulated: 2,000 random subsets of the raw rows, each as large as the kept
rows (over words that is a multivariate hypergeometric draw, with a fixed seed). ``expected`` is the
mean distance of such subsets, ``chance`` the 95th percentile: a distance up to it is no sign of a
shift. Of three items, one is beyond it by luck in one run of seven.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from replaykit.checks.texts import language

SEED = 1  # of the simulated subsets and of the clusters: one sample has one summary
SUBSETS = 2000
FEWEST_ROWS = 50  # fewer raw rows say nothing about a distribution
BINS = 8  # of question length, with as many raw rows each as ties allow
CLUSTERS = 8
DIMENSIONS = 20
ROWS_PER_CLUSTER = 25  # fewer rows make fewer clusters
RAREST_LANGUAGE = 0.01  # of the rows; rarer ones are "other"
TERMS = 3  # of a cluster's label

# Runs of letters or digits. Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer put no spaces
# between words; the vowel signs of the Indic scripts are no letters to Python.
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
RUNS = re.compile(rf"([{UNSPACED}]+)|(\d+)|((?:[^\W\d_{UNSPACED}]|[\u0900-\u0dff]){{2,}})")


class Row(NamedTuple):
    question: str
    answer_chars: int | None
    kept: bool


@dataclass
class RawSample:
    """Rows spread evenly over all that were drawn, kept or not: those whose address is a multiple
    of the stride.

    The stride doubles when there are more than ``size``, so between half of size and size are held
    in the end, and which ones depends on the addresses alone.
    """

    size: int = 2000
    stride: int = field(default=1, init=False)
    seen: int = field(default=0, init=False)  # rows that were given, in all
    rows: list[tuple[int, Row]] = field(default_factory=list, init=False)  # with their addresses

    def add(self, row: int, question: str, answer_chars: int | None, kept: bool) -> None:
        """Takes a row by its address, which several answers to one question share.

        ``answer_chars`` is None for a question that was not answered.
        """
        self.seen += 1
        if row % self.stride:
            return
        self.rows.append((row, Row(question, answer_chars, kept)))
        while len(self.rows) > self.size and any(address for address, _ in self.rows):
            self.stride *= 2
            self.rows = [
                (address, found) for address, found in self.rows if address % self.stride == 0
            ]

    def summary(self) -> dict[str, Any]:
        """The comparison as JSON, as this module's example shows it; rows in the order of their
        addresses.

        ``drawn``, ``rows`` and ``kept`` count what was given, what of it is in the sample, and how
        many of those were kept. ``answer_chars`` is the median length of the kept answers, in
        characters. ``note`` says why there is no comparison where ``items`` is empty; else it is
        None.
        """
        rows = [row for _, row in sorted(self.rows, key=lambda found: found[0])]
        kept = np.array([row.kept for row in rows], dtype=bool)
        answers = [row.answer_chars for row in rows if row.kept and row.answer_chars is not None]
        found: dict[str, Any] = {"drawn": self.seen, "rows": len(rows), "kept": int(kept.sum())}
        found |= {"answer_chars": median(answers) if answers else None, "note": None, "items": {}}
        if len(rows) < FEWEST_ROWS:
            return found | {
                "note": f"{len(rows)} rows are too few to compare; {FEWEST_ROWS} are needed"
            }
        if not kept.any():
            return found | {"note": "no row was kept"}
        questions = [row.question for row in rows]
        parts = {
            "length": _lengths(questions),
            "language": _languages(questions),
            "category": _categories(questions),
        }
        items = {item: _compare(*part, kept) for item, part in parts.items() if part is not None}
        return found | {"items": items}


def _compare(words: Sequence[str], places: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """The two distributions over the words, of which each row has the one at its place, and how far
    they are apart.
    """
    raw, some = (np.bincount(rows, minlength=len(words)) for rows in (places, places[kept]))
    subsets = np.random.default_rng(SEED).multivariate_hypergeometric(raw, some.sum(), size=SUBSETS)
    by_chance = _distance(subsets / some.sum(), raw / raw.sum())
    return {
        "words": list(words),
        "raw": _rounded(raw / raw.sum()),
        "kept": _rounded(some / some.sum()),
        "distance": round(float(_distance(some / some.sum(), raw / raw.sum())), 4),
        "expected": round(float(by_chance.mean()), 4),
        "chance": round(float(np.quantile(by_chance, 0.95)), 4),
    }


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The total variation distance of distributions over the last axis."""
    return np.abs(one - other).sum(axis=-1) / 2


def _rounded(shares: np.ndarray) -> list[float]:
    return [round(float(share), 4) for share in shares]


def _lengths(questions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Bins of equally many questions by their characters: "3–21", "22–34", ..."""
    sizes = np.array([len(question) for question in questions])
    cuts = np.unique(np.quantile(sizes, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    places = np.unique(np.searchsorted(cuts, sizes), return_inverse=True)[1]
    bins = [sizes[places == place] for place in range(places.max() + 1)]
    return [f"{b.min()}–{b.max()}" if b.min() < b.max() else f"{b.min()}" for b in bins], places


def _languages(questions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """ISO 639-1 codes, the most frequent first, the rare ones together as "other", "unclear" where
    one cannot tell.
    """
    found = ["unclear" if (code := language(question)) == "zxx" else code for question in questions]
    often = [
        word
        for word, count in Counter(found).most_common()
        if count >= RAREST_LANGUAGE * len(found)
    ]
    words = [*often, *(["other"] if len(often) < len(set(found)) else [])]
    places = {word: place for place, word in enumerate(often)}
    return words, np.array([places.get(word, len(often)) for word in found])


def _categories(questions: Sequence[str]) -> tuple[list[str], np.ndarray] | None:
    """Clusters of the questions, the largest first, each named by its top terms; None where no term
    occurs twice.

    TF-IDF vectors, brought to 20 dimensions (without which one cluster takes half of the rows), and
    k-means.
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
    except (
        ValueError
    ):  # scikit-learn's "no terms remain": none is shared by two questions and not by most
        return None
    dense = normalize(
        TruncatedSVD(min(DIMENSIONS, matrix.shape[1]), random_state=SEED).fit_transform(matrix)
    )
    clusters = min(CLUSTERS, len(questions) // ROWS_PER_CLUSTER)
    placed = MiniBatchKMeans(clusters, n_init=3, batch_size=512, random_state=SEED).fit_predict(
        dense
    )
    terms = vectoriser.get_feature_names_out()
    overall = np.asarray(matrix.mean(axis=0)).ravel()
    places = np.zeros(len(questions), dtype=np.int64)
    words = []
    for place, (cluster, _) in enumerate(Counter(placed.tolist()).most_common()):
        places[placed == cluster] = place
        # Not the most frequent terms, since many are so everywhere, but those that are more
        # frequent here than overall.
        more = np.asarray(matrix[placed == cluster].mean(axis=0)).ravel() - overall
        top = [
            str(terms[term]) for term in np.argsort(-more, kind="stable")[:TERMS] if more[term] > 0
        ]
        words.append(", ".join(top) or "the rest")
    return words, places


def _terms(text: str) -> list[str]:
    """Lower-case words but the English stop words; pairs of letters where words have no spaces; "#"
    for any number.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    terms = []
    for run, number, word in RUNS.findall(text.casefold()):
        terms += (
            [word]
            if word
            else ["#"]
            if number
            else [run[k : k + 2] for k in range(max(1, len(run) - 1))]
        )
    return [term for term in terms if term not in ENGLISH_STOP_WORDS]
