"""A Dataset has the columns that its records need, and is read back as the same records."""

from __future__ import annotations

import json
from pathlib import Path

from replaykit.data.dataset import Schema, to_dataset
from replaykit.data.record import Message, Record, dialogue
from replaykit.model.calls import tool_call

WORDS = Record(dialogue("Capital of Peru?", "Lima."), "target", {"line": 1})
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASKED: Message = {"role": "user", "content": "Weather in Oslo?"}
CALLED: Message = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "I need the weather.",
    "tool_calls": [tool_call("weather", {"city": "Oslo", "days": 2})],
    "weight": 0,
}
RESULT: Message = {"role": "tool", "content": "7 C", "name": "weather"}
SAID: Message = {"role": "assistant", "content": "Seven degrees."}
AGENT = Record((ASKED, CALLED, RESULT, SAID), "generate", {"line": 2}, (TOOL,))


def test_words_alone_need_no_further_columns() -> None:
    rows = to_dataset([WORDS])
    assert rows.column_names == ["id", "messages", "source", "meta"]
    assert rows[0]["messages"] == [dict(message) for message in WORDS.messages]


def test_all_that_a_turn_carries_has_a_column() -> None:
    row = to_dataset([AGENT])[0]
    assert json.loads(row["tools"]) == [TOOL]
    turn = row["messages"][1]
    assert turn["reasoning_content"] == "I need the weather."
    assert turn["weight"] == 0
    called = turn["tool_calls"][0]["function"]
    assert (called["name"], json.loads(called["arguments"])) == (
        "weather",
        {"city": "Oslo", "days": 2},
    )
    assert row["messages"][2]["name"] == "weather"


def test_parts_of_a_set_share_its_columns(tmp_path: Path) -> None:
    columns = Schema.of([WORDS, AGENT])
    parts = [to_dataset([record], columns) for record in (WORDS, AGENT)]
    assert parts[0].features == parts[1].features
    assert parts[0][0]["tools"] is None


def test_tools_are_a_part_of_what_a_record_is() -> None:
    bare = Record(AGENT.messages, "generate", {})
    assert bare.id != AGENT.id
    assert Record.from_json(json.loads(json.dumps(AGENT.to_json()))) == AGENT
