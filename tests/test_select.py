"""Selection: the nearest old records first, each with its score, its rank and the target record it is near to."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.checks.funnel import Funnel
from replaykit.errors import DataError
from replaykit.records import Record, dialogue, read_records
from replaykit.sources.select import select
from replaykit.text import BLOCK, nearest, normalise

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
WORDS = [
    f"{start}{end}" for start in ("bar", "lok", "mun", "tes", "vir", "zap") for end in ("a", "en", "is", "o", "um")
]


def pool_of(*prompts: str) -> list[Record]:
    return [Record(dialogue(prompt, "an answer"), "target", {"line": k}) for k, prompt in enumerate(prompts, 1)]


def prompts(records: list[Record]) -> list[str]:
    return [record.prompt for record in records]


def sentences(n: int, seed: int, words: list[str] = WORDS) -> list[str]:
    """Made-up sentences of 3 to 12 words; no two are equal."""
    draw = random.Random(seed)
    return [f"{' '.join(draw.choices(words, k=draw.randint(3, 12)))} {seed}x{k}" for k in range(n)]


def sklearn_scores(rows: list[str], queries: list[str]) -> np.ndarray:
    """[rows, queries]: scikit-learn's cosines, in its own double precision and all at once."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    vectoriser = TfidfVectorizer(sublinear_tf=True)
    return np.asarray(cosine_similarity(vectoriser.fit_transform(rows), vectoriser.transform(queries)))


# --- what is near ---------------------------------------------------------------------------------------------------


def test_planted_neighbours_come_first_and_the_nearest_of_them_at_the_top() -> None:
    target = pool_of("How many apples does Tom have left?", "What is the area of the garden?")
    planted = [
        "how many apples does Tom have left now",
        "What is the area of the garden in metres?",
        "How many pears does Anna have?",
    ]
    others = sentences(300, seed=1)
    pool = pool_of(*others[:100], planted[2], *others[100:200], planted[0], *others[200:], planted[1])
    assert set(prompts(select(pool, target, n=3))) == set(planted)
    assert prompts(select(pool, target, n=3))[2] == planted[2]


def test_each_record_names_its_score_its_rank_and_its_nearest_target_record() -> None:
    target = pool_of("red green blue", "cat dog mouse")
    pool = pool_of("cat dog", "red green blue white", "mouse")
    made = select(pool, target, n=3)
    near = {"cat dog": target[1].id, "red green blue white": target[0].id, "mouse": target[1].id}
    assert {record.prompt: record.meta["nearest"] for record in made} == near
    assert [record.meta["rank"] for record in made] == [1, 2, 3]
    scores = [record.meta["score"] for record in made]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert {record.source for record in made} == {"select"}
    assert {record.prompt: record.meta["line"] for record in made} == {p.prompt: p.meta["line"] for p in pool}
    assert {record.id for record in made} == {record.id for record in pool}


def test_ties_go_to_the_earlier_record_and_to_the_earlier_target() -> None:
    target = pool_of("apple pear", "pear apple")
    pool = pool_of("plum", "apple! pear", "pear; apple", "apple? pear", "cherry")
    made = select(pool, target, n=5)
    assert prompts(made) == ["apple! pear", "pear; apple", "apple? pear", "plum", "cherry"]
    assert {record.meta["nearest"] for record in made} == {target[0].id}


def test_no_word_in_common_is_a_score_of_zero() -> None:
    for pool in (pool_of("lorem ipsum", "dolor sit"), pool_of("?!", "a b c", "1 + 1")):
        made = select(pool, pool_of("entirely different words"), n=2)
        assert [record.meta["score"] for record in made] == [0, 0]
        assert prompts(made) == prompts(pool)[:2]


@pytest.mark.parametrize("rows", [1, 200, BLOCK + 1])
def test_scores_are_those_of_scikit_learn(rows: int) -> None:
    words = [*WORDS, "Größe", "naïve", "x", "42", "don't", "日本語"]
    pool, queries = sentences(rows, 2, words), sentences(30, 3, words)
    expected = sklearn_scores(pool, queries)
    found = nearest(pool, queries)
    np.testing.assert_allclose(found.scores, expected.max(axis=1), atol=1e-5, rtol=0)
    at_best = expected[np.arange(rows), found.queries]  # the query itself may differ between equals
    np.testing.assert_allclose(at_best, expected.max(axis=1), atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.text(alphabet="ab ?1é\n"), min_size=1, max_size=8),
    queries=st.lists(st.text(alphabet="ab ?1é\n"), min_size=1, max_size=4),
)
def test_scores_are_cosines_whatever_the_texts(rows: list[str], queries: list[str]) -> None:
    found = nearest(rows, queries)
    assert found.scores.shape == found.queries.shape == (len(rows),)
    assert all(-1e-6 <= score <= 1 + 1e-6 for score in found.scores)
    assert all(0 <= query < len(queries) for query in found.queries)
    try:
        expected = sklearn_scores(rows, queries).max(axis=1)
    except ValueError:  # no row has a word
        expected = np.zeros(len(rows))
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)


def test_the_same_pool_gives_the_same_selection_and_a_longer_one_begins_with_a_shorter() -> None:
    pool, target = pool_of(*sentences(150, 4)), pool_of(*sentences(20, 5))
    assert select(pool, target, n=50) == select(iter(pool), target, n=50)
    assert select(pool, target, n=50)[:20] == select(pool, target, n=20)


def test_only_the_last_question_is_compared() -> None:
    talk = Record((*dialogue("red green", "fine"), *dialogue("apple pear", "good")), "target")
    made = select([talk, *pool_of("red green blue")], pool_of("apple pear plum"), n=2)
    assert made[0].messages == talk.messages
    assert made[1].meta["score"] == 0


# --- what is left out -----------------------------------------------------------------------------------------------


def test_duplicates_and_target_prompts_and_unanswered_rows_are_dropped_with_a_reason() -> None:
    target = pool_of("What is 2 + 2?")
    pool = [
        *pool_of("Name a fruit.", "what is  2 + 2 ?", "NAME a fruit .", "What is 2 - 2?"),
        Record(dialogue("Silent?", " \n"), "target"),
        Record(dialogue("Unanswered?"), "target"),
    ]
    dropped: list[Any] = []
    funnel = Funnel(dropped.append)
    assert prompts(select(pool, target, n=10, funnel=funnel)) == ["What is 2 - 2?", "Name a fruit."]
    assert [(row["reason"], row["messages"][0]["content"]) for row in dropped] == [
        ("duplicate", "what is  2 + 2 ?"), ("duplicate", "NAME a fruit ."), ("empty", "Silent?"), ("empty", "Unanswered?"),
    ]  # fmt: skip
    assert funnel.to_json() == {"made": 6, "dropped": {"duplicate": 2, "empty": 2}, "kept": 2}


def test_an_unanswered_row_does_not_take_the_place_of_an_answered_one() -> None:
    pool = [Record(dialogue("Name a fruit.", ""), "target"), *pool_of("Name a fruit.")]
    assert [record.answer for record in select(pool, pool_of("Name two."), n=2)] == ["an answer"]


def test_records_that_are_not_near_enough_are_counted_and_kept_to_look_at() -> None:
    dropped: list[Any] = []
    funnel = Funnel(dropped.append)
    made = select(pool_of("apple", "stone", "apple pear", "brick"), pool_of("an apple"), n=2, funnel=funnel)
    assert prompts(made) == ["apple", "apple pear"]
    assert [(row["reason"], row["meta"]["line"]) for row in dropped] == [("far", 2), ("far", 4)]
    assert funnel.to_json() == {"made": 4, "dropped": {"far": 2}, "kept": 2}


def test_plain_texts_are_compared_whole_and_one_of_the_target_is_left_out() -> None:
    def texts(*contents: str) -> list[Record]:
        return [Record(({"role": "text", "content": content},), "target") for content in contents]

    made = select(texts("the cat sat", "A stone.", "The dog sat"), texts("the dog sat"), n=5)
    assert [record.messages[0]["content"] for record in made] == ["the cat sat", "A stone."]


def test_a_pool_smaller_than_n_is_taken_whole() -> None:
    pool = pool_of(*sentences(7, 6))
    assert sorted(prompts(select(pool, pool_of(*sentences(3, 7)), n=100))) == sorted(prompts(pool))


def test_an_empty_target_or_pool_is_an_error() -> None:
    with pytest.raises(DataError, match="the target is empty"):
        select(pool_of("a question"), [], n=1)
    with pytest.raises(DataError, match=r"the pool has no record to select from \(0 made, none dropped, 0 kept\)"):
        select([], pool_of("a question"), n=1)
    with pytest.raises(DataError, match=r"\(2 made, duplicate 2, 0 kept\)"):
        select(pool_of("A question", "a  question"), pool_of("a question"), n=1)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("What is 2 + 2?", "what  is\n2+2 ?", True),
        ("ＡＢＣ １２３", "abc 123", True),
        ("Straße", "STRASSE", True),
        ("What is 2 + 2?", "What is 2 - 2?", False),
        ("What is it?", "What is it", False),
        ("naïve", "naive", False),
    ],
)
def test_texts_are_one_question_up_to_case_width_and_spacing(one: str, other: str, equal: bool) -> None:
    assert (normalise(one) == normalise(other)) is equal


# --- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_real_old_tasks_are_ranked_as_scikit_learn_ranks_them() -> None:
    pool = list(read_records(DATA / "t0_pool.jsonl.gz", "select", limit=3000))
    target = list(read_records(DATA / "gsm8k_train.jsonl.gz", "target", limit=200))
    funnel = Funnel()
    made = select(pool, target, n=300, funnel=funnel)
    assert (len(pool), len(target), len(made)) == (3000, 200, 300)
    assert funnel.made == 3000
    assert funnel.kept == 300
    kept = [record for record in pool if record.answer.strip()]
    first = list({normalise(record.prompt): record for record in reversed(kept)}.values())[::-1]
    best = sklearn_scores(prompts(first), prompts(target)).max(axis=1)
    np.testing.assert_allclose([record.meta["score"] for record in made], np.sort(best)[::-1][:300], atol=1e-5)
    score_of = dict(zip(prompts(first), best, strict=True))
    np.testing.assert_allclose(
        [record.meta["score"] for record in made], [score_of[p] for p in prompts(made)], atol=1e-5
    )
    assert {record.meta["nearest"] for record in made} <= {record.id for record in target}
