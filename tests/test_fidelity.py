"""What was kept is compared with what was drawn, and a difference that chance makes is not called a shift."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from replaykit.checks import fidelity
from replaykit.checks.fidelity import Fidelity, RawSample

ITEMS = ["length", "language", "category"]
SUBJECTS = [
    "the capital of",
    "the population of",
    "a river in",
    "the money of",
    "a famous painter from",
    "the flag of",
]
PLACES = "France Peru Japan Kenya Norway Chile India Egypt Spain Cuba Ghana Nepal Italy Fiji Mali Oman".split()


def questions(n: int) -> list[str]:
    """Three kinds of English questions, a German one, and a Chinese one, in a fixed random order."""
    draw = random.Random(3)
    kinds: list[Callable[[], str]] = [
        lambda: (
            f"What is {draw.choice(SUBJECTS)} {draw.choice(PLACES)}, and since when has it been so?"
        ),
        lambda: f"Add {draw.randint(10, 999)} and {draw.randint(10, 999)}, then write the sum.",
        lambda: (
            f"Write a short poem about a {draw.choice(['storm', 'dog', 'ship', 'wall'])} {'and a friend ' * 4}"
        ),
        lambda: (
            f"Wie heißt die Hauptstadt von {draw.choice(PLACES)}, und wie viele Menschen wohnen dort?"
        ),
        lambda: (
            f"请问{draw.choice(['中国', '日本', '法国', '德国'])}的首都是哪里，那里有多少人口？"
        ),
    ]
    return [draw.choice(kinds)() for _ in range(n)]


def sample(texts: Iterable[str], kept: Callable[[int, str], bool], **options: Any) -> RawSample:
    found = RawSample(**options)
    for row, text in enumerate(texts):
        keep = kept(row, text)
        found.add(row, text, 10 + row % 5 if keep else None, keep)
    return found


def shifted(found: Fidelity) -> list[str]:
    items = found.items
    return [item for item in ITEMS if items[item].distance > items[item].chance]


# --- which rows are held --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawn", "stride", "held"), [(99, 1, 99), (100, 1, 100), (101, 2, 51), (1000, 16, 63)]
)
def test_the_rows_held_are_the_multiples_of_a_stride_that_doubles(
    drawn: int, stride: int, held: int
) -> None:
    found = sample(["q"] * drawn, lambda row, _: True, size=100)
    assert (found.stride, len(found.rows), found.seen) == (stride, held, drawn)
    assert [address for address, _ in found.rows] == list(range(0, drawn, stride))


def test_the_order_in_which_rows_come_does_not_matter() -> None:
    texts = questions(700)
    order = random.Random(1).sample(range(700), 700)
    forwards = RawSample(size=200)
    shuffled = RawSample(size=200)
    for row in range(700):
        forwards.add(row, texts[row], 5, row % 3 > 0)
    for row in order:
        shuffled.add(row, texts[row], 5, row % 3 > 0)
    assert forwards.rows == sorted(shuffled.rows)
    assert forwards.summary() == shuffled.summary()


def test_several_answers_to_a_question_are_all_counted() -> None:
    found = RawSample(size=100)
    for row in range(40):
        for answer in range(3):
            found.add(row, "q", 5, answer > 0)
    assert (found.seen, found.stride, len(found.rows)) == (120, 2, 60)
    assert found.summary().kept == 40


# --- what is said of them -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_filter_that_looks_at_nothing_shifts_nothing() -> None:
    texts = questions(300)
    shifts = 0
    for seed in range(20):
        coin = random.Random(seed)
        found = sample(texts, lambda *_, coin=coin: coin.random() < 0.7).summary()
        shifts += len(shifted(found))
        assert all(
            0 < found.items[item].expected < found.items[item].chance < 0.1 for item in ITEMS
        )
    assert shifts <= 8  # of 60 comparisons; by chance 3


def test_a_filter_of_long_questions_shifts_the_length() -> None:
    found = sample(questions(1000), lambda _, text: len(text) < 60).summary()
    assert "length" in shifted(found)
    length = found.items["length"]
    assert length.raw[-1] > 0.03
    assert length.kept[-1] == 0
    assert [int(word.split("–")[0]) for word in length.words] == sorted(
        int(word.split("–")[0]) for word in length.words
    )


def test_a_filter_of_one_language_shifts_the_language() -> None:
    texts = questions(1000)
    language = sample(texts, lambda _, text: "首都" not in text).summary().items["language"]
    raw = dict(zip(language.words, language.raw, strict=True))
    kept = dict(zip(language.words, language.kept, strict=True))
    chinese = sum("首都" in text for text in texts) / 1000
    assert raw["zh"] == pytest.approx(chinese, abs=0.001)
    assert kept["zh"] == 0
    assert language.distance == pytest.approx(chinese, abs=0.001)
    assert language.distance > 5 * language.chance


def test_a_filter_of_one_subject_shifts_the_category_and_not_the_rest() -> None:
    endings = [
        " ".join(pair)
        for pair in permutations("north south east west sun rain snow wind".split(), 2)
    ]
    texts = [f"Name the capital city of the country, {ending}." for ending in endings * 3]
    texts += [f"Play the song on my guitar, {ending}." for ending in endings * 3]
    random.Random(1).shuffle(texts)
    found = sample(texts, lambda row, text: "song" not in text or row % 4 == 0).summary()
    category = found.items["category"]
    assert category.distance > 0.2 > 3 * category.chance
    assert any("song" in words for words in category.words)
    assert any("capital" in words for words in category.words)
    assert found.items["language"].distance < 0.1


def test_the_distance_is_half_the_sum_of_the_differences() -> None:
    compared = fidelity._compare(
        ["a", "b"], np.array([0] * 60 + [1] * 40), np.array([True] * 60 + [False] * 40)
    )
    assert (compared.raw, compared.kept, compared.distance) == ([0.6, 0.4], [1.0, 0.0], 0.4)


def test_chance_is_what_random_subsets_of_that_size_do() -> None:
    places = np.array([0] * 300 + [1] * 150 + [2] * 50)
    kept = np.array([True] * 100 + [False] * 400)
    compared = fidelity._compare(["a", "b", "c"], places, kept)
    draw = np.random.default_rng(9)
    subsets = [np.bincount(draw.permutation(places)[:100], minlength=3) / 100 for _ in range(4000)]
    distances = [np.abs(subset - np.array([0.6, 0.3, 0.1])).sum() / 2 for subset in subsets]
    assert compared.expected == pytest.approx(np.mean(distances), rel=0.12)
    assert compared.chance == pytest.approx(np.quantile(distances, 0.95), rel=0.12)


def test_one_false_alarm_in_twenty_is_what_chance_means() -> None:
    places = np.array([0] * 300 + [1] * 150 + [2] * 50)
    draw = np.random.default_rng(4)
    compared = [
        fidelity._compare(["a", "b", "c"], places, draw.random(500) < 0.5) for _ in range(1500)
    ]
    assert 0.03 < np.mean([found.distance > found.chance for found in compared]) < 0.07


def test_shares_sum_to_one_and_the_summary_is_json() -> None:
    found = sample(questions(300), lambda row, _: row % 3 > 0).summary()
    assert Fidelity.model_validate_json(json.dumps(found.to_json(), allow_nan=False)) == found
    for item in found.items.values():
        assert len(item.words) == len(item.raw) == len(item.kept) <= 9
        assert sum(item.raw) == pytest.approx(1, abs=0.01)
        assert sum(item.kept) == pytest.approx(1, abs=0.01)
    assert (found.drawn, found.rows, found.kept, found.note) == (300, 300, 200, None)


def test_the_length_of_answers_is_the_median_of_the_kept_rows() -> None:
    found = RawSample()
    for row, chars in enumerate([10, 20, 60, None]):
        found.add(row, "q", chars, row != 1)
    assert found.summary().answer_chars == 35


# --- where there is little to compare -------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 49])
def test_few_rows_are_not_compared_and_it_says_so(n: int) -> None:
    found = sample(questions(n), lambda *_: True).summary()
    assert found.items == {}
    assert found.note == f"{n} rows are too few to compare; 50 are needed"
    assert found.rows == found.kept == n


def test_when_nothing_was_kept_there_is_no_comparison() -> None:
    found = sample(questions(80), lambda *_: False).summary()
    assert (found.items, found.note, found.answer_chars) == ({}, "no row was kept", None)


def test_when_all_was_kept_there_is_no_distance() -> None:
    found = sample(questions(80), lambda *_: True).summary()
    assert [found.items[item].distance for item in ITEMS] == [0, 0, 0]
    assert shifted(found) == []


def test_a_sample_of_one_kept_row_is_no_shift() -> None:
    found = sample(questions(80), lambda row, _: row == 40).summary()
    assert found.kept == 1
    assert shifted(found) == []


@pytest.mark.parametrize("text", ["", "?", "the", "Hello there, what is new?", "你好"])
def test_equal_questions_are_one_word_of_each_item(text: str) -> None:
    items = sample([text] * 60, lambda row, _: row % 2 > 0).summary().items
    assert items["length"].words == [str(len(text))]
    assert items["length"].distance == items["language"].distance == 0
    assert "category" not in items  # no term distinguishes anything


def test_text_without_spaces_is_taken_in_pairs_of_letters() -> None:
    assert fidelity._terms("请问ABC的首都 Straße 12,5?") == [
        "请问",
        "abc",
        "的首",
        "首都",
        "strasse",
        "#",
        "#",
    ]
    assert fidelity._terms("हिन्दी भाषा 한국어") == ["हिन्दी", "भाषा", "한국어"]
    capitals = [
        f"{place}的首都是哪里？" for place in ("中国", "日本", "法国", "德国") for _ in range(20)
    ]
    poems = [
        f"写一首关于{thing}的诗。" for thing in ("春天", "大海", "月亮", "故乡") for _ in range(20)
    ]
    items = sample([*capitals, *poems], lambda row, _: row < 80).summary().items
    assert items["category"].distance == pytest.approx(0.5, abs=0.02)
    assert any("首都" in words or "哪里" in words for words in items["category"].words)


def test_two_thousand_rows_take_less_than_two_seconds() -> None:
    texts = [text * 3 for text in questions(2000)]
    sample(texts[:60], lambda *_: True).summary()  # what is imported once
    found = sample(texts, lambda row, _: row % 5 > 0)
    start = time.perf_counter()
    assert len(found.summary().items) == 3
    assert time.perf_counter() - start < 2
