"""Old records for a new task: what a new task overwrites first is what looks most like it.

    selection = select_records(pool, target, settings=Select(pool=..., n=2000), ...)
    selection.records[0].meta  ->  {"rank": 1, "score": 0.71, "nearest": "3f0c…", "terms": {...}}
    selection.result.rows      ->  2000

The pool is read once: its rows are written to a file, their terms counted, and each gets a score.
Then the rows are checked in the order in which the method takes them. One that is not good enough,
that repeats the target or a row before it, or that holds a test prompt is left out with its reason,
until there are as many as the method needs; the others are not looked at. Memory is bounded by n,
by the vocabulary, and by 40 bytes for each row.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from replaykit.checks.duplicates import BATCH, Repeats, exchange
from replaykit.checks.funnel import Funnel
from replaykit.checks.overlap import Decontamination
from replaykit.data.files import Unread, tell
from replaykit.data.formats import Batch, Records
from replaykit.data.record import TARGET, Record, column_of, noted
from replaykit.data.spool import Spool
from replaykit.errors import DataError, did_you_mean
from replaykit.parallel import Executor, LocalExecutor, RayExecutor, Shared
from replaykit.recipe.select import SCORED, Select
from replaykit.runs import Watch, unwatched
from replaykit.steps.select import choose
from replaykit.steps.select.nearness import Index, Lexical, fit
from replaykit.steps.select.result import Histogram, ScoreSummary, SelectResult
from replaykit.steps.select.rows import RowChecks, read, record_of_line, without_end
from replaykit.steps.select.walk import BATCH_ON_RAY, WATCHED, Walk

BINS = 40  # of the histogram of scores
TERMS = 5  # that explain a score
SMALL = 1 << 19  # bytes of a pool: read by the time that another process is there
READ = 1024  # rows of a job that reads them: about 40 milliseconds
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
    the ``terms`` that matched most with their parts. While this runs, the rows of the pool and
    their terms are in ``folder``. The same pool gives the same records in any number of processes
    or machines. Raises DataError for a pool of which nothing is left, and for an empty target where
    the method needs one.
    """
    if settings.method in SCORED and not target:
        raise DataError("the target is empty: there is nothing for old data to be near to")
    funnel = Funnel() if funnel is None else funnel
    with ExitStack() as stack:
        stack.callback(rmtree, folder / "index", ignore_errors=True)
        rows = stack.enter_context(closing(Spool(folder)))
        executor = stack.enter_context(closing(_executor(settings)))
        questions = _questions(pool, rows, executor, funnel, watch)
        scores = _scores(questions, target, settings, folder / "index", executor, watch)
        repeats = stack.enter_context(_repeats(settings, target, folder, executor))
        checks = RowChecks(settings.quality, held_out, repeats.work())
        check = Shared(checks, folder / "checks.pickle")
        stack.callback(check.path.unlink, missing_ok=True)
        near = scores.near
        walk = Walk(settings, rows, near, check, repeats, held_out, executor, funnel, watch)
        places = _chosen(walk, scores.values, seed)
        if not places:
            why = ""
            if funnel.first_unparsed:
                why = f"; the first row that cannot be read: {funnel.first_unparsed}"
            raise DataError(f"the pool has no record to select from ({funnel}){why}")
        watch("check", walk.looked_at, walk.looked_at)
        found = [record_of_line(rows[place]) for place in places]
        records = [
            replace(noted(without_end(record, settings.quality), rank=rank, **why), source="select")
            for rank, (record, why) in enumerate(_explained(found, places, scores, target), 1)
        ]
        walk.reject_others(places, "not_drawn" if scores.nearest is None else "far")
    missing = settings.n - len(records)
    result = SelectResult(
        n=settings.n,
        rows=len(records),
        missing=missing,
        method=settings.method,
        pool=settings.pool.path,
        scores=_summary(scores, places),
        notes=[*scores.notes, *_notes(missing, settings.n, walk.ends_taken_off)],
        funnel=funnel.result(),
        looked_at=walk.looked_at,
        ends_taken_off=walk.ends_taken_off,
        decontamination=None if held_out is None else held_out.result(),
    )
    return Selection(records, result)


def _notes(missing: int, n: int, ends_taken_off: int) -> Iterator[str]:
    """What the user must read of the rows that are missing or altered."""
    if missing > 0:
        yield (
            f"{missing:,} of {n:,} rows are missing: no more of the pool is left after the checks"
        )
    if ends_taken_off:
        yield (
            f"{ends_taken_off:,} rows that were looked at have an answer that ended with a special "
            "token, which was taken off; `select.quality.strip_end: false` keeps it"
        )


# --- what is read --------------------------------------------------------------------------------


def _executor(settings: Select) -> Executor:
    if settings.engine == "ray":
        return RayExecutor()
    processes = settings.processes
    path = Path(settings.pool.path)
    if processes is None and path.is_file() and path.stat().st_size < SMALL:
        processes = 1
    return LocalExecutor(processes)


def _repeats(
    settings: Select, target: Sequence[Record], folder: Path, executor: Executor
) -> Repeats:
    """The rows of the target, ready for the pool to be compared with."""
    batch = BATCH_ON_RAY if settings.engine == "ray" else BATCH
    repeats = Repeats(settings.near_duplicate, folder=folder, executor=executor, batch=batch)
    for _ in repeats.find_all(TARGET, ((None, exchange(record)) for record in target)):
        pass  # they are remembered; the target may repeat itself
    return repeats


def _questions(
    pool: Iterable[Record], rows: Spool, executor: Executor, funnel: Funnel, watch: Watch
) -> Iterator[str]:
    """The question of each row that can be read, whose line goes to ``rows``; the others go to the
    funnel.
    """
    unparsed = pool.unparsed if isinstance(pool, Records) else None
    for row in chain.from_iterable(executor.map(read, _batches(pool, READ))):
        if isinstance(row, Unread):
            tell(unparsed, row.place, row.error)
            continue
        line, question = row
        rows.append(line)
        funnel.made += 1
        yield question
        if len(rows) % WATCHED == 0:
            watch("read the pool", len(rows), None)
    watch("read the pool", len(rows), len(rows))


def _batches(pool: Iterable[Record], rows: int) -> Iterator[Batch | Sequence[Record]]:
    """The pool, so many rows at a time; of a file as they stand there."""
    if isinstance(pool, Records):
        yield from pool.batches(rows)
        return
    records = iter(pool)
    while some := list(islice(records, rows)):
        yield some


# --- the scores -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """How near each row is to the target; 0 for all where the method does not compare."""

    values: np.ndarray
    """float32 [rows]"""
    nearest: np.ndarray | None = None
    """int64 [rows]: the row of the target, -1 for none. None where nothing was compared."""
    index: Index | None = None
    """Where words were compared, what explains a score."""
    notes: Sequence[str] = ()

    @property
    def near(self) -> np.ndarray | None:
        """``nearest``; a row of score 0 is near to none."""
        if self.nearest is None:
            return None
        return np.where(self.values > 0, self.nearest, -1)


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


def _chosen(walk: Walk, scores: np.ndarray, seed: int) -> list[int]:
    """The places of the chosen rows, in the order of the choice."""
    settings = walk.settings
    pool = range(len(walk.pool))
    n = settings.n
    match settings.method:
        case "random":
            return walk.take(choose.spread(pool, seed=seed), n)
        case "stratified":
            # The shares are those of all good rows, so all are looked at.
            strata = _strata(walk.take(pool, len(pool)), str(settings.column), walk.pool)
            return choose.stratified(strata, n, shares=settings.shares, seed=seed)
        case "near-and-far":
            near = walk.take(choose.nearest(scores), math.floor(settings.near * n + 0.5))
            return near + walk.take(choose.spread(pool, seed=seed), n - len(near))
        case "mmr":
            found = walk.take(choose.nearest(scores), n * settings.candidates)
            vectors = _vectors(found, walk.pool)
            order = choose.mmr(vectors, scores[found], n, balance=settings.balance)
            return [found[k] for k in order]
        case "k-centre" | "herding":
            # They cover the pool, so their candidates are spread over all of it.
            found = sorted(walk.take(choose.spread(pool, seed=seed), n * settings.candidates))
            cover = choose.k_centre if settings.method == "k-centre" else choose.herding
            return [found[k] for k in cover(_vectors(found, walk.pool), n)]
        case _:
            return walk.take(choose.nearest(scores), n)


def _strata(places: Sequence[int], column: str, rows: Spool) -> dict[int, str]:
    """What each row has in the column. Raises DataError for a column that no row has."""
    strata: dict[int, str] = {}
    names: set[str] = set()
    is_there = not places
    for place in places:
        record = record_of_line(rows[place])
        value = column_of(record, column)
        is_there = is_there or value is not None
        if not is_there:
            names.update(record.meta)
        strata[place] = sys.intern(str(value))
    if is_there:
        return strata
    known = ", ".join(sorted(names))
    raise DataError(
        f"select.column: no row of the pool has a column '{column}'{did_you_mean(column, names)}; "
        f"its columns beside the conversation are {known}"
    )


def _vectors(places: Sequence[int], rows: Spool) -> choose.Vectors:
    """TF-IDF vectors of the candidates' questions, as ``choose.tfidf``."""
    return choose.tfidf([record_of_line(rows[place]).question for place in places])


def _explained(
    records: Sequence[Record], places: Sequence[int], scores: _Scores, target: Sequence[Record]
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Each chosen row with what its score comes from."""
    if scores.nearest is None:
        yield from ((record, {}) for record in records)
        return
    nearest = scores.nearest[places].tolist()
    terms: Iterable[list[tuple[str, float]] | None] = repeat(None)
    if scores.index is not None:
        questions = [record.question for record in records]
        terms = scores.index.explain(questions, nearest, TERMS)
    for record, place, near, parts in zip(records, places, nearest, terms, strict=False):
        why: dict[str, Any] = {"score": round(float(scores.values[place]), 6)}
        if near >= 0:
            why["nearest"] = target[near].id
        if parts is not None:
            why["terms"] = {term: round(part, 4) for term, part in parts}
        yield record, why


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
