"""Calls of tools: when they are the same, what is refused, and that they are asked as trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from test_templates import NAMES, fails, shipped

from replaykit.checks.tool_calls import readings_of_calls
from replaykit.data.record import Message, Record, Tool
from replaykit.engines import Completion
from replaykit.errors import ChatError, DataError
from replaykit.model.chat import Chat
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.evaluate.skills import is_answer, measure, read_back

UNUSED: Any = SimpleNamespace()  # an engine that gets no request
WEATHER: Tool = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
Call = tuple[str, Mapping[str, Any]]


def answer(*calls: Call, content: str = "") -> Message:
    message: Message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in calls
        ]
    return message


ONE: Call = ("add", {"a": 1, "b": {"c": [1, "x"], "d": None}})
OTHER: Call = ("weather", {"city": "Oslo"})


@pytest.mark.parametrize(
    ("found", "strict", "lenient"),
    [
        (answer(ONE, OTHER), True, True),
        (answer(("add", {"b": {"d": None, "c": [1.0, "x"]}, "a": 1.0}), OTHER), True, True),
        (answer(OTHER, ONE), False, True),
        (answer(ONE, OTHER, content="I look it up."), False, True),
        (answer(ONE, OTHER, content=" \n"), True, True),
        (answer(ONE), False, False),
        (answer(ONE, OTHER, OTHER), False, False),
        (answer(ONE, ONE), False, False),
        (answer(), False, False),
        (answer(content="add(1), weather(Oslo)"), False, False),
        (answer(("add", {**ONE[1], "a": True}), OTHER), False, False),
        (answer(("add", {**ONE[1], "a": "1"}), OTHER), False, False),
        (answer(("add", {**ONE[1], "e": 1}), OTHER), False, False),
        (answer(("add", {"a": 1}), OTHER), False, False),
        (answer(("add", {"a": 1, "b": {"c": ["x", 1], "d": None}}), OTHER), False, False),
        (answer(("sub", ONE[1]), OTHER), False, False),
        (answer(ONE, ("weather", {"city": "oslo"})), False, False),
        (answer(ONE, ("weather", {"city": None})), False, False),
    ],
)
def test_calls_are_the_same_as_json_values_in_any_order(
    found: Message, strict: bool, lenient: bool
) -> None:
    assert readings_of_calls(found, answer(ONE, OTHER)) == (strict, lenient)


def test_equal_calls_are_as_many_as_in_the_reference() -> None:
    assert readings_of_calls(answer(ONE, ONE), answer(ONE, ONE)) == (True, True)
    assert readings_of_calls(answer(ONE), answer(ONE, ONE)) == (False, False)
    assert readings_of_calls(answer(ONE, ONE, OTHER), answer(ONE, OTHER, OTHER)) == (False, False)


def test_where_nothing_is_to_be_called_any_words_are_right_and_any_call_is_wrong() -> None:
    reference = answer(content="Which city do you mean?")
    assert readings_of_calls(answer(content="Where?"), reference) == (True, True)
    assert readings_of_calls(answer(), reference) == (True, True)
    assert readings_of_calls(answer(OTHER), reference) == (False, False)


def test_words_beside_the_calls_are_the_form_where_the_reference_has_some() -> None:
    reference = answer(OTHER, content="I look.")
    assert readings_of_calls(answer(OTHER, content="Let me see."), reference) == (True, True)
    assert readings_of_calls(answer(OTHER), reference) == (True, True)


def test_true_is_not_1_and_an_empty_list_is_no_empty_object() -> None:
    pairs: list[tuple[Any, Any]] = [
        (True, 1),
        (False, 0),
        (False, None),
        ([], {}),
        ("", None),
        ("1", 1),
        (1, 1.5),
    ]
    for one, other in pairs:
        assert readings_of_calls(answer(("f", {"x": one})), answer(("f", {"x": one}))).strict
        assert not readings_of_calls(answer(("f", {"x": one})), answer(("f", {"x": other}))).lenient


def test_arguments_nested_too_deep_are_wrong_and_no_error() -> None:
    deep = json.loads('{"x": ' + "[" * 900 + "]" * 900 + "}")
    for _ in range(200):
        deep = {"x": deep}
    assert readings_of_calls(answer(("f", deep)), answer(OTHER)) == (False, False)


# --- what is refused ------------------------------------------------------------------------------


def row(line: int, reference: Message, *, tools: bool = True) -> Record:
    question: Message = {"role": "user", "content": "How is it in Oslo?"}
    return Record((question, reference), "target", {"line": line}, (WEATHER,) * tools)


def test_a_row_without_tools_is_refused_by_file_and_line_before_anything_is_asked() -> None:
    rows = [row(1, answer(OTHER)), row(2, answer(OTHER), tools=False)]
    tests = {"weather": (Scored(path="weather.jsonl", score="tool_call"), rows)}
    with pytest.raises(DataError, match=r"weather\.jsonl:2: .*the row has no tools; give it a col"):
        next(measure(UNUSED, shipped("qwen3"), tests))


def test_a_template_that_shows_no_tools_is_refused_with_the_name_of_the_test(chat: Chat) -> None:
    tests = {"weather": (Scored(path="weather.jsonl", score="tool_call"), [row(1, answer(OTHER))])}
    with pytest.raises(
        ChatError, match="weather cannot be scored by tool_call: nano: its chat template shows no"
    ):
        next(measure(UNUSED, chat, tests))


@pytest.mark.parametrize("score", ["exact", "numeric", "json"])
def test_an_answer_that_only_calls_is_not_scored_by_its_words(score: Any) -> None:
    tests = {"weather": (Scored(path="weather.jsonl", score=score), [row(3, answer(OTHER))])}
    message = r"weather\.jsonl:3: its answer calls tools and says nothing; score it by tool_call, "
    with pytest.raises(DataError, match=message):
        next(measure(UNUSED, shipped("qwen3"), tests))


# --- asked as trained -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_model_is_asked_for_calls_with_the_very_tokens_that_training_had() -> None:
    callers = [name for name in NAMES if not fails(name) and shipped(name).shows_tools]
    assert len(callers) >= 36
    for name in callers:
        chat = shipped(name)
        asked_as_trained(chat, answer(OTHER))
        if chat.can_think:
            asked_as_trained(chat, {**answer(OTHER), "reasoning_content": "I must look."})


def asked_as_trained(chat: Chat, reference: Message) -> None:
    record = row(1, reference)
    thought = reference.get("reasoning_content", "")
    thinking = bool(thought) or (None if chat.always_thinks else False)
    example = chat.example(record)
    first = example.loss.index(True)
    assert chat.prompt(record.messages[:-1], thinking, record.tools) == example.tokens[:first]
    # What training has after that is read as the reference itself.
    reply = chat.reply(example.tokens[first:], thinking, record.tools)
    assert readings_of_calls(reply.message, reference) == (True, True)
    assert reply.message.get("reasoning_content", "") == thought
    assert not reply.special


def test_a_conversation_with_results_of_tools_is_asked_as_trained() -> None:
    chat = shipped("qwen3")
    first = answer(OTHER)
    turns: list[Message] = [
        {"role": "user", "content": "How is it in Oslo, and in Rome?"},
        first,
        {"role": "tool", "content": "7 C", "name": "weather"},
        answer(("weather", {"city": "Rome"})),
    ]
    record = Record(tuple(turns), "target", {}, (WEATHER,))
    example = chat.example(record)
    prompt = chat.prompt(record.messages[:-1], False, record.tools)
    assert example.tokens[: len(prompt)] == prompt
    assert example.loss[len(prompt)]
    assert not example.loss[len(prompt) - 1]


@pytest.mark.parametrize(
    ("name", "city", "readable"),
    [
        ("qwen3", "Oslo </parameter>", True),
        ("qwen3_6", "Oslo", True),
        ("qwen3_6", "Oslo </parameter>", False),
        ("qwen3_6", "90210", True),
        ("lfm2_2_5", "it's", True),
        ("gptoss", "Oslo", True),
        ("glm4moe", "Oslo</arg_value>", False),
    ],
)
def test_a_reference_that_cannot_be_read_back_is_not_scored(
    name: str, city: str, readable: bool
) -> None:
    test = Scored(path="weather.jsonl", score="tool_call")
    reason = read_back(shipped(name), test, row(1, answer(("weather", {"city": city}))))
    assert (reason == "") is readable
    if not readable:
        assert "cannot be read back" in reason


# --- what is no answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "complete"),
    [
        ("qwen3", "Which city?", True),
        ("qwen3", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>', True),
        ("qwen3", '<tool_call>\n{"name": "weather", "arguments": {"city": "Os\n</tool_call>', False),
        ("qwen3", "<tool_call>\nweather in Oslo\n</tool_call>", False),
        ("llama3_1", "Which city?", True),
        ("llama3_1", '{"name": "weather", "parameters": {"city": "Oslo"}}', True),
        ("llama3_1", '{"name": "weather", "parameters": {"city": Oslo}}', False),
        ("deepseekv3", "Hm.</think>Which city?", True),
        ("deepseekv3", "Hm.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather", False),
    ],
)  # fmt: skip
def test_a_call_that_no_program_could_make_is_not_nothing(
    name: str, said: str, complete: bool
) -> None:
    chat = shipped(name)
    test = Scored(path="weather.jsonl", score="tool_call")
    tokens = chat.encode(said)
    reply = chat.reply(tokens, None, (WEATHER,))
    assert is_answer(chat, reply, Completion(0, tokens, "stop"), test, (WEATHER,)) is complete
    # What was cut might have called more.
    assert not is_answer(chat, reply, Completion(0, tokens, "length"), test, (WEATHER,))
    # Where words are scored, the words are the answer.
    other = Scored(path="weather.jsonl")
    assert is_answer(chat, reply, Completion(0, tokens, "length"), other, (WEATHER,))
