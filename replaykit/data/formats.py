"""A row of any common format as a Record.

    {"instruction": "Add", "input": "2 and 2", "output": "4"}
    ->  user: "Add\\n\\n2 and 2", assistant: "4"

Columns are recognised by the names that each format's own documentation gives them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from replaykit.data.columns import CONVERSATIONS, MEDIA, PAIRS, PASSAGES, QUESTIONS, SYSTEMS, TOOLS
from replaykit.data.files import Hub, Row, Unparsed, raw_rows, tell, text_lines
from replaykit.data.record import SOURCES, Message, Record, Source, Tool, message_of, up_to_question
from replaykit.data.turns import answer_of, calls_of, from_json, no_text, tools_of, turns_of
from replaykit.errors import DataError, did_you_mean

FIELD = re.compile(r"\{([^{}]+)\}")
ABOUT = ("input", *PASSAGES)
"""Columns with what a question is about."""
BESIDE = (*SYSTEMS, "history", *TOOLS)
"""Columns with what stands around a question and its answer."""
T = TypeVar("T")


@dataclass(frozen=True)
class Columns:
    """Which columns hold the question and the answer; without names, they are recognised."""

    prompt: str | None = None
    """A column, or a template of several: ``{premise}\\n{hypothesis}``."""
    answer: str | None = None
    """A column, or a template."""
    labels: Sequence[str] | Mapping[int | str, str] | None = None
    """The words for the values of ``answer``: for 0, 1, ..., or for each value."""
    preferred: Literal["chosen"] | None = None
    """The answer that is read of a row with a chosen and a rejected one."""


RECOGNISED = Columns()


class _Found(NamedTuple):
    """What a row holds, and the columns that it was in."""

    columns: tuple[str, ...]
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


def read_records(
    path: str | Path,
    source: Source,
    *,
    columns: Columns | None = None,
    split: str = "train",
    hub: Hub | None = None,
    skip: int = 0,
    limit: int | None = None,
    unparsed: Unparsed | None = None,
) -> Iterator[Record]:
    """The records of a file, of a folder's files in order of name, or of a Hub data set, in order.

    Columns are recognised: messages, conversations (ShareGPT), instruction/input/output/history
    (Alpaca), prompt/completion, question/answer, text, and others (``data/columns.py``);
    ``columns`` names others. Every other column that is not null goes to ``meta``, and so does the
    line number. Raises DataError, naming file and line, for a row that is none of these; with
    ``unparsed``, that is called with the place and the error instead, and the row is passed over.
    """
    rows = raw_rows(path, split=split, hub=hub, unparsed=unparsed)
    for place, row in _part(rows, skip, limit):
        try:
            record = record_of(place, row, source, columns)
        except DataError as error:
            tell(unparsed, place, error)
            continue
        yield record


def read_prompts(
    path: str | Path,
    *,
    prompt: str | None = None,
    split: str = "train",
    hub: Hub | None = None,
    skip: int = 0,
    limit: int | None = None,
) -> Iterator[Record]:
    """Conversations that end with a question: rows as ``read_records`` takes them, less the answer.

    A row needs no answer; the column is ``prompt``, or the first there is of prompt, question,
    query, instruction, inputs and text. Every other column goes to ``meta``, as above. A .txt file
    has a question on each line.
    """
    if Path(path).suffix.lower() == ".txt":
        rows = text_lines(Path(path))
    else:
        rows = raw_rows(path, split=split, hub=hub)
    for place, row in _part(rows, skip, limit):
        yield prompt_of(place, row, prompt)


def prompt_of(place: str, row: Row, prompt: str | None = None) -> Record:
    """One row as ``read_prompts`` reads it; ``place`` as of ``record_of``."""
    present = _present(row)
    own = None
    if prompt is None:
        own = _own(row)
    found = _asked(place, present, prompt)
    if not found.messages or not found.messages[-1]["content"].strip():
        raise DataError(f"{place}: there is no question in this row")
    meta: Mapping[str, Any] = _others(present, found.columns)
    if own is not None:
        meta = own.meta
    return Record(found.messages, "generate", {**meta, "line": _line(place)}, found.tools)


def _part(rows: Iterator[T], skip: int, limit: int | None) -> Iterator[T]:
    """``limit`` rows after the first ``skip``; without a limit all of them."""
    if limit is None:
        return islice(rows, skip, None)
    return islice(rows, skip, skip + limit)


def _line(place: str) -> int:
    """The line number at the end of a place, such as ``old.jsonl:12``."""
    return int(place.rpartition(":")[2])


def record_of(place: str, row: Row, source: Source, columns: Columns | None = None) -> Record:
    """One row as ``read_records`` reads it.

    ``place`` is what an error names, with the row's number behind a colon: ``pool.jsonl:7``.
    """
    line = {"line": _line(place)}
    named = columns or RECOGNISED
    if named.prompt is None and named.answer is None:
        own = _own(row)
        if own is not None:
            return Record(own.messages, source, {**own.meta, **line}, own.tools)
    elif named.prompt is None or named.answer is None:
        raise DataError("prompt and answer are given together: the names of the two columns")
    present = _present(row)
    found = _read(place, row, present, named)
    return Record(found.messages, source, _others(present, found.columns) | line, found.tools)


def _present(row: Row) -> dict[str, Any]:
    """The columns that say something: null and NaN, as tables write it, are absent."""
    return {
        name: value
        for name, value in row.items()
        if value is not None and not (isinstance(value, float) and value != value)
    }


def _others(row: Row, used: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in used}


def _own(row: Row) -> Record | None:
    """The record of a row that replaykit wrote, known by its id; None for any other row.

    In a Dataset, turns have null for what they lack; meta, tools and the arguments of a call are
    JSON text.
    """
    if not {"id", "source", "messages"} <= row.keys() or row["source"] not in SOURCES:
        return None
    turns = row["messages"]
    if not _is_list(turns) or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    try:
        messages = tuple(_own_turn(turn) for turn in turns)
        tools = from_json("tools", row.get("tools") or ())
        meta = from_json("meta", row.get("meta") or {})
        record = Record(messages, row["source"], meta, tuple(tools))
        if record.id == row["id"] and isinstance(meta, Mapping):
            return record
    except (DataError, TypeError, ValueError):
        return None  # these are the user's own columns, which happen to have our names
    return None


def _own_turn(turn: Mapping[str, Any]) -> Message:
    said = {key: value for key, value in turn.items() if value is not None}
    if "tool_calls" in said:
        said["tool_calls"] = calls_of("an answer", said["tool_calls"])
    return said  # type: ignore[return-value]


# --- the formats ----------------------------------------------------------------------------------


def _read(place: str, row: Row, present: Row, named: Columns) -> _Found:
    """The conversation in a row, by the columns that are named or by those that it has."""
    if named.prompt is not None and named.answer is not None:
        return _named(place, row, named)
    if "chosen" not in present or "rejected" not in present:
        found = _recognise(place, row, present)
    elif any(name in present for name in CONVERSATIONS):
        found = _recognise(place, row, present)  # the conversation is what was chosen
    else:
        found = _preferred(place, present, named)
    if _is_undesired(present, found.columns) and found.messages[0]["role"] != "text":
        raise DataError(
            f"{place}: an undesirable answer (label: false); leave such rows out, or they would be "
            "trained as good ones"
        )
    return found


def _is_undesired(row: Row, columns: Sequence[str]) -> bool:
    """Whether a row says that its answer is a bad one, as KTO's do."""
    if "label" not in row and "kto_tag" not in row:
        return False
    for name in ("label", "kto_tag"):  # TRL and ms-swift; LLaMA-Factory
        value = row.get(name)
        if value is False and name not in columns:
            return True
        # A table of text has the word.
        if isinstance(value, str) and value.lower() == "false" and "completion" in columns:
            return True
    return False


def _recognise(place: str, row: Row, present: Row) -> _Found:
    """The conversation of a row, by the names of the columns that say something."""
    for column in CONVERSATIONS:
        if column in present:
            turns = _turn_list(place, column, present[column])
            if turns is not None:
                _refuse_media(place, present, str(turns))
                messages = turns_of(place, turns)
                return _with_beside(place, present, _Found((column,), messages), ())
    for prompt, answer in PAIRS:
        if prompt in present and answer in present:
            return _pair(place, present, prompt, answer)
    if "text" in present and "label" in present:
        raise DataError(
            f"{place}: text with a label; `prompt: text` and `answer: label` beside the path make "
            "it a question with its answer, and `labels: [World, Sports, ...]` says the word for "
            "each number"
        )
    if "text" in present:
        return _Found(("text",), (message_of("text", _string(place, present, "text")),))
    raise _unrecognised(place, row, present)


def _unrecognised(place: str, row: Row, present: Row) -> DataError:
    for prompt, answer in PAIRS:
        if prompt in row and answer in row and (prompt in present or answer in present):
            empty = answer if prompt in present else prompt
            return DataError(f"{place}: '{empty}' is NoneType, not text")
    for column in (*CONVERSATIONS, "text"):
        if column in row and not present.keys() & {*QUESTIONS}:
            kind = type(row[column]).__name__
            return DataError(f"{place}: '{column}' is {kind}, no conversation and no text")
    labels = ""
    if "label" in present:
        labels = "; `labels: [no, yes, ...]` says the word for each number of an answer"
    return DataError(
        f"{place}: no messages, conversations, instruction/output, prompt/completion, "
        f"question/answer or text among the columns {sorted(map(str, present))}; `prompt: NAME` "
        f'and `answer: NAME` beside the path say which to use, and `prompt: "{{a}} {{b}}"` joins '
        f"several{labels}"
    )


def _turn_list(place: str, column: str, value: Any) -> Sequence[Any] | None:
    """The turns that a column holds, as a list or as its JSON text; None where it holds none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = from_json(f"{place}: '{column}'", value)
    if _is_list(value):
        return list(value)
    return None


def _pair(place: str, row: Row, prompt: str, answer: str) -> _Found:
    """A question and its answer, either of which may also be a list of turns."""
    _refuse_media(place, row, str(row[prompt]))
    thought = row.get("reasoning_content")
    if _is_list(row[prompt]):
        used: tuple[str, ...] = (prompt, answer)
        asked = turns_of(place, row[prompt])
    else:
        question, used = _question(place, row, prompt)
        used = (*used, answer)
        asked = (message_of("user", question),)
    if _is_list(row[answer]):
        messages = turns_of(place, [*asked, *row[answer]])
    else:
        text = _string(place, row, answer)
        messages = (*asked, answer_of(place, text, thought))
        used = (*used, "reasoning_content")
    return _with_beside(place, row, _Found((prompt, answer), messages), used)


def _question(place: str, row: Row, prompt: str) -> tuple[str, tuple[str, ...]]:
    """The question with the passage that it is about, and the columns of both.

    An instruction's input stands behind it, as in Alpaca and Dolly; a question's passage before.
    """
    question = _string(place, row, prompt)
    if row.keys().isdisjoint(ABOUT):
        return question, (prompt,)
    if prompt == "instruction":
        parts = [question, *(_passage(place, row, name) for name in ("input", "context"))]
        used: tuple[str, ...] = (prompt, "input", "context")
    else:
        parts = [*(_passage(place, row, name) for name in PASSAGES), question]
        used = (*PASSAGES, prompt)
    return "\n\n".join(part for part in parts if part is not None), used


def _passage(place: str, row: Row, column: str) -> str | None:
    """The text of a passage, or of a list of passages; None where there is none."""
    value = row.get(column)
    if not value:
        return None
    if _is_list(value) and all(isinstance(part, str) for part in value):
        return "\n\n".join(value)
    return _string(place, row, column)


def _with_beside(place: str, row: Row, found: _Found, used: tuple[str, ...]) -> _Found:
    """The conversation with what stands beside it: system message, history, tools."""
    columns = (*found.columns, *used)
    if row.keys().isdisjoint(BESIDE):
        return _Found(columns, found.messages)
    before: list[Message] = []
    for column in SYSTEMS:
        if not row.get(column) or before:
            continue
        system = message_of("system", _string(place, row, column))
        columns = (*columns, column)
        own = [m for m in found.messages if m["role"] == "system"]
        if own and own[0]["content"] != system["content"]:
            raise DataError(f"{place}: '{column}' and the conversation's own system message differ")
        if not own and not before:
            before.append(system)
    if "history" in row and (used or "query" in found.columns):
        before += _history(place, row["history"])
        columns = (*columns, "history")
    tools: tuple[Tool, ...] = ()
    for column in TOOLS:
        if row.get(column) and not tools:
            tools = tools_of(place, row[column])
            columns = (*columns, column)
    return _Found(columns, (*before, *found.messages), tools)


def _history(place: str, value: Any) -> list[Message]:
    """The turns before the question: pairs of question and answer, or turns as objects."""
    value = from_json(f"{place}: history", value) if value else []
    if not _is_list(value):
        raise DataError(f"{place}: history is a list of [question, answer] pairs")
    messages: list[Message] = []
    for pair in value:
        if isinstance(pair, Mapping):
            messages += turns_of(f"{place}: history", [pair])
            continue
        if not _is_list(pair) or len(pair) != 2:
            raise DataError(f"{place}: history is a list of [question, answer] pairs")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if text is None or text != text:  # NaN
                continue
            messages += turns_of(f"{place}: history", [{"role": role, "content": text}])
    return messages


def _refuse_media(place: str, row: Row, text: str) -> None:
    """Raises DataError for a row whose question shows something that is no text.

    A single ``image`` beside words is shown where they hold its mark, as in LLaVA's rows.
    """
    if row.keys().isdisjoint(MEDIA):
        return
    for column, kind in MEDIA.items():
        value = row.get(column)
        if column not in row or (_is_list(value) and not value) or value == "":
            continue
        if column != kind or f"<{kind}>" in text:
            raise no_text(f"{place}: '{column}'", kind)


def _preferred(place: str, row: Row, named: Columns) -> _Found:
    """The chosen answer of a row with a chosen and a rejected one, if the recipe asks for it."""
    if named.preferred is None:
        raise DataError(
            f"{place}: a chosen and a rejected answer; `preferred: chosen` beside the path reads "
            "the chosen one"
        )
    chosen = row["chosen"]
    prompt = next((name for name in QUESTIONS if name in row), None)
    if prompt is not None and _is_list(chosen) and _is_list(row[prompt]):
        turns = list(chosen)
        # UltraFeedback's chosen answer repeats the question.
        if list(row[prompt]) != turns[: len(row[prompt])]:
            turns = [*row[prompt], *turns]
        found = _Found((prompt, "chosen"), turns_of(place, turns))
        return _with_beside(place, row, found, ())
    if _is_list(chosen) and (prompt is None or len(chosen) > 1):
        used = () if prompt is None else (prompt,)
        return _with_beside(place, row, _Found(("chosen",), turns_of(place, chosen)), used)
    if prompt is None:
        raise DataError(
            f"{place}: 'chosen' is text and no column has its question; `prompt: NAME` and "
            "`answer: chosen` beside the path say where it is"
        )
    return _pair(place, row, prompt, "chosen")


# --- named columns --------------------------------------------------------------------------------


def _named(place: str, row: Row, named: Columns) -> _Found:
    """The columns that the recipe names, or templates of columns."""
    assert named.prompt is not None and named.answer is not None
    if _is_list(row.get(named.prompt)):
        columns: tuple[str, ...] = (named.prompt,)
        turns = list(row[named.prompt])
    else:
        question, columns = _filled(place, row, named.prompt)
        turns = [{"role": "user", "content": question}]
    if named.labels is None and _is_list(row.get(named.answer)):
        messages = turns_of(place, [*turns, *row[named.answer]])
        return _Found((*columns, named.answer), messages)
    if named.labels is not None:
        answer = _labelled(place, row, named.answer, named.labels)
        used: tuple[str, ...] = (named.answer,)
    else:
        answer, used = _filled(place, row, named.answer)
    reply = answer_of(f"{place}: '{named.answer}'", answer)
    return _Found((*columns, *used), (*turns_of(place, turns), reply))


def _filled(place: str, row: Row, name: str) -> tuple[str, tuple[str, ...]]:
    """The text of a column, or of a template with columns in braces, and the columns."""
    names = FIELD.findall(name)
    if name in row or not names:
        return _string(place, row, name), (name,)
    for column in names:
        value = row.get(column)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            _string(place, row, column)  # raises DataError for what is no text
    return FIELD.sub(lambda field: str(row[field.group(1)]), name), tuple(names)


def _labelled(place: str, row: Row, column: str, labels: Any) -> str:
    """The word for a label: a number counts the words from 0; a map names its values."""
    value = row.get(column)
    if column not in row or value is None:
        return _string(place, row, column)  # raises DataError, which names the columns
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if not isinstance(value, (str, int)):
        word = None
    elif isinstance(labels, Mapping):
        word = {str(key): word for key, word in labels.items()}.get(str(value))
    else:
        number = int(value) if re.fullmatch(r"\d{1,9}", str(value)) else -1
        word = labels[number] if 0 <= number < len(labels) else None
        if word is None and value in labels:
            word = value
    if word is None:
        raise DataError(f"{place}: '{column}' is {value!r}, for which `labels` has no word")
    return str(word)


def _asked(place: str, row: Row, prompt: str | None) -> _Found:
    """The conversation of a row up to its last question."""
    column = prompt or None
    if column is not None and not _is_list(row.get(column)):
        question, used = _filled(place, row, column)
        return _Found(used, (message_of("user", question),))
    if column is None and not any(name in row for name in CONVERSATIONS):
        column = next((name for name in QUESTIONS if isinstance(row.get(name), str)), None)
        if column is not None:
            question, used = _question(place, row, column)
            found = _Found((column,), (message_of("user", question),))
            return _with_beside(place, row, found, used)
    if column is not None:
        found = _with_beside(place, row, _Found((column,), turns_of(place, row[column])), ())
    else:
        found = _recognise(place, row, row)
    return _Found(found.columns, up_to_question(found.messages), found.tools)


def _is_list(value: Any) -> bool:
    # Most values are texts, and to ask whether one is a Sequence takes long.
    return not isinstance(value, (str, bytes)) and isinstance(value, Sequence)


def _string(place: str, row: Row, column: str) -> str:
    value = row.get(column)
    if column not in row:
        near = did_you_mean(column, [str(name) for name in row])
        raise DataError(f"{place}: no column '{column}' among {sorted(map(str, row))}{near}")
    if isinstance(value, (int, float)):
        raise DataError(
            f"{place}: '{column}' is {type(value).__name__}, not text; where it is a label, "
            "`labels: [first, second, ...]` beside the path says the word for each number"
        )
    if not isinstance(value, str):
        raise DataError(f"{place}: '{column}' is {type(value).__name__}, not text")
    return value
