"""What cannot be scored on held-out items, and when that is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.engines import Engine
from replaykit.errors import DataError
from replaykit.model.chat import Chat
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.skills import Item, measure, read_items

QUESTION = Record(dialogue("What is two and two?", "4"), "target", {"line": 1})
TEXT = Record(({"role": "text", "content": "Paris is in France."},), "target", {"line": 7})
UNUSED: Any = SimpleNamespace()  # an engine that gets no request


@pytest.mark.parametrize("score", ["exact", "numeric", "json"])
def test_a_text_in_a_right_or_wrong_test_is_named_by_file_and_line(chat: Chat, score: Any) -> None:
    tests = {
        "sums": (Scored(path="sums.jsonl"), [QUESTION]),
        "texts": (Scored(path="texts.jsonl", score=score), [QUESTION, TEXT]),
    }
    with pytest.raises(
        DataError, match=r"texts\.jsonl:7: a text has no question.*score it by cross_entropy"
    ):
        next(measure(UNUSED, chat, tests))


def test_a_text_is_scored_by_cross_entropy(chat: Chat, transformers_engine: Engine) -> None:
    tests = {"texts": (Scored(path="texts.jsonl", score="cross_entropy"), [TEXT])}
    (item,) = measure(transformers_engine, chat, tests)
    assert item.score is not None
    assert item.score > 0
    assert item.tokens is not None
    assert item.tokens > 3


def test_the_line_of_an_item_has_what_such_an_item_has_and_is_read_back(tmp_path: Path) -> None:
    items = [
        Item("sums", 0, 1.0, answer="4", finish="stop"),
        Item("sums", 1, None, reason="too_long"),
        Item("texts", 0, 8.25, tokens=5),
        Item("sums", 2, 1.0, answer="It is 4.", finish="stop", strict=0.0),
    ]
    path = tmp_path / "items-base.jsonl"
    write_jsonl(path, (item.to_json() for item in items))
    assert path.read_text().splitlines() == [
        '{"skill": "sums", "row": 0, "score": 1.0, "answer": "4", "finish": "stop"}',
        '{"skill": "sums", "row": 1, "score": null, "reason": "too_long"}',
        '{"skill": "texts", "row": 0, "score": 8.25, "tokens": 5}',
        '{"skill": "sums", "row": 2, "score": 1.0, "strict": 0.0, "answer": "It is 4.", '
        '"finish": "stop"}',
    ]
    sums = [item for item in items if item.skill == "sums"]
    assert read_items(path, ["sums", "texts"]) == {"sums": sums, "texts": items[2:3]}


def test_an_item_has_both_readings_of_the_answer_that_the_model_gave(
    chat: Chat, transformers_engine: Engine
) -> None:
    question = "What is the capital of France?"
    rows = [Record(dialogue(question, answer), "target") for answer in ("Paris", "#### Paris")]
    tests = {"capital": (Scored(path="capital.jsonl"), rows)}
    plain, marked = measure(transformers_engine, chat, tests)
    assert plain.answer is not None
    assert plain.answer == marked.answer
    right = float("paris" in plain.answer.lower())
    assert (plain.score, plain.strict) == (right, right)
    # The reference is marked and the answer is not: the form is lost, the knowledge is not.
    assert (marked.score, marked.strict) == (right, 0.0)


def test_the_strict_reading_of_a_skill_is_reported_beside_its_score() -> None:
    items = [Item("sums", row, 1.0, answer="?", strict=float(row < 3)) for row in range(10)]
    tests = {"sums": Scored(path="sums.jsonl")}
    result = compare(tests, {"base": {"sums": items}, "tuned": {"sums": items[::-1]}}, {})
    for model in result.models:
        assert model.scores["sums"].mean == 1
        assert model.strict["sums"].mean == 0.3
    assert result.model_dump()["models"][0]["strict"]["sums"]["mean"] == 0.3


def test_a_skill_without_a_strict_reading_reports_none() -> None:
    items = {"base": {"texts": [Item("texts", 0, 8.25, tokens=5)]}}
    tests = {"texts": Scored(path="texts.jsonl", score="cross_entropy")}
    assert compare(tests, items, {}).models[0].strict == {}


def test_an_empty_answer_stays_in_its_line() -> None:
    line = Item("sums", 0, 0.0, answer="", finish="stop").to_json()
    assert line == {"skill": "sums", "row": 0, "score": 0.0, "answer": "", "finish": "stop"}
