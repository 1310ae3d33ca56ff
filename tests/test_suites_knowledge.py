"""The suites on knowledge and skill, and the command that lists, prints and measures suites."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from commands import type_in

from replaykit.checks.scoring import SCORERS, readings_of
from replaykit.checks.scoring.choice import options_of, written
from replaykit.data.formats import record_of
from replaykit.nano import world
from replaykit.suites import MODULES, code, common_sense, facts, rows, suite_of

NANO = [name for name in MODULES if name.startswith("nano-")]
ANSWERS = ["facts", "reading", "translation"]  # scored by what the answer contains
OWN = ["sums", *ANSWERS, "common_sense", "sentiment", "word_problems", "code", *NANO]
SEEDS = (1, 2, 3)


def records(name, n=200, seed=0):
    path = f"suite:{name}@{seed}"
    return [record_of(f"{path}:{i}", row, "target") for i, row in enumerate(rows(path, n), 1)]


@pytest.mark.parametrize("name", OWN)
def test_there_are_two_hundred_items_and_more(name):
    assert len(rows(f"suite:{name}", 200)) == (160 if name == "nano-capital" else 200)


@pytest.mark.parametrize("name", [name for name in OWN if name not in ("code", "common_sense")])
def test_the_reference_is_right(name):
    score = suite_of(f"suite:{name}").score
    if score not in SCORERS:
        pytest.skip(f"{score} is scored elsewhere")
    for record in records(name):
        assert readings_of(score, record.answer, record) == (1, 1), record.messages


@pytest.mark.parametrize("name", OWN)
def test_no_single_answer_does_much_better_than_chance(name):
    found = []
    for seed in SEEDS:
        answers = [record.answer.lower() for record in records(name, seed=seed)]
        found.append(Counter(answers).most_common(1)[0][1] / len(answers))
    assert sum(found) / len(found) <= suite_of(f"suite:{name}").chance + 0.05


# --- each suite -----------------------------------------------------------------------------------


def says(text, word):
    """Whether a text has a word, or words, whatever their case."""
    return re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", text.lower()) is not None


@pytest.mark.parametrize("name", ANSWERS)
def test_what_counts_as_right_begins_with_the_reference(name):
    for record in records(name, n=2_000):
        answers = record.meta["answers"]
        assert answers[0] == record.answer
        assert len(set(answers)) == len(answers)
        assert all(answer.strip() == answer != "" for answer in answers)


@pytest.mark.parametrize("name", ["facts", "translation"])
def test_to_repeat_the_question_is_not_right(name):
    for record in records(name, n=10_000):
        assert not any(says(record.prompt, answer) for answer in record.meta["answers"]), record


def test_the_answer_stands_in_the_passage_and_not_in_the_question():
    for record in records("reading", n=2_000):
        passage, _, question = record.prompt.partition("\n\n")
        assert says(passage, record.answer)
        assert not any(says(question, answer) for answer in record.meta["answers"]), record.prompt


def test_no_fact_is_asked_with_two_different_answers():
    right = {}
    for record in records("facts", n=10_000):
        assert right.setdefault(record.prompt, record.answer) == record.answer
    assert len(facts.FACTS) > 600


def test_a_choice_keeps_its_options_beside_the_question_that_shows_them():
    found = records("common_sense", n=2_000)
    places = Counter()
    for record in found:
        choices = list(record.meta["choices"].values())
        assert len(set(choices)) == 4
        assert all(choice in record.prompt for choice in choices)
        assert "A." not in record.prompt
        right = choices.index(record.answer)
        assert options_of(record) == (choices, right)
        assert [written(choice, record).lenient for choice in choices].index(1) == right
        assert sum(written(choice, record).lenient for choice in choices) == 1
        places[right] += 1
    # By chance each place has 500 of 2,000 items, give or take 58 at three standard deviations.
    assert all(440 <= places[place] <= 560 for place in range(4)), places


def test_what_is_never_offered_is_named_as_others_have_it():
    for facts_of in (common_sense.PLACES, common_sense.NEXT, common_sense.MADE_OF):
        offered = {right for right, *_ in facts_of.values()}
        never = {value for _, *values in facts_of.values() for value in values}
        assert never and {value.removeprefix("-") for value in never} <= offered
        assert all(value.startswith("-") for value in never)
    assert {len(options) for options in common_sense.MANNERS.values()} == {common_sense.OPTIONS}


def test_half_of_the_reviews_are_positive():
    found = [record.answer for record in records("sentiment", n=2_000)]
    assert 0.46 < found.count("positive") / len(found) < 0.54


@pytest.mark.parametrize("seed", SEEDS)
def test_a_story_of_one_step_has_the_answer_of_its_numbers(seed):
    """What each kind of story comes to, from its numbers as they stand in the text."""
    known = {
        r"has (\d+) \w+ and gets (\d+) more": lambda a, b: a + b,
        r"had (\d+) \w+ yesterday.* brings (\d+)": lambda a, b: a + b,
        r"has (\d+) \w+ and gives (\d+) of them": lambda a, b: a - b,
        r"had (\d+) \w+, but (\d+) of them got lost": lambda a, b: a - b,
        r"has (\d+) \w+\. \w+ finds (\d+) more and gives (\d+)": lambda a, b, c: a + b - c,
        r"holds (\d+) \w+\. .* do (\d+)": lambda a, b: a * b,
        r"has (\d+) \w+ with (\d+) \w+ each, and (\d+)": lambda a, b, c: a * b + c,
        r"shares (\d+) \w+ equally among (\d+)": lambda a, b: a // b,
        r"costs (\d+) dollars\. \w+ buys (\d+) of them .* (\d+) d": lambda a, b, c: c - a * b,
        r"costs (\d+) .* costs (\d+) dollars\. \w+ buys (\d+)": lambda a, b, c: a * c + b,
        r"is (\d+) years old.* is (\d+) years older .* in (\d+)": lambda a, b, c: a + b + c,
        r"cycles (\d+) .* in (\d+) hours": lambda a, b: a * b,
        r"has (\d+) pages.* reads (\d+) pages .* for (\d+) days": lambda a, b, c: a - b * c,
    }
    for record in records("word_problems", seed=seed):
        matches = [(re.search(shape, record.prompt), of) for shape, of in known.items()]
        ((match, of),) = [(match, of) for match, of in matches if match]
        assert str(of(*map(int, match.groups()))) == record.answer, record.prompt
        assert int(record.answer) >= 0


def test_the_reference_solution_passes_every_assert_and_no_lazy_one_does():
    solutions = {}
    for function in code.FUNCTIONS:
        (example, _), *_ = code.cases(function)
        asked = f"{function.kind.returns.format(k=function.value)}. For example, "
        solutions[asked + function.call(example)] = function
    found = records("code")
    assert len(found) == 200
    for record in found:
        ((_, function),) = [
            (asked, function) for asked, function in solutions.items() if asked in record.prompt
        ]
        name = function.kind.name
        assert record.answer.count("assert ") == code.TESTS
        exec(record.answer, {name: function.solve})
        (_, first), *_ = code.cases(function)
        for lazy in (lambda *_: first, lambda *inputs: inputs[0], lambda *_: None):  # noqa: B023
            with pytest.raises(AssertionError):
                exec(record.answer, {name: lazy})


@pytest.mark.parametrize("name", NANO)
def test_the_items_of_the_embedded_world_are_its_held_out_side(name):
    found = records(name, n=400)
    assert all(world.is_held_out(record.prompt) for record in found)
    skill = name.removeprefix("nano-")
    drawn = {task.prompt for task in world.draw(skill, 40, seed=5, held_out=True)}
    if name == "nano-capital":  # its table is small: the suite is at its end
        assert drawn <= {record.prompt for record in found}


# --- the command ----------------------------------------------------------------------------------


def test_the_list_has_every_suite_with_the_drop_that_it_shows():
    found = json.loads(type_in("suites", "--json"))
    assert [suite["suite"] for suite in found["suites"]] == list(MODULES)
    assert all(0.03 < suite["detectable"] < 0.12 for suite in found["suites"])
    fewer = json.loads(type_in("suites", "-n", 50, "--json"))
    pairs = zip(found["suites"], fewer["suites"], strict=True)
    assert all(many["detectable"] < few["detectable"] for many, few in pairs)
    shown = type_in("suites")
    assert all(name in shown for name in MODULES)
    assert "four times in five" in shown


def test_named_suites_are_printed_as_rows(here):
    Path("items.jsonl").write_text(type_in("suites", "nano-json", "sums", "-n", 3))
    found = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    assert found == [*rows("suite:nano-json", 3), *rows("suite:sums", 3)]
    other = type_in("suites", "sums", "-n", 3, "--seed", 7)
    assert [json.loads(line) for line in other.splitlines()] == rows("suite:sums@7", 3)


def test_a_suite_that_does_not_exist_and_a_number_of_none_are_named():
    assert "did you mean 'sums'" in type_in("suites", "sum", code=1)
    assert "-n 0: a suite gives 1 to" in type_in("suites", "sums", "-n", 0, code=1)


@pytest.mark.slow
def test_what_a_base_can_do_is_measured_once_and_goes_on_where_it_stopped(here):
    words = ("suites", "nano-json", "sums", "-n", 30, "--model", "nano", "--json")
    found = json.loads(type_in(*words))
    able, unable = found["suites"]
    assert (able["suite"], able["n"], able["can"]) == ("nano-json", 30, True)
    assert able["score"]["mean"] > 0.9
    assert 0 < able["detectable"] < 0.3
    assert (unable["suite"], unable["can"], unable["detectable"]) == ("sums", False, None)

    folder = Path("runs/nano/suites")
    (folder / "manifest.json").unlink()
    (folder / "items-sums.jsonl").unlink()
    kept = folder / "items-nano-json.jsonl"
    before = kept.stat().st_mtime_ns
    assert json.loads(type_in(*words)) == found
    assert kept.stat().st_mtime_ns == before
    shown = type_in(*words[:-1])
    assert "cannot" in shown
