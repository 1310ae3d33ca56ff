"""What cannot be scored on held-out items, and when that is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.engines import Engine
from replaykit.errors import DataError, EngineError
from replaykit.model.chat import Chat
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.evaluate.skills import Item, measure, read_items

QUESTION = Record(dialogue("What is two and two?", "4"), "target", {"line": 1})
TEXT = Record(({"role": "text", "content": "Paris is in France."},), "target", {"line": 7})
UNUSED: Any = SimpleNamespace()  # an engine that gets no request


def test_an_encoder_decoder_has_no_cross_entropy_and_that_is_said_before_anything_is_answered(
    chat: Chat,
) -> None:
    tests = {
        "sums": (Scored(path="sums.jsonl"), [QUESTION]),
        "texts": (Scored(path="texts.jsonl", score="cross_entropy"), [QUESTION]),
    }
    pair = Chat(chat.tokenizer, name="my-t5", seq2seq=True)
    message = (
        "my-t5 is an encoder-decoder, whose tokens cannot be scored; "
        "give texts another score than cross_entropy"
    )
    with pytest.raises(EngineError, match=message):
        next(measure(UNUSED, pair, tests))


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
    ]
    path = tmp_path / "items-base.jsonl"
    write_jsonl(path, (item.to_json() for item in items))
    assert path.read_text().splitlines() == [
        '{"skill": "sums", "row": 0, "score": 1.0, "answer": "4", "finish": "stop"}',
        '{"skill": "sums", "row": 1, "score": null, "reason": "too_long"}',
        '{"skill": "texts", "row": 0, "score": 8.25, "tokens": 5}',
    ]
    assert read_items(path, ["sums", "texts"]) == {"sums": items[:2], "texts": items[2:]}


def test_an_empty_answer_stays_in_its_line() -> None:
    line = Item("sums", 0, 0.0, answer="", finish="stop").to_json()
    assert line == {"skill": "sums", "row": 0, "score": 0.0, "answer": "", "finish": "stop"}
