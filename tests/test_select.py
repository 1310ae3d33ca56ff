"""Selection: the right old records, each with its score, its rank, what it is near to and why."""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.checks import quality
from replaykit.checks.duplicates import exchange, kept_form
from replaykit.checks.evalsets import EvalItem
from replaykit.checks.funnel import Funnel
from replaykit.checks.overlap import Decontamination
from replaykit.data.formats import read_records
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError
from replaykit.recipe.data import Data
from replaykit.recipe.select import Quality, Select
from replaykit.steps.select import choose, selection, walk
from replaykit.steps.select.choose import spread
from replaykit.steps.select.nearness import Lexical, fit
from replaykit.steps.select.selection import Selection, select_records
from replaykit.text import normalise

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
WORDS = [
    f"{start}{end}"
    for start in ("bar", "lok", "mun", "tes", "vir", "zap")
    for end in ("a", "en", "is", "o", "um")
]


def selected(
    pool: Any,
    target: list[Record],
    n: int,
    *,
    seed: int = 1,
    funnel: Funnel | None = None,
    held_out: Any = (),
    **options: Any,
) -> Selection:
    """A selection in one process and a folder of its own, without the checks on near duplicates
    unless asked for.
    """
    apart = Decontamination({"test": [EvalItem(str(k), text) for k, text in enumerate(held_out)]})
    asked_for = Select(
        pool=Data(path="pool.jsonl"), n=n, **{"processes": 1, "near_duplicate": None} | options
    )
    with tempfile.TemporaryDirectory() as folder:
        return select_records(
            pool,
            target,
            settings=asked_for,
            seed=seed,
            folder=Path(folder),
            funnel=funnel,
            held_out=apart,
        )


def chosen(pool: Any, target: list[Record], n: int, **options: Any) -> list[Record]:
    return selected(pool, target, n, **options).records


def pool_of(*prompts: str, **columns: Any) -> list[Record]:
    return [
        Record(
            dialogue(prompt, f"an answer {k}"),
            "target",
            {"line": k} | {name: values[k - 1] for name, values in columns.items()},
        )
        for k, prompt in enumerate(prompts, 1)
    ]


def answered(question: str, *answers: str) -> list[Record]:
    return [Record(dialogue(question, answer), "target") for answer in answers]


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
    return np.asarray(
        cosine_similarity(vectoriser.fit_transform(rows), vectoriser.transform(queries))
    )


# --- what is near ---------------------------------------------------------------------------------


def test_planted_neighbours_come_first_and_the_nearest_of_them_at_the_top() -> None:
    target = pool_of("How many apples does Tom have left?", "What is the area of the garden?")
    planted = [
        "how many apples does Tom have left now",
        "What is the area of the garden in metres?",
        "How many pears does Anna have?",
    ]
    others = sentences(300, seed=1)
    pool = pool_of(
        *others[:100], planted[2], *others[100:200], planted[0], *others[200:], planted[1]
    )
    assert set(prompts(chosen(pool, target, 3))) == set(planted)
    assert prompts(chosen(pool, target, 3))[2] == planted[2]


def test_each_record_names_its_score_its_rank_and_its_nearest_target_record() -> None:
    target = pool_of("red green blue", "cat dog mouse")
    pool = pool_of("cat dog", "red green blue white", "mouse")
    made = chosen(pool, target, 3)
    near = {"cat dog": target[1].id, "red green blue white": target[0].id, "mouse": target[1].id}
    assert {record.prompt: record.meta["nearest"] for record in made} == near
    assert [record.meta["rank"] for record in made] == [1, 2, 3]
    scores = [record.meta["score"] for record in made]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert {record.source for record in made} == {"select"}
    assert {record.prompt: record.meta["line"] for record in made} == {
        p.prompt: p.meta["line"] for p in pool
    }
    assert {record.id for record in made} == {record.id for record in pool}


def test_ties_go_to_the_earlier_record_and_to_the_earlier_target() -> None:
    target = pool_of("apple pear", "pear apple")
    pool = pool_of("plum", "apple! pear", "pear; apple", "apple? pear", "cherry")
    made = chosen(pool, target, 5)
    assert prompts(made) == ["apple! pear", "pear; apple", "apple? pear", "plum", "cherry"]
    assert {record.meta["nearest"] for record in made} == {target[0].id}


def test_no_word_in_common_is_a_score_of_zero() -> None:
    for pool in (pool_of("lorem ipsum", "dolor sit"), pool_of("?!", "a b c", "1 + 1")):
        made = chosen(pool, pool_of("entirely different words"), 2)
        assert [record.meta["score"] for record in made] == [0, 0]
        assert prompts(made) == prompts(pool)[:2]


def test_the_same_pool_gives_the_same_selection_and_a_longer_one_begins_with_a_shorter() -> None:
    pool = pool_of(*sentences(150, 4))
    target = pool_of(*sentences(20, 5))
    assert chosen(pool, target, 50) == chosen(iter(pool), target, 50)
    assert chosen(pool, target, 50)[:20] == chosen(pool, target, 20)


def test_only_the_last_question_is_compared() -> None:
    talk = Record((*dialogue("red green", "fine"), *dialogue("apple pear", "good")), "target")
    made = chosen([talk, *pool_of("red green blue")], pool_of("apple pear plum"), 2)
    assert made[0].messages == talk.messages
    assert made[1].meta["score"] == 0


# --- what is left out -----------------------------------------------------------------------------


def test_duplicates_and_target_prompts_and_unanswered_rows_are_dropped_with_a_reason() -> None:
    target = [Record(dialogue("What is 2 + 2?", "4"), "target")]
    pool = [
        *answered("Name a fruit.", "apple", "pear", "apple "),
        *answered("What is  2 + 2?", "4", "four"),
        *answered("What is 2 - 2?", "0"),
        Record(dialogue("Silent?", " \n"), "target"),
        Record(dialogue("Unanswered?"), "target"),
    ]
    dropped: list[Any] = []
    funnel = Funnel(dropped.append)
    made = chosen(pool, target, 10, funnel=funnel)
    assert [record.answer for record in made] == ["four", "0", "apple", "pear"]
    assert sorted((row["reason"], row["messages"][0]["content"]) for row in dropped) == [
        ("duplicate", "Name a fruit."), ("empty_answer", "Silent?"), ("empty_answer", "Unanswered?"),
        ("target_duplicate", "What is  2 + 2?"),
    ]  # fmt: skip
    assert {row["reason"]: row["meta"].get("twin") for row in dropped}[
        "duplicate"
    ] == "Name a fruit."
    assert funnel.result().kept == 4


def test_several_answers_to_one_question_stay_unless_fewer_are_asked_for() -> None:
    pool = [
        *answered("Name a fruit.", "apple", "pear", "apple", "fig"),
        *answered("NAME a fruit.", "plum"),
        *answered("Name a tree.", "oak", "elm"),
    ]
    target = pool_of("Name a river.")
    for most, kept in (
        (None, {"apple", "pear", "fig", "plum", "oak", "elm"}),
        (2, {"apple", "pear", "plum", "oak", "elm"}),
        (1, {"apple", "plum", "oak"}),
    ):
        funnel = Funnel()
        made = chosen(pool, target, 9, answers_per_question=most, near_duplicate=0.9, funnel=funnel)
        assert {record.answer for record in made} == kept
        assert funnel.counts["over_answers_per_question"] == 6 - len(kept)
        assert funnel.counts["duplicate"] == 1


def test_rows_that_differ_in_their_system_message_or_tools_all_stay_and_keep_them() -> None:
    systems = ("Be kind.", "Be rude.")
    pool = [Record(dialogue("Name a fruit.", "apple", system=system), "select") for system in systems]  # fmt: skip
    tool = {"type": "function", "function": {"name": "fruit"}}
    pool += [Record(dialogue("Name a fruit.", "apple"), "select", tools=(tool,))]
    made = chosen(pool, pool_of("Name a river."), 9, near_duplicate=0.9)
    assert {record.id for record in made} == {record.id for record in pool}
    assert [record.tools for record in made if record.tools] == [(tool,)]


def test_an_unanswered_row_does_not_take_the_place_of_an_answered_one() -> None:
    pool = [Record(dialogue("Name a fruit.", ""), "target"), *pool_of("Name a fruit.")]
    assert [record.answer for record in chosen(pool, pool_of("Name two."), 2)] == ["an answer 1"]


def test_records_that_are_not_near_enough_are_counted_and_kept_to_look_at() -> None:
    dropped: list[Any] = []
    funnel = Funnel(dropped.append)
    made = chosen(
        pool_of("apple", "stone", "apple pear", "brick"), pool_of("an apple"), 2, funnel=funnel
    )
    assert prompts(made) == ["apple", "apple pear"]
    assert [(row["reason"], row["meta"]["line"]) for row in dropped] == [("far", 2), ("far", 4)]
    assert funnel.result().to_json() == {"made": 4, "dropped": {"far": 2}, "kept": 2}


def test_plain_texts_are_compared_whole_and_one_of_the_target_is_left_out() -> None:
    def texts(*contents: str) -> list[Record]:
        return [Record(({"role": "text", "content": content},), "target") for content in contents]

    made = chosen(texts("the cat sat", "A stone.", "the  dog sat"), texts("the dog sat"), 5)
    assert [record.messages[0]["content"] for record in made] == ["the cat sat", "A stone."]


def test_a_pool_smaller_than_n_is_taken_whole() -> None:
    pool = pool_of(*sentences(7, 6))
    assert sorted(prompts(chosen(pool, pool_of(*sentences(3, 7)), 100))) == sorted(prompts(pool))


def test_an_empty_target_or_pool_is_an_error() -> None:
    with pytest.raises(DataError, match="the target is empty"):
        chosen(pool_of("a question"), [], 1)
    with pytest.raises(
        DataError, match=r"the pool has no record to select from \(0 made, none dropped, 0 kept\)"
    ):
        chosen([], pool_of("a question"), 1)
    with pytest.raises(DataError, match=r"\(2 made, target_duplicate 2, 0 kept\)"):
        chosen(answered("A question", "yes", "yes "), answered("A  question", "yes"), 1)


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
def test_texts_are_one_question_up_to_case_width_and_spacing(
    one: str, other: str, equal: bool
) -> None:
    assert (normalise(one) == normalise(other)) is equal


# --- other ways to choose -------------------------------------------------------------------------


def test_the_terms_that_matched_explain_a_score() -> None:
    target = pool_of("red green blue", "cat dog mouse")
    (made,) = chosen(pool_of("the cat sat on a mouse", *sentences(20, 8)), target, 1)
    assert made.meta["nearest"] == target[1].id
    assert set(made.meta["terms"]) == {"cat", "mouse"}
    assert sum(made.meta["terms"].values()) == pytest.approx(made.meta["score"], abs=1e-3)


def test_near_the_centroid_is_not_near_to_one_of_the_target() -> None:
    target = pool_of("apple pear", "apple plum", "apple fig", "stone")
    pool = pool_of("stone!", "apple", *sentences(10, 1))
    assert prompts(chosen(pool, target, 1))[0] == "stone!"
    assert prompts(chosen(pool, target, 1, to="centroid"))[0] == "apple"


def test_bm25_finds_the_planted_neighbours_too() -> None:
    pool = pool_of(*sentences(100, 1), "How many pears does Anna have?", *sentences(100, 2))
    assert prompts(chosen(pool, pool_of("How many pears has Anna?"), 1, method="bm25")) == [
        "How many pears does Anna have?"
    ]


def test_text_without_spaces_is_compared_by_its_characters_and_the_notes_say_so() -> None:
    made = selected(
        pool_of("今天天气很好", "请介绍一下北京的历史", "法国的首都是哪里"),
        pool_of("北京有什么历史"),
        1,
    )
    assert prompts(made.records) == ["请介绍一下北京的历史"]
    assert any("characters" in note for note in made.result.notes)


@pytest.mark.slow
def test_random_needs_no_target_and_a_longer_draw_goes_on_from_a_shorter() -> None:
    pool = pool_of(*sentences(200, 3))
    few, many = (chosen(pool, [], n, method="random", seed=4) for n in (20, 60))
    assert prompts(many)[:20] == prompts(few)
    assert prompts(few) != prompts(chosen(pool, [], 20, method="random", seed=5))
    assert "score" not in few[0].meta


def test_strata_have_their_shares() -> None:
    topics = ["a"] * 80 + ["b"] * 15 + ["c"] * 5
    pool = pool_of(*sentences(100, 3), topic=topics)

    def counts(shares: str) -> dict[str, int]:
        made = chosen(pool, [], 20, method="stratified", column="topic", shares=shares)
        return {topic: sum(row.meta["topic"] == topic for row in made) for topic in "abc"}

    assert counts("proportional") == {"a": 16, "b": 3, "c": 1}
    assert counts("equal") == {"a": 8, "b": 7, "c": 5}


def test_a_column_that_no_row_has_is_an_error_that_names_the_right_one() -> None:
    pool = pool_of(*sentences(30, 3), topic=["a"] * 30)
    with pytest.raises(DataError, match=r"no row .* column 'topik'; did you mean 'topic'\?"):
        chosen(pool, [], 5, method="stratified", column="topik")
    with pytest.raises(DataError, match=r"'language'; its columns .* are line, topic"):
        chosen(pool, [], 5, method="stratified", column="language")
    half = [*pool_of(*sentences(4, 5)), *pool]
    assert len(chosen(half, [], 34, method="stratified", column="topic")) == 34


def test_near_and_far_takes_a_part_from_the_nearest_and_the_rest_from_everywhere_else() -> None:
    near = [f"Tom has {k} apples and gives {k + 1} to Anna" for k in range(40)]
    pool = pool_of(*sentences(300, 3), *near)
    target = pool_of("Tom has 9 apples and gives 2 to Anna. How many are left?")
    made = prompts(chosen(pool, target, 40, method="near-and-far", near=0.5))
    assert set(made[:20]) <= set(near)
    assert len(set(made[20:]) - set(near)) >= 12


def test_mmr_spreads_over_topics_where_the_nearest_are_all_of_one() -> None:
    apples = [f"Tom has {k} apples" for k in range(12, 24)]
    pool = pool_of(*apples, "Tom has a garden", "Anna has nine pears", *sentences(30, 3))
    target = pool_of("Tom has 12 apples", "Anna has nine pears and a garden")
    assert (
        set(prompts(chosen(pool, target, 4))) & {"Tom has a garden", "Anna has nine pears"} != set()
    )
    spread = prompts(chosen(pool, target, 4, method="mmr", balance=0.5))
    assert {"Tom has a garden", "Anna has nine pears"} <= set(spread)


def test_no_target_row_is_answered_by_more_rows_than_asked_for() -> None:
    target = pool_of("red green blue", "cat dog mouse")
    reviews = [f"red green blue number{k}" for k in range(9)]
    pool = pool_of(*reviews, "cat dog", "mouse here", "nothing of it")
    funnel = Funnel()
    found = chosen(pool, target, 4, per_target=2, funnel=funnel)
    assert [record.meta["nearest"] for record in found].count(target[0].id) == 2
    assert set(prompts(found)) == {*reviews[:2], "cat dog", "mouse here"}
    assert funnel.counts["others_are_nearer"] == 7
    assert funnel.counts["far"] == 1
    assert (
        prompts(chosen(pool, target, 5, per_target=2))[-1] == "nothing of it"
    )  # near to none, so nobody has had it


@pytest.mark.parametrize(
    "options", [{"method": "near-and-far"}, {"method": "random"}, {"to": "centroid"}], ids=str
)
def test_only_what_is_nearest_to_a_target_row_is_counted_by_it(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="per_target: "):
        Select(pool=Data(path="pool.jsonl"), per_target=1, **options)


def test_a_special_token_at_the_end_of_an_answer_is_taken_off_and_the_parent_named() -> None:
    pool = [
        Record(dialogue("red green", "blue<|endoftext|>"), "target"),
        Record(dialogue("red", "<|endoftext|>?"), "target"),
    ]
    first, second = chosen(pool, pool_of("red green blue"), 2)
    assert first.answer == "blue"
    assert first.meta["parent"] == pool[0].id
    assert second.answer == "<|endoftext|>?"
    assert "parent" not in second.meta
    untouched = chosen(pool, pool_of("red green blue"), 2, quality=Quality(strip_end=False))
    assert untouched[0].answer == "blue<|endoftext|>"


@pytest.mark.parametrize("method", ["k-centre", "herding"])
def test_coverage_takes_from_every_planted_cluster(method: str) -> None:
    clusters = [
        [f"{word} {word}s about {word} {k}" for k in range(1, 30)]
        for word in ("river", "engine", "violin", "lemon")
    ]
    made = prompts(
        chosen(
            pool_of(*(text for cluster in clusters for text in cluster)),
            [],
            8,
            method=method,
            candidates=20,
        )
    )
    assert all(any(text in made for text in cluster) for cluster in clusters)


# --- in which order rows are looked at -----------------------------------------------------------

METHODS = [
    {"method": "tfidf"},
    {"method": "tfidf", "per_target": 2},
    {"method": "bm25", "to": "centroid"},
    {"method": "random"},
    {"method": "stratified", "column": "topic"},
    {"method": "near-and-far"},
    {"method": "mmr", "candidates": 2},
    {"method": "k-centre", "candidates": 2},
    {"method": "herding", "candidates": 2},
]
TEST = "Natalia sold clips to 48 of her friends in April and half as many clips in May"


def mixed_pool(rows: int, seed: int) -> list[Record]:
    """Good rows, and among them some without an answer and some that hold a test."""
    pool = pool_of(*sentences(rows, seed), topic=[f"topic {k % 3}" for k in range(rows)])
    for k in range(0, rows, 5):
        pool[k] = replace(pool[k], messages=dialogue(pool[k].prompt, "N/A"))
    for k in range(3, rows, 10):
        pool[k] = replace(pool[k], messages=dialogue(f"{pool[k].prompt}. {TEST}?", "72"))
    return pool


def checked_first(
    pool: list[Record], target: list[Record], n: int, options: dict[str, Any]
) -> list[int]:
    """The places that a method chooses of a pool of which every row is checked first."""
    good = [k for k in range(len(pool)) if k % 5 and k % 10 != 3]
    method = options["method"]
    lexical = Lexical(
        method="bm25" if method == "bm25" else "tfidf", to=options.get("to", "nearest")
    )
    with tempfile.TemporaryDirectory() as folder:
        index = fit(prompts(pool), prompts(target), lexical, folder=Path(folder))
        scores, nearest = (np.concatenate(parts) for parts in zip(*index.scores(), strict=True))
    drawn = choose.spread(good, seed=1).tolist()
    near = sorted(good, key=lambda k: (-scores[k], k))
    some = n * options.get("candidates", 10)
    if method == "random":
        return drawn[:n]
    if method == "stratified":
        return choose.stratified({k: pool[k].meta["topic"] for k in good}, n, seed=1)
    if method == "near-and-far":
        return near[: n // 2] + [k for k in drawn if k not in near[: n // 2]][: n - n // 2]
    if method == "mmr":
        order = choose.mmr(vectors_of(pool, near[:some]), scores[near[:some]], n)
        return [near[k] for k in order]
    if method in ("k-centre", "herding"):
        found = sorted(drawn[:some])
        cover = choose.k_centre if method == "k-centre" else choose.herding
        return [found[k] for k in cover(vectors_of(pool, found), n)]
    most = options.get("per_target", n)
    rank = {k: [j for j in near if nearest[j] == nearest[k]].index(k) for k in near}
    return [k for k in near if scores[k] == 0 or lexical.to == "centroid" or rank[k] < most][:n]


def vectors_of(pool: list[Record], places: list[int]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    return vectoriser.fit_transform([pool[place].prompt for place in places])


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_the_chosen_rows_are_those_of_checking_every_row_first(options: dict[str, Any]) -> None:
    pool = mixed_pool(300, 3)
    target = pool_of(*sentences(15, 5))
    made = selected(pool, target, 20, held_out=[TEST], **options)
    places = [record.meta["line"] - 1 for record in made.records]
    assert places == checked_first(pool, target, 20, options)
    looked_at = made.result.looked_at
    assert looked_at == 300 if options["method"] == "stratified" else 20 <= looked_at < 100


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_a_pool_whose_first_rows_are_all_bad_gives_as_many_good_ones(
    options: dict[str, Any],
) -> None:
    """The bad ones are the nearest; so many of them come first in no random order."""
    target = pool_of("How many apples does Tom have left?", *sentences(40, 5))
    pool = pool_of(*prompts(target[:1] * 700), *sentences(60, 7), topic=["a", "b"] * 380)
    pool[:700] = [replace(row, messages=dialogue(row.prompt, "N/A")) for row in pool[:700]]
    funnel = Funnel()
    made = selected(pool, target, 40, funnel=funnel, **options)
    assert len(made.records) == len({record.id for record in made.records}) == 40
    assert all(record.meta["line"] > 700 for record in made.records)
    assert funnel.made == 760 and funnel.kept == 40
    if options["method"] in ("tfidf", "mmr"):
        assert funnel.counts["placeholder"] == 700
        assert 740 <= made.result.looked_at <= 760


def test_rows_that_were_not_looked_at_are_far_whatever_they_are() -> None:
    pool = pool_of("apple", "apple pear", "a stone", "a brick", "the stone")
    pool[3] = replace(pool[3], messages=dialogue("a brick", "N/A"))
    pool.append(pool[0])
    dropped: list[Any] = []
    made = selected(pool, pool_of("an apple or a pear"), 2, funnel=Funnel(dropped.append))
    assert prompts(made.records) == ["apple pear", "apple"]
    assert made.result.looked_at == 2
    assert [(row["reason"], row["messages"][0]["content"]) for row in dropped] == [
        ("far", "a stone"), ("far", "a brick"), ("far", "the stone"), ("far", "apple"),
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    options=st.sampled_from(METHODS),
    n=st.integers(1, 60),
    near_duplicate=st.sampled_from([None, 0.7]),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30)),
    spare=st.sampled_from([0.1, 1.0, 9.0]),
)
@pytest.mark.slow
def test_the_same_rows_are_chosen_and_left_out_in_blocks_of_any_size(
    options: dict[str, Any],
    n: int,
    near_duplicate: float | None,
    sizes: tuple[int, int, int],
    spare: float,
) -> None:
    pool = [*mixed_pool(60, 3), *mixed_pool(20, 3), *with_repeats(sentences(40, 4), 1)]
    target = pool_of(*sentences(9, 5))
    found = []
    for is_cut in (False, True):
        dropped: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            if is_cut:
                patch.setattr(walk, "BATCH", sizes[0])
                patch.setattr(selection, "READ", sizes[1])
                patch.setattr(walk, "LEAST", sizes[2])
                patch.setattr(walk, "SPARE", spare)
            funnel = Funnel(dropped.append)
            asked_for = options | {"near_duplicate": near_duplicate, "answers_per_question": 2}
            made = selected(pool, target, n, funnel=funnel, held_out=[TEST], **asked_for)
        assert len(made.records) + len(dropped) == funnel.made == len(pool)
        assert len(made.records) == made.result.funnel.kept == n - made.result.missing
        found.append((made, dropped))
    assert found[0] == found[1]


# --- checks on the pool ---------------------------------------------------------------------------

LONG = "A farmer has {} hens and each of them lays two eggs a day for which he gets a quarter of a dollar at the market"


def test_of_near_duplicates_the_one_stays_that_is_nearest_to_the_target() -> None:
    alike = [LONG.format("thirty-one"), LONG.format("thirty-two")]
    pool = [*(row for text in alike for row in answered(text, "yes")), *pool_of(*sentences(30, 3))]
    target = pool_of("thirty-two hens at the market")
    dropped: list[Any] = []
    funnel = Funnel(dropped.append)
    made = prompts(chosen(pool, target, 20, near_duplicate=0.8, funnel=funnel))
    assert [text for text in made if "farmer" in text] == [alike[1]]
    (twin,) = [row for row in dropped if row["reason"] == "near_duplicate"]
    assert (twin["messages"][0]["content"], twin["meta"]["twin"]) == tuple(alike)
    assert sum("farmer" in text for text in prompts(chosen(pool, target, 20))) == 2  # off


def test_of_equally_near_duplicates_the_earlier_stays() -> None:
    alike = [LONG.format(name) for name in ("seventy", "eighty", "ninety")]
    pool = [*pool_of(*sentences(30, 3)), *(row for text in alike for row in answered(text, "yes"))]
    target = pool_of("hens at the market")
    assert len({row.meta["score"] for row in chosen(pool, target, 3)}) == 1
    funnel = Funnel()
    made = prompts(chosen(pool, target, 20, near_duplicate=0.8, funnel=funnel))
    assert [text for text in made if "farmer" in text] == alike[:1]
    assert funnel.counts["near_duplicate"] == 2


@pytest.mark.parametrize("method", ["random", "near-and-far", "herding"])
def test_of_near_duplicates_that_are_drawn_the_first_drawn_stays(method: str) -> None:
    pool = [row for k in range(100, 140) for row in answered(LONG.format(k), "yes")]
    options: dict[str, Any] = {"method": method, "near": 0.0, "near_duplicate": 0.8}
    made = chosen(pool, pool_of("no such words"), 5, **options)
    assert prompts(made) == [pool[spread(range(40), seed=1)[0]].prompt]


def test_a_row_that_holds_a_test_question_is_left_out_with_the_question() -> None:
    test = "Natalia sold clips to 48 of her friends in April and then half as many clips in May, how many in all?"
    dropped: list[Any] = []
    pool = pool_of(
        f"Solve this. {test} Show your work.",
        "Natalia sold clips to her friends in April",
        *sentences(20, 3),
    )
    made = prompts(
        chosen(pool, pool_of("How many clips?"), 30, held_out=[test], funnel=Funnel(dropped.append))
    )
    assert not any("48 of her friends" in text for text in made)
    assert "Natalia sold clips to her friends in April" in made
    (row,) = [row for row in dropped if row["reason"] == "eval_overlap"]
    assert row["meta"]["match"] in test and len(row["meta"]["match"]) > 60
    assert row["meta"]["test"] == "0"


def test_rows_of_poor_quality_are_left_out_with_their_reasons() -> None:
    bad = [
        Record(dialogue("Name a river.", answer), "target")
        for answer in ("N/A", "LÃ¼beck liegt an der Trave.")
    ]
    funnel = Funnel()
    made = chosen([*bad, *pool_of("Name a lake.")], pool_of("Name a sea."), 9, funnel=funnel)
    assert prompts(made) == ["Name a lake."]
    assert set(funnel.counts) == {"placeholder", "broken_answer"}


def test_missing_rows_and_a_target_without_common_words_are_said() -> None:
    made = selected(pool_of("lorem ipsum", "dolor sit"), pool_of("entirely different"), 5)
    assert any("3 of 5 rows are missing" in note for note in made.result.notes)
    assert any("all scores are 0" in note and "embedding" in note for note in made.result.notes)


def test_the_histogram_counts_every_row_of_the_pool() -> None:
    pool = [*pool_of(*sentences(150, 4)), *answered("Name a river.", "N/A")]
    made = selected(pool, pool_of(*sentences(20, 5)), 50)
    assert made.result.scores is not None
    assert sum(made.result.scores.histogram.counts) == 151
    assert made.result.scores.lowest == made.records[-1].meta["score"]


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(
        st.text(alphabet="ab cd\u4e2d", max_size=12).map(str.strip).filter(bool),
        min_size=1,
        max_size=40,
    ),
    method=st.sampled_from(["tfidf", "bm25", "near-and-far", "random", "herding"]),
)
@pytest.mark.slow
def test_the_same_rows_come_out_however_the_pool_is_given(rows: list[str], method: str) -> None:
    target = pool_of("ab cd", "中a")
    first = chosen(pool_of(*rows), target, 5, method=method, near_duplicate=0.8)
    assert first == chosen(iter(pool_of(*rows)), target, 5, method=method, near_duplicate=0.8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 5000), ({"method": "bm25"}, 5000), ({"near_duplicate": 0.5}, 2500)],
    ids=str,
)
def test_the_same_rows_come_out_of_one_process_and_of_three(
    options: dict[str, Any], rows: int
) -> None:
    pool = pool_of(*sentences(rows, 4))
    target = pool_of(*sentences(50, 5))
    one, three = (
        selected(pool, target, 200, processes=processes, **options) for processes in (1, 3)
    )
    assert one == three


def with_repeats(texts: list[str], seed: int) -> list[Record]:
    """The texts, and among them each tenth again with its last word changed, and each twentieth in
    capitals and just as it was; all with the same answer.
    """
    near = [f"{text.rpartition(' ')[0]} 7x{k}" for k, text in enumerate(texts[::10])]
    shuffled = [*texts, *near, *(text.upper() for text in texts[::20])]
    shuffled += texts[::20]
    random.Random(seed).shuffle(shuffled)
    return [Record(dialogue(text, "yes"), "target", {"line": k}) for k, text in enumerate(shuffled)]


@pytest.mark.slow
def test_the_same_rows_are_left_out_by_one_process_and_by_three() -> None:
    pool = with_repeats(sentences(1000, 4), 1)
    target = pool_of(*sentences(50, 5))
    results = []
    for processes in (1, 3):
        dropped: list[Any] = []
        funnel = Funnel(dropped.append)
        made = selected(pool, target, 900, processes=processes, near_duplicate=0.7, funnel=funnel)
        results.append((made, dropped))
    assert results[0] == results[1]
    near = [row for row in dropped if row["reason"] == "near_duplicate"]
    assert len(near) > 50
    assert all(row["meta"]["twin"] for row in near)


def test_a_near_duplicate_of_a_row_that_was_dropped_stays_where_it_is_not_near_to_the_better_one() -> (
    None
):
    words = [f"word{k}" for k in range(20)]
    changed = [
        " ".join([*words[k:], *(f"other{j}" for j in range(k))]) for k in (2, 0, 4)
    ]  # 0 and 4 are far apart
    pool = [row for text in changed for row in answered(text, "yes")]
    target = pool_of("word0 word1 word2")
    made = chosen(pool, target, 9, near_duplicate=0.7)
    assert prompts(made) == [changed[1], changed[2]]


@pytest.mark.ray
def test_two_machines_of_a_ray_cluster_choose_and_leave_out_what_one_process_does() -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    pool = with_repeats(sentences(5000, 4), 2)
    target = pool_of(*sentences(50, 5))

    def result(engine: str) -> tuple[Selection, list[Any]]:
        dropped: list[Any] = []
        return selected(
            pool, target, 4500, near_duplicate=0.7, engine=engine, funnel=Funnel(dropped.append)
        ), dropped

    local, left_out = result("local")
    assert {"near_duplicate", "duplicate", "far"} == {row["reason"] for row in left_out}
    assert sum(row["reason"] == "near_duplicate" for row in left_out) > 250
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        assert len(ray.nodes()) == 2
        assert result("ray") == (local, left_out)
    finally:
        ray.shutdown()
        cluster.shutdown()


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_real_old_tasks_are_ranked_as_scikit_learn_ranks_them() -> None:
    pool = list(read_records(DATA / "t0_pool.jsonl.gz", "select", limit=3000))
    target = list(read_records(DATA / "gsm8k_train.jsonl.gz", "target", limit=200))
    funnel = Funnel()
    made = chosen(pool, target, 300, funnel=funnel)
    assert (len(pool), len(target), len(made)) == (3000, 200, 300)
    assert funnel.made == 3000
    assert funnel.kept == 300
    scores = sklearn_scores(prompts(pool), prompts(target)).max(axis=1)
    first: dict[tuple[str, ...], int] = {}
    for place, record in enumerate(map(quality.without_end, pool)):
        if quality.reason(record, Quality()) is None:
            first.setdefault(tuple(map(kept_form, exchange(record))), place)
    best = np.sort(scores[list(first.values())])[::-1]
    np.testing.assert_allclose([record.meta["score"] for record in made], best[:300], atol=1e-5)
    # A question with several answers has one score.
    score_of = dict(zip(prompts(pool), scores, strict=True))
    np.testing.assert_allclose(
        [record.meta["score"] for record in made], [score_of[p] for p in prompts(made)], atol=1e-5
    )
    assert {record.meta["nearest"] for record in made} <= {record.id for record in target}
