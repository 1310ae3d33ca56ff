"""A row of any common format as a Record.

    {"instruction": "Add", "input": "2 and 2", "output": "4"}
    ->  user: "Add\\n\\n2 and 2", assistant: "4"

Columns are recognised by the names that each format's own documentation gives them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from replaykit.data.columns import (
    ABOUT,
    BESIDE,
    CHOICES,
    CONVERSATIONS,
    LABELS,
    PAIRS,
    PASSAGES,
    QUESTIONS,
    SYSTEMS,
    TOOLS,
    Reading,
    is_empty,
    refuse_lost,
)
from replaykit.data.constrained import INSTRUCTIONS, constrained
from replaykit.data.files import (
    Hub,
    Lines,
    Placed,
    Row,
    Unparsed,
    Unread,
    line_batches,
    line_files,
    raw_rows,
    tell,
    text_lines,
)
from replaykit.data.labelled import word_for, words_for
from replaykit.data.record import (
    FINISH,
    SOURCES,
    Message,
    Record,
    Source,
    Tool,
    apart,
    message_of,
    up_to_question,
)
from replaykit.data.turns import (
    THOUGHTS,
    answer_of,
    calls_of,
    from_json,
    tools_of,
    turns_in,
    turns_of,
)
from replaykit.errors import DataError, did_you_mean

FIELD = re.compile(r"\{([^{}]+)\}")
BATCH_BYTES = 1 << 22  # of text in a batch, after which it ends
MAX_CHOICES = 26
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
    classes: Sequence[str] | None = None
    """The labels of a text classifier, in the order of their numbers; None where the rows are no
    texts with labels."""
    constraints: bool = False
    """Whether a row of IFEval is read, its instructions as its answer (``constrained``). Nobody
    would be trained on such an answer."""


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
) -> Records:
    """The records of a file, of a folder's files in order of name, or of a Hub data set, in order.

    Columns are recognised: messages, conversations (ShareGPT), instruction/input/output/history
    (Alpaca), prompt/completion, question/answer, text, and others (``data/columns.py``);
    ``columns`` names others. Every other column that is not null goes to ``meta``, and so does the
    line number. Raises DataError, naming file and line, for a row that is none of these, or that
    has an image or a part of the question that would be lost (``columns.refuse_lost``); with
    ``unparsed``, that is called with the place and the error instead, and the row is passed over.
    """
    return Records(path, source, columns or RECOGNISED, split, hub, skip, limit, unparsed)


@dataclass
class Records(Iterator[Record]):
    """What ``read_records`` gives: the records one by one, or the rows in ``batches``, of which any
    process can make the records.
    """

    path: str | Path
    source: Source
    columns: Columns
    split: str
    hub: Hub | None
    skip: int
    limit: int | None
    unparsed: Unparsed | None
    _iterator: Iterator[Record] | None = None

    def __next__(self) -> Record:
        if self._iterator is None:
            self._iterator = self._records()
        return next(self._iterator)

    def _records(self) -> Iterator[Record]:
        rows = raw_rows(self.path, split=self.split, hub=self.hub, unparsed=self.unparsed)
        for place, row in _part(rows, self.skip, self.limit):
            try:
                record = record_of(place, row, self.source, self.columns)
            except DataError as error:
                tell(self.unparsed, place, error)
                continue
            yield record

    def batches(self, rows: int) -> Iterator[Batch]:
        """All rows in order, so many at a time. Rows that cannot be read are among their records;
        nobody is told of them.
        """
        files: list[Path] = []
        if not self.skip and self.limit is None:
            files = line_files(self.path, self.split, self.hub)
        for file in files:
            for lines in line_batches(file, rows, BATCH_BYTES):
                yield Batch(lines, self.source, self.columns)
        if files:
            return
        placed = self._placed()
        while some := list(islice(placed, rows)):
            yield Batch(some, self.source, self.columns)

    def _placed(self) -> Iterator[Placed]:
        unread = list[Unread]()

        def note(place: str, error: DataError) -> None:
            unread.append(Unread(place, error))

        rows = raw_rows(self.path, split=self.split, hub=self.hub, unparsed=note)
        for placed in _part(rows, self.skip, self.limit):
            yield from unread
            unread.clear()
            yield placed
        yield from unread


@dataclass(frozen=True)
class Batch:
    """Some rows of a file as they stand there."""

    rows: Lines | Sequence[Placed]
    source: Source
    columns: Columns

    def records(self) -> Iterator[Record | Unread]:
        """Each row as a record, if it can be read."""
        placed = self.rows.rows() if isinstance(self.rows, Lines) else self.rows
        for item in placed:
            if isinstance(item, Unread):
                yield item
                continue
            place, row = item
            try:
                record = record_of(place, row, self.source, self.columns)
            except DataError as error:
                yield Unread(place, error)
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
    unparsed: Unparsed | None = None,
) -> Iterator[Record]:
    """Conversations that end with a question: rows as ``read_records`` takes them, less the answer.

    A row needs no answer; the column is ``prompt``, or the first there is of prompt, question,
    query, instruction, inputs and text. Every other column goes to ``meta``, as above. A .txt file
    has a question on each line. Raises DataError for a row without a question, or calls
    ``unparsed``, as ``read_records`` does.
    """
    if Path(path).suffix.lower() == ".txt":
        rows = text_lines(Path(path), unparsed)
    else:
        rows = raw_rows(path, split=split, hub=hub, unparsed=unparsed)
    for place, row in _part(rows, skip, limit):
        try:
            record = prompt_of(place, row, prompt)
        except DataError as error:
            tell(unparsed, place, error)
            continue
        yield record


def prompt_of(place: str, row: Row, prompt: str | None = None) -> Record:
    """One row as ``read_prompts`` reads it; ``place`` as of ``record_of``."""
    present = _present(row)
    own = None
    if prompt is None:
        own = _own(row)
    found = _asked(place, present, prompt)
    if not found.messages or not found.messages[-1]["content"].strip():
        raise DataError(f"{place}: there is no question in this row")
    reading = _reading(found, prompt)
    refuse_lost(place, present, found.columns, found.messages, reading, answered=False)
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
    if named.classes is not None:
        named = _of_classes(place, row, named)
    if named.constraints:
        row = constrained(place, row)
    if named.prompt is None and named.answer is None:
        own = _own(row)
        if own is not None:
            return Record(own.messages, source, {**own.meta, **line}, own.tools)
    elif named.prompt is None or named.answer is None:
        raise DataError("prompt and answer are given together: the names of the two columns")
    present = _present(row)
    found = _read(place, row, present, named)
    reading = _reading(found, named.prompt)
    refuse_lost(place, present, found.columns, found.messages, reading)
    used = found.columns
    if reading == "template":
        # A list that a template shows stays whole beside it, for a scorer that reads it.
        used = tuple(name for name in used if not _is_list(row.get(name)))
    meta = apart(_others(present, used), [FINISH])
    for name in CHOICES:
        # They are in the question, and which there are cannot be read from there.
        if name in found.columns and not is_empty(present.get(name)):
            meta["choices"] = _choices(place, present, name)
    if named.classes is not None and named.answer in LABELS:
        # By which rows can be drawn, counted and capped.
        meta[named.answer] = found.messages[-1]["content"]
    return Record(found.messages, source, meta | line, found.tools)


def _present(row: Row) -> dict[str, Any]:
    """The columns that say something: null and NaN, as tables write it, are absent."""
    return {
        name: value
        for name, value in row.items()
        if value is not None and not (isinstance(value, float) and value != value)
    }


def _reading(found: _Found, prompt: str | None) -> Reading:
    if found.messages[0]["role"] == "text":
        return "text"
    if prompt is not None:
        return "named" if prompt == found.columns[0] else "template"
    if found.columns[0] in CONVERSATIONS:
        return "conversation"
    return "pair"


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
        return _named(place, row, present, named)
    preference = "chosen" in present and "rejected" in present
    if preference and present.keys().isdisjoint(CONVERSATIONS):
        return _preferred(place, present, named)
    found = _recognise(place, row, present)
    if preference and found.messages[-1]["role"] != "assistant":
        return _preferred(place, present, named)
    return found  # of a preference: the conversation is what was chosen


def _recognise(place: str, row: Row, present: Row) -> _Found:
    """The conversation of a row, by the names of the columns that say something."""
    for column in CONVERSATIONS:
        if column in present:
            turns = _turn_list(place, column, present[column])
            if turns is not None:
                return _with_beside(place, present, _Found((column,), turns_of(place, turns)))
    pairs = [pair for pair in PAIRS if present.keys() >= set(pair)]
    # In a table of rows in several formats, a row says nothing in the columns of the others.
    full = [pair for pair in pairs if not any(is_empty(present[name]) for name in pair)]
    said = [pair for pair in pairs if not all(is_empty(present[name]) for name in pair)]
    is_text = not said and not is_empty(present.get("text"))
    if pairs and not is_text:
        prompt, answer = (full or said or pairs)[0]
        return _pair(place, present, prompt, answer)
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
        labels = '; `labels: ["no", "yes", ...]` says the word for each number of an answer'
    if present.keys() >= set(INSTRUCTIONS):
        labels = "; `score: instructions` beside the path of a test reads its instructions"
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
    columns: tuple[str, ...] = (prompt, answer)
    turns = turns_in(place, row, prompt)
    if turns is not None:
        asked = turns_of(place, turns)
    else:
        question, used = _question(place, row, prompt)
        columns = (*columns, *used)
        asked = (message_of("user", question),)
    said = turns_in(place, row, answer)
    if said is not None:
        messages = turns_of(place, [*(turns or asked), *said])
    else:
        messages = (*asked, answer_of(place, _string(place, row, answer)))
    return _with_beside(place, row, _Found(columns, messages))


def _question(place: str, row: Row, prompt: str) -> tuple[str, tuple[str, ...]]:
    """The question with what it is about, and the columns of both.

    An instruction's input stands behind it, as in Alpaca and Dolly; a question's passage before,
    and the choices behind.
    """
    question = _string(place, row, prompt)
    if row.keys().isdisjoint(ABOUT):
        return question, (prompt,)
    if prompt == "instruction":
        behind = ("input", "context")
        return "\n\n".join((question, *_passages(place, row, behind))), (prompt, *behind)
    # A passage that the question has within it is not said twice, nor are such choices.
    passages = [text for text in _passages(place, row, PASSAGES) if text.strip() not in question]
    text = "\n\n".join((*passages, question))
    for name in CHOICES:
        if not is_empty(row.get(name)):
            text = _with_choices(text, _choices(place, row, name))
    return text, (prompt, *PASSAGES, *CHOICES)


def _passages(place: str, row: Row, columns: Sequence[str]) -> Iterator[str]:
    """The texts of passages; a column may have a list of them."""
    for column in columns:
        value = row.get(column)
        if is_empty(value):
            continue
        if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
            yield "\n\n".join(value)
        else:
            yield _string(place, row, column)


def _choices(place: str, row: Row, column: str) -> dict[str, str]:
    """What may be answered, by its letter; a text that is no list is under ""."""
    value = row[column]
    if isinstance(value, str) and not value.lstrip().startswith(('["', '{"')):
        return {"": value}
    value = from_json(f"{place}: '{column}'", value)
    if isinstance(value, Mapping) and value.keys() == {"text", "label"}:  # ARC
        labels = value["label"]
        texts = value["text"]
        if _is_list(labels) and _is_list(texts) and len(labels) == len(texts):
            value = dict(zip(map(str, labels), texts, strict=True))
    if _is_list(value):
        value = {chr(ord("A") + number): text for number, text in enumerate(value)}
    found = {}
    if isinstance(value, Mapping):
        found = {letter: text for letter, text in value.items() if text is not None}
    fit = all(isinstance(c, (str, int, float)) and not isinstance(c, bool) for c in found.values())
    if not found or len(found) > MAX_CHOICES or not fit:
        raise DataError(f"{place}: '{column}' is no list of at most {MAX_CHOICES} texts")
    return {str(letter): str(text) for letter, text in found.items()}


def _with_choices(question: str, choices: Mapping[str, str]) -> str:
    """The question, and each choice on a line with its letter, as in MMLU."""
    if all(_is_shown(letter, text, question) for letter, text in choices.items()):
        return question
    return f"{question}\n{_lettered(choices)}"


def _is_shown(letter: str, text: str, question: str) -> bool:
    mark = re.escape(letter)
    bare = re.sub(rf"^\W?{mark}\W\s*", "", text)
    return re.search(rf"{mark}\W{{0,3}}{re.escape(bare)}", question) is not None


def _lettered(choices: Mapping[str, str]) -> str:
    if all(re.match(rf"\W?{re.escape(letter)}\W", text) for letter, text in choices.items()):
        return "\n".join(choices.values())  # they have their letters
    return "\n".join(f"{letter}. {text}" if letter else text for letter, text in choices.items())


def _with_beside(place: str, row: Row, found: _Found) -> _Found:
    """The conversation with what stands beside it: system message, history, tools, a thought."""
    found = _with_thought(place, row, found)
    if row.keys().isdisjoint(BESIDE):
        return found
    left = {name: row[name] for name in BESIDE if row.get(name) and name not in found.columns}
    columns = found.columns
    before: list[Message] = []
    system = next((name for name in SYSTEMS if name in left), None)
    if system is not None:
        message = message_of("system", _string(place, row, system))
        columns = (*columns, system)
        own = [m for m in found.messages if m["role"] == "system"]
        if own and own[0]["content"] != message["content"]:
            raise DataError(f"{place}: '{system}' and the conversation's own system message differ")
        if not own:
            before.append(message)
    if "history" in row and "history" not in columns:
        history = _history(place, left.get("history"))
        if not _is_whole(found):
            before += history
            columns = (*columns, "history")
        elif all(message in found.messages for message in history):
            columns = (*columns, "history")
    tools: tuple[Tool, ...] = ()
    listed = next((name for name in TOOLS if name in left), None)
    if listed is not None:
        tools = tools_of(place, row[listed])
        columns = (*columns, listed)
    return _Found(columns, (*before, *found.messages), tools)


def _is_whole(found: _Found) -> bool:
    """Whether the turns come from one column, with all that was said before."""
    return found.columns[0] in (*CONVERSATIONS, "chosen")


def _with_thought(place: str, row: Row, found: _Found) -> _Found:
    """The thought that has a column of its own, in the answer that it stands before."""
    if row.keys().isdisjoint(THOUGHTS) or _is_whole(found):
        return found
    columns = tuple(name for name in THOUGHTS if row.get(name) and name not in found.columns)
    answer = found.messages[-1]
    if not columns or answer["role"] != "assistant":
        return found
    thoughts = {_string(place, row, name).strip("\r\n") for name in columns}
    if "reasoning_content" in answer:
        thoughts.add(answer["reasoning_content"])
    if len(thoughts) > 1:
        raise DataError(f"{place}: '{columns[0]}' and another thought of the answer differ")
    thought = thoughts.pop()
    if thought:
        answer = {**answer, "reasoning_content": thought}
    return _Found((*found.columns, *columns), (*found.messages[:-1], answer), found.tools)


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


def _preferred(place: str, row: Row, named: Columns) -> _Found:
    """The chosen answer of a row with a chosen and a rejected one, if the recipe asks for it."""
    if named.preferred is None:
        raise DataError(
            f"{place}: a chosen and a rejected answer; `preferred: chosen` beside the path reads "
            "the chosen one"
        )
    prompt = next((name for name in (*CONVERSATIONS, *QUESTIONS) if name in row), None)
    chosen = turns_in(place, row, "chosen")
    if prompt is not None and chosen is not None:
        asked = turns_in(place, row, prompt)
        # UltraFeedback's chosen answer repeats the question.
        if asked is not None and asked != chosen[: len(asked)]:
            chosen = [*asked, *chosen]
        if asked is not None:
            return _with_beside(place, row, _Found((prompt, "chosen"), turns_of(place, chosen)))
    if chosen is not None and (prompt is None or len(chosen) > 1):
        return _with_beside(place, row, _Found(("chosen",), turns_of(place, chosen)))
    if prompt is None:
        raise DataError(
            f"{place}: 'chosen' is text and no column has its question; `prompt: NAME` and "
            "`answer: chosen` beside the path say where it is"
        )
    return _pair(place, row, prompt, "chosen")


# --- named columns --------------------------------------------------------------------------------


def _named(place: str, row: Row, present: Row, named: Columns) -> _Found:
    """The columns that the recipe names, or templates of columns."""
    assert named.prompt is not None and named.answer is not None
    turns = turns_in(place, row, named.prompt)
    columns: tuple[str, ...] = (named.prompt,)
    if turns is None:
        question, columns = _filled(place, row, named.prompt)
        turns = [message_of("user", question)]
    said = None
    if named.labels is None:
        said = turns_in(place, row, named.answer)
    if said is not None:
        messages = turns_of(place, [*turns, *said])
        return _with_beside(place, present, _Found((*columns, named.answer), messages))
    used: tuple[str, ...]
    own = named.labels is named.classes
    if named.classes is not None and named.labels and _is_list(row.get(named.answer)):
        # The answer is the list of their names.
        words = words_for(place, named.answer, row[named.answer], named.labels, names=own)
        answer = json.dumps(words, ensure_ascii=False)
        used = (named.answer,)
    elif named.labels is not None:
        if row.get(named.answer) is None:
            _string(place, row, named.answer)  # raises DataError, which names the columns
        answer = word_for(place, named.answer, row[named.answer], named.labels, names=own)
        used = (named.answer,)
    else:
        answer, used = _filled(place, row, named.answer)
    reply = answer_of(f"{place}: '{named.answer}'", answer)
    found = _Found((*columns, *used), (*turns_of(place, turns), reply))
    return _with_beside(place, present, found)


def _filled(place: str, row: Row, name: str) -> tuple[str, tuple[str, ...]]:
    """The text of a column, or of a template with columns in braces, and the columns."""
    names = FIELD.findall(name)
    if name in row or not names:
        return _string(place, row, name), (name,)
    texts = {column: _cell(place, row, column) for column in names}
    return FIELD.sub(lambda field: texts[field.group(1)], name), tuple(names)


def _cell(place: str, row: Row, column: str) -> str:
    """What a template has for a column: text, a number, choices with their letters, or the texts
    of another list, one a line.
    """
    value = row.get(column)
    if column in CHOICES and not is_empty(value):
        return _lettered(_choices(place, row, column))
    if _is_list(value) and value and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return _string(place, row, column)
    return str(value)


def _of_classes(place: str, row: Row, named: Columns) -> Columns:
    """The columns of a text and its label, where the row has them: those that are named, or "text"
    and "label" or "labels". A row of another format stays one, and its answer is the label.

    Raises DataError for a label that is true or false, where nobody says which of them that is.
    """
    answer = named.answer or next((name for name in LABELS if name in row), None)
    prompt = named.prompt or ("text" if "text" in row else None)
    if prompt is None or answer is None:
        return named
    if named.labels is None and isinstance(row.get(answer), bool):
        said = str(row[answer]).lower()
        raise DataError(
            f"{place}: '{answer}' is {said}, and which label that is is not said; `prompt: "
            f"{prompt}`, `answer: {answer}` and `labels: {{0: NAME, 1: NAME}}` beside the path say "
            f"it, 0 for false"
        )
    return replace(named, prompt=prompt, answer=answer, labels=named.labels or named.classes)


def _asked(place: str, row: Row, prompt: str | None) -> _Found:
    """The conversation of a row up to its last question."""
    column = prompt or None
    if column is None and row.keys().isdisjoint(CONVERSATIONS):
        column = next((name for name in QUESTIONS if _may_ask(row.get(name))), None)
    if column is None:
        found = _recognise(place, row, row)
        return _Found(found.columns, up_to_question(found.messages), found.tools)
    turns = turns_in(place, row, column)
    if turns is not None:
        found = _Found((column,), turns_of(place, turns))
    elif prompt:
        question, used = _filled(place, row, column)
        found = _Found(used, (message_of("user", question),))
    else:
        question, used = _question(place, row, column)
        found = _Found(used, (message_of("user", question),))
    found = _with_beside(place, row, found)
    return _Found(found.columns, up_to_question(found.messages), found.tools)


def _may_ask(value: Any) -> bool:
    """Whether a value is text or turns."""
    if _is_list(value):
        return bool(value) and isinstance(value[0], Mapping)
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    # Most values are texts, and to ask whether one is a Sequence takes long.
    return not isinstance(value, (str, bytes)) and isinstance(value, Sequence)


def _string(place: str, row: Row, column: str) -> str:
    value = row.get(column)
    if column not in row:
        near = did_you_mean(column, [str(name) for name in row])
        raise DataError(f"{place}: no column '{column}' among {sorted(map(str, row))}{near}")
    if isinstance(value, (int, float)):
        as_it_is = ""
        if not isinstance(value, bool):
            as_it_is = f'"{{{column}}}" in place of its name reads the number as it is, '
        raise DataError(
            f"{place}: '{column}' is {type(value).__name__}, not text; beside the path, with "
            f'`prompt: ...` and `answer: ...`, {as_it_is}`labels: ["first", "second", ...]` says '
            "the word for each"
        )
    if not isinstance(value, str):
        raise DataError(f"{place}: '{column}' is {type(value).__name__}, not text")
    return value
