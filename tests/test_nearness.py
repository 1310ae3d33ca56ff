"""Nearness: scikit-learn's numbers and BM25's, the same bit for bit for any chunks and processes,
in any writing.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import random
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.checks import hashed_words
from replaykit.errors import DataError, RecipeError
from replaykit.parallel import AHEAD, LocalExecutor
from replaykit.steps.select import nearness
from replaykit.steps.select.nearness import TOKEN, Index, Lexical, count_terms, fit, terms_of

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
QUERIES = [
    "Natalia sold clips to 48 of her friends. How many clips did Natalia sell altogether?",
    "Weng earns $12 an hour for babysitting. How much did she earn?",
    "How many friends did Betty sell clips to?",
    "Wie viele Äpfel hat Tom übrig?",
]
POOL = [
    "How many apples does Tom have? Tom has 48 apples, and Tom sold 12 of the apples.",
    "",
    "Summarise: Betty works for a babysitting agency; she EARNS little, an hour an hour an hour.",
    "?!  --  \n\t",
    "a b c d e: how many?",
    "Wie viele Äpfel? Viele ÄPFEL! İstanbul, ΣΊΣΥΦΟΣ, straße_1, x² + naïve",
    "The the THE the friends of the clips",
    "中文和 English 混在一起, ร้านอาหาร",
] * 3  # fmt: skip
DEFAULT = Lexical()
OPTIONS = [
    (DEFAULT, {}),
    (Lexical(sublinear=False), {"sublinear_tf": False}),
    (Lexical(ngrams=(1, 2)), {"ngram_range": (1, 2)}),
    (Lexical(ngrams=(2, 3), min_df=4), {"ngram_range": (2, 3), "min_df": 4}),
    (Lexical(min_df=4, max_df=0.25), {"min_df": 4, "max_df": 0.25}),
    (Lexical(max_df=0.125, sublinear=False), {"max_df": 0.125, "sublinear_tf": False}),
    (Lexical(analyzer="char"), {"analyzer": "char", "ngram_range": (2, 4)}),
    (Lexical(analyzer="char", ngrams=(1, 1)), {"analyzer": "char", "ngram_range": (1, 1)}),
    (
        Lexical(analyzer="char", ngrams=(3, 5), max_df=0.9),
        {"analyzer": "char", "ngram_range": (3, 5), "max_df": 0.9},
    ),
]
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.lists(st.sampled_from(["how", "many", "the", "The", "a", "apples", "东京", "ß", "x1"]), max_size=12).map(" ".join),
    ),
    max_size=14,
)  # fmt: skip


def index_of(
    texts: Iterable[str], queries: list[str], options: Lexical = DEFAULT, **how: Any
) -> Index:
    folder = Path(tempfile.mkdtemp(dir=os.environ["PYTEST_NEARNESS"]))
    return fit(texts, queries, options, folder=folder, **how)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_NEARNESS", str(tmp_path))


def all_of(index: Index) -> tuple[np.ndarray, np.ndarray]:
    chunks = list(index.scores())
    none = [(np.zeros(0, np.float32), np.zeros(0, np.int64))]
    scores, places = (np.concatenate(arrays) for arrays in zip(*(chunks or none), strict=True))
    assert (scores.dtype, places.dtype) == (np.float32, np.int64)
    return scores, places


def scored(texts: Iterable[str], queries: list[str], options: Lexical = DEFAULT, **how: Any) -> Any:
    return all_of(index_of(texts, queries, options, **how))


def cosines(texts: list[str], queries: list[str], **options: Any) -> np.ndarray:
    """[texts, queries] as scikit-learn has them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(**{"sublinear_tf": True, **options})
    return (vectoriser.fit_transform(texts) @ vectoriser.transform(queries).T).toarray()


def bm25(texts: list[str], queries: list[str]) -> np.ndarray:
    """[texts, queries], written down from the formula: sum over the query's words of idf * tf / (tf
    + k1 * norm).
    """
    rows = [TOKEN.findall(text.lower()) for text in texts]
    mean = sum(map(len, rows)) / len(rows)
    df = Counter(word for row in rows for word in set(row))
    table = np.zeros((len(texts), len(queries)))
    for (i, row), (j, query) in itertools.product(enumerate(rows), enumerate(queries)):
        tf = Counter(row)
        for word in TOKEN.findall(query.lower()):
            idf = math.log(1 + (len(rows) - df[word] + 0.5) / (df[word] + 0.5))
            table[i, j] += idf * tf[word] / (tf[word] + 1.5 * (1 - 0.75 + 0.75 * len(row) / mean))
    return table


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "theirs"), OPTIONS, ids=lambda value: str(value)[:60])
def test_scores_are_those_of_scikit_learn(options: Lexical, theirs: dict[str, Any]) -> None:
    table = cosines(POOL, QUERIES, **theirs)
    scores, places = scored(POOL, QUERIES, options)
    assert scores.max() > 0.1
    np.testing.assert_allclose(scores, table.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(table[np.arange(len(POOL)), places], table.max(axis=1), atol=1e-6)


def test_the_nearest_query_is_scikit_learns_in_every_row() -> None:
    draw = random.Random(1)
    texts = [
        " ".join(draw.choices(" ".join(POOL + QUERIES).split(), k=draw.randint(0, 30)))
        for _ in range(500)
    ]
    table = cosines(texts, QUERIES)
    scores, places = scored(texts, QUERIES)
    np.testing.assert_allclose(scores, table.max(axis=1), atol=1e-6)
    assert np.array_equal(places, table.round(12).argmax(axis=1))


def test_bm25_is_lucenes_with_rows_as_documents_and_repeated_words_of_a_query_counted() -> None:
    queries = [*QUERIES, "the the the hour"]
    table = bm25(POOL, queries)
    scores, places = scored(POOL, queries, Lexical(method="bm25"))
    assert scores.max() > 1
    np.testing.assert_allclose(scores, table.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(table[np.arange(len(POOL)), places], table.max(axis=1), atol=1e-5)


def test_the_centroid_is_the_mean_of_the_queries_vectors() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    vectoriser = TfidfVectorizer(sublinear_tf=True)
    rows = vectoriser.fit_transform(POOL)
    expected = cosine_similarity(rows, np.asarray(vectoriser.transform(QUERIES).mean(axis=0)))[:, 0]
    scores, places = scored(POOL, QUERIES, Lexical(to="centroid"))
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert set(places.tolist()) == {-1}
    scores, _ = scored(POOL, QUERIES, Lexical(method="bm25", to="centroid"))
    np.testing.assert_allclose(scores, bm25(POOL, QUERIES).mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("method", ["tfidf", "bm25"])
def test_ties_go_to_the_earlier_query(method: Any) -> None:
    queries = [
        "no match",
        "two cats and dogs",
        "DOGS and cats: two",
        "two cats and dogs",
        "red",
        "blue",
    ]
    scores, places = scored(
        ["cats", "blue red", "two dogs", "grey"], queries, Lexical(method=method)
    )
    assert places.tolist() == [1, 4, 1, 0]
    assert (scores[:3] > 0).all()
    assert scores[3] == 0


def test_many_common_words_and_many_queries_give_the_same_scores_as_few() -> None:
    """Common terms are multiplied as a dense matrix, rare ones as a sparse one, and pairs a block
    at a time.
    """
    draw = random.Random(2)
    words = [f"w{k}" for k in range(400)]
    weights = [1 / (k + 1) for k in range(400)]
    texts, queries = (
        [" ".join(draw.choices(words, weights, k=draw.randint(1, 40))) for _ in range(count)]
        for count in (300, 5000)
    )
    index = index_of(texts, queries)
    assert 20 < len(index._scorer.common) < index.shared_terms
    assert nearness.CELLS // len(queries) < len(texts)
    table = cosines(texts, queries)
    scores, places = all_of(index)
    np.testing.assert_allclose(scores, table.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(table[np.arange(300), places], table.max(axis=1), atol=1e-6)


# --- terms ----------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    TEXTS,
    st.sampled_from(["word", "char"]),
    st.sampled_from([(1, 1), (1, 3), (2, 2)]),
    st.sampled_from([3, 8, 2**16]),
)
@pytest.mark.slow
def test_the_counts_are_those_of_the_terms_as_python_finds_them(
    texts: Any, analyzer: Any, ngrams: Any, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            hashed_words, "BLOCK", block
        )  # so that words lie across its edge, and longer ones than it
        counts = count_terms(texts, analyzer=analyzer, ngrams=ngrams)
    rows = [Counter(terms_of(text, analyzer=analyzer, ngrams=ngrams)) for text in texts]
    assert counts.lengths.tolist() == [row.total() for row in rows]
    distinct = sorted({term for row in rows for term in row})
    hashes = {
        t: int(nearness._hashes([t], analyzer, (n, n))[0][0])
        for t in distinct
        if (n := size_of(t, analyzer))
    }
    found = [dict(zip(*part, strict=True)) for part in parts_of(counts)]
    assert found == [{hashes[term]: count for term, count in row.items()} for row in rows]
    assert len(counts.terms) == len(distinct)
    assert counts.frequencies.sum() == sum(map(len, rows))


def size_of(term: str, analyzer: str) -> int:
    return term.count(" ") + 1 if analyzer == "word" else len(term)


def parts_of(counts: nearness.Counts) -> list[tuple[list[int], list[int]]]:
    spans = itertools.pairwise(counts.starts.tolist())
    return [(counts.terms[counts.ids[a:b]].tolist(), counts.counts[a:b].tolist()) for a, b in spans]


@pytest.mark.parametrize(
    ("analyzer", "ngrams"), [("word", (1, 2)), ("char", (2, 4)), ("char", (1, 1))]
)
def test_terms_are_those_of_scikit_learn(analyzer: Any, ngrams: Any) -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    analyse = CountVectorizer(analyzer=analyzer, ngram_range=ngrams).build_analyzer()
    for text in POOL + QUERIES + ["a  b\n\n c", "x"]:
        assert Counter(terms_of(text, analyzer=analyzer, ngrams=ngrams)) == Counter(analyse(text))


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_every_word_of_the_real_data_is_found_as_python_finds_it() -> None:
    distinct = set[str]()
    terms = set[int]()
    read = 0
    for path in sorted(DATA.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            lines = [
                line if line.isascii() else json.dumps(json.loads(line), ensure_ascii=False)
                for line in stream
            ]
        for start in range(0, len(lines), 2000):
            part = lines[start : start + 2000]
            counts = count_terms(part, analyzer="word", ngrams=(1, 1))
            found = [TOKEN.findall(text.lower()) for text in part]
            assert counts.lengths.tolist() == [len(row) for row in found]
            assert np.diff(counts.starts).tolist() == [len(set(row)) for row in found]
            distinct.update(*found)
            terms.update(counts.terms.tolist())
            read += len(part)
    assert read > 70_000
    assert len(terms) == len(distinct)


# --- any chunks, any processes --------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    TEXTS,
    TEXTS.filter(len),
    st.integers(1, 9),
    st.integers(1, 60),
    st.sampled_from([o for o, _ in OPTIONS]),
    st.data(),
)
def test_any_chunks_give_the_same_bits(
    texts: Any, queries: Any, rows: int, terms: int, options: Any, data: Any
) -> None:
    method = data.draw(st.sampled_from(["tfidf", "bm25"]))
    to = data.draw(st.sampled_from(["nearest", "centroid"]))
    options = nearness.Lexical(**{**vars(options), "method": method, "to": to})
    whole = scored(texts, queries, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearness, "CHUNK_TERMS", terms)
        patch.setattr(nearness, "CELLS", terms)
        cut = scored(iter(texts), queries, options, chunk_rows=rows)
    assert [array.tobytes() for array in whole] == [array.tobytes() for array in cut]
    assert len(whole[0]) == len(texts)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(
    TEXTS.filter(lambda texts: len(texts) > 3),
    TEXTS.filter(len),
    st.integers(1, 3),
    st.integers(2, 3),
)
def test_any_number_of_processes_gives_the_same_bits(
    texts: Any, queries: Any, rows: int, processes: int
) -> None:
    one = scored(texts, queries)
    with closing(LocalExecutor(processes)) as executor:
        several = scored(texts, queries, chunk_rows=rows, executor=executor)
    assert [array.tobytes() for array in one] == [array.tobytes() for array in several]


def test_exact_sums_do_not_depend_on_what_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("tfidf", "bm25"):
        results = set()
        for share in (0.0, 1 / 256, 0.05, 2.0):
            monkeypatch.setattr(nearness, "DENSE_SHARE", share)
            results.add(scored(POOL, QUERIES, Lexical(method=method))[0].tobytes())
        assert len(results) == 1


@pytest.mark.slow
def test_scores_can_be_had_again_and_left_early() -> None:
    with closing(LocalExecutor(2)) as executor:
        index = index_of(POOL * 5, QUERIES, chunk_rows=7, executor=executor)
        first = all_of(index)
        stream = index.scores()
        assert len(next(stream)[0]) == 7
        stream.close()
        assert [array.tobytes() for array in all_of(index)] == [array.tobytes() for array in first]


def test_the_pool_is_read_once_and_never_held() -> None:
    """No more is read than there is a place for while an earlier result is waited for."""
    read = done = 0

    def texts() -> Iterable[str]:
        nonlocal read
        for text in POOL * 40:
            read += 1
            yield text

    with closing(LocalExecutor(2)) as executor:
        for answer in executor.map(len, nearness._chunks(texts(), 3, 10**6)):
            done += answer
            assert read - done <= 3 * (2 * AHEAD + 2)
    assert done == read == len(POOL) * 40


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "near", "far"),
    [
        (
            "小明有多少个苹果？他吃了三个苹果。",
            "请问小红买了多少个苹果？",
            "今天北京的天气怎么样？",
        ),
        ("東京の人口はどのくらいですか", "大阪の人口はどのくらい？", "猫が好きです。"),
        ("กรุงเทพมีประชากรเท่าไร", "เชียงใหม่มีประชากรเท่าไรครับ", "ฉันชอบแมว"),
        ("टॉम के पास कितने सेब हैं?", "राम के पास कितने आम हैं?", "मौसम अच्छा है"),
        (
            unicodedata.normalize("NFD", "Có bao nhiêu quả táo ở đó?"),
            "bao nhiêu quả cam?",
            "trời đẹp",
        ),
    ],
)
def test_writing_without_spaces_is_compared_by_characters_and_says_so(
    query: str, near: str, far: str
) -> None:
    index = index_of([far, near, "How many?"], [query])
    assert index.analyzer == "char"
    assert index.note.startswith("runs of 2 to 4 characters: ")
    assert "% of the target's letters" in index.note
    scores, _ = all_of(index)
    assert scores[1] == scores.max()
    assert scores[1] > 0


def test_writing_with_spaces_is_compared_by_words_and_says_so() -> None:
    index = index_of(POOL, [*QUERIES, "Сколько яблок у Тома?", "What does 東京 mean?"])
    assert index.analyzer == "word"
    assert index.note == "words: the target's writing sets spaces between words"
    assert (
        index_of(POOL, QUERIES, Lexical(analyzer="char")).note
        == "runs of 2 to 4 characters: as asked"
    )


# --- why ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [Lexical(), Lexical(ngrams=(1, 2)), Lexical(method="bm25"), Lexical(analyzer="char")]
)
def test_the_parts_of_all_terms_are_the_score(options: Lexical) -> None:
    index = index_of(POOL, QUERIES, options)
    scores, nearest = all_of(index)
    explained = index.explain(POOL, nearest, n=10**6)
    for text, score, parts in zip(POOL, scores, explained, strict=True):
        assert sum(part for _, part in parts) == pytest.approx(score, abs=1e-5)
        assert [part for _, part in parts] == sorted((part for _, part in parts), reverse=True)
        assert {term for term, _ in parts} <= set(
            terms_of(text, analyzer=index.analyzer, ngrams=index.ngrams)
        )


def test_the_rarer_word_explains_more_and_n_bounds_the_terms() -> None:
    index = index_of(POOL, QUERIES)
    both, nothing = index.explain(["Betty sold clips of the hour", "grey"], [2, 2])
    assert [term for term, _ in both] == ["betty", "clips"]
    assert nothing == []
    ((first,),) = index.explain(["Betty sold clips of the hour"], [2], n=1)
    assert first[0] == "betty"


def test_the_centroid_is_explained_too() -> None:
    index = index_of(POOL, QUERIES, Lexical(to="centroid"))
    (parts,) = index.explain(POOL[:1], [-1], n=100)
    assert sum(part for _, part in parts) == pytest.approx(all_of(index)[0][0], abs=1e-5)


# --- little to compare ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tfidf", "bm25"])
def test_an_empty_pool_has_no_scores(method: Any) -> None:
    index = index_of([], QUERIES, Lexical(method=method))
    assert list(index.scores()) == []
    assert (index.rows, index.shared_terms) == (0, 0)


@pytest.mark.parametrize("to", ["nearest", "centroid"])
@pytest.mark.parametrize("method", ["tfidf", "bm25"])
@pytest.mark.parametrize(
    ("texts", "queries"), [(POOL, ["zzz"]), (["", "?"], QUERIES), (POOL, ["", "!"])]
)
def test_nothing_in_common_scores_zero(
    to: Any, method: Any, texts: list[str], queries: list[str]
) -> None:
    index = index_of(texts, queries, Lexical(method=method, to=to))
    scores, places = all_of(index)
    assert index.shared_terms == 0
    assert scores.tolist() == [0] * len(texts)
    assert set(places.tolist()) == {0 if to == "nearest" else -1}


def test_no_queries_and_impossible_options_are_errors() -> None:
    with pytest.raises(DataError, match="the target is empty"):
        index_of(POOL, [])
    with pytest.raises(RecipeError, match="2 problems"):
        Lexical(ngrams=(2, 1), max_df=1.5)
