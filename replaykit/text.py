"""Text as numbers: one normal form for comparison, and the TF-IDF nearness of rows to a set of queries."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 2048  # rows of the pool compared at a time: bounds memory to BLOCK x queries floats


def normalise(text: str) -> str:
    """Case, width and spacing taken out, so that two ways to write one question are equal."""
    return " ".join(re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold()))


@dataclass(frozen=True)
class Nearest:
    """For each row: the best cosine over all queries, [rows], and the index of that query, [rows]."""

    scores: np.ndarray
    queries: np.ndarray


def nearest(rows: Sequence[str], queries: Sequence[str]) -> Nearest:
    """The query most like each row, by cosine of TF-IDF vectors fitted on the rows.

    The vectors are scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``: words of two letters or more, idf smoothed,
    length 1. A row that shares no word with any query has score 0.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
    try:
        matrix = vectoriser.fit_transform(rows)
    except ValueError:  # scikit-learn's "empty vocabulary": no row has a word, so nothing is near to anything
        return Nearest(np.zeros(len(rows), dtype=np.float32), np.zeros(len(rows), dtype=np.int64))
    wanted = vectoriser.transform(queries).T.tocsr()
    scores, best = np.zeros(len(rows), dtype=np.float32), np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(rows), BLOCK):
        block = (matrix[start : start + BLOCK] @ wanted).toarray()
        best[start : start + BLOCK] = block.argmax(axis=1)
        scores[start : start + BLOCK] = block.max(axis=1)
    return Nearest(scores, best)
