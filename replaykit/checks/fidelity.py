"""Did the checks bend the sample? What the model wrote is compared with what was kept of it: its
questions by length, language and category, its answers by length and by whether they refuse.

    {"rows": 1712, "kept": 1500, "answers": 1590, "cut": 20, "items": {
        "language": {"words": ["en", "de"], "raw": [0.9, 0.1], "kept": [0.91, 0.09],
                     "distance": 0.01, "expected": 0.004, "chance": 0.012}, ...},
     "warnings": ["refusals are 31 % of the kept answers and 12 % of all that the ..."]}

Replay protects what the model can do because it is a fair sample of it. So a check that drops most
short questions, say, or most of one language does harm. Where long answers are dropped, refusals
are left over, since they are short, and replay teaches to refuse. ``distance`` is the total
variation distance between the two distributions: the share of the kept rows that would have to be
others to match the raw ones, from 0 to 1.

Questions are compared over all rows. Answers are compared over the rows that have one: what the
model would have answered to a question that was dropped is not known.

What chance alone does is simulated, with 2,000 random subsets of the raw rows, each as large as the
kept rows. (Over words that is a multivariate hypergeometric draw, with a fixed seed.) ``expected``
is the mean distance of such subsets, ``chance`` the 95th percentile: a distance up to it is no sign
of a shift. With three items, one is beyond it by luck in one run of seven. A warning needs more: a
share that so large a random subset has in one of a hundred cases (two-sided, by the hypergeometric
distribution), and that is a fifth more or less than it was.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np
from pydantic import Field

from replaykit.checks.texts import language, refusal
from replaykit.result import Result

# Of the simulated subsets and of the clusters. It is fixed, so that one sample has one summary.
SEED = 1
SUBSETS = 2000
FEWEST_ROWS = 50  # fewer raw rows say nothing about a distribution
BINS = 8  # of the lengths of texts, with as many raw rows each as ties allow
CLUSTERS = 8
DIMENSIONS = 20
ROWS_PER_CLUSTER = 25  # fewer rows make fewer clusters
RAREST_LANGUAGE = 0.01  # of the rows; rarer ones are "other"
TERMS = 3  # of a cluster's label
NOT_A_LANGUAGE = {"zxx": "unclear"}
CUT = "cut"  # the word for an answer that was cut at the token limit
RISK = 0.01  # of a warning where there is nothing to warn of
FIFTH = 0.2  # by which a share must have changed, as a part of itself, to be worth a warning
MANY_CUT = 0.05  # of the answers: more that were cut are worth a warning

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
    """None for a question that was not answered."""
    refuses: bool
    """Whether the answer is a refusal."""
    cut: bool
    """Whether the answer was cut at the token limit."""
    kept: bool


class ItemFidelity(Result):
    """One property of the questions or of the answers, drawn against kept."""

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
    answers: int = 0
    """Rows of the sample that were answered, kept or not."""
    cut: int = 0
    """Those of them whose last answer was cut at the token limit."""
    note: str | None
    """Why there is no comparison, where there is none."""
    items: dict[str, ItemFidelity]
    """By "length", "language" and "category" of questions; and where answers were dropped, by
    "answers" (their length) and by "refusals".
    """
    warnings: list[str] = Field(default_factory=list)
    """What replay would teach since the checks left it over, in a sentence each."""


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

    def add(
        self, row: int, question: str, answer: str | None, kept: bool, *, cut: bool = False
    ) -> None:
        """Takes a row with its number, which several answers to one question share.

        ``answer`` is None for a question that was not answered; ``cut`` says whether it was cut at
        the token limit.
        """
        self.seen += 1
        if row % self.stride:
            return
        answer_chars = None
        refuses = False
        if answer is not None:
            answer_chars = len(answer)
            refuses = refusal(answer) is not None
        self.rows.append((row, Row(question, answer_chars, refuses, cut, kept)))
        # Row 0 stays with any stride, so where only its answers are held, none can be left out.
        while len(self.rows) > self.size and any(number > 0 for number, _ in self.rows):
            self.stride *= 2
            self.rows = [held for held in self.rows if held[0] % self.stride == 0]

    def summary(self) -> Fidelity:
        """The comparison, rows in the order of their numbers."""
        rows = [row for _, row in sorted(self.rows, key=lambda held: held[0])]
        kept = np.array([row.kept for row in rows], dtype=bool)
        answered = [row for row in rows if row.answer_chars is not None]
        answers = [
            row.answer_chars for row in answered if row.kept and row.answer_chars is not None
        ]
        answer_chars = median(answers) if answers else None
        items: dict[str, ItemFidelity] = {}
        warnings: list[str] = []
        note = None
        if len(rows) < FEWEST_ROWS:
            note = f"{len(rows)} rows are too few to compare; {FEWEST_ROWS} are needed"
        elif not kept.any():
            note = "no row was kept"
        else:
            items, warnings = _compared(rows, kept)
            if len(answered) >= FEWEST_ROWS:
                of_answers, said_of_answers = _compared_answers(answered)
                items |= of_answers
                warnings = [*said_of_answers, *warnings]
        return Fidelity(
            drawn=self.seen,
            rows=len(rows),
            kept=int(kept.sum()),
            answer_chars=answer_chars,
            answers=len(answered),
            cut=sum(row.cut for row in answered),
            note=note,
            items=items,
            warnings=warnings,
        )


def _compared(rows: Sequence[Row], kept: np.ndarray) -> tuple[dict[str, ItemFidelity], list[str]]:
    """The questions by each item, and the warnings."""
    questions = [row.question for row in rows]
    parts = {
        "length": _lengths([len(question) for question in questions]),
        "language": _languages(questions),
        "category": _categories(questions),
    }
    items = {}
    warnings: list[str] = []
    for item, part in parts.items():
        if part is None:
            continue
        words, places = part
        items[item] = _compare(words, places, kept)
        if item != "length":
            warnings += _kind_warnings(item, words, places, kept)
    return items, warnings


def _compared_answers(rows: Sequence[Row]) -> tuple[dict[str, ItemFidelity], list[str]]:
    """The answers by each item, and the warnings; no item where none or all were dropped."""
    kept = np.array([row.kept for row in rows], dtype=bool)
    if not kept.any():
        return {}, []
    cut = np.array([row.cut for row in rows], dtype=bool)
    refuses = np.array([row.refuses for row in rows], dtype=bool)
    # What was cut would have been longer, by how much is not known.
    sizes = np.array([row.answer_chars for row in rows], dtype=np.float64)
    sizes[cut] = np.inf
    warnings = list(_answer_warnings(sizes, refuses, kept))
    if kept.all():
        return {}, warnings
    words: list[str] = []
    places = np.zeros(len(rows), dtype=np.int64)
    if not cut.all():
        words, places[~cut] = _lengths(sizes[~cut].astype(np.int64))
    if cut.any():
        places[cut] = len(words)
        words = [*words, CUT]
    items = {"answers": _compare(words, places, kept)}
    if refuses.any():
        items["refusals"] = _compare(["answer", "refusal"], refuses.astype(np.int64), kept)
    return items, warnings


# --- warnings -------------------------------------------------------------------------------------


def _answer_warnings(sizes: np.ndarray, refuses: np.ndarray, kept: np.ndarray) -> Iterator[str]:
    """What the kept answers would teach that the raw ones do not. ``sizes`` are their characters,
    infinite for those that were cut.
    """
    cut = np.isinf(sizes)
    if _shifted(refuses, kept):
        yield f"refusals {_shares(refuses, kept)}: replay would teach {_how(refuses, kept)} of them"
    half = np.quantile(sizes, 0.5, method="inverted_cdf")
    if _shifted(cut, kept):
        yield (
            f"answers that were cut at the token limit {_shares(cut, kept)}: replay would teach "
            f"{_how(~cut, kept)} short ones; a higher generate.max_answer_tokens cuts fewer"
        )
    elif not np.isinf(half) and _shifted(sizes <= half, kept):
        short = sizes <= half
        yield (
            f"answers of up to {half:,.0f} characters {_shares(short, kept)}: replay would teach "
            f"{_how(short, kept)} short ones"
        )
    if cut[kept].mean() > MANY_CUT:
        yield (
            f"{100 * cut[kept].mean():.0f} % of the kept answers were cut at the token limit: "
            "nothing in them says how long answers end; a higher generate.max_answer_tokens cuts "
            "fewer"
        )


def _kind_warnings(
    item: str, words: Sequence[str], places: np.ndarray, kept: np.ndarray
) -> Iterator[str]:
    """Of the kinds of question whose share has changed, the one that has changed most."""
    shifted = [
        place for place in range(len(words)) if _shifted(places == place, kept, of=len(words))
    ]
    if not shifted:
        return
    furthest = max(
        shifted, key=lambda place: abs((places[kept] == place).mean() - (places == place).mean())
    )
    marked = places == furthest
    named = f"questions in {words[furthest]}"
    if item == "category":
        named = f"questions like “{words[furthest]}”"
    yield (
        f"{named} {_shares(marked, kept, of='rows')}: replay would teach {_how(marked, kept)} of "
        "them"
    )


def _shifted(marked: np.ndarray, kept: np.ndarray, *, of: int = 1) -> bool:
    """Whether the share of the marked rows among the kept is another than among all of them, by
    more than chance and by a fifth of itself. ``of`` is how many such questions are asked at once.
    """
    from scipy.stats import hypergeom

    raw = marked.mean()
    found = int(marked[kept].sum())
    if raw == 0 or abs(found / kept.sum() - raw) < FIFTH * raw:
        return False
    by_chance = hypergeom(len(marked), int(marked.sum()), int(kept.sum()))
    tail = min(by_chance.sf(found - 1), by_chance.cdf(found))
    return bool(tail < RISK / 2 / of)


def _shares(marked: np.ndarray, kept: np.ndarray, *, of: str = "answers") -> str:
    """The two shares in words: are 31 % of the kept answers and 12 % of all ..."""
    among_kept = 100 * marked[kept].mean()
    among_all = 100 * marked.mean()
    return f"are {among_kept:.0f} % of the kept {of} and {among_all:.0f} % of all that it wrote"


def _how(marked: np.ndarray, kept: np.ndarray) -> str:
    return "more" if marked[kept].mean() > marked.mean() else "fewer"


# --- distributions --------------------------------------------------------------------------------


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


def _lengths(characters: Sequence[int] | np.ndarray) -> tuple[list[str], np.ndarray]:
    """Bins with equally many texts, by their characters: "3–21", "22–34", ... Returns the bins, and
    the bin of each text.
    """
    sizes = np.asarray(characters)
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
