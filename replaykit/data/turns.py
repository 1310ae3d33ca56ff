"""The turns of a conversation, from the shapes that chat data has.

    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'}
    ->  {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": ...}]}

What a turn may carry is in ``data/record.py``. What it cannot carry is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from replaykit.data.columns import no_text
from replaykit.data.jsonstream import plain_json, refuse_unwritable, suspect
from replaykit.data.record import Message, Tool, ToolCall
from replaykit.errors import DataError

# The names of OpenAI, ShareGPT, Gemma, LLaMA-Factory and ms-swift.
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "text": "text",
}
CALLS = ("function_call", "tool_call")  # roles of a turn that is a call, written as JSON
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TRAINED = ("weight", "train", "training", "loss")  # OpenAI, axolotl (two) and ms-swift
TEXT_PARTS = ("text", "input_text", "output_text")
THINK = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
# Where the prompt has opened the thought, an answer holds the closing mark alone.
# It has its line to itself; within words it is one that is spoken of.
THINK_END = re.compile(r"((?:[^\n]*\n)*?)[ \t]*</think>[ \t]*\r?\n")
SPACE = 20  # characters that a JSON text has at most before its first "{"
# A text that may be a list of turns, or one turn, as JSON.
OPENS_TURNS = re.compile(
    r"""\s*(?:\[\s*)?\{.*?["'](?:role|from)["']\s*:\s*["']\s*(\w+)\s*["']""", re.DOTALL
)


def turns_of(place: str, turns: Sequence[Any]) -> tuple[Message, ...]:
    """The conversation that a list of turns is. Raises DataError, which names the turn."""
    made: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise DataError(
                f"{place}: turn {number} is a {type(turn).__name__}, not an object with role and "
                f"content"
            )
        message = _turn(f"{place}: turn {number}", turn)
        if made and _only_calls(turn) and _only_calls(turns[number - 2]):
            # Calls that are made at once stand in one answer.
            if message.get("weight") != made[-1].get("weight"):
                raise DataError(
                    f"{place}: turn {number} is a call made at once with the one before it, and "
                    "only one of the two is to be trained"
                )
            calls = [*made[-1]["tool_calls"], *message["tool_calls"]]
            made[-1] = {**made[-1], "tool_calls": calls}
            continue
        made.append(message)
    if not made:
        raise DataError(f"{place}: a conversation without turns")
    return tuple(made)


def turns_in(place: str, row: Mapping[str, Any], column: str) -> list[Any] | None:
    """The turns in a column: a list, one turn, or the JSON text of either; None for other values.

    Raises DataError for a text that begins as turns do and is no JSON.
    """
    value = row.get(column)
    if isinstance(value, str):
        if "{" not in value[:SPACE]:
            return None  # this is quicker than OPENS_TURNS
        opened = OPENS_TURNS.match(value)
        if opened is None or opened.group(1).lower() not in (*ROLES, *CALLS):
            return None
        found = from_json(f"{place}: '{column}'", value)
        turns = found if isinstance(found, list) else [found]
        return turns if all(_is_turn(turn) for turn in turns) else None
    if isinstance(value, Mapping) and _is_turn(value):
        return [value]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return list(value)
    return None


def _is_turn(value: Any) -> bool:
    """Whether a value has a role and what is said or called."""
    if not isinstance(value, Mapping) or value.keys().isdisjoint(("role", "from")):
        return False
    return not value.keys().isdisjoint(("content", "value", "tool_calls", "function_call"))


def answer_of(where: str, content: str, thought: Any = None) -> Message:
    """An answer, with the thought that stands before it in the content or beside it."""
    message: Message = {"role": "assistant", "content": content}
    own = None
    if "</think>" in content:
        found = THINK.match(content)
        if found is None and "<think>" not in content:
            found = THINK_END.match(content)
        if found is not None:
            own = found.group(1).strip("\r\n")
            message["content"] = content[found.end() :].lstrip("\r\n")
    if thought is not None and not isinstance(thought, str):
        raise DataError(f"{where}: the thought is a {type(thought).__name__}, not text")
    beside = (thought or "").strip("\r\n")
    if own and beside and own != beside:
        raise DataError(f"{where}: a thought in <think> and another one in a field of its own")
    if own or beside:
        message["reasoning_content"] = own or beside
    return message


def _role(turn: Mapping[str, Any]) -> str:
    """The turn's role in the data's own words; ShareGPT says "from"."""
    role = turn.get("role")
    if role is None:
        role = turn.get("from")
    return str(role).strip().lower()


def _only_calls(turn: Mapping[str, Any]) -> bool:
    return _role(turn) in CALLS


def _turn(where: str, turn: Mapping[str, Any]) -> Message:
    role = _role(turn)
    content = turn.get("content")
    if content is None:
        content = turn.get("value")
    if role in CALLS:
        calls = calls_of(where, content)
        called: Message = {"role": "assistant", "content": "", "tool_calls": calls}
        return {**called, **_weight(where, turn)}  # type: ignore[typeddict-item]
    known = ROLES.get(role)
    thoughts = [turn[name] for name in THOUGHTS if turn.get(name)]
    if isinstance(content, Sequence) and not isinstance(content, str):
        thoughts += [part for part in _thought_parts(content) if part]
        content = _joined(where, content)
    calls = _calls_beside(where, turn)
    if known == "assistant" and content is None and calls:
        content = ""
    if known == "tool" and isinstance(content, Mapping):
        content = json.dumps(content, ensure_ascii=False)
    if known is None or not isinstance(content, str):
        said = turn.get("role", turn.get("from"))
        raise DataError(f"{where} has role {said!r} and content of {type(content).__name__}")
    if known == "tool":
        return _result(content, turn)
    if known != "assistant":
        return {"role": known, "content": content}  # type: ignore[typeddict-item]
    different = {thought if isinstance(thought, str) else repr(thought) for thought in thoughts}
    if len(different) > 1:
        raise DataError(f"{where} has several thoughts that differ")
    message = answer_of(where, content, next(iter(thoughts), None))
    if calls:
        message["tool_calls"] = calls
    return {**message, **_weight(where, turn)}  # type: ignore[typeddict-item]


def _thought_parts(parts: Sequence[Any]) -> list[Any]:
    return [
        part.get(str(part["type"])) or part.get("text")
        for part in parts
        if isinstance(part, Mapping) and part.get("type") in THOUGHTS
    ]


def _joined(where: str, parts: Sequence[Any]) -> str:
    """The text of a content in parts. Raises DataError for parts that are no text."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in THOUGHTS:
            continue
        text = part.get("text") if isinstance(part, Mapping) else None
        if (kind is not None and kind not in TEXT_PARTS) or not isinstance(text, str):
            raise no_text(where, str(kind or "part without text"))
        texts.append(text)
    return "".join(texts)


def _result(content: str, turn: Mapping[str, Any]) -> Message:
    message: Message = {"role": "tool", "content": content}
    if isinstance(turn.get("tool_call_id"), str) and turn["tool_call_id"]:
        message["tool_call_id"] = turn["tool_call_id"]
    if isinstance(turn.get("name"), str) and turn["name"]:
        message["name"] = turn["name"]
    return message


def _weight(where: str, turn: Mapping[str, Any]) -> dict[str, Any]:
    """``{"weight": 0}`` for an answer that is shown and carries no loss."""
    for name in TRAINED:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise DataError(f"{where} has {name} {value!r}; replaykit carries 0 and 1")
        if not value:
            return {"weight": 0}
    return {}


# --- tools ----------------------------------------------------------------------------------------


def tools_of(place: str, value: Any) -> tuple[Tool, ...]:
    """The tools of a row: a list, or its JSON text, of functions in OpenAI's form or bare."""
    tools = from_json(f"{place}: tools", value)
    if isinstance(tools, Mapping):
        tools = [tools]
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise DataError(f"{place}: tools is a {type(tools).__name__}, not a list of functions")
    found: list[Tool] = []
    for number, tool in enumerate(tools, 1):
        where = f"{place}: tool {number}"
        tool = from_json(where, tool)
        if isinstance(tool, Mapping) and "function" not in tool and "name" in tool:
            tool = {"type": "function", "function": tool}
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{where} is no function with a name")
        found.append(tool)
    return tuple(found)


def _calls_beside(where: str, turn: Mapping[str, Any]) -> list[ToolCall]:
    """The calls in a turn's ``tool_calls``, or in ``function_call``, OpenAI's older name."""
    for name in ("tool_calls", "function_call"):
        if turn.get(name):
            return calls_of(where, turn[name])
    return []


def calls_of(where: str, value: Any) -> list[ToolCall]:
    """The calls of an answer: one or a list, or the JSON text of them.

    Raises DataError for a call without a name, and for arguments that are no JSON object.
    """
    calls = from_json(f"{where}: the call", value)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, Sequence) or isinstance(calls, str) or not calls:
        raise DataError(f"{where}: tool_calls is a {type(calls).__name__}, not a list of calls")
    return [_call(where, call) for call in calls]


def _call(where: str, call: Any) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{where}: a call that names no function")
    arguments = function.get("arguments")
    if arguments is None:
        arguments = function.get("parameters", {})  # Llama's name
    arguments = from_json(f"{where}: the arguments of {function['name']}", arguments)
    if not isinstance(arguments, Mapping):
        raise DataError(
            f"{where}: the arguments of {function['name']} are a {type(arguments).__name__}, not "
            "a JSON object"
        )
    made: ToolCall = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    if isinstance(call.get("id"), str) and call["id"]:
        made["id"] = call["id"]
    return made


def from_json(where: str, value: Any) -> Any:
    """The value that a JSON text is; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        found = plain_json(value)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if suspect(value):
        refuse_unwritable(where, found)
    return found
