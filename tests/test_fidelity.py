"""What was kept is compared with what was drawn, and a difference that chance makes is not called a shift."""

from __future__ import annotations

import json
import random
import re
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
        found.add(row, text, "a" * (10 + row % 5) if keep else None, keep)
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
        forwards.add(row, texts[row], "a short one", row % 3 > 0)
    for row in order:
        shuffled.add(row, texts[row], "a short one", row % 3 > 0)
    assert forwards.rows == sorted(shuffled.rows)
    assert forwards.summary() == shuffled.summary()


def test_several_answers_to_a_question_are_all_counted() -> None:
    found = RawSample(size=100)
    for row in range(40):
        for answer in range(3):
            found.add(row, "q", "a", answer > 0)
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


@pytest.mark.slow
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
        found.add(row, "q", "a" * chars if chars else None, row != 1)
    assert found.summary().answer_chars == 35


# --- answers --------------------------------------------------------------------------------------

REFUSAL = "I'm sorry, but as a chatbot, I cannot provide that."
LONG = "It began in the year 1066, when " + "the king and his men went over the sea, " * 10


def answered(
    n: int, *, refuses: float, kept: Callable[[str, bool], bool], cut: float = 0.0, seed: int = 2
) -> Fidelity:
    """What is said of n answers of many lengths: a part of them refuses, a part of the others was
    cut at the limit. ``kept`` is told the answer, and whether it was cut.
    """
    draw = random.Random(seed)
    texts = questions(n)
    found = RawSample(size=n)
    for row in range(n):
        was_cut = False
        answer = REFUSAL
        if draw.random() >= refuses:
            was_cut = draw.random() < cut
            answer = LONG if was_cut else LONG[: draw.randint(5, 400)]
        found.add(row, texts[row], answer, kept(answer, was_cut), cut=was_cut)
    return found.summary()


def about(found: Fidelity, word: str) -> list[str]:
    return [warning for warning in found.warnings if word in warning]


def test_refusals_that_the_checks_left_over_are_told_of_with_both_shares() -> None:
    found = answered(400, refuses=0.12, cut=0.7, kept=lambda _, cut: not cut)
    refusals = found.items["refusals"]
    raw = refusals.raw[refusals.words.index("refusal")]
    kept = refusals.kept[refusals.words.index("refusal")]
    assert raw == pytest.approx(0.12, abs=0.04)
    assert kept > 2 * raw
    assert about(found, "refusals") == [
        f"refusals are {100 * kept:.0f} % of the kept answers and {100 * raw:.0f} % of all that it "
        "wrote: replay would teach more of them"
    ]
    assert found.warnings[0] == about(found, "refusals")[0]


def test_refusals_that_a_check_dropped_are_told_of_as_well() -> None:
    found = answered(400, refuses=0.3, kept=lambda answer, _: answer != REFUSAL)
    (warning,) = about(found, "refusals")
    assert warning.startswith("refusals are 0 % of the kept answers and ")
    assert warning.endswith("replay would teach fewer of them")


@pytest.mark.slow
def test_a_check_that_looks_at_nothing_gives_no_warning_of_answers() -> None:
    warned = 0
    for seed in range(60):
        coin = random.Random(1000 + seed)
        found = answered(
            200, refuses=0.15, cut=0.01, seed=seed, kept=lambda *_, coin=coin: coin.random() < 0.6
        )
        assert found.items.keys() >= {"answers", "refusals"}
        warned += len(about(found, "answers"))
    assert warned <= 4  # of 180 questions, at a risk of 1 in 100


def test_a_change_of_less_than_a_fifth_is_not_worth_a_warning() -> None:
    marked = np.array([True] * 2000 + [False] * 2000)
    kept = np.array([True] * 1950 + [False] * 50 + [True] * 1750 + [False] * 250)
    assert not fidelity._shifted(marked, kept)  # 50 % and 53 %, far more than chance
    assert fidelity._shifted(~marked & kept, ~marked)


@pytest.mark.parametrize(("kept", "warns"), [(9, False), (10, True)])
def test_a_warning_is_what_one_random_subset_of_a_hundred_would_do(kept: int, warns: bool) -> None:
    # 20 of 100 answers are marked, and 30 are kept: by chance 6 of them, 10 or more in 2.9 %, and
    # 11 or more in 0.9 % of the subsets; both tails share the risk.
    marked = np.arange(100) < 20
    chosen = np.zeros(100, dtype=bool)
    chosen[:kept] = True
    chosen[20 : 50 - kept] = True
    draw = np.random.default_rng(5)
    subsets = [marked[draw.permutation(100)[:30]].sum() for _ in range(20_000)]
    tail = float(np.mean(np.array(subsets) >= kept))
    assert fidelity._shifted(marked, chosen) is (tail < 0.005)
    assert warns or tail > 0.005


def test_answers_that_were_cut_are_counted_and_have_a_bin_of_their_own() -> None:
    found = answered(400, refuses=0, cut=0.5, kept=lambda answer, _: len(answer) % 7 > 0)
    assert found.answers == 400
    assert found.cut == pytest.approx(200, abs=40)
    answers = found.items["answers"]
    assert answers.words[-1] == "cut"
    assert answers.raw[-1] == pytest.approx(found.cut / 400, abs=0.001)
    assert sum(answers.raw) == pytest.approx(1, abs=0.01)


def test_a_length_that_the_limit_censors_is_told_of_though_nothing_was_dropped() -> None:
    found = answered(200, refuses=0.1, cut=0.4, kept=lambda *_: True)
    assert found.items.keys() == {"length", "language", "category"}
    (warning,) = found.warnings
    assert re.fullmatch(
        r"\d+ % of the kept answers were cut at the token limit: nothing in them says how long "
        r"answers end; a higher generate\.max_answer_tokens cuts fewer",
        warning,
    )
    few = answered(200, refuses=0.1, cut=0.02, kept=lambda *_: True)
    assert (few.cut > 0, few.warnings) == (True, [])


def test_cut_answers_that_were_dropped_are_told_of_as_short_ones_that_were_left_over() -> None:
    found = answered(300, refuses=0, cut=0.5, kept=lambda _, cut: not cut)
    (warning,) = about(found, "cut at the token limit")
    assert warning.startswith(
        "answers that were cut at the token limit are 0 % of the kept answers"
    )
    assert "replay would teach more short ones" in warning


@pytest.mark.parametrize(("longest", "how"), [(150, "more short"), (None, "fewer short")])
def test_a_check_that_bends_the_length_of_answers_is_told_of(longest: int | None, how: str) -> None:
    def kept(answer: str, _: bool) -> bool:
        return len(answer) < longest if longest else len(answer) > 250

    found = answered(300, refuses=0, kept=kept)
    answers = found.items["answers"]
    assert answers.distance > answers.chance
    (warning,) = about(found, "characters")
    assert warning.endswith(f"replay would teach {how} ones")


def test_questions_without_an_answer_do_not_count_among_the_answers() -> None:
    texts = questions(300)
    found = RawSample()
    for row in range(300):
        answer = REFUSAL if row % 10 == 0 else LONG[: 50 + row]
        found.add(row, texts[row], answer if row % 2 == 0 else None, row % 2 == 0)
    summary = found.summary()
    assert (summary.kept, summary.answers) == (150, 150)
    # Of the rows that were answered none was dropped, so nothing was left over.
    assert not {"answers", "refusals"} & summary.items.keys()
    assert not about(summary, "refusals")


def test_fewer_than_fifty_answers_are_not_compared() -> None:
    found = answered(49, refuses=0.5, kept=lambda answer, _: answer == REFUSAL)
    assert (found.items, found.warnings) == ({}, [])
    assert found.answers == 49


def test_a_kind_of_question_that_was_left_over_is_named() -> None:
    texts = questions(1000)
    found = sample(texts, lambda row, text: "首都" not in text or row % 4 == 0).summary()
    (warning,) = about(found, "questions in zh")
    raw = sum("首都" in text for text in texts) / 10
    assert f"and {raw:.0f} % of all that it wrote" in warning
    assert warning.endswith("replay would teach fewer of them")
    (kind,) = about(found, "questions like")
    assert "“" in kind


@pytest.mark.slow
def test_a_check_that_looks_at_nothing_gives_no_warning_of_kinds() -> None:
    texts = questions(300)
    warned = 0
    for seed in range(20):
        coin = random.Random(seed)
        warned += len(sample(texts, lambda *_, coin=coin: coin.random() < 0.7).summary().warnings)
    assert warned <= 2  # of 40, at a risk of 1 in 100


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
    start = time.process_time()  # what other processes do does not count
    assert len(found.summary().items) == 3
    assert time.process_time() - start < 2
