"""What cannot be scored on held-out items, and when that is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from replaykit.chat import Chat
from replaykit.engines import Engine
from replaykit.errors import DataError, EngineError
from replaykit.evaluate.skills import measure
from replaykit.records import Record, dialogue
from replaykit.settings import Test as Scored

QUESTION = Record(dialogue("What is two and two?", "4"), "target", {"line": 1})
TEXT = Record(({"role": "text", "content": "Paris is in France."},), "target", {"line": 7})
UNUSED: Any = SimpleNamespace()  # an engine that nothing is asked of


def test_an_encoder_decoder_has_no_cross_entropy_and_that_is_said_before_anything_is_answered(
    chat: Chat,
) -> None:
    tests = {
        "sums": (Scored(path="sums.jsonl"), [QUESTION]),
        "texts": (Scored(path="texts.jsonl", score="cross_entropy"), [QUESTION]),
    }
    pair = Chat(chat.tokenizer, name="my-t5", seq2seq=True)
    said = "my-t5 is an encoder-decoder, whose tokens cannot be scored; give texts another score than cross_entropy"
    with pytest.raises(EngineError, match=said):
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
    assert item["score"] > 0
    assert item["tokens"] > 3
