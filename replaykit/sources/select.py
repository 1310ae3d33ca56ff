"""Old records for a new task: what a new task overwrites first is what looks most like it.

    select(pool, target, settings=Select(pool=..., n=2000), ...)  ->  2000 records, each with its score, rank and nearest

The pool is read once. Rows that are not good enough, that repeat an earlier row or the target, or
that hold a test prompt are left out, each with its reason; the others are written down and their
terms counted. Then every row gets a score, and the method chooses among the scores. What is in
memory is bounded by n, by the vocabulary, and by 40 bytes for each row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from replaykit.checks import quality
from replaykit.checks.duplicates import BATCH, Repeats, best
from replaykit.checks.funnel import Funnel
from replaykit.checks.overlap import Decontamination
from replaykit.crew import LocalCrew, Mapper, RayCrew
from replaykit.errors import DataError
from replaykit.records import Record
from replaykit.runs import Ledger, Watch, unwatched
from replaykit.settings import SCORED, Select
from replaykit.sources import choose
from replaykit.sources.nearness import Index, Lexical, fit

BINS = 40  # of the histogram of scores
TERMS = 5  # that explain a score
BATCH_ON_RAY = 2048  # rows of a job: to start one takes tens of milliseconds there
STRICT = "; `--strict` stops at the first row that cannot be read and says why"
TOLD = 1000  # rows between two words to the display
NO_WORD = (
    "no word is common to the pool and the target, so all scores are 0; `--method embedding` "
    "compares what is meant, "
    "`--method random` needs no score"
)


@dataclass
class Selection:
    """The chosen records in the order of the choice, and what the table and the report show of
    it.
    """

    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scores: dict[str, Any] | None = (
        None  # highest, median and lowest of the chosen; a histogram of all, and the cut
    )


def select(
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
    the ``terms`` that matched most with their parts. The survivors of the checks and their terms
    are in ``folder`` while this runs. The same pool gives the same records in any number of
    processes or machines. Raises DataError for a pool of which nothing survives, and for an empty
    target where the method needs one.
    """
    made = Selection()
    funnel = Funnel() if funnel is None else funnel
    scored = settings.method in SCORED
    if scored and not target:
        raise DataError("the target is empty: there is nothing for old data to be near to")
    (folder / "pool.jsonl").unlink(missing_ok=True)
    with ExitStack() as stack:
        shelf = stack.enter_context(Ledger(folder / "pool.jsonl"))
        crew: Mapper = RayCrew() if settings.engine == "ray" else LocalCrew(settings.processes)
        stack.enter_context(closing(crew))
        checked = _Checked(settings, target, held_out, shelf, funnel, watch, stack, folder, crew)
        asked = [question(record) for record in target]
        if settings.method == "embedding":
            scores, nearest = _by_meaning(checked.questions(pool), asked, str(settings.model))
            index = None
        elif scored:
            index = _index(checked.questions(pool), asked, settings, folder / "index", crew)
            scores, nearest = _joined(index.scores(), watch, len(shelf))
            made.notes += [index.note, *([] if index.shared_terms else [NO_WORD])]
        else:
            index = None
            count = sum(1 for _ in checked.questions(pool))
            scores = np.zeros(count, dtype=np.float32)
            nearest = np.full(count, -1, dtype=np.int64)
        if not len(shelf):
            why = STRICT if funnel.counts["unparsed"] else ""
            raise DataError(f"the pool has no record to select from ({funnel}){why}")
        better = checked.worse_twins(scores)
        rows = [(row, float(scores[row])) for row in range(len(shelf)) if row not in better]
        surplus = (
            _surplus(rows, nearest, settings.per_target)
            if settings.per_target is not None
            else set()
        )
        places = _chosen([row for row in rows if row[0] not in surplus], settings, seed, shelf)
        for rank, row in enumerate(places, 1):
            record = _read(shelf, row)
            meta: dict[str, Any] = {"rank": rank}
            if scored:
                near = target[nearest[row]] if nearest[row] >= 0 else None
                meta |= {"score": round(float(scores[row]), 6)} | (
                    {"nearest": near.id} if near else {}
                )
                if index is not None:
                    parts = index.explain(question(record), question(near) if near else None, TERMS)
                    meta["terms"] = {term: round(part, 4) for term, part in parts}
            made.records.append(replace(record, source="select", meta={**record.meta, **meta}))
        reasons = dict.fromkeys(surplus, "others_are_nearer") | dict.fromkeys(places)
        _reject(shelf, reasons, better, funnel, "far" if scored else "not_drawn")
    (folder / "pool.jsonl").unlink()
    if (missing := settings.n - len(made.records)) > 0:
        made.notes.append(
            f"{missing:,} of {settings.n:,} rows are missing: no more of the pool is left after "
            f"the checks"
        )
    if scored:
        made.scores = _summary(scores, [float(scores[row]) for row in places])
    return made


def question(record: Record) -> str:
    """What a record is compared by: its last question, or a plain text itself."""
    return record.prompt or record.messages[-1]["content"]


class _Checked:
    """The pool's rows through the checks: the survivors go to the shelf, numbered from 0, the
    others to the funnel.
    """

    def __init__(
        self,
        settings: Select,
        target: Sequence[Record],
        held_out: Decontamination | None,
        shelf: Ledger,
        funnel: Funnel,
        watch: Watch,
        stack: ExitStack,
        folder: Path,
        crew: Mapper,
    ) -> None:
        self.settings = settings
        self.shelf = shelf
        self.funnel = funnel
        self.watch = watch
        self.held_out = held_out
        batch = BATCH_ON_RAY if settings.engine == "ray" else BATCH
        self.repeats = stack.enter_context(
            Repeats(settings.near_duplicate, folder=folder, crew=crew, batch=batch)
        )
        for _ in self.repeats.find_all("target", ((None, question(record)) for record in target)):
            pass  # they are remembered; the target may repeat itself
        self.twins: list[
            tuple[int, int]
        ] = []  # rows of the shelf, and the earlier ones that they are near to
        self.numbers: dict[
            int, int
        ] = {}  # of rows of the shelf with a twin there, their numbers in the pool

    def questions(self, pool: Iterable[Record]) -> Iterator[str]:
        """The questions of the survivors, in the order of the pool."""
        # places: by number in the pool, -1 for those that are not on the shelf
        number = 0
        places = list[int]()
        for record, twin in self.repeats.find_all(
            "pool", ((row, question(row)) for row in self._good(pool))
        ):
            reason = None
            place = len(self.shelf)
            if twin is not None:
                best_stays = (
                    self.settings.keep == "best"
                    and twin.reason == "near_duplicate"
                    and places[twin.row] >= 0
                )
                if best_stays:
                    self.twins.append((place, places[twin.row]))
                    self.numbers |= {place: number, places[twin.row]: twin.row}
                else:
                    reason = twin.reason
                    record = replace(record, meta={**record.meta, "twin": twin.text})
            number += 1
            if self.funnel.passes(record, reason):
                places.append(place)
                self.shelf.append({"row": place, "record": record.to_json()})
                yield question(record)
            else:
                places.append(-1)
            if number % TOLD == 0:
                self.watch("read the pool", number, None, str(self.funnel))
        self.watch("read the pool", number, number)

    def _good(self, pool: Iterable[Record]) -> Iterator[Record]:
        for given in pool:
            record = quality.without_end(given) if self.settings.quality.strip_end else given
            reason = quality.reason(record, self.settings.quality)
            if reason is None and self.held_out and (hit := self.held_out.check(record)):
                reason = hit.reason
                record = replace(record, meta={**record.meta, "match": hit.match, "test": hit.item})
            if reason is None:
                yield record
            else:
                self.funnel.passes(record, reason)

    def worse_twins(self, scores: np.ndarray) -> dict[int, int]:
        """Of near duplicates that were kept until their scores were known, those to drop, each with
        the better one.
        """

        def alike(one: int, other: int) -> bool:
            similarity = self.repeats.similarity("pool", self.numbers[one], self.numbers[other])
            return similarity >= (self.settings.near_duplicate or 1.0)

        return best(self.twins, lambda row: float(scores[row]), alike=alike)


def _index(
    texts: Iterator[str], queries: list[str], settings: Select, folder: Path, crew: Mapper
) -> Index:
    options = Lexical(
        method="bm25" if settings.method == "bm25" else "tfidf",
        analyzer=settings.analyzer,
        to=settings.to,
        ngrams=(settings.ngrams[0], settings.ngrams[1]) if settings.ngrams else None,
        sublinear=settings.sublinear,
        min_df=settings.min_df,
        max_df=settings.max_df,
    )
    return fit(texts, queries, options, folder=folder, crew=crew)


def _joined(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]], watch: Watch, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    scores = [np.zeros(0, np.float32)]
    nearest = [np.zeros(0, np.int64)]
    done = 0
    for some, near in chunks:
        scores.append(some)
        nearest.append(near)
        done += len(some)
        watch("compare", done, rows)
    return np.concatenate(scores), np.concatenate(nearest)


def _by_meaning(
    texts: Iterator[str], queries: list[str], model: str
) -> tuple[np.ndarray, np.ndarray]:
    from replaykit.sources import embed

    return embed.best(embed.Embedder(model), texts, queries)


def _chosen(rows: list[tuple[int, float]], settings: Select, seed: int, shelf: Ledger) -> list[int]:
    """The places of the chosen rows, in the order of the choice."""
    n = settings.n
    several = settings.n * settings.candidates
    match settings.method:
        case "random":
            found: list[Any] = choose.spread(rows, n, seed=seed)
        case "stratified":
            column = str(settings.column)
            named = ((row, score, str(_read(shelf, row).meta.get(column))) for row, score in rows)
            found = choose.stratified(
                named, n, by=lambda row: row[2], shares=settings.shares, seed=seed
            )
        case "near-and-far":
            found = choose.near_and_far(rows, n, near=settings.near, seed=seed)
        case "mmr":
            found = choose.nearest(rows, several)
            order = choose.mmr(
                _vectors(found, shelf), np.array([s for _, s in found]), n, balance=settings.balance
            )
            found = [found[k] for k in order]
        case (
            "k-centre" | "herding"
        ):  # they cover the pool, so their candidates are spread over all of it
            found = sorted(choose.spread(rows, several, seed=seed))
            cover = choose.k_centre if settings.method == "k-centre" else choose.herding
            found = [found[k] for k in cover(_vectors(found, shelf), n)]
        case _:
            found = choose.nearest(rows, n)
    return [int(row[0]) for row in found]


def _vectors(rows: list[Any], shelf: Ledger) -> Any:
    """TF-IDF vectors of candidates, fitted on them: scikit-learn's, of length 1, sparse."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [question(_read(shelf, row[0])) for row in rows]
    return TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts)


def _surplus(rows: list[tuple[int, float]], nearest: np.ndarray, per_target: int) -> set[int]:
    """The rows whose nearest target row has so many that are nearer, or as near and earlier; a row
    of score 0 is near to none.
    """
    found = set[int]()
    served = Counter[int]()
    for row, score in sorted(rows, key=lambda row: (-row[1], row[0])):
        if score > 0:
            served[int(nearest[row])] += 1
            if served[int(nearest[row])] > per_target:
                found.add(row)
    return found


def _reject(
    shelf: Ledger,
    reasons: Mapping[int, str | None],
    better: dict[int, int],
    funnel: Funnel,
    reason: str,
) -> None:
    """Those that were not taken (None) go to the funnel, with a reason of their own or the common
    one; near duplicates of a better row with the text of that.
    """
    for row in range(len(shelf)):
        if row in better:
            record = _read(shelf, row)
            twin = question(_read(shelf, better[row]))
            funnel.reject(replace(record, meta={**record.meta, "twin": twin}), "worse_twin")
        elif (own := reasons.get(row, reason)) is not None:
            funnel.reject(_read(shelf, row), own)


def _read(shelf: Ledger, row: int) -> Record:
    line = shelf[row]["record"]
    return Record(tuple(line["messages"]), line["source"], line["meta"])


def _summary(scores: np.ndarray, chosen: list[float]) -> dict[str, Any]:
    counts, edges = np.histogram(scores, bins=BINS, range=(0.0, max(float(scores.max()), 1e-6)))
    return {
        "highest": round(max(chosen), 6),
        "median": round(sorted(chosen)[len(chosen) // 2], 6),
        "lowest": round(min(chosen), 6),
        "histogram": {
            "counts": counts.tolist(),
            "edges": [round(float(edge), 6) for edge in edges],
        },
    }
