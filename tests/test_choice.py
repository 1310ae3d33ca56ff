"""Multiple choice: the options of a row, and the two readings of an item."""

from contextlib import closing

import pytest

from replaykit.checks.scoring.choice import options_of, written
from replaykit.data.formats import record_of
from replaykit.engines import load_engine
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.evaluate import Test
from replaykit.steps.evaluate.skills import measure, problem

CITIES = {"prompt": "Which is in Italy?", "choices": ["Paris", "Rome", "Oslo"]}


def row(**columns):
    return record_of("x:1", {**CITIES, **columns}, "target")


@pytest.mark.parametrize(
    ("answer", "texts", "right"),
    [
        ("Rome", ["Paris", "Rome", "Oslo"], 1),
        ("C", ["A", "B", "C"], 2),
        ("A. Paris", ["A. Paris", "B. Rome", "C. Oslo"], 0),
    ],
)
def test_options_are_written_as_the_answer_is(answer, texts, right):
    assert options_of(row(completion=answer)) == (texts, right)


def test_options_by_letter_of_a_mapping_are_read():
    choices = {"text": ["Paris", "Rome"], "label": ["1", "2"]}
    assert options_of(row(choices=choices, completion="2")) == (["1", "2"], 1)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"completion": "Berlin"}, "none, or several"),
        ({"completion": "Rome", "choices": ["Rome", "Rome"]}, "none, or several"),
        ({"completion": "Rome", "choices": ["Rome"]}, "two texts or more"),
        ({"completion": "Rome", "choices": None}, "two texts or more"),
    ],
)
def test_a_row_without_one_right_option_is_refused(columns, problem):
    with pytest.raises(ValueError, match=problem):
        options_of(row(**columns))


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Rome", 1),
        ("B", 1),
        ("B. Rome", 1),
        ("**Rome.**", 1),
        ("Paris", 0),
        ("A", 0),
        ("It is hard to say.", 0),
    ],
)
def test_a_written_answer_names_the_right_option_by_letter_or_text(said, right):
    for answer in ("Rome", "B", "B. Rome"):
        assert written(said, row(completion=answer)).lenient == right


def test_a_model_chooses_what_it_would_say_and_writes_it():
    """nano knows nli: its options by likelihood, and what it writes, are nearly always right."""
    labels = ["entailment", "neutral", "contradiction"]
    tasks = world.draw("nli", 24, seed=5, held_out=True)
    # The question is left as nano knows it: it shows the labels by itself, or not at all.
    records = [
        record_of(f"x:{n}", {"prompt": task.prompt, "completion": task.answer}, "target")
        for n, task in enumerate(tasks, 1)
    ]
    letters = dict(zip("ABC", labels, strict=True))
    records = [type(r)(r.messages, r.source, {**r.meta, "choices": letters}) for r in records]
    test = Test(path="x", score="choice", max_tokens=8)
    assert not any(problem(record, test) for record in records)
    with closing(load_engine("nano", "transformers")) as engine:
        items = list(measure(engine, Chat.load("nano"), {"nli": (test, records)}))
    assert [item.row for item in items] == list(range(24))
    assert sum(item.score for item in items) >= 22
    assert sum(item.strict for item in items) >= 22
    assert all(item.answer in labels for item in items if item.strict)


def test_an_option_that_the_model_never_says_is_not_chosen():
    """Where every option is wrong by what nano knows, the right one is that of the row alone."""
    task = world.draw("capital", 1, seed=5, held_out=True)[0]
    letters = {"A": task.answer, "B": "a much longer answer that nobody gives"}
    test = Test(path="x", score="choice", max_tokens=8)
    found = []
    for answer in letters.values():
        record = record_of("x:1", {"prompt": task.prompt, "completion": answer}, "target")
        record = type(record)(record.messages, record.source, {**record.meta, "choices": letters})
        with closing(load_engine("nano", "transformers")) as engine:
            found += measure(engine, Chat.load("nano"), {"capital": (test, [record])})
    assert [(item.score, item.strict) for item in found] == [(1.0, 1.0), (0.0, 0.0)]
