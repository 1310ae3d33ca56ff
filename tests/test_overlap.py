"""Overlap with the evaluation: its prompts are recognised inside other text, and other tasks of the
same kind are not.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.checks.evalsets import EvalItem, items_of
from replaykit.checks.overlap import Decontamination, Overlap, parts_of
from replaykit.data.record import Record, dialogue
from replaykit.nano import world
from replaykit.text import words

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
STORY = (
    "Weng earns 12 dollars an hour for babysitting. Yesterday, she just did 50 minutes of babysitting for her neighbour, "
    "and then she walked home through the rain with an umbrella. How much did she earn?"
)


def held(prompt: str) -> tuple[str, str]:
    return "eval_overlap", prompt


# --- what overlaps --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        STORY,
        STORY.upper(),
        STORY.replace(" ", "\n"),
        STORY.replace(",", ""),
        f"Solve step by step.\n\n{STORY}\n\nAnswer:",
        STORY.replace("Yesterday", "Yesterday!").replace(
            "How much did she earn?", "How much did she get?"
        ),
    ],
)
def test_a_row_that_holds_a_long_prompt_overlaps_and_names_it(row: str) -> None:
    assert Overlap(["What is 2 + 2?", STORY]).find(row) == held(STORY)


@pytest.mark.parametrize(
    "row",
    [
        STORY.replace("50 minutes", "45 minutes"),
        " ".join(STORY.split()[:15]),
        " ".join(random.Random(1).sample(STORY.split(), len(STORY.split()))),
        "Anna earns 9 dollars an hour for painting walls. How much does she earn in 20 minutes, and what is left of it then?",
        "",
    ],
)
def test_a_row_with_other_numbers_or_a_part_or_the_same_words_otherwise_does_not(row: str) -> None:
    assert Overlap([STORY]).find(row) is None


def test_a_short_prompt_is_the_whole_row_with_its_signs() -> None:
    overlap = Overlap(["What is 7 + 5?", "Name the capital of Peru."])
    assert overlap.find("what is 7+5 ?") == held("What is 7 + 5?")
    assert overlap.find("What is 7 - 5?") is None
    assert overlap.find("What is 7 + 5? And 8 + 5?") is None
    assert overlap.find("What is 7 \u2212 5?") is None
    assert Overlap(["What is 12 - 5?"]).find("What is 12 \u2212 5?") == held("What is 12 - 5?")


def test_a_prompt_without_spaces_is_compared_by_its_characters() -> None:
    prompt = "小明有十二个苹果，他给了小红三个，又从树上摘了五个，现在他一共有多少个苹果？"
    overlap = Overlap([prompt])
    assert overlap.find(f"请回答下面的问题：{prompt}谢谢。") == held(prompt)
    assert (
        overlap.find(prompt.replace("十二个苹果，他给了小红三个", "九只兔子，他送给了小兰四只"))
        is None
    )


def test_the_earliest_of_several_prompts_is_named() -> None:
    other = (
        STORY.replace("Weng", "Anna")
        .replace("babysitting", "gardening")
        .replace("umbrella", "old hat")
    )
    overlap = Overlap([other, STORY])
    assert overlap.find(f"{STORY}\n{other}") == held(other)
    assert overlap.find(STORY) == held(STORY)


def test_no_prompts_and_empty_ones_match_nothing() -> None:
    for prompts in ([], ["", " \n"]):
        overlap = Overlap(prompts)
        assert overlap.find("") is None
        assert overlap.find(STORY) is None


# --- templates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", [*world.OLD_SKILLS, *world.NEW_SKILLS])
def test_other_tasks_of_the_same_skill_do_not_overlap_and_the_held_out_ones_do(skill: str) -> None:
    tests = [task.prompt for task in world.draw(skill, 60, seed=3, held_out=True)]
    overlap = Overlap(tests)
    # A task may be put in other words before it ("Quick question: ..."): it is the same one.
    bodies = tuple({parts_of(prompt)[-1] for prompt in tests})
    assert [
        task.prompt
        for task in world.draw(skill, 300, seed=3)
        if overlap.find(task.prompt) and not parts_of(task.prompt)[-1].endswith(bodies)
    ] == []
    assert [prompt for prompt in tests if overlap.find(prompt) != held(prompt)] == []


TEMPLATE = (
    "You are given a {} and have to say what it is, as briefly as you can. Think about it first, then give one word and "
    "nothing else, because the answer is compared letter by letter with the one that was expected. Here it is now: {}"
)


@pytest.mark.parametrize(
    ("row", "overlaps"),
    [
        (("noun", "stone"), True),
        (("noun", "cloud"), False),
        (("noun", "river"), False),
        (("verb", "stone"), False),
        (("pronoun", "he"), True),
    ],
)
def test_a_long_template_with_a_slot_at_each_end_matches_only_with_both_filled_alike(
    row: tuple[str, str], overlaps: bool
) -> None:
    tests = [
        TEMPLATE.format(*slots)
        for slots in (("noun", "stone"), ("adverb", "river"), ("pronoun", "he"))
    ]
    assert (Overlap(tests).find(TEMPLATE.format(*row)) is not None) is overlaps


def test_a_shared_passage_is_not_yet_the_same_question() -> None:
    tests = [
        f"{STORY} {question}"
        for question in ("Who is wet by now?", "Who has paid her, and was it enough?")
    ]
    overlap = Overlap(tests)
    assert overlap.find(f"{STORY} Where does the neighbour live?") is None
    assert [overlap.find(test) for test in tests] == [held(test) for test in tests]


def test_a_prompt_that_another_one_begins_with_is_found_among_other_text() -> None:
    longer = f"{STORY} And how much would it have been for a whole day without any rain?"
    overlap = Overlap([STORY, longer])
    assert overlap.find(STORY) == held(STORY)
    assert overlap.find(longer) == held(longer)
    assert overlap.find(f"Look: {STORY}") == held(STORY)
    short = Overlap(["What is the capital of Peru?", "What is the capital of Peru? Be brief."])
    assert short.find("Q: What is the capital of Peru?") == held("What is the capital of Peru?")
    assert short.find("What is the capital of Peru or Chile? Be brief.") is None
    assert overlap.find(f"Look: {STORY.split('.')[0]}. And what did she wear?") is None


def test_prompts_that_repeat_themselves_or_each_other_are_still_found() -> None:
    loop = "buy one red apple and two green pears for the old man on the hill " * 3
    overlap = Overlap([loop, loop.upper(), STORY, STORY.replace(".", "!")])
    assert overlap.find(f"Please {loop}") == held(loop)
    assert overlap.find(f"Please {STORY}") == held(STORY)


# --- prompts in other dress ------------------------------------------------------------------------

PERU = "What is the capital of Peru?"


@pytest.mark.parametrize(
    "row",
    [
        "Q: What is the capital of Peru?",
        "what is the capital of peru",
        "Question 3: What is the capital of Peru?\nAnswer:",
        "**Question:** What is the capital of Peru? A: Lima",
        "3) What is the capital of Peru",
        "Be brief. What is the capital of Peru?",
        '"What is the capital of Peru?"',
        "What is the capital\nof Peru?",
        "What is  the capital \t\n of Peru?",
        "- What is the capital of Peru?",
        "<p>What is the capital of Peru?</p>",
        "[INST] What is the capital of Peru? [/INST]",
        "(What is the capital of Peru?)",
        '{"question": "What is the capital of Peru?"}',
        "What is the capital of Peru, please?",
        "Please tell me what is the capital of Peru?",
    ],
)
def test_a_short_question_is_found_however_it_is_written_down(row: str) -> None:
    assert Overlap([PERU, "Name a river."]).find(row) == held(PERU)


@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        (PERU, "What is the capital of Peru's neighbour?"),
        (PERU, "What is the capital of Peru and of Chile?"),
        (PERU, "I never knew for sure what is the capital of Peru?"),
        ("What is the value of 3?", "What is the value of 3.5?"),
        ("What is the value of 3?", "What is the value of 3!"),
        ("What is the value of 3 + 4?", "What is the value of 3 + 4 * 5?"),
        ("What is the value of 12 - 5?", "What is the value of 12 - 5 - 3?"),
        ("What is the value of 12 - 5?", "What is the value of 12 + 5?"),
    ],
)
def test_a_question_that_goes_on_or_begins_elsewhere_is_another(prompt: str, row: str) -> None:
    assert Overlap([prompt]).find(row) is None


def test_wide_marks_and_vowel_points_do_not_hide_a_question() -> None:
    peru = "秘鲁的首都是哪里？"
    assert Overlap([peru]).find("问：秘鲁的首都是哪里？答：") == held(peru)
    arabic = "ما هي عاصمة بيرو اليوم؟"
    assert Overlap([arabic]).find("ما هي عَاصِمَة بيـــرو اليوم؟") == held(arabic)


LONG = "Which of the two rivers that meet near the old town is the longer one?"


def test_a_conversation_is_known_by_its_own_long_questions() -> None:
    def asked(*questions: str) -> Record:
        turns = [turn for text in questions for turn in dialogue(text, "An answer.")]
        return Record(tuple(turns), "target")

    greeting = "Can you help me with a question?"
    tests = [asked(greeting, LONG, "Why?"), asked(greeting, "And now, what is the colour of it?")]
    items = items_of((str(number), row) for number, row in enumerate(tests, 1))
    assert [(item.id, item.prompt) for item in items] == [
        ("1", LONG),
        ("2", "And now, what is the colour of it?"),
    ]
    apart = Decontamination({"test": items})
    assert [hit.item for hit in apart.hits(asked("Hello!", LONG))] == ["1"]
    assert apart.hits(asked("I like tea.", "Why?")) == []
    assert apart.hits(asked(greeting, "How old are you?")) == []
    assert apart.result().sets["test"].items == 2
    assert [item.prompt for item in items_of([("1", asked("Why?", "Why not?"))])] == [
        "Why?\nWhy not?"
    ]


def test_the_answer_to_an_empty_question_is_no_item() -> None:
    assert [item.prompt for item in items_of([("1", Record(dialogue("", "Yes"), "target"))])] == [
        ""
    ]
    apart = Decontamination({"test": [EvalItem("1", "")]})
    assert apart.hits(Record(dialogue("Is water wet?", "Yes"), "select")) == []


@pytest.mark.parametrize(
    "row",
    [
        "Q: What is the capital of Chile?",
        "What is the capital of Peru's largest region?",
        "He asked her what is the capital of Peru and she knew.",
        "Q: What was the capital of Peru?",
    ],
)
def test_another_short_question_with_the_same_label_stays(row: str) -> None:
    assert Overlap([PERU, "Q: Name a river."]).find(row) is None


def test_marks_that_mean_something_are_not_left_out() -> None:
    assert Overlap(["What is 3!?"]).find("What is 3?") is None
    assert Overlap(["What is 10² now?"]).find("What is 102 now?") is None
    assert Overlap(["How much is 7 - 5 here?"]).find("How much is 7 + 5 here?") is None


HEADER = (
    "Answer the following question with a single word, and think about it carefully before you do, "
    "since nobody will ask you again."
)


@pytest.mark.parametrize("header", [HEADER, "Answer in one word."])
@pytest.mark.parametrize("between", ["\n\n", " ", "\nQuestion: "])
def test_the_body_under_a_shared_instruction_is_found_alone(header: str, between: str) -> None:
    bodies = [PERU, "What is the capital of Chile?", "Who wrote the novel Emma?"]
    tests = [f"{header}{between}{body}" for body in bodies]
    overlap = Overlap(tests)
    for body, test in zip(bodies, tests, strict=True):
        assert overlap.find(body) == held(test)
        assert overlap.find(f"Q: {body}") == held(test)
        assert overlap.find(f"{header}\n{body}") == held(test)
    assert overlap.find(f"{header}{between}What is the capital of Bolivia?") is None
    assert overlap.find(header) is None
    assert overlap.find("Who wrote the novel Persuasion?") is None


def test_a_long_body_under_a_shared_instruction_is_found_alone_with_other_words_before_it() -> None:
    overlap = Overlap([f"{HEADER}\n{STORY}", f"{HEADER}\n{PERU}"])
    assert overlap.find(f"Solve this step by step: {STORY}") == held(f"{HEADER}\n{STORY}")
    assert overlap.find(f"{HEADER}\n{STORY.replace('12 dollars', '13 dollars')}") is None


def test_a_question_on_a_shared_passage_is_found_however_the_two_are_put_together() -> None:
    questions = ["Who is wet by now?", "Who has paid her, and was it enough?", "Why?"]
    tests = [f"{STORY} {question}" for question in questions]
    overlap = Overlap(tests)
    for question, test in zip(questions, tests, strict=True):
        assert overlap.find(f"Passage: {STORY}\nQuestion: {question}\nAnswer:") == held(test)
        assert overlap.find(f"{question}\n\n{STORY}") == held(test)
    assert overlap.find(f"Passage: {STORY}\nQuestion: Where does she live?") is None
    assert overlap.find("It rained on Ada and not on Ben. Who is wet by now? Say why.") is None
    assert overlap.find("Why?") is None


@pytest.mark.parametrize(
    "row",
    [
        "What is the cap\u00adital of Pe\u00adru?",
        "What is\u200b the \ufeffcapital of P\u200deru?",
        "Wh\u0430t is the c\u0430pit\u0430l \u043ef \u0420\u0435ru?",
        "Wh\u0251t is the c\u0251pital of Peru?",
        "Ｗhat is the capital of Peru？",
    ],
)
def test_what_looks_the_same_is_the_same(row: str) -> None:
    assert row != PERU
    assert Overlap([PERU]).find(row) == held(PERU)
    assert Overlap([row]).find(PERU) == held(row)
    hidden = "\u200b".join(STORY.replace("a", "\u0430"))
    assert Overlap([STORY]).find(f"So: {hidden}") == held(STORY)


def test_words_of_another_alphabet_keep_their_letters() -> None:
    question = "Какой город является столицей Перу?"
    overlap = Overlap([question])
    assert overlap.find(f"Вопрос: {question.upper()}") == held(question)
    assert overlap.find("Какой город является столицей Чили?") is None


def test_a_thought_that_gives_a_test_away_is_found() -> None:
    clean = Decontamination({"test": [EvalItem("7", PERU)]})
    turns = dialogue("Ask me something.", "Gladly.")
    thinking = {**turns[1], "reasoning_content": f"I could ask: {PERU}"}
    assert clean.check(Record(turns, "select")) is None
    hit = clean.check(Record((turns[0], thinking), "select"))  # type: ignore[arg-type]
    assert hit is not None
    assert hit.item == "7"


# --- general --------------------------------------------------------------------------------------


def brute_force(prompt: str, row: str, n: int, coverage: float) -> bool:
    """For a single prompt, where every run is its own and one stretch."""

    def runs(text: str) -> list[tuple[str, ...]]:
        found = words(text)
        return [tuple(found[k : k + n]) for k in range(len(found) - n + 1)]

    wanted = list(dict.fromkeys(runs(prompt)))
    if len(wanted) < len(runs(prompt)) or not wanted:
        return False
    share = sum(run in runs(row) for run in wanted) / len(wanted)
    return share >= (1 if len(wanted) <= n else coverage)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from("red green blue one two".split()), max_size=30),
    st.lists(st.sampled_from("red green blue one two".split()), max_size=30),
    st.integers(1, 4),
    st.sampled_from([0.5, 0.8, 1.0]),
)
def test_what_overlaps_is_what_counting_runs_says(
    one: list[str], other: list[str], n: int, coverage: float
) -> None:
    prompt = " ".join(one)
    row = " ".join([*other, *one[: len(one) - len(other) % 4], *other])
    found = Overlap([prompt], n=n, coverage=coverage).find(row)
    if brute_force(prompt, row, n, coverage):
        assert found == held(prompt)
    elif (
        len(words(prompt))
        == len({*zip(*(words(prompt)[k:] for k in range(n)), strict=False)}) + n - 1
    ):  # no run twice
        assert found is None or prompt == row


def test_the_same_prompts_find_the_same_in_another_process() -> None:
    code = (
        "from replaykit.checks.overlap import Overlap\n"
        f"overlap = Overlap([{STORY!r}])\nprint(overlap._hashes.tolist(), overlap.find('So: ' + {STORY!r}))"
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
    assert (
        runs[0].stdout == runs[1].stdout == f"{Overlap([STORY])._hashes.tolist()} {held(STORY)}\n"
    )


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_real_test_questions_are_found_and_no_training_question_is_taken_for_one() -> None:
    def questions(name: str) -> list[str]:
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            return [json.loads(line)["question"] for line in stream]

    tests = questions("gsm8k_test")
    train = questions("gsm8k_train")
    overlap = Overlap(tests)
    assert all(overlap.find(f"Question: {test}\nAnswer:") for test in tests)
    assert [question for question in train if overlap.find(question)] == []
