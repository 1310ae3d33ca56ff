"""How near each text of a pool is to a target, by the words they share: TF-IDF or BM25, for pools
larger than memory.

    index = fit(pool_texts, questions, Lexical(), folder=Path("runs/gsm8k/select"))
    for scores, nearest in index.scores(): ...       # chunk by chunk, in the order of the pool
    next(index.explain([pool_texts[17]], [3]))       ->  [("apples", 0.31), ("each", 0.08)]

``fit`` reads the pool once and leaves the counts of its terms in the folder; ``scores`` reads
those. In memory are the number of rows that each term stands in, and a few chunks for each process.
An executor does both passes.

TF-IDF is ``TfidfVectorizer(sublinear_tf=True)`` of scikit-learn, fitted on the pool, and the
cosine. BM25 is Lucene's (Kamphuis et al., "Which BM25 do you mean?", ECIR 2020): rows of the pool
are the documents. A term is known by 64 bits of hash alone: among 10 million terms, two have the
same with a probability of 3 in a million.

The result is the same bit for bit however the pool is cut and by whichever process it is scored.
Weights are rounded to multiples of a power of 2 so coarse that products and sums are exact in
double precision, so their order is free. The nearest query is looked for in single precision, and
where that cannot tell the first from the second, in double.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np

from replaykit.checks.hashed_words import codes_of, hash_words, numbers, writing
from replaykit.errors import DataError, RecipeError
from replaykit.mixing import mix
from replaykit.parallel import Executor, LocalExecutor, Shared
from replaykit.text import MARKS, UNSPACED

if TYPE_CHECKING:
    import scipy.sparse as sp

Analyzer = Literal["word", "char"]
Scores = tuple[np.ndarray, np.ndarray]

CHUNK_ROWS = 2048
# Characters of a chunk, divided by the number of n-gram sizes: about 60 bytes of memory each.
CHUNK_TERMS = 2**21
TOKEN = re.compile(r"(?u)\b\w\w+\b")  # scikit-learn's default
SPACES = re.compile(r"\s\s+")  # of which scikit-learn's analyzer "char" makes one space
UNSPACED_OR_MARK = re.compile(f"[{UNSPACED}{MARKS}]")
UNSPACED_SHARE = 0.2  # of the target's letters, from which on "auto" compares characters
K1 = 1.5  # of BM25: how soon more of a term adds nothing
B = 0.75  # of BM25: how much longer rows are discounted

# A term that more of all pairs (row, query) share than this is multiplied as a dense column: from
# here on that takes less time than a sparse one.
DENSE_SHARE = 1 / 256
MAX_DENSE = 2**24  # weights of the dense columns, 12 bytes each
CELLS = 2**20  # pairs compared at a time


@dataclass(frozen=True)
class Lexical:
    """What near means. ``ngrams`` None is (1, 1) of words and (2, 4) of characters.

    ``analyzer`` "word" takes words of two letters or more, "char" all runs of characters with
    spaces; "auto" takes characters where the target is in writing that sets no spaces between
    words, as Chinese, Japanese and Thai, or whose vowel signs would split words, as Hindi.
    ``min_df`` is a number of rows and ``max_df`` a share of the rows: terms in fewer, or in more,
    are left out. ``sublinear`` (1 + ln tf for tf) is for "tfidf". ``to`` "centroid" compares with
    the mean of the queries' vectors. Raises RecipeError for what cannot be.
    """

    method: Literal["tfidf", "bm25"] = "tfidf"
    analyzer: Literal["auto", "word", "char"] = "auto"
    ngrams: tuple[int, int] | None = None
    sublinear: bool = True
    min_df: int = 1
    max_df: float = 1.0
    to: Literal["nearest", "centroid"] = "nearest"

    def __post_init__(self) -> None:
        problems = []
        if self.ngrams is not None and not 1 <= self.ngrams[0] <= self.ngrams[1]:
            problems.append(
                f"ngrams: {self.ngrams} is not a smallest and a largest size of at least 1"
            )
        if not 0 < self.max_df <= 1:
            problems.append(
                f"max_df: {self.max_df} is not a share of the rows, above 0 and up to 1"
            )
        if problems:
            raise RecipeError("nearness", problems)


def fit(
    texts: Iterable[str],
    queries: Sequence[str],
    options: Lexical,
    *,
    folder: Path,
    executor: Executor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Index:
    """Reads the texts once and counts their terms into files in the folder, about 8 bytes for each
    term of each row.

    The index reads the files whenever it scores or explains; the caller removes them. The
    ``executor``, by default this process alone, does both passes; where it is a cluster, its
    machines see the folder. The caller closes it when it has all scores. A chunk has at most
    ``chunk_rows`` rows, fewer where they are long. Raises DataError if there are no queries.
    """
    if not queries:
        raise DataError("the target is empty: there is nothing for old data to be near to")
    folder.mkdir(parents=True, exist_ok=True)
    analysis = _analysis(options, queries)
    executor = executor or LocalExecutor(1)
    vocabulary = _Vocabulary()
    files = list[Path]()
    rows = 0
    length = 0
    chunks = analysis.chunks(texts, chunk_rows)
    jobs = ((folder / f"counts-{k:06}.bin", chunk) for k, chunk in enumerate(chunks))
    for path, rows_of_chunk, terms_of_chunk in executor.map(partial(_spill, analysis), jobs):
        files.append(path)
        rows += rows_of_chunk
        length += terms_of_chunk
        with path.open("rb") as stream:
            vocabulary.add(np.load(stream), np.load(stream))
    vocabulary.merge()
    np.save(folder / "terms.npy", vocabulary.terms)
    np.save(folder / "frequencies.npy", vocabulary.frequencies)
    mean_length = length / rows if rows else 0.0
    pool = _Pool(folder, rows, mean_length, options)
    return Index(analysis, pool, files, queries, executor)


class Index:
    """A pool that was read. ``note`` says in a sentence what is compared and why, ``rows`` how many
    rows there are.

    ``shared_terms`` is how many terms of the queries the pool has: at 0, all scores are 0.
    """

    def __init__(
        self,
        analysis: _Analysis,
        pool: _Pool,
        files: list[Path],
        queries: Sequence[str],
        executor: Executor,
    ):
        self.analyzer = analysis.analyzer
        self.note = analysis.note
        self.ngrams = analysis.ngrams
        self.rows = pool.rows
        self._analysis = analysis
        self._pool = pool
        self._files = files
        self._executor = executor
        self._scorer = _Scorer.of(pool, analysis.count(queries))
        self.shared_terms = len(self._scorer.terms)

    def scores(self) -> Iterator[Scores]:
        """The score of each row, float32, and the place of the query that it is nearest to, int64,
        a chunk at a time.

        Rows come in the order of the pool. The score is the highest over all queries and ties go to
        the earlier query, as they do where all are 0. With ``to="centroid"`` it is that of the
        centroid, and the place is -1.
        """
        # The matrices of many queries have 200 MB.
        shared = Shared(self._scorer, self._pool.folder / f"scorer-{uuid4().hex}.pickle")
        try:
            yield from self._executor.map(shared, iter(self._files))
        finally:
            shared.path.unlink(missing_ok=True)

    def explain(
        self, texts: Iterable[str], nearest: Iterable[int], n: int = 5
    ) -> Iterator[list[tuple[str, float]]]:
        """Of each text the n terms that bring it near to a query, and what each adds to the score,
        largest first.

        ``nearest`` has the place of each text's query; with ``to="centroid"`` it is not read. The
        parts of all terms together are the score, but for its rounding (under 1e-5).
        """
        places = iter(nearest)
        for chunk in self._analysis.chunks(texts, CHUNK_ROWS):
            parts = self._scorer.parts(
                self._analysis.count(chunk), list(islice(places, len(chunk)))
            )
            hashes, rows = _hashes(chunk, self.analyzer, self.ngrams)
            hashes = hashes[np.argsort(rows, kind="stable")]
            ends = np.cumsum(np.bincount(rows.astype(np.int64), minlength=len(chunk)))
            for text, row, own in zip(chunk, parts, np.split(hashes, ends[:-1]), strict=True):
                # Both give the terms in the same order, so each hash has its words.
                words = terms_of(text, analyzer=self.analyzer, ngrams=self.ngrams)
                word_of = dict(zip(own.tolist(), words, strict=True))
                yield [(word_of[term], part) for term, part in _largest(row, n)]


# --- what a term is -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Analysis:
    """What the terms of a text are: runs of words or characters, of the sizes ngrams[0] to
    ngrams[1].
    """

    analyzer: Analyzer
    ngrams: tuple[int, int]
    why: str

    @property
    def note(self) -> str:
        least, most = self.ngrams
        unit = "words" if self.analyzer == "word" else "characters"
        if least < most:
            return f"runs of {least} to {most} {unit}: {self.why}"
        if least > 1:
            return f"runs of {least} {unit}: {self.why}"
        return f"{unit}: {self.why}"

    def count(self, texts: Sequence[str]) -> Counts:
        return count_terms(texts, analyzer=self.analyzer, ngrams=self.ngrams)

    def chunks(self, texts: Iterable[str], rows: int) -> Iterator[list[str]]:
        """The texts, so many at a time, fewer where they are long."""
        # A text of k characters has up to k terms of each size.
        sizes = self.ngrams[1] - self.ngrams[0] + 1
        return _chunks(texts, rows, CHUNK_TERMS // sizes)


def _analysis(options: Lexical, queries: Sequence[str]) -> _Analysis:
    """Words or characters: by the target alone, which is known before the pool is read."""
    analyzer: Analyzer
    if options.analyzer == "auto":
        share = _unspaced_share("\n".join(query[:2000] for query in queries[:2000]))
        analyzer = "char" if share >= UNSPACED_SHARE else "word"
        why = "the target's writing sets spaces between words"
        if analyzer == "char":
            why = (
                f"{share:.0%} of the target's letters are of writing in which spaces do not set "
                "words apart"
            )
    else:
        analyzer = options.analyzer
        why = "as asked"
    usual = (1, 1) if analyzer == "word" else (2, 4)
    return _Analysis(analyzer, options.ngrams or usual, why)


def _unspaced_share(text: str) -> float:
    """The share of the letters that are of writing without spaces, or vowel signs."""
    unspaced = len(UNSPACED_OR_MARK.findall(text))
    letters = len(re.findall(r"\w", UNSPACED_OR_MARK.sub("", text))) + unspaced
    return unspaced / letters if letters else 0.0


# --- terms ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """How often each term stands in each row, as compressed sparse rows.

    ``terms`` are the distinct hashes, ascending, and ``frequencies`` the rows that have each. Row k
    has the terms ``ids[starts[k]:starts[k + 1]]``, ascending places in ``terms``, ``counts`` times
    each, ``lengths[k]`` in all.
    """

    terms: np.ndarray
    frequencies: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray


def count_terms(texts: Sequence[str], *, analyzer: Analyzer, ngrams: tuple[int, int]) -> Counts:
    """The terms of each text: runs of words, or of characters, of each size from ngrams[0] to
    ngrams[1].
    """
    import pyarrow as pa

    hashes, rows = _hashes(texts, analyzer, ngrams)
    encoded = pa.array(hashes).dictionary_encode()
    terms = encoded.dictionary.to_numpy()
    ids = encoded.indices.to_numpy()
    order = np.argsort(terms)
    ranks = np.empty(len(terms), dtype=np.uint64)
    ranks[order] = np.arange(len(terms), dtype=np.uint64)
    # By row, then by term: equal ones are side by side.
    pairs = np.sort(rows << np.uint64(32) | ranks[ids])
    first = np.flatnonzero(np.diff(pairs, prepend=~pairs[:1]))
    counts = np.diff(first, append=len(pairs)).astype(np.uint32)
    pairs = pairs[first]
    ids = pairs.astype(np.uint32)  # the lower half
    return Counts(
        terms[order],
        np.bincount(ids, minlength=len(terms)),
        np.searchsorted(pairs, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32)),
        ids,
        counts,
        np.bincount(rows.astype(np.int64), minlength=len(texts)),
    )


def terms_of(text: str, *, analyzer: Analyzer, ngrams: tuple[int, int]) -> list[str]:
    """The terms of one text as they read, shorter ones first, in order: what ``count_terms``
    counts.

    >>> terms_of("Tom has 3 red apples", analyzer="word", ngrams=(1, 2))
    ['tom', 'has', 'red', 'apples', 'tom has', 'has red', 'red apples']
    """
    if analyzer == "word":
        units = TOKEN.findall(text.lower())
        space = " "
    else:
        units = list(SPACES.sub(" ", text.lower()))
        space = ""
    sizes = range(ngrams[0], ngrams[1] + 1)
    return [space.join(units[k : k + size]) for size in sizes for k in range(len(units) - size + 1)]


def _hashes(
    texts: Sequence[str], analyzer: Analyzer, ngrams: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The hash of each term of the texts, and the row that it stands in; size by size, and each in
    order.
    """
    lowered = [text.lower() for text in texts]
    if analyzer == "char":
        lowered = [SPACES.sub(" ", text) for text in lowered]
    sizes = np.fromiter(map(len, lowered), dtype=np.int64, count=len(lowered))
    if analyzer == "char":
        units = numbers()[codes_of("".join(lowered))]
        places = sizes
    else:
        units, starts = hash_words("\n".join(lowered), writing(r"\w"), shortest=2)
        ends = np.searchsorted(starts, np.cumsum(sizes + 1))
        places = np.diff(ends, prepend=0)
    rows = np.repeat(np.arange(len(texts), dtype=np.uint64), places)
    factors = mix(np.arange(1, ngrams[1] + 1, dtype=np.uint64)) | np.uint64(1)
    found = []
    for size in range(ngrams[0], ngrams[1] + 1):
        # A run does not reach into the next row.
        whole = rows[size - 1 :] == rows[: max(0, len(rows) - size + 1)]
        runs = np.full(len(whole), size, dtype=np.uint64)
        for k in range(size):
            runs += units[k : k + len(whole)] * factors[k]
        found.append((mix(runs[whole]), rows[: len(whole)][whole]))
    hashes = np.concatenate([hashes for hashes, _ in found])
    return hashes, np.concatenate([owners for _, owners in found])


# --- the pass that counts -------------------------------------------------------------------------


def _chunks(texts: Iterable[str], rows: int, characters: int) -> Iterator[list[str]]:
    chunk = list[str]()
    size = 0
    for text in texts:
        if chunk and (len(chunk) == rows or size + len(text) > characters):
            yield chunk
            chunk = []
            size = 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk


def _spill(analysis: _Analysis, job: tuple[Path, list[str]]) -> tuple[Path, int, int]:
    """Writes the counts of a chunk to a file: the file, the number of rows, and of their terms."""
    path, texts = job
    counts = analysis.count(texts)
    with path.open("wb") as stream:
        for array in vars(counts).values():
            np.save(stream, array)
    return path, len(texts), int(counts.lengths.sum())


class _Vocabulary:
    """All terms of the pool, ascending, and in how many rows each stands: 16 bytes a term, and
    three times as much while new ones are merged.
    """

    def __init__(self) -> None:
        self.terms = np.zeros(0, dtype=np.uint64)
        self.frequencies = np.zeros(0, dtype=np.int64)
        self._new: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, terms: np.ndarray, frequencies: np.ndarray) -> None:
        self._new.append((terms, frequencies))
        # Merged when there are as many new terms as known ones, so that a term is sorted few times.
        if sum(len(new) for new, _ in self._new) > max(1_000_000, len(self.terms)):
            self.merge()

    def merge(self) -> None:
        parts = [(self.terms, self.frequencies), *self._new]
        terms = np.concatenate([part for part, _ in parts])
        order = np.argsort(terms)
        terms = terms[order]
        frequencies = np.concatenate([part for _, part in parts])[order]
        first = np.flatnonzero(np.diff(terms, prepend=~terms[:1]))
        self.terms = terms[first]
        self.frequencies = np.add.reduceat(frequencies, first) if len(first) else frequencies
        self._new.clear()


@dataclass(frozen=True)
class _Pool:
    """What is known of the whole pool when it has been read; the vocabulary is in files that all
    processes share.
    """

    folder: Path
    rows: int
    mean_length: float
    options: Lexical

    def frequencies(self, terms: np.ndarray) -> np.ndarray:
        """In how many rows each of the ascending terms stands; 0 where min_df and max_df leave it
        out.
        """
        known, frequencies = self._vocabulary
        if not len(known):
            return np.zeros(len(terms), dtype=np.int64)
        places = np.minimum(np.searchsorted(known, terms), len(known) - 1)
        found = frequencies[places]
        found = np.where(known[places] == terms, found, 0)
        kept = (found >= self.options.min_df) & (found <= self.options.max_df * self.rows)
        return np.where(kept, found, 0)

    @cached_property
    def _vocabulary(self) -> tuple[np.ndarray, np.ndarray]:
        """All terms of the pool, ascending, and the rows that each stands in.

        Mapped, not read: the processes of a machine share these pages. Opened once, since to open
        them takes longer than to look up the terms of one row.
        """
        names = ("terms.npy", "frequencies.npy")
        known, frequencies = (np.load(self.folder / name, mmap_mode="r") for name in names)
        # Plain views: to index a memmap makes a memmap, which takes several times as long.
        return known.view(np.ndarray), frequencies.view(np.ndarray)

    def __getstate__(self) -> dict[str, Any]:
        # The maps stay with the process that opened them.
        return {name: value for name, value in vars(self).items() if name != "_vocabulary"}

    def weighted(self, counts: Counts, *, documents: bool) -> sp.csr_array:
        """The vectors of the rows of the pool, or of the queries: [rows, terms of counts],
        float64.
        """
        import scipy.sparse as sp

        frequencies = self.frequencies(counts.terms)[counts.ids]
        rows = np.repeat(np.arange(len(counts.lengths)), np.diff(counts.starts))
        tf = counts.counts.astype(np.float64)
        if self.options.method == "tfidf":
            if self.options.sublinear:
                tf = 1 + np.log(tf)
            idf = np.log((1 + self.rows) / (1 + frequencies)) + 1
            weights = np.where(frequencies, tf * idf, 0)
            squares = np.bincount(rows, weights=weights**2, minlength=len(counts.lengths))
            weights /= np.where(squares, np.sqrt(squares), 1)[rows]
        elif documents:
            idf = np.log(1 + (self.rows - frequencies + 0.5) / (frequencies + 0.5))
            longer = 1 - B + B * counts.lengths / (self.mean_length or 1)
            weights = np.where(frequencies, idf * tf / (tf + K1 * longer[rows]), 0)
        else:
            weights = np.where(frequencies, tf, 0)
        shape = (len(counts.lengths), len(counts.terms))
        return sp.csr_array((weights, counts.ids, counts.starts), shape=shape)


# --- the pass that compares -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Scorer:
    """The queries, ready to be multiplied: ``terms`` are those that the pool has, ``queries`` is
    [queries, terms].

    Few terms, as "the" and "how", are shared by most pairs of a row and a query: ``common`` are
    their places in ``terms``, and ``rough`` and ``exact`` the queries with these apart, in single
    and in double precision.
    """

    pool: _Pool
    terms: np.ndarray
    centroid: np.ndarray | None
    queries: sp.csr_array
    common: np.ndarray
    rough: _Halves
    exact: _Halves

    @classmethod
    def of(cls, pool: _Pool, counts: Counts) -> _Scorer:
        weights = pool.weighted(counts, documents=False)
        frequencies = pool.frequencies(counts.terms)
        known = np.flatnonzero(frequencies)
        places = np.where(frequencies, np.cumsum(frequencies > 0) - 1, -1)
        queries = _columns(weights, places, len(known))
        centroid = None
        if pool.options.to == "centroid":
            centroid = queries.sum(axis=0) / queries.shape[0]
            if pool.options.method == "tfidf" and centroid.any():
                centroid /= np.sqrt(np.square(centroid).sum())
        queries.data = _rounded(queries.data, pool.options)
        # The share of all pairs (row, query) in which both have the term.
        shares = (
            frequencies[known] / max(1, pool.rows) * counts.frequencies[known] / queries.shape[0]
        )
        dense = min(MAX_DENSE // queries.shape[0], int((shares >= DENSE_SHARE).sum()))
        common = np.argsort(-shares, kind="stable")[:dense]
        rough = _Halves.of(queries.astype(np.float32), common)
        exact = _Halves.of(queries.astype(np.float64), common)
        return cls(pool, counts.terms[known], centroid, queries, common, rough, exact)

    def __call__(self, path: Path) -> Scores:
        """The scores of one chunk of the pool."""
        from threadpoolctl import threadpool_limits

        with path.open("rb") as stream:
            counts = Counts(*(np.load(stream) for _ in Counts.__dataclass_fields__))
        rows = len(counts.lengths)
        nearest = np.full(rows, -1, dtype=np.int64)  # -1 is the centroid
        if not len(self.terms):
            if self.centroid is None:
                nearest[:] = 0
            return np.zeros(rows, dtype=np.float32), nearest
        matrix = self._vectors(counts)
        if self.centroid is not None:
            return (matrix @ self.centroid).astype(np.float32), nearest
        with threadpool_limits(1, user_api="blas"):  # the processes have the processors
            nearest, doubtful = self._roughly(matrix)
            # Products and sums are exact in double precision: argmax gives the first of equals.
            for start, block in self.exact.times(matrix[doubtful], self.common):
                nearest[doubtful[start : start + len(block)]] = block.argmax(axis=1)
        scores = matrix.multiply(self.queries[nearest]).sum(axis=1)
        return np.asarray(scores).astype(np.float32), nearest

    def parts(
        self, counts: Counts, nearest: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each row the terms that it shares with its query, ascending, and what each adds to
        the score.
        """
        if not len(self.terms):
            yield from ((self.terms, np.zeros(0)) for _ in nearest)
            return
        matrix = self._vectors(counts)
        if self.centroid is not None:
            matrix.data = matrix.data * self.centroid[matrix.indices]
        else:
            matrix = matrix.multiply(self.queries[nearest]).tocsr()
        for start, end in pairwise(matrix.indptr):
            yield self.terms[matrix.indices[start:end]], matrix.data[start:end]

    def _vectors(self, counts: Counts) -> sp.csr_array:
        """The vectors of rows of the pool, [rows, terms], rounded as the queries' are."""
        places = np.minimum(np.searchsorted(self.terms, counts.terms), len(self.terms) - 1)
        places = np.where(self.terms[places] == counts.terms, places, -1)
        matrix = _columns(self.pool.weighted(counts, documents=True), places, len(self.terms))
        if self.centroid is None:
            matrix.data = _rounded(matrix.data, self.pool.options)
        return matrix

    def _roughly(self, matrix: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
        """The nearest query of each row by single precision, and the rows in which that cannot tell
        it from the second.

        A sum of n products that are not negative is wrong by a share of (n + 2) * 2**-24 at most
        (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1), and so is what it is
        compared with; twice that is taken here.
        """
        nearest = np.zeros(matrix.shape[0], dtype=np.int64)
        best, second = np.zeros((2, matrix.shape[0]), dtype=np.float32)
        for start, block in self.rough.times(matrix.astype(np.float32), self.common):
            part = slice(start, start + len(block))
            rows = np.arange(len(block))
            nearest[part] = block.argmax(axis=1)
            best[part] = block[rows, nearest[part]]
            # The best is struck out, so that the next maximum is the second.
            block[rows, nearest[part]] = -1
            second[part] = block.max(axis=1)
        products = np.minimum(np.diff(matrix.indptr), np.diff(self.queries.indptr).max())
        doubtful = (best > 0) & (second >= best * (1 - (products + 2) * 2.0**-22))
        return nearest, np.flatnonzero(doubtful)


@dataclass(frozen=True)
class _Halves:
    """The common terms' weights, [queries, common], for BLAS, and the others', [rare, queries]."""

    dense: np.ndarray
    sparse: sp.csr_array

    @classmethod
    def of(cls, queries: sp.csr_array, common: np.ndarray) -> _Halves:
        dense, sparse = _split(queries, common)
        return cls(np.asfortranarray(dense.toarray()), sparse.T.tocsr())

    def times(self, matrix: sp.csr_array, common: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The scores of the rows against all queries, a block at a time, each with its first row:
        [rows, queries].
        """
        from scipy.linalg.blas import dgemm, sgemm

        multiply = {np.dtype(np.float64): dgemm, np.dtype(np.float32): sgemm}[self.dense.dtype]
        dense, rare = _split(matrix, common)
        step = max(1, CELLS // len(self.dense))
        for start in range(0, matrix.shape[0], step):
            block = (rare[start : start + step] @ self.sparse).toarray()
            if len(common):
                # Added in place. BLAS has its matrices the other way round, so all are transposed.
                rows = dense[start : start + step].toarray()
                block = multiply(1.0, self.dense, rows.T, beta=1.0, c=block.T, overwrite_c=True).T
            yield start, block


def _largest(row: tuple[np.ndarray, np.ndarray], n: int) -> list[tuple[int, float]]:
    """The n terms of a row that add most to its score, and what they add."""
    terms, parts = row
    first = np.argsort(-parts, kind="stable")[:n]
    found = zip(terms[first].tolist(), parts[first].tolist(), strict=True)
    return [(term, part) for term, part in found if part > 0]


def _rounded(weights: np.ndarray, options: Lexical) -> np.ndarray:
    """The weights rounded to multiples of a power of 2, so that sums of products are exact.

    TF-IDF: multiples of 2**-26 for weights up to 1, so that a cosine, up to 2, is a sum of 53 bits.
    BM25's weights of a row are up to 32 and those of queries are whole numbers: with 2**-24, scores
    up to 2**29 are exact.
    """
    grain = {"tfidf": 2.0**26, "bm25": 2.0**24}[options.method]
    return np.rint(weights * grain) / grain


def _columns(matrix: sp.csr_array, places: np.ndarray, width: int) -> sp.csr_array:
    """The matrix with its columns at other places; those at -1, and zeros, are left out."""
    import scipy.sparse as sp

    moved = places[matrix.indices]
    kept = (moved >= 0) & (matrix.data != 0)
    starts = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_array((matrix.data[kept], moved[kept], starts), shape=(matrix.shape[0], width))


def _split(matrix: sp.csr_array, common: np.ndarray) -> tuple[sp.csr_array, sp.csr_array]:
    """The common columns, in their order, and the others."""
    places = np.full(matrix.shape[1], -1)
    places[common] = np.arange(len(common))
    others = np.where(places < 0, np.cumsum(places < 0) - 1, -1)
    rest = _columns(matrix, others, matrix.shape[1] - len(common))
    return _columns(matrix, places, len(common)), rest
