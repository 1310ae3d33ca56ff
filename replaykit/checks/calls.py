"""Calls of tools that a model wrote: known tools, arguments after their schemas, and nothing that
only begins as a call does.

    call_fault([weather(town="Oslo")], [WEATHER])
    ->  Verdict("invalid_arguments", {"wrong_call": {"name": "weather", "arguments": {...},
                                      "problem": "'city' is a required property"}})
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from replaykit.checks.sieve import Verdict
from replaykit.data.record import Tool, ToolCall
from replaykit.data.tools import name_of, parameters_of, validator_of
from replaykit.model.calls import NAME, CallFormat


def call_fault(calls: Sequence[ToolCall], tools: Sequence[Tool]) -> Verdict | None:
    """Why the calls cannot be kept, with the first one that is wrong; None where they can.

    The schemas of the tools must be valid (``data.tools.fault_of``).
    """
    schemas = {name_of(tool): parameters_of(tool) for tool in tools}
    for call in calls:
        function = call["function"]
        if function["name"] not in schemas:
            offered = f"it was offered {', '.join(schemas)}"
            return _wrong("unknown_tool", call, offered)
        verdict = _verdict(call, schemas[function["name"]])
        if verdict is not None:
            return verdict
    return None


def begins_call(text: str, written: CallFormat, tools: Sequence[Tool]) -> bool:
    """Whether the words of an answer hold a call that could not be read.

    ``text`` has its special tokens. The mark of a call counts at the beginning of a line or behind
    another mark: an answer may speak of marks. A whole call of one of the tools counts anywhere.
    Where calls have no mark, so does an object that begins with the name of such a tool.
    """
    offered = [name_of(tool) for tool in tools]
    if any(call["function"]["name"] in offered for call in written.found(text, tools).calls):
        return True
    marks = [mark for mark in (written.mark, written.around[0], written.after_name) if mark.strip()]
    if not marks:
        opening = f'{{"{written.name_key}":"'
        flat = "".join(text.split()).removeprefix("[")
        if not flat.startswith(opening):
            return False
        name, whole, _ = flat.removeprefix(opening).partition('"')
        return name in offered or (not whole and any(one.startswith(name) for one in offered))
    # Without the name that the format was derived with.
    first, *rest = marks[0].split(NAME)
    word = max([first, *rest], key=len).split()[0]
    place = ""
    if word.startswith(("<", "[")) and first.strip().startswith(word):
        place = r"(?:^|>)\s*"
    return re.search(place + re.escape(word), text, re.MULTILINE) is not None


def _verdict(call: ToolCall, schema: Any) -> Verdict | None:
    """Why the arguments are not after the schema: the best of the reasons."""
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        error = best_match(validator_of(schema).iter_errors(call["function"]["arguments"]))
    except Unresolvable as missing:
        return _wrong("invalid_tool", call, f"its schema refers to {missing.ref}, outside of it")
    except RecursionError:
        return _wrong("invalid_arguments", call, "nested too deep")
    if error is None:
        return None
    place = ".".join(map(str, error.absolute_path))
    return _wrong("invalid_arguments", call, f"{place}: {error.message}".removeprefix(": "))


def _wrong(reason: str, call: ToolCall, problem: str) -> Verdict:
    function = call["function"]
    wrong = {**function, "arguments": dict(function["arguments"]), "problem": problem}
    return Verdict(reason, {"wrong_call": wrong})
