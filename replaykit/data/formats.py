"""A row of any common format as a Record.

    {"instruction": "Add", "input": "2 and 2", "output": "4"}
    ->  user: "Add\\n\\n2 and 2", assistant: "4"

Columns are recognised by the names that each format's own documentation gives them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from replaykit.data.files import Row, Unparsed, raw_rows, tell, text_lines
from replaykit.data.record import Message, Record, Source, dialogue, message_of
from replaykit.errors import DataError

CONVERSATIONS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "query", "instruction", "text")
ALPACA = ("instruction", "input", "output", "history", "system")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
)
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
OWN = ("id", "source", "meta")  # columns that replaykit itself writes, beside messages
T = TypeVar("T")


def read_records(
    path: str | Path,
    source: Source,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    split: str = "train",
    skip: int = 0,
    limit: int | None = None,
    unparsed: Unparsed | None = None,
) -> Iterator[Record]:
    """The records of a file, of a folder's files in order of name, or of a Hub data set, in order.

    Columns are recognised: messages, conversations (ShareGPT), instruction/input/output/history
    (Alpaca), prompt/completion, question/answer, text; ``prompt`` and ``answer`` name others. Every
    other column goes to ``meta``, and so does the line number. Raises DataError, naming file and
    line, for a row that is none of these; with ``unparsed``, that is called with the place and the
    error instead, and the row is passed over.
    """
    rows = raw_rows(path, split=split, unparsed=unparsed)
    for place, row in _part(rows, skip, limit):
        try:
            record = record_of(place, row, source, prompt, answer)
        except DataError as error:
            tell(unparsed, place, error)
            continue
        yield record


def read_prompts(
    path: str | Path,
    *,
    prompt: str | None = None,
    split: str = "train",
    skip: int = 0,
    limit: int | None = None,
) -> Iterator[Record]:
    """Conversations that end with a question: rows as ``read_records`` takes them, less the answer.

    A row needs no answer; the column is ``prompt``, or the first there is of prompt, question,
    query, instruction and text. A .txt file has a question on each line.
    """
    if Path(path).suffix.lower() == ".txt":
        rows = text_lines(Path(path))
    else:
        rows = raw_rows(path, split=split)
    for place, row in _part(rows, skip, limit):
        messages = _asked(place, row, prompt)
        if not messages or not messages[-1]["content"].strip():
            raise DataError(f"{place}: there is no question in this row")
        yield Record(messages, "generate", {"line": _line(place)})


def _part(rows: Iterator[T], skip: int, limit: int | None) -> Iterator[T]:
    """``limit`` rows after the first ``skip``; without a limit all of them."""
    if limit is None:
        return islice(rows, skip, None)
    return islice(rows, skip, skip + limit)


def _line(place: str) -> int:
    """The line number at the end of a place, such as ``old.jsonl:12``."""
    return int(place.rpartition(":")[2])


def record_of(
    place: str, row: Row, source: Source, prompt: str | None = None, answer: str | None = None
) -> Record:
    """One row as ``read_records`` reads it.

    ``place`` is what an error names, with the row's number behind a colon: ``pool.jsonl:7``.
    """
    columns: tuple[str, ...]
    if prompt and answer:
        columns = (prompt, answer)
        messages = _pair(place, row, prompt, answer)
    elif prompt or answer:
        raise DataError("prompt and answer are given together: the names of the two columns")
    else:
        columns, messages = _recognise(place, row)
    used = (*columns, *OWN)
    meta = {column: value for column, value in row.items() if column not in used}
    meta |= _own_meta(place, row)
    return Record(messages, source, meta | {"line": _line(place)})


def _own_meta(place: str, row: Row) -> Mapping[str, Any]:
    """The meta of a row that replaykit wrote: an object in JSONL, its JSON text in a Dataset."""
    own = row.get("meta")
    if isinstance(own, str) and {"id", "source", "messages"} <= row.keys():
        try:
            own = json.loads(own)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: meta is not JSON ({error})") from error
    if isinstance(own, Mapping):
        return own
    return {}


# --- the formats ----------------------------------------------------------------------------------


def _recognise(place: str, row: Row) -> tuple[tuple[str, ...], tuple[Message, ...]]:
    """The columns that hold the conversation, and the conversation."""
    for column in CONVERSATIONS:
        if _is_list(row.get(column)):
            return (column,), _turns(place, row[column])
    if "instruction" in row and "output" in row:
        return ALPACA, _alpaca(place, row)
    for prompt, answer in PAIRS:
        if prompt in row and answer in row:
            return (prompt, answer), _pair(place, row, prompt, answer)
    if "text" in row:
        return ("text",), ({"role": "text", "content": _string(place, row, "text")},)
    raise DataError(
        f"{place}: no messages, conversations, instruction/output, prompt/completion, "
        f"question/answer or text among "
        f"the columns {sorted(row)}; `prompt: NAME` and `answer: NAME` beside the path say which "
        f"to use"
    )


def _asked(place: str, row: Row, prompt: str | None) -> tuple[Message, ...]:
    """The conversation of a row up to its last question."""
    column = prompt or None
    if column is None and not any(name in row for name in CONVERSATIONS):
        column = next((name for name in PROMPTS if isinstance(row.get(name), str)), None)
    if column is not None:
        question = _string(place, row, column)
        if column == "instruction":
            question = _with_input(question, row)
        return dialogue(question)
    _, messages = _recognise(place, row)
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return messages


def _pair(place: str, row: Row, prompt: str, answer: str) -> tuple[Message, ...]:
    """A question and its answer, either of which may also be a list of turns."""
    if not _is_list(row.get(prompt)):
        return dialogue(_string(place, row, prompt), _string(place, row, answer))
    reply: Any = row.get(answer)
    if not _is_list(reply):
        reply = [{"role": "assistant", "content": _string(place, row, answer)}]
    return _turns(place, [*row[prompt], *reply])


def _alpaca(place: str, row: Row) -> tuple[Message, ...]:
    question = _with_input(_string(place, row, "instruction"), row)
    messages: list[Message] = []
    if row.get("system"):
        messages.append({"role": "system", "content": str(row["system"])})
    for pair in row.get("history") or []:
        if not (isinstance(pair, Sequence) and len(pair) == 2):
            raise DataError(f"{place}: history is a list of [question, answer] pairs")
        messages += dialogue(str(pair[0]), str(pair[1]))
    messages += dialogue(question, _string(place, row, "output"))
    return tuple(messages)


def _with_input(instruction: str, row: Row) -> str:
    """An instruction of Alpaca with the input that it is about, if there is one."""
    if not row.get("input"):
        return instruction
    return f"{instruction}\n\n{row['input']}"


def _turns(place: str, turns: Sequence[Any]) -> tuple[Message, ...]:
    made: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise DataError(
                f"{place}: turn {number} is a {type(turn).__name__}, not an object with role and "
                f"content"
            )
        # ShareGPT says "from" and "value".
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if _is_list(content):
            # Parts, as multimodal data has them; of an image there is no text.
            content = "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
        known = "text" if role == "text" else SHAREGPT_ROLES.get(str(role))
        if known is None or not isinstance(content, str):
            raise DataError(
                f"{place}: turn {number} has role {role!r} and content of {type(content).__name__}"
            )
        made.append(message_of(known, content))
    if not made:
        raise DataError(f"{place}: a conversation without turns")
    return tuple(made)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _string(place: str, row: Row, column: str) -> str:
    value = row.get(column)
    if column not in row:
        raise DataError(f"{place}: no column '{column}' among {sorted(row)}")
    if not isinstance(value, str):
        raise DataError(f"{place}: '{column}' is {type(value).__name__}, not text")
    return value
