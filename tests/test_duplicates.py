"""Duplicates: exactly the pairs that are similar enough, found in one pass, however many rows there
are.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.checks.duplicates import (
    EXCHANGES,
    QUESTIONS,
    Repeats,
    Table,
    Twin,
    Twins,
    bands_for,
    exchange,
    kept_form,
    says_other,
    shingles,
)
from replaykit.data.record import Record, dialogue
from replaykit.nano import world
from replaykit.parallel import LocalExecutor
from replaykit.text import normalise

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
Verdict = tuple[str, int] | None


def verdicts(
    texts: Sequence[str], threshold: float | None, slots: int = 3 * 2**14
) -> list[Verdict]:
    twins = Twins(threshold, texts.__getitem__, slots=slots, likeness=QUESTIONS)
    return [twins.find(row, text) for row, text in enumerate(texts)]


@cache
def pieces(text: str) -> frozenset[str]:
    """The 5-character shingles, written down a second time."""
    normal = normalise(text)
    return frozenset({normal[k : k + 5] for k in range(len(normal) - 4)} or {normal})


def jaccard(one: str, other: str) -> float:
    a, b = pieces(one), pieces(other)
    return len(a & b) / len(a | b)


def sentence(rng: random.Random, n: int = 20) -> list[str]:
    return [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(n)
    ]


def changed(words: list[str], rng: random.Random, n: int) -> list[str]:
    words = list(words)
    for place in rng.sample(range(len(words)), n):
        words[place] = sentence(rng, 1)[0]
    return words


# --- exact duplicates -----------------------------------------------------------------------------


def test_a_text_that_stood_before_up_to_case_width_and_spacing_is_a_duplicate() -> None:
    texts = [
        "What is 2 + 2?",
        "what  is\n2+2 ?",
        "What is 2 - 2?",
        "ＷＨＡＴ is 2 - 2?",
        "What is 2 + 2?",
    ]
    assert verdicts(texts, None) == [
        None,
        ("duplicate", 0),
        None,
        ("duplicate", 2),
        ("duplicate", 0),
    ]


@pytest.mark.parametrize("threshold", [None, 0.5, 0.9, 1.0])
def test_the_shortest_texts_are_duplicates_only_of_themselves(threshold: float | None) -> None:
    texts = [
        "",
        "a",
        "ab",
        "abcd",
        "abcde",
        "abcdf",
        "好",
        "好的",
        "\ud800",
        "a",
        " ",
        "AB",
        "abcd",
        "abcde",
        "好",
        "\ud800",
    ]
    expected = [None] * 9 + [("duplicate", row) for row in (1, 0, 2, 3, 4, 6, 8)]
    assert verdicts(texts, threshold) == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(alphabet="aAb ?1é好", max_size=6), max_size=40))
def test_every_exact_duplicate_is_found_whatever_the_texts(texts: list[str]) -> None:
    first: dict[str, int] = {}
    expected: list[Verdict] = []
    for row, text in enumerate(texts):
        seen = first.setdefault(normalise(text), row)
        expected.append(None if seen == row else ("duplicate", seen))
    assert verdicts(texts, None) == expected


@pytest.mark.slow
def test_no_exact_duplicate_is_missed_among_many_rows() -> None:
    texts = [str(number) for number in range(20_000)]
    found = verdicts(texts + texts, None, slots=2**19)  # the default's load at 960,000 rows
    assert found[:20_000] == [None] * 20_000
    assert found[20_000:] == [("duplicate", row) for row in range(20_000)]


# --- near duplicates ------------------------------------------------------------------------------


def brute_force(texts: Sequence[str], threshold: float, found: list[Verdict]) -> tuple[int, int]:
    """(pairs to find, pairs found). Fails for a row that was dropped without a cause, or for the
    wrong one.
    """
    kept: list[int] = []
    there = 0
    for row, text in enumerate(texts):
        verdict = found[row]
        alike = [earlier for earlier in kept if jaccard(texts[earlier], text) >= threshold]
        same = [earlier for earlier in alike if normalise(texts[earlier]) == normalise(text)]
        if same:
            assert verdict == ("duplicate", same[0])
        elif verdict is not None:
            assert verdict[0] == "near_duplicate"
            assert verdict[1] in alike
        there += bool(alike and not same)
        if verdict is None:
            kept.append(row)
    return there, sum(verdict is not None and verdict[0] == "near_duplicate" for verdict in found)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 1.0])
def test_near_duplicates_are_those_of_comparing_every_pair(threshold: float) -> None:
    rng = random.Random(7)
    texts = [" ".join(sentence(rng, 40)) for _ in range(60)]
    texts += [
        " ".join(changed(rng.choice(texts[:60]).split(), rng, rng.choice([0, 1, 1, 2, 3, 6])))
        for _ in range(200)
    ]
    texts += [task.prompt for task in world.draw_old(200, seed=3)]
    there, found = brute_force(texts, threshold, verdicts(texts, threshold))
    assert there >= (10 if threshold < 1 else 0)
    assert found >= 0.98 * there


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.text(alphabet="ab c", max_size=12)
        | st.sampled_from(["one red apple", "one red apples"]),
        max_size=20,
    ),
    st.sampled_from([0.2, 0.5, 0.8, 1.0]),
)
def test_no_pair_is_called_similar_that_is_not(texts: list[str], threshold: float) -> None:
    brute_force(texts, threshold, verdicts(texts, threshold))


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_pairs_at_the_threshold_are_found_98_times_in_100(threshold: float) -> None:
    """Of 40 words some are replaced until the pair is just about as similar as the threshold."""
    rng = random.Random(11)
    pairs = []
    while len(pairs) < 400:
        words = sentence(rng, 40)
        for n in range(1, 20):
            one = " ".join(words)
            other = " ".join(changed(words, rng, n))
            if threshold <= jaccard(one, other) < threshold + 0.02:
                pairs.append((one, other))
                break
    texts = [text for pair in pairs for text in pair]
    found = verdicts(texts, threshold)
    assert sum(
        found[row] == ("near_duplicate", row - 1) for row in range(1, len(texts), 2)
    ) >= 0.98 * len(pairs)
    assert all(found[row] is None for row in range(0, len(texts), 2))


def test_a_near_duplicate_is_not_remembered_so_a_chain_does_not_drift() -> None:
    rng = random.Random(13)
    chain = [sentence(rng, 40)]
    while len(chain) < 12:
        chain.append(changed(chain[-1], rng, 1))
    texts = [" ".join(words) for words in chain]
    found = verdicts(texts, 0.8)
    for row, verdict in enumerate(found):
        assert (verdict is None) == (
            row == 0 or all(jaccard(texts[k], texts[row]) < 0.8 for k in range(row) if not found[k])
        )
    assert 1 < found.count(None) < 12


def test_a_threshold_of_one_takes_texts_of_the_same_shingles() -> None:
    assert verdicts(["a b a b a b", "A b a b a b a b", "a b a b a c"], 1.0) == [
        None,
        ("near_duplicate", 0),
        None,
    ]


def test_without_a_threshold_nothing_is_nearly_the_same() -> None:
    texts = ["Name the capital of Peru, please.", "Name the capital of Peru, please!"]
    assert verdicts(texts, 0.8) == [None, ("near_duplicate", 0)]
    assert verdicts(texts, None) == [None, None]


@pytest.mark.parametrize("threshold", [0.04, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0])
def test_the_bands_find_a_pair_at_the_threshold_and_no_longer_ones_would(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert rows == 128 or 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.99


# --- exchanges: a question and its answer ---------------------------------------------------------

STORY = (
    "Weng walked home through the rain with an umbrella, while her sister Ada, who had none, took "
    "the bus to the station and read a book about the rivers of South America on the way."
)


def repeated(rows: Sequence[Record], threshold: float | None = 0.9) -> list[Verdict]:
    """Of each row the reason and the earlier row that it repeats."""
    with Repeats(threshold, slots=3 * 2**12) as found:
        pool = found.find_all("pool", ((row, exchange(row)) for row in rows))
        return [twin and (twin.reason, twin.row) for _, twin in pool]


def asked(question: str, answer: str, system: str | None = None) -> Record:
    return Record(dialogue(question, answer, system=system), "select")


def test_a_row_is_repeated_by_the_same_question_with_the_same_answer_alone() -> None:
    rows = [asked("Name a fruit.", answer) for answer in ("apple", "pear", "apple ", "fig")]
    assert repeated(rows) == [None, None, ("duplicate", 0), None]
    assert repeated(rows, None) == [None, None, ("duplicate", 0), None]


def test_a_question_under_another_system_message_is_another_question() -> None:
    rows = [asked("Name a fruit.", "apple", system) for system in ("Be kind.", "Be rude.", None)]
    assert repeated([*rows, rows[1]]) == [None, None, None, ("duplicate", 1)]
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    called = [Record(rows[0].messages, "select", tools=(tool,)) for tool in tools]
    assert repeated([*called, rows[0], called[1]]) == [None, None, None, ("duplicate", 1)]


def test_a_thought_and_a_call_are_a_part_of_the_answer() -> None:
    def thinking(**more: Any) -> Record:
        answer: Any = {"role": "assistant", "content": "4", **more}
        return Record((*dialogue("2 + 2?"), answer), "select")

    def calling(**arguments: str) -> Record:
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
        return thinking(tool_calls=[call])

    rows = [thinking(), thinking(reasoning_content="two and two"), calling(a="2"), calling(a="3")]
    assert repeated([*rows, rows[1], rows[3]])[:4] == [None] * 4
    assert repeated([*rows, rows[1], rows[3]])[4:] == [("duplicate", 1), ("duplicate", 3)]


def test_all_turns_of_a_conversation_count() -> None:
    def talk(first: str, reply: str) -> Record:
        return Record((*dialogue(first, reply), *dialogue("Go on.", "So it is.")), "select")

    rows = [talk("Tell me of rain", "Wet."), talk("Tell me of snow", "Wet."), talk("Tell me of rain", "Cold.")]  # fmt: skip
    assert repeated([*rows, rows[2]]) == [None, None, None, ("duplicate", 2)]


def test_several_questions_on_one_passage_stay_whatever_their_answers() -> None:
    questions = ["Was it raining?", "Did Ada have an umbrella?", "Did she walk?", "Is this a poem?"]
    for answers in (("yes", "no", "no", "no"), ("no",) * 4):
        rows = [
            asked(f"{STORY * 3}\n{question}", answer)
            for question, answer in zip(questions, answers, strict=True)
        ]
        assert repeated(rows) == [None] * 4
    assert repeated([rows[0], asked(f"{STORY * 3}\nWas it raining??", "no")]) == [
        None,
        ("near_duplicate", 0),
    ]


def test_a_pair_that_differs_in_one_word_stays_where_its_answer_differs() -> None:
    pair = "Premise: {0} Hypothesis: Two {1} run over the field. Does it follow, yes or no?"
    dogs, cats = (pair.format(STORY * 2, animal) for animal in ("dogs", "cats"))
    assert repeated([asked(dogs, "yes"), asked(cats, "no")]) == [None, None]
    assert repeated([asked(dogs, "yes"), asked(cats, "yes")])[1] == ("near_duplicate", 0)


LOOP = "total = 0\nfor row in rows:\n    total += row.size\n    {0}print(total)"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 10² less one, and why is it so?", "What is 102 less one, and why is it so?"),
        ("What does `print(A)` show?", "What does `print(a)` show?"),
        (LOOP.format(""), LOOP.format("    ")),
        (f"{STORY * 4}\n" + LOOP.format(""), f"{STORY * 4}\n" + LOOP.format("    ")),
        (f"{STORY * 9} print(A)", f"{STORY * 9} print(a)"),
        ("H₂O is water, is it not?", "H2O is water, is it not?"),
    ],
)
def test_case_superscripts_and_indentation_make_another_text(one: str, other: str) -> None:
    for threshold in (None, 0.5, 0.9):
        assert repeated([asked(one, "yes"), asked(other, "yes")], threshold) == [None, None]
        assert repeated([asked("Write it.", one), asked("Write it.", other)], threshold) == [
            None,
            None,
        ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Name a  river ,\tplease. ", "Name a river , please."),
        ("One line.\r\n\r\n\r\nAnother.  ", "One line.\n\nAnother."),
        ("if x:\n\treturn 1\n", "if x:\n        return 1"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_what_nobody_reads_makes_no_other_text(one: str, other: str) -> None:
    assert repeated([asked(one, "yes"), asked(other, "yes")], None)[1] == ("duplicate", 0)


def test_near_duplicates_are_alike_in_question_and_in_answer() -> None:
    answers = [STORY, STORY.replace("bus", "tram"), STORY.replace("rain", "snow") + " Then" * 9]
    question = f"Tell me about Weng and Ada, and do it in one long sentence. {STORY}"
    rows = [asked(question, answers[0]), asked(question + "!", answers[1]), asked(question, answers[2])]  # fmt: skip
    assert repeated(rows) == [None, ("near_duplicate", 0), None]
    assert repeated(rows[::2] + rows[1:2]) == [None, None, ("near_duplicate", 0)]


def test_texts_that_differ_in_a_whole_sentence_say_other_things() -> None:
    assert says_other(f"{STORY} Who won?", f"{STORY} When was it?")
    assert says_other(f"{STORY} Who won?", STORY)
    assert not says_other(f"{STORY} Who won on Sunday?", f"{STORY} Who won on Sundays?")
    assert EXCHANGES.other is says_other


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(alphabet="aA b\n²é好", max_size=6), max_size=30))
def test_every_repeated_exchange_is_found_whatever_the_texts(texts: list[str]) -> None:
    rows = [asked(text, answer) for text in texts for answer in ("yes", "no")]
    first: dict[tuple[str, ...], int] = {}
    expected: list[Verdict] = []
    for number, row in enumerate(rows):
        seen = first.setdefault(tuple(map(kept_form, exchange(row))), number)
        expected.append(None if seen == number else ("duplicate", seen))
    assert repeated(rows, None) == expected


# --- memory, order, processes ---------------------------------------------------------------------


def test_the_table_keeps_its_size_and_forgets_the_oldest_rows() -> None:
    texts = [f"question number {number} of many" for number in range(3000)]
    twins = Twins(None, texts.__getitem__, slots=1024)
    size = twins._table._slots.nbytes
    assert [twins.find(row, text) for row, text in enumerate(texts)] == [None] * 3000
    assert twins._table._slots.nbytes == size < 1024 * 8 + 1
    late = [twins.find(3000 + row, texts[row]) for row in range(2900, 3000)]
    assert late == [("duplicate", row) for row in range(2900, 3000)]
    assert twins.find(4000, texts[0]) is None


def test_in_a_full_bucket_the_least_row_gives_way() -> None:
    table = Table(8, 0)
    hashes = [np.array([number << 40], dtype=np.uint64) for number in range(1, 11)]
    for row, value in enumerate(hashes):
        table.put(table.place(value), row)
    assert [table.get(table.place(value))[0] for value in hashes] == [
        [],
        [],
        *([row] for row in range(2, 10)),
    ]


@pytest.mark.slow
def test_the_same_rows_give_the_same_verdicts_in_another_process() -> None:
    code = (
        "from replaykit.checks.duplicates import QUESTIONS, Twins\nfrom replaykit.nano import world\n"
        "texts = [task.prompt for task in world.draw_old(300, seed=4)]\n"
        "twins = Twins(0.6, texts.__getitem__, slots=3 * 2**14, likeness=QUESTIONS)\n"
        "print([twins.find(row, text) for row, text in enumerate(texts)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed},
            check=True,
        )
        for seed in ("1", "2")
    ]
    here = verdicts([task.prompt for task in world.draw_old(300, seed=4)], 0.6)
    assert runs[0].stdout == runs[1].stdout == f"{here}\n"
    assert here.count(None) < 290


@pytest.fixture(scope="module")
def executors() -> Iterator[dict[int, LocalExecutor]]:
    made = {count: LocalExecutor(count) for count in (1, 2, 3)}
    yield made
    for executor in made.values():
        executor.close()


def repeats(
    texts: Sequence[str], threshold: float | None, **how: Any
) -> list[tuple[int, Twin | None]]:
    with Repeats(threshold, slots=3 * 2**12, likeness=QUESTIONS, **how) as found:
        return list(found.find_all("pool", enumerate(texts)))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.text(alphabet="ab c好", max_size=9)
        | st.sampled_from(["one red apple", "One red apples"]),
        max_size=40,
    ),
    st.sampled_from([None, 0.5, 0.8, 1.0]),
    st.integers(1, 50),
    st.integers(1, 3),
)
@pytest.mark.slow
def test_any_batches_and_any_number_of_processes_give_the_verdicts_of_one_row_at_a_time(
    executors: dict[int, LocalExecutor],
    texts: list[str],
    threshold: float | None,
    batch: int,
    processes: int,
) -> None:
    found = repeats(texts, threshold, batch=batch, executor=executors[processes])
    assert [row for row, _ in found] == list(range(len(texts)))
    one_by_one = verdicts(texts, threshold, slots=3 * 2**12)
    assert [twin and (twin.reason, twin.row) for _, twin in found] == one_by_one
    assert all(twin is None or twin.text == texts[twin.row] for _, twin in found)


@pytest.mark.slow
def test_two_dedupes_may_be_read_in_turn_with_one_executor(
    executors: dict[int, LocalExecutor],
) -> None:
    texts = [task.prompt for task in world.draw_old(300, seed=6)]
    apart = repeats(texts, 0.7), repeats(texts, 0.9)
    with (
        Repeats(0.7, executor=executors[2], batch=10, likeness=QUESTIONS) as one,
        Repeats(0.9, executor=executors[2], batch=7, likeness=QUESTIONS) as other,
    ):
        both = list(
            zip(
                one.find_all("a", enumerate(texts)),
                other.find_all("b", enumerate(texts)),
                strict=True,
            )
        )
    for k in (0, 1):
        assert [twin and twin.row for _, twin in (pair[k] for pair in both)] == [
            twin and twin.row for _, twin in apart[k]
        ]


# --- several sources ------------------------------------------------------------------------------


def test_a_pool_repeats_itself_or_the_target_before_it_and_the_target_does_not_repeat_the_pool() -> (
    None
):
    target = ["Name a river, please."]
    pool = ["Name a river, please!", "A lake?", "name a RIVER, please .", "a lake ?"]
    with Repeats(0.8, likeness=QUESTIONS) as found:
        assert [twin for _, twin in found.find_all("target", enumerate(target))] == [None]
        assert [twin for _, twin in found.find_all("pool", enumerate(pool))] == [
            Twin("near_target_duplicate", "target", 0, target[0]),
            None,
            Twin("target_duplicate", "target", 0, target[0]),
            Twin("duplicate", "pool", 1, "A lake?"),
        ]
        with pytest.raises(ValueError, match="have come already"):
            list(found.find_all("pool", []))


def test_a_source_without_rows_takes_nobodys_place() -> None:
    with Repeats(None, likeness=QUESTIONS) as found:
        assert list(found.find_all("target", [])) == []
        twins = [twin for _, twin in found.find_all("pool", enumerate(["a b", "A b"]))]
        assert twins == [None, Twin("duplicate", "pool", 0, "a b")]


# --- memory and order -----------------------------------------------------------------------------


def test_more_rows_later_change_no_verdict_before() -> None:
    texts = [task.prompt for task in world.draw_old(400, seed=5)]
    assert verdicts(texts, 0.7)[:150] == verdicts(texts[:150], 0.7)


def test_only_rows_that_may_be_twins_are_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaykit.checks.duplicates.CACHE", 0)  # the latest are in memory
    texts = [" ".join(sentence(random.Random(row))) for row in range(300)]
    read: list[int] = []

    def reader(row: int) -> str:
        read.append(row)
        return texts[row]

    twins = Twins(0.9, reader, likeness=QUESTIONS)
    assert [twins.find(row, text) for row, text in enumerate(texts)] == [None] * 300
    assert len(read) <= 3
    assert twins.find(300, texts[17].upper()) == ("duplicate", 17)
    assert read[-1] == 17


def test_shingles_are_of_characters_not_of_bytes() -> None:
    assert shingles("今天天气很好") == {"今天天气很", "天天气很好"}
    assert shingles("abc") == {"abc"}


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_real_questions_have_the_near_duplicates_of_comparing_every_pair() -> None:
    with gzip.open(DATA / "t0_pool.jsonl.gz", "rt", encoding="utf-8") as stream:
        texts = [
            json.loads(line)["prompt"][:300] for line, _ in zip(stream, range(700), strict=False)
        ]
    there, found = brute_force(texts, 0.7, verdicts(texts, 0.7))
    assert there >= 10
    assert found >= 0.98 * there


def test_spaces_within_quotation_marks_are_kept() -> None:
    assert kept_form("print('a  b',   1)") == "print('a  b', 1)"
    assert kept_form('say  "a \\t  b"  now') == 'say "a \\t  b" now'
    assert kept_form("It's  late, and he  isn't here") == "It's late, and he isn't here"
    assert says_other(kept_form("print('a  b')"), kept_form("print('a b')"))
    assert not says_other(kept_form("x = 7+5"), kept_form("x = 7 + 5"))
