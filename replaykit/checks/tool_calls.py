"""Whether an answer calls the tools that its reference calls.

    found      add(b=2.0, a=1), weather(city="Oslo")
    reference  weather(city="Oslo"), add(a=1, b=2)      lenient: right; strict: the order differs

As in the Berkeley Function-Calling Leaderboard (BFCL), calls are compared as what they are and not
as text: each call of the reference needs one of its own, their order does not matter, an integer
passes for the equal float, the order within a list does matter, and where nothing is to be called,
nothing may be (gorilla, bfcl_eval/eval_checker/ast_eval/ast_checker.py at b640d30). Three things
differ. BFCL's references list several right values of an argument, and which arguments may be left
out; ours have the one call of a data set. BFCL folds case and leaves out spaces and ,./-_*^ in
texts; here "a.b" is not "ab". And to BFCL a call that cannot be read calls nothing, which is right
where nothing is to be called; here it is for whoever reads the answer to say that it is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

from replaykit.checks.verify import Readings
from replaykit.data.record import Message


def readings_of_calls(found: Message, reference: Message) -> Readings:
    """Whether an answer's calls are those of the reference, strictly and leniently.

    Leniently: the same names with the same arguments as JSON values, each as often. Strictly: also
    in the same order, and with nothing said in words beside them, unless the reference says
    something. Where the reference calls nothing, both are right if the answer calls nothing,
    whatever it says.
    """
    wanted = _calls(reference)
    try:
        made = _calls(found)
    except RecursionError:
        # A model in a loop writes hundreds of opening brackets.
        return Readings(False, False)
    lenient = Counter(made) == Counter(wanted)
    as_quiet = not wanted or bool(_said(reference)) or not _said(found)
    return Readings(made == wanted and as_quiet, lenient)


def _said(message: Message) -> str:
    return message["content"].strip()


def _calls(message: Message) -> list[Hashable]:
    """Each call as a value that equals another one just where the calls are the same."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return [(call["name"], _value(call["arguments"])) for call in calls]


def _value(value: Any) -> Hashable:
    """A JSON value with its type, so that true is not 1 as it is in Python; 1 is 1.0."""
    match value:
        case Mapping():
            return "object", frozenset((key, _value(part)) for key, part in value.items())
        case list() | tuple():
            return "array", tuple(_value(part) for part in value)
        case bool():
            return "boolean", value
        case _:
            return "other", value
