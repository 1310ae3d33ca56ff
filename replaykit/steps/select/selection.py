"""Old records for a new task: what a new task overwrites first is what looks most like it.

    selection = select_records(pool, target, settings=Select(pool=..., n=2000), ...)
    selection.records[0].meta  ->  {"rank": 1, "score": 0.71, "nearest": "3f0c…", "terms": {...}}
    selection.result.rows      ->  2000

The pool is read once. Rows that are not good enough, that repeat an earlier row or the target, or
that hold a test prompt are left out, each with its reason; the others are written to a file and
their terms counted. Then every row gets a score, and the method chooses among the scores. Memory is
bounded by n, by the vocabulary, and by 40 bytes for each row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from replaykit.checks import quality
from replaykit.checks.duplicates import BATCH, Repeats, best, exchange, kept_form
from replaykit.checks.funnel import Funnel
from replaykit.checks.overlap import Decontamination
from replaykit.data.ledger import Ledger
from replaykit.data.record import TARGET, Record
from replaykit.errors import DataError, did_you_mean
from replaykit.parallel import Executor, LocalExecutor, RayExecutor
from replaykit.recipe.select import SCORED, Select
from replaykit.runs import Watch, unwatched
from replaykit.steps.select import choose
from replaykit.steps.select.nearness import Index, Lexical, fit
from replaykit.steps.select.result import Histogram, ScoreSummary, SelectResult

BINS = 40  # of the histogram of scores
TERMS = 5  # that explain a score
BATCH_ON_RAY = 2048  # rows of a job: to start one takes tens of milliseconds there
WATCHED = 1000  # rows between two calls of the watch
NO_WORD = (
    "no word is common to the pool and the target, so all scores are 0; `--method embedding` "
    "compares what is meant, `--method random` needs no score"
)


@dataclass(frozen=True)
class Selection:
    """The chosen records, in the order of the choice, and the result of the step."""

    records: list[Record]
    result: SelectResult


def select_records(
    pool: Iterable[Record],
    target: Sequence[Record],
    *,
    settings: Select,
    seed: int,
    folder: Path,
    held_out: Decontamination | None = None,
    funnel: Funnel | None = None,
    watch: Watch = unwatched,
) -> Selection:
    """``settings.n`` records of the pool by ``settings.method``, best or first drawn first; all, if
    there are fewer.

    Rows are compared by their last question, plain texts whole. Each record's meta has its
    ``rank``; where the method scores, its ``score``, the id of the ``nearest`` target record and
    the ``terms`` that matched most with their parts. While this runs, the rows that passed the
    checks and their terms are in ``folder``. The same pool gives the same records in any number of
    processes or machines. Raises DataError for a pool of which nothing is left, and for an empty
    target where the method needs one.
    """
    if settings.method in SCORED and not target:
        raise DataError("the target is empty: there is nothing for old data to be near to")
    funnel = Funnel() if funnel is None else funnel
    (folder / "pool.jsonl").unlink(missing_ok=True)
    with ExitStack() as stack:
        passed = stack.enter_context(Ledger(folder / "pool.jsonl"))
        executor = stack.enter_context(closing(_executor(settings)))
        repeats = stack.enter_context(_repeats(settings, target, folder, executor))
        checks = _Checks(settings, held_out, repeats, passed, funnel, watch)
        questions = checks.questions(pool)
        scores = _scores(questions, target, settings, folder / "index", executor, watch)
        # By now the whole pool has been read.
        if not len(passed):
            why = ""
            if funnel.first_unparsed:
                why = f"; the first row that cannot be read: {funnel.first_unparsed}"
            raise DataError(f"the pool has no record to select from ({funnel}){why}")
        # Of near duplicates the better one stays, which is known now that both have a score.
        better = checks.worse_twins(scores.values)
        rows = [(row, float(scores.values[row])) for row in range(len(passed)) if row not in better]
        surplus = _surplus(rows, scores.nearest, settings.per_target)
        places = _chosen([row for row in rows if row[0] not in surplus], settings, seed, passed)
        records = [
            _with_reasons(_read(passed, row), rank, row, scores, target)
            for rank, row in enumerate(places, 1)
        ]
        reasons = dict.fromkeys(surplus, "others_are_nearer") | dict.fromkeys(places)
        otherwise = "not_drawn" if scores.nearest is None else "far"
        _reject(passed, reasons, better, funnel, otherwise)
    (folder / "pool.jsonl").unlink()
    missing = settings.n - len(records)
    notes = list(scores.notes)
    if missing > 0:
        notes.append(
            f"{missing:,} of {settings.n:,} rows are missing: no more of the pool is left after "
            "the checks"
        )
    result = SelectResult(
        n=settings.n,
        rows=len(records),
        missing=missing,
        method=settings.method,
        pool=settings.pool.path,
        scores=_summary(scores, places),
        notes=notes,
        funnel=funnel.result(),
        decontamination=None if held_out is None else held_out.result(),
    )
    return Selection(records, result)


# --- the checks -----------------------------------------------------------------------------------


def _executor(settings: Select) -> Executor:
    if settings.engine == "ray":
        return RayExecutor()
    return LocalExecutor(settings.processes)


def _repeats(
    settings: Select, target: Sequence[Record], folder: Path, executor: Executor
) -> Repeats:
    """The rows of the target, ready for the pool to be compared with."""
    batch = BATCH_ON_RAY if settings.engine == "ray" else BATCH
    repeats = Repeats(settings.near_duplicate, folder=folder, executor=executor, batch=batch)
    for _ in repeats.find_all(TARGET, ((None, exchange(record)) for record in target)):
        pass  # they are remembered; the target may repeat itself
    return repeats


@dataclass
class _Checks:
    """The pool's rows through the checks: those that pass go to a ledger, numbered from 0, the
    others to the funnel.
    """

    settings: Select
    held_out: Decontamination | None
    repeats: Repeats
    passed: Ledger
    funnel: Funnel
    watch: Watch
    twins: list[tuple[int, int]] = field(default_factory=list)
    """Rows of the ledger, and the earlier ones that they are near to."""
    answers: Counter[bytes] = field(default_factory=Counter)
    """Rows that passed, by a hash of their question; where answers_per_question is set."""
    numbers: dict[int, int] = field(default_factory=dict)
    """Of rows of the ledger that have a twin there, their numbers among the rows compared."""

    def questions(self, pool: Iterable[Record]) -> Iterator[str]:
        """The questions of the rows that pass, in the order of the pool."""
        number = 0  # of the row among those that are compared
        places = list[int]()  # of each of these its place in the ledger, or -1
        compared = self.repeats.find_all("pool", ((row, exchange(row)) for row in self._good(pool)))
        for record, twin in compared:
            reason = None
            place = len(self.passed)
            if twin is not None:
                near = twin.reason == "near_duplicate" and places[twin.row] >= 0
                if not near or self.settings.keep != "best":
                    reason = twin.reason
                    record = _noted(record, twin=twin.text)
            if reason is None and self._answered_enough(record):
                reason = "over_answers_per_question"
            if reason is None and twin is not None:
                # Which of the two is better is known when both have a score.
                self.twins.append((place, places[twin.row]))
                self.numbers |= {place: number, places[twin.row]: twin.row}
            number += 1
            if self.funnel.passes(record, reason):
                places.append(place)
                self.passed.append({"row": place, "record": record.to_json()})
                yield record.question
            else:
                places.append(-1)
            if number % WATCHED == 0:
                self.watch("read the pool", number, None, str(self.funnel))
        self.watch("read the pool", number, number)

    def _good(self, pool: Iterable[Record]) -> Iterator[Record]:
        rules = self.settings.quality
        for given in pool:
            record = quality.without_end(given) if rules.strip_end else given
            reason = quality.reason(record, rules)
            if reason is None and self.held_out:
                hit = self.held_out.check(record)
                if hit is not None:
                    reason = hit.reason
                    record = _noted(record, match=hit.match, test=hit.item)
            if reason is None:
                yield record
            else:
                self.funnel.passes(record, reason)

    def _answered_enough(self, record: Record) -> bool:
        """Whether so many rows with this question have passed as are asked for; counts the row."""
        most = self.settings.answers_per_question
        if most is None:
            return False
        question = kept_form(exchange(record)[0]).encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(question, digest_size=8).digest()
        self.answers[key] += 1
        return self.answers[key] > most

    def worse_twins(self, scores: np.ndarray) -> dict[int, int]:
        """Of near duplicates that were kept until their scores were known, those to drop, each with
        the better one.
        """

        def alike(one: int, other: int) -> bool:
            return self.repeats.alike("pool", self.numbers[one], self.numbers[other])

        return best(self.twins, lambda row: float(scores[row]), alike=alike)


def _noted(record: Record, **facts: object) -> Record:
    return replace(record, meta={**record.meta, **facts})


# --- the scores -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """How near each row that passed the checks is to the target; 0 for all where the method does
    not compare.
    """

    values: np.ndarray
    """float32 [rows]"""
    nearest: np.ndarray | None = None
    """int64 [rows]: the row of the target, -1 for none. None where nothing was compared."""
    index: Index | None = None
    """Where words were compared, what explains a score."""
    notes: Sequence[str] = ()


def _scores(
    questions: Iterator[str],
    target: Sequence[Record],
    settings: Select,
    folder: Path,
    executor: Executor,
    watch: Watch,
) -> _Scores:
    """Reads all questions, and compares them with the target's where the method does that."""
    if settings.method not in SCORED:
        count = sum(1 for _ in questions)
        return _Scores(np.zeros(count, dtype=np.float32))
    queries = [record.question for record in target]
    if settings.method == "embedding":
        from replaykit.steps.select import embed

        embedder = embed.Embedder(str(settings.model))
        return _Scores(*embed.best(embedder, questions, queries))
    index = fit(questions, queries, _lexical(settings), folder=folder, executor=executor)
    notes = [index.note]
    if not index.shared_terms:
        notes.append(NO_WORD)
    values = [np.zeros(0, np.float32)]
    nearest = [np.zeros(0, np.int64)]
    done = 0
    for some, near in index.scores():
        values.append(some)
        nearest.append(near)
        done += len(some)
        watch("compare", done, index.rows)
    return _Scores(np.concatenate(values), np.concatenate(nearest), index, notes)


def _lexical(settings: Select) -> Lexical:
    ngrams = None
    if settings.ngrams is not None:
        ngrams = (settings.ngrams[0], settings.ngrams[1])
    return Lexical(
        method="bm25" if settings.method == "bm25" else "tfidf",
        analyzer=settings.analyzer,
        to=settings.to,
        ngrams=ngrams,
        sublinear=settings.sublinear,
        min_df=settings.min_df,
        max_df=settings.max_df,
    )


# --- the choice -----------------------------------------------------------------------------------


def _chosen(
    rows: list[tuple[int, float]], settings: Select, seed: int, passed: Ledger
) -> list[int]:
    """The places of the chosen rows, in the order of the choice."""
    n = settings.n
    several = settings.n * settings.candidates
    found: Sequence[choose.Row]
    match settings.method:
        case "random":
            found = choose.spread(rows, n, seed=seed)
        case "stratified":
            column = str(settings.column)
            _check_column(column, rows, passed)
            named = ((row, score, str(_read(passed, row).meta.get(column))) for row, score in rows)
            found = choose.stratified(
                named, n, by=lambda row: row[2], shares=settings.shares, seed=seed
            )
        case "near-and-far":
            found = choose.near_and_far(rows, n, near=settings.near, seed=seed)
        case "mmr":
            found = choose.nearest(rows, several)
            scores = np.array([row[1] for row in found])
            order = choose.mmr(_vectors(found, passed), scores, n, balance=settings.balance)
            found = [found[k] for k in order]
        case "k-centre" | "herding":
            # They cover the pool, so their candidates are spread over all of it.
            found = sorted(choose.spread(rows, several, seed=seed))
            cover = choose.k_centre if settings.method == "k-centre" else choose.herding
            found = [found[k] for k in cover(_vectors(found, passed), n)]
        case _:
            found = choose.nearest(rows, n)
    return [row[0] for row in found]


def _check_column(column: str, rows: list[tuple[int, float]], passed: Ledger) -> None:
    """Raises DataError for a column that no row has."""
    names: set[str] = set()
    for row, _ in rows:
        meta = _read(passed, row).meta
        if column in meta:
            return
        names.update(meta)
    known = ", ".join(sorted(names))
    raise DataError(
        f"select.column: no row of the pool has a column '{column}'{did_you_mean(column, names)}; "
        f"its columns beside the conversation are {known}"
    )


def _vectors(rows: Sequence[choose.Row], passed: Ledger) -> choose.Vectors:
    """TF-IDF vectors of candidates, fitted on them: scikit-learn's, of length 1, sparse."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [_read(passed, row[0]).question for row in rows]
    return TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts)


def _surplus(
    rows: list[tuple[int, float]], nearest: np.ndarray | None, per_target: int | None
) -> set[int]:
    """The rows whose nearest target row has ``per_target`` rows that are nearer, or as near and
    earlier; a row of score 0 is near to none.
    """
    found = set[int]()
    if nearest is None or per_target is None:
        return found
    served = Counter[int]()
    for row, score in sorted(rows, key=lambda row: (-row[1], row[0])):
        if score > 0:
            served[int(nearest[row])] += 1
            if served[int(nearest[row])] > per_target:
                found.add(row)
    return found


def _with_reasons(
    record: Record, rank: int, row: int, scores: _Scores, target: Sequence[Record]
) -> Record:
    """The record as it is given, with its rank and what its score comes from."""
    meta: dict[str, Any] = {"rank": rank}
    if scores.nearest is not None:
        meta["score"] = round(float(scores.values[row]), 6)
        query = None
        if scores.nearest[row] >= 0:
            near = target[scores.nearest[row]]
            meta["nearest"] = near.id
            query = near.question
        if scores.index is not None:
            parts = scores.index.explain(record.question, query, TERMS)
            meta["terms"] = {term: round(part, 4) for term, part in parts}
    return replace(record, source="select", meta={**record.meta, **meta})


def _reject(
    passed: Ledger,
    reasons: Mapping[int, str | None],
    better: dict[int, int],
    funnel: Funnel,
    otherwise: str,
) -> None:
    """The rows that were not chosen go to the funnel: with a reason of their own (None: chosen), or
    with the common one; near duplicates of a better row with the text of that.
    """
    for row in range(len(passed)):
        if row in better:
            twin = _read(passed, better[row]).question
            funnel.reject(_noted(_read(passed, row), twin=twin), "worse_twin")
            continue
        reason = reasons.get(row, otherwise)
        if reason is not None:
            funnel.reject(_read(passed, row), reason)


def _read(passed: Ledger, row: int) -> Record:
    return Record.from_json(passed[row]["record"])


def _summary(scores: _Scores, places: list[int]) -> ScoreSummary | None:
    """Of the chosen rows the highest, median and lowest score, and a histogram of all rows'."""
    if scores.nearest is None:
        return None
    chosen = sorted(float(scores.values[row]) for row in places)
    highest = max(float(scores.values.max()), 1e-6)
    counts, edges = np.histogram(scores.values, bins=BINS, range=(0.0, highest))
    return ScoreSummary(
        highest=round(chosen[-1], 6),
        median=round(chosen[len(chosen) // 2], 6),
        lowest=round(chosen[0], 6),
        histogram=Histogram(
            counts=counts.tolist(), edges=[round(float(edge), 6) for edge in edges]
        ),
    )
