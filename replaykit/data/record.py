"""The one currency: a Record is a conversation, where it came from, and what is known about it.

    {"id": "3f0c…",
     "messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
     "source": "target", "meta": {"line": 1}}

A turn may carry what chat data carries, under the names of OpenAI's API and of transformers'
chat templates: the thought before an answer, tool calls, the result of one.

    {"role": "assistant", "content": "", "reasoning_content": "I need the weather.",
     "tool_calls": [{"type": "function", "function": {"name": "weather",
                                                      "arguments": {"city": "Oslo"}}}]}
    {"role": "tool", "content": "7 C", "name": "weather"}

Nothing edits a record: ``dataclasses.replace`` makes the next one, and its meta names the parent.
Between steps records are JSON Lines; ``datasets.Dataset`` appears only at the edges: in
``replaykit.data.dataset``, and where a data set is read from the Hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal, NotRequired, TypedDict, cast, get_args

from replaykit.hashing import fingerprint

Source = Literal["target", "select", "generate", "buffer", "rewrite", "augment", "describe"]
Role = Literal["system", "developer", "user", "assistant", "tool", "text"]
SOURCES: tuple[str, ...] = get_args(Source)
TARGET: Final = "target"  # the source of the new task's rows, and the name of the new skill

ROLES: tuple[str, ...] = get_args(Role)
Tool = Mapping[str, Any]
"""A function that the model may call: {"type": "function", "function": {"name", "description",
"parameters"}}, the parameters as a JSON schema."""


class Function(TypedDict):
    """What is called, and with what."""

    name: str
    arguments: Mapping[str, Any]


class ToolCall(TypedDict):
    """One call of a tool by the model."""

    type: Literal["function"]
    function: Function
    id: NotRequired[str]


class Message(TypedDict):
    """One turn. A key that says nothing is absent: no turn has an empty thought or no calls."""

    role: Role
    content: str
    """"" where an answer is only calls."""
    reasoning_content: NotRequired[str]
    """The thought before an answer, without the marks around it."""
    tool_calls: NotRequired[Sequence[ToolCall]]
    """What an answer calls."""
    tool_call_id: NotRequired[str]
    """Of a turn of role "tool": the call that it answers."""
    name: NotRequired[str]
    """Of a turn of role "tool": the function."""
    weight: NotRequired[Literal[0]]
    """Of an answer: it is shown to the model and carries no loss."""


@dataclass(frozen=True)
class Record:
    """A conversation with its origin.

    A plain text without a conversation is one message of role "text". ``meta`` is what else is
    known, any JSON. ``tools`` are those that the model is told of.
    """

    messages: tuple[Message, ...]
    source: Source
    meta: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of the messages and tools: equal conversations have equal ids."""
        messages = [dict(message) for message in self.messages]
        if self.tools:
            return fingerprint({"messages": messages, "tools": [dict(tool) for tool in self.tools]})
        return fingerprint(messages)

    @property
    def prompt(self) -> str:
        """The last user message, or "" where there is none, as in a plain text."""
        return self._last("user")

    @property
    def question(self) -> str:
        """What the record is compared by: its last question, or a plain text itself."""
        return self.questions[-1]

    @property
    def questions(self) -> list[str]:
        """All questions of the conversation in order, at least one.

        Of one in which nobody asks it is what it ends with. An empty question stays empty: what
        answers it is no question.
        """
        asked = [message["content"] for message in self.messages if message["role"] == "user"]
        return asked or [self.messages[-1]["content"]]

    @property
    def all_questions(self) -> str:
        """All questions of the conversation, one a line, or a plain text itself."""
        return "\n".join(self.questions)

    @property
    def was_cut(self) -> bool:
        """Whether the model's last words were cut at a token limit, so that their end is not
        known: replaykit notes it in the rows that it writes.
        """
        return self.meta.get(FINISH) == "length"

    @property
    def answer(self) -> str:
        """The last assistant message, or "" where there is none."""
        return self._last("assistant")

    def _last(self, role: str) -> str:
        return next((m["content"] for m in reversed(self.messages) if m["role"] == role), "")

    def to_json(self) -> dict[str, Any]:
        """The record as it stands on one line of a JSONL file."""
        row = {"id": self.id, "messages": [dict(message) for message in self.messages]}
        if self.tools:
            row["tools"] = [dict(tool) for tool in self.tools]
        return {**row, "source": self.source, "meta": dict(self.meta)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Record:
        """The record of such a line. Raises KeyError or TypeError for a row that is none."""
        tools = tuple(row.get("tools", ()))
        return cls(tuple(row["messages"]), row["source"], row.get("meta", {}), tools)


# --- what a step finds out about a record ---------------------------------------------------------

COLUMNS = "columns"
"""The key of a meta under which the user's columns stand whose names a step needs for itself."""


FINISH = "finish"
"""The key of a meta that says how the last words of a generated row ended; see ``Record.was_cut``.
A user's column of this name stands under ``COLUMNS``."""


MASKED = "masked"
"""The key of a meta that says that training masks the row's most surprising tokens."""


def is_masked(record: Record) -> bool:
    """Whether ``rewrite`` marked the row so, which ``mix`` takes for a row of the target; a user's
    column of that name says nothing.
    """
    meta = record.meta
    return meta.get(MASKED) is True and meta.get("path") == "reference" and "parent" in meta


def apart(meta: Mapping[str, Any], names: Iterable[str], under: str = COLUMNS) -> dict[str, Any]:
    """The meta with what it has under these names moved to a meta of its own, under the key
    ``under``, so that a step can use the names and nothing of the user's is lost.

    >>> apart({"line": 3, "score": "good"}, ["rank", "score"])
    {'line': 3, 'columns': {'score': 'good'}}
    """
    same = {name: meta[name] for name in names if name in meta}
    if not same:
        return dict(meta)
    if under in meta and under not in same:
        before = meta[under]
        # What was moved first is the user's.
        same |= before if isinstance(before, Mapping) else {under: before}
    kept = {name: value for name, value in meta.items() if name not in same}
    return kept | {under: same}


def noted(record: Record, **facts: Any) -> Record:
    """The record with what a step found out about it in its meta; see ``apart``."""
    return replace(record, meta={**apart(record.meta, facts), **facts})


def column_of(record: Record, name: str, default: Any = None) -> Any:
    """The user's value of a column, wherever it stands in the meta."""
    moved = record.meta.get(COLUMNS)
    if isinstance(moved, Mapping) and name in moved:
        return moved[name]
    return record.meta.get(name, default)


# --- messages -------------------------------------------------------------------------------------


def says_nothing(message: Message) -> bool:
    """Whether a turn has neither words nor, as an answer may have alone, a thought or calls."""
    if message["content"].strip():
        return False
    return not message.get("reasoning_content") and not message.get("tool_calls")


def emptiness(record: Record) -> str | None:
    """ "empty_answer" or "empty_prompt" for a record with an answer that carries loss and says
    nothing, or that follows a question that says nothing; else None.
    """
    asked: Message | None = None
    for message in record.messages:
        if message["role"] not in ("assistant", "text"):
            asked = message
            continue
        if message.get("weight") == 0:
            continue
        if says_nothing(message):
            return "empty_answer"
        if asked is not None and asked["role"] == "user" and says_nothing(asked):
            return "empty_prompt"
    return None


def dialogue(
    prompt: str, answer: str | None = None, *, system: str | None = None
) -> tuple[Message, ...]:
    """The messages of one exchange; without an answer they end with the question."""
    turns = [("system", system), ("user", prompt), ("assistant", answer)]
    return tuple(message_of(role, text) for role, text in turns if text is not None)


def up_to_question(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages without the answers that they end with; none where all are answers."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return tuple(messages[:end])


def message_of(role: str, content: str) -> Message:
    """A turn of words alone."""
    return {"role": cast(Role, role), "content": content}
