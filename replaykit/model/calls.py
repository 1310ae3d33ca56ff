"""Tool calls as a model writes them, read back: the format is derived from its chat template.

    <tool_call>\\n{"name": "weather", "arguments": {"city": "Oslo"}}\\n</tool_call>      object
    functions.weather:0<|args|>{"city": "Oslo"}<|call_end|>                            named
    <function=weather>\\n<parameter=city>\\nOslo\\n</parameter>\\n</function>              pieces

Calls with sentinels as names and values are rendered, and the text is cut there. A format counts
only if it reads back every call that the template itself wrote, so there is no table of model
families. (vLLM has a parser by hand for each family: vllm/tool_parsers.)

What was read is rendered again. Where that is not what was written, a part of it was dropped or
moved, so nothing of it counts as read.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os.path import commonprefix
from typing import Any, Literal, NamedTuple

from replaykit.data.record import Tool, ToolCall
from replaykit.data.tools import Arguments, name_of
from replaykit.errors import ChatError

NAME = "fq7ZxKw"
KEYS = ("kVd93m", "kYt41c")
VALUES = ("vB5Ru8", "vJn6Hc")
SAID = "s4Tp9Lk"
NAMES = r"\s*([\w.-]+?)"  # how a name may look
# A key is any text without the signs that stand around one: "first name", "a/b".
KEY = r"([^\s<>(){}\[\]\"',=:](?:[^\n<>(){}\[\]\"',=:]*?[^\s<>(){}\[\]\"',=:])?)"
PYTHON_QUOTES = ("'", '"')
ID = "call00001"  # nine letters and digits, as Mistral's templates want it
NUMBER = re.compile(r"-?\d[\d.]*(?:[eE][+-]?\d+)?")
ESCAPED = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
CONSTANTS = {"True": "true", "False": "false", "None": "null"}  # Python's, and JSON's

logger = logging.getLogger(__name__)

Render = Callable[[str, Sequence[ToolCall]], str]
"""What the template writes of an answer with this content and these calls, from the question on."""


class Answer(NamedTuple):
    """An answer that was read: its words, and its calls."""

    content: str
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True)
class CallFormat:
    """How calls are written. Texts between the parts are compared without regard to white space."""

    kind: Literal["object", "named", "pieces"]
    """object: one JSON object a call; named: the name, then the arguments as JSON; pieces: the
    name, then each argument between marks.
    """
    mark: str
    """What stands before each call; "" where nothing does."""
    around: tuple[str, str] = ("", "")
    """What stands before and after all calls of an answer."""
    between: str = ""
    """What stands between two calls."""
    name_key: str = ""
    arguments_key: str = ""
    after_name: str = ""
    """From the name to the arguments, or to the first key."""
    after_key: str = ""
    """From a key to its value."""
    after_value: str = ""
    """From a value to the next key."""
    end: str = ""
    """From the last value to the end of the call."""
    empty: str = ""
    """From the name to the end of a call without arguments."""
    quote: tuple[str, str] = ("", "")
    """What stands around a text and not around a number."""
    words_first: bool = True
    """Whether the template shows the words of an answer, and before its calls."""
    written: _Written | None = field(default=None, compare=False, repr=False)
    """What the template writes."""

    @classmethod
    def derive(cls, render: Render) -> CallFormat | None:
        """The format of a template. None where it shows no calls, or none that can be read."""
        written = _Written(render)
        if not written.shows_calls:
            return None
        for derived in (_object(written), _named(written), _pieces(written)):
            if derived is not None and derived._reads(written):
                words_first = _words_first(written)
                return replace(derived, words_first=words_first, written=written)
        return None

    def _reads(self, written: _Written) -> bool:
        """Whether it reads back what the template writes."""
        for calls in written.examples():
            found = self.read(written(calls))
            if found.content or _bare(found.calls) != _bare(calls):
                return False
        return True

    def read(self, text: str, tools: Iterable[Tool] = ()) -> Answer:
        """An answer's words and calls. What cannot be read as a call stays in its words.

        All of it stays there where the template would write these words and calls otherwise:
        something of a call was not read, or there are words between calls or behind them. (White
        space, the order of arguments and how a value is spelt may differ.) ``text`` holds special
        tokens as they are written. ``tools`` tell texts from numbers where the format writes both
        alike: an argument whose schema admits the text itself is a text.
        """
        found = self.found(text, tools)
        if found.calls and self.written is not None and not self._writes(found, text):
            return Answer(text, ())
        return found

    def _writes(self, found: Answer, text: str) -> bool:
        """Whether the template writes these words and calls as they were written."""
        assert self.written is not None
        said = found.content
        if said and not self.words_first and text.lstrip().startswith(said):
            # It can be read, though it cannot be shown so.
            text = text.lstrip().removeprefix(said)
            said = ""
        calls: list[ToolCall] = [{**call, "id": ID} for call in found.calls]
        try:
            again = self.written(calls, said)
        except ChatError as error:
            logger.info("%s", error)
            return False
        identified = re.search(rf'("[^"]+":\s*)"{ID}"', again)
        if identified is not None:
            # Every call has an id of its own, as Mistral's do.
            own = re.compile(rf'{re.escape(identified[1])}"[^"]*"')
            text = own.sub("", text)
            again = own.sub("", again)
        return self._letters(text) == self._letters(again)

    def _letters(self, text: str) -> tuple[str, Counter[str]]:
        """What stands before the first call, and the letters from there on, to be compared."""
        # Which marks end a turn behind the last call is for the engine to say.
        text = re.sub(r"(?:\s*<[^<>]*>)+\s*\Z", "", text)
        first = self._head.search(text)
        start = len(text) if first is None else first.start()
        return _plain(text[:start]), Counter(_plain(text[start:]))

    def found(self, text: str, tools: Iterable[Tool] = ()) -> Answer:
        """What reads as words and calls, whether or not the template would write it so."""
        schemas = {name_of(tool): Arguments(tool) for tool in tools}
        words: list[str] = []
        calls: list[ToolCall] = []
        place = 0
        while found := self._head.search(text, place):
            read = self._call_at(text, found, schemas)
            if read is None:
                # What looked like a call is none: its first letter is a word.
                step = max(found.start() + 1, place + 1)
                words.append(text[place:step])
                place = step
                continue
            said = text[place : found.start()]
            if not (calls and re.fullmatch(rf"\s*{_loose(self.between)}\s*", said)):
                words.append(said)
            calls += read[0]
            place = read[1]
        if not calls:
            return Answer(text, ())
        content = "".join([*words, text[place:]])
        for edge in self.around:
            content = re.sub(_loose(edge), "", content, count=1)
        return Answer(content.strip(), tuple(calls))

    @cached_property
    def _head(self) -> re.Pattern[str]:
        """What a call begins with; its group is the name, where that stands before the rest."""
        mark = _loose(self.mark)
        match self.kind:
            case "object":
                return re.compile(mark + r"\s*(?=[\[{])")
            case "named":
                return re.compile(mark + NAMES + _loose(self.after_name) + r"\s*(?={)")
            case _:
                ends = f"(?:{_loose(self.empty)}|{_loose(self.after_name)})"
                return re.compile(f"{mark}{NAMES}(?={ends})")

    def _call_at(
        self, text: str, head: re.Match[str], schemas: Mapping[str, Arguments]
    ) -> tuple[list[ToolCall], int] | None:
        """The calls after a head, and where they end; None where there is none."""
        if self.kind == "pieces":
            return self._pieces_at(text, head, schemas.get(head[1]))
        value = _json_at(text, head.end())
        if value is None:
            return None
        if self.kind == "object":
            calls = self._calls_of(value[0])
        else:
            calls = [tool_call(head[1], value[0])]
        if not calls:
            return None
        end = re.compile(_loose(self.end)).match(text, value[1])
        return calls, end.end() if end is not None else value[1]

    def _calls_of(self, value: Any) -> list[ToolCall]:
        """The calls of a JSON value: of an object, or of a list of them; none where it is none."""
        objects = value if isinstance(value, list) else [value]
        calls = []
        for one in objects:
            if not (isinstance(one, dict) and isinstance(one.get(self.name_key), str)):
                return []
            arguments = one.get(self.arguments_key)
            if not isinstance(arguments, dict):
                return []
            calls.append(tool_call(one[self.name_key], arguments))
        return calls

    def _pieces_at(
        self, text: str, head: re.Match[str], schema: Arguments | None
    ) -> tuple[list[ToolCall], int] | None:
        """A call whose arguments stand between marks; None where it does not end as calls do."""
        key = rf"\s*{KEY}{_loose(self.after_key)}"
        first = re.compile(_loose(self.after_name) + key).match(text, head.end())
        if first is None:
            none = re.compile(_loose(self.empty)).match(text, head.end())
            return None if none is None else ([tool_call(head[1], {})], none.end())
        following = re.compile(
            f"(?P<next>{_loose(self.after_value)}{key})|(?P<end>{_loose(self.end)})"
        )
        arguments = {}
        name = first[1]
        start = first.end()
        while found := self._following(following, text, start):
            value = text[start : found.start()]
            if self._ends_value and self._ends_value in value:
                return None  # where the value ends cannot be known
            arguments[name] = self._value(value, name, schema)
            start = found.end()
            if found["end"] is not None:
                return [tool_call(head[1], arguments)], start
            name = found[2]
        return None

    @property
    def _ends_value(self) -> str:
        """The mark behind every value: "</parameter>"; "" where there is none."""
        mark = re.match(r"\s*(<[^<>]*>)", self.after_value)
        return "" if mark is None else mark[1]

    def _following(self, pattern: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
        """What follows a value that starts there: the next key, or the end of the call.

        Inside a quoted text, or between brackets, nothing of that is meant.
        """
        opening, closing = self.quote
        if opening and text.startswith(opening, start):
            escaped = r"(?:\\.|.)*?" if opening in PYTHON_QUOTES else ".*?"
            quoted = re.compile(re.escape(opening) + escaped + re.escape(closing), re.DOTALL)
            found = quoted.match(text, start)
            start = found.end() if found is not None else len(text)
        elif opening and text[start : start + 1] in "[{":
            depth = 0
            for place in range(start, len(text)):
                depth += (text[place] in "[{") - (text[place] in "]}")
                if depth == 0:
                    start = place + 1
                    break
        return pattern.search(text, start)

    def _value(self, text: str, key: str, schema: Arguments | None) -> Any:
        """The value that is written so. A number is a text where the schema admits it as one."""
        opening, closing = self.quote
        if opening and text.startswith(opening) and text.endswith(closing):
            if opening not in PYTHON_QUOTES:
                return text[len(opening) : len(text) - len(closing)]
            schema = None  # written as Python would write it, with its escapes
        value = self._literal(text)
        if value is text and opening and text.startswith(opening) and text.endswith(closing):
            return text[len(opening) : len(text) - len(closing)]  # 'it's', as LFM2.5 has it
        if schema is None or value is text:
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if schema.admits(key, text) and (number or not schema.admits(key, value)):
            return text
        return value

    def _literal(self, text: str) -> Any:
        """The value that JSON, Python or the format itself writes so; else the text."""
        for read in (json.loads, ast.literal_eval, self._bare_keys):
            try:
                return read(text)
            except (ValueError, SyntaxError):
                continue
        return text

    def _bare_keys(self, text: str) -> Any:
        """A value in which texts have the format's own quotes, and keys have none."""
        opening, closing = self.quote
        if not opening:
            raise ValueError(text)
        parts = re.split(f"{re.escape(opening)}(.*?){re.escape(closing)}", text, flags=re.DOTALL)
        for place, part in enumerate(parts):
            if place % 2:
                parts[place] = json.dumps(part)
            else:
                for constant, same in CONSTANTS.items():
                    part = re.sub(rf"\b{constant}\b", same, part)
                parts[place] = re.sub(rf"([{{,]\s*){KEY}\s*:", r'\1"\2":', part)
        return json.loads("".join(parts))


class _Edges(NamedTuple):
    """What stands around calls, before the name of each, after its last value, and between two."""

    around: tuple[str, str]
    mark: str
    end: str
    between: str


class _Written:
    """What the template writes of an answer that is only calls, without what stands around it."""

    def __init__(self, render: Render) -> None:
        self._render = render
        before, _, after = render(SAID, []).partition(SAID)
        one = render("", [_call({KEYS[0]: VALUES[0]})])
        header = commonprefix([before, one])  # noqa: RUF071 - they are no paths
        # Not in the middle of a word: " to=" may be followed by a user or by a function.
        self._header = len(re.sub(r"[\w=.:]+\Z", "", header))
        # What ends a turn is shared by an answer of words and one of calls, in most templates. Some
        # leave it out behind a single call.
        two = self._two()
        end = commonprefix([after[::-1], (two or one)[::-1]])[::-1]  # noqa: RUF071
        # Not in the middle of a mark.
        self._end = "".join(end.partition("<")[1:])
        self.two = None if two is None else self._within(two)

    def __call__(self, calls: Sequence[ToolCall], said: str = "") -> str:
        return self._within(self._render(said, calls))

    def _within(self, text: str) -> str:
        return text[self._header :].removesuffix(self._end)

    @property
    def shows_calls(self) -> bool:
        shown = self.one(VALUES[0])
        return all(text in shown for text in (NAME, KEYS[0], VALUES[0]))

    def one(self, value: Any) -> str:
        """The text of a call with one argument."""
        return self([_call({KEYS[0]: value})])

    def _two(self) -> str | None:
        """What is written of two calls with an argument each; None where an answer has one call."""
        try:
            text = self._render("", [_call({KEYS[0]: VALUES[0]}), _call({KEYS[1]: VALUES[1]})])
        except ChatError:
            return None
        return text if KEYS[0] in text and KEYS[1] in text else None

    @cached_property
    def edges(self) -> _Edges:
        """What stands before the name of a call, and after its last value."""
        shown = self.one(VALUES[0])
        before = shown[: shown.rindex(NAME, 0, shown.index(KEYS[0]))]
        after = shown[shown.index(VALUES[0]) + len(VALUES[0]) :]
        if self.two is None:
            return _Edges(("", ""), before, after, "")
        middle = self.two.split(VALUES[0], 1)[1].split(KEYS[1])[0]
        middle = middle[: middle.rindex(NAME)]
        mark = commonprefix([before[::-1], middle[::-1]])[::-1]  # noqa: RUF071
        middle = middle[: len(middle) - len(mark)]
        end = commonprefix([after, middle])  # noqa: RUF071
        last = self.two.rpartition(VALUES[1])[2]
        around = (before[: len(before) - len(mark)], last[len(end) :])
        return _Edges(around, mark, end, middle[len(end) :])

    def examples(self) -> Iterator[list[ToolCall]]:
        """Calls that a format has to read back."""
        arguments: list[dict[str, Any]] = [
            {KEYS[0]: "two words, 7"},
            {KEYS[0]: 7, KEYS[1]: "x"},
            {},
            {KEYS[0]: [1, "two"], KEYS[1]: {"a": True}},
        ]
        for one in arguments:
            yield [_call(one)]
        if self.two is not None:
            yield [_call(arguments[0]), _call(arguments[1])]


def tool_call(name: str, arguments: Mapping[str, Any]) -> ToolCall:
    """A call as a record holds it."""
    return {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}


# --- how it is derived ----------------------------------------------------------------------------


def _words_first(written: _Written) -> bool:
    """Whether words and calls of one answer are both shown, in this order."""
    try:
        text = written([_call({KEYS[0]: VALUES[0]})], SAID)
    except ChatError as error:
        logger.info("%s", error)
        return False
    return 0 <= text.find(SAID) < text.find(KEYS[0])


def _call(arguments: Mapping[str, Any]) -> ToolCall:
    return {**tool_call(NAME, arguments), "id": ID}


def _object(written: _Written) -> CallFormat | None:
    """The format where a JSON object has the name under one key and the arguments under another."""
    shown = written.one(VALUES[0])
    for start, end, value in _values_around(shown, shown.index(NAME)):
        one = value[0] if isinstance(value, list) and value else value
        if not isinstance(one, dict):
            continue
        name_key = next((key for key, item in one.items() if item == NAME), None)
        arguments_key = next((k for k, item in one.items() if item == {KEYS[0]: VALUES[0]}), None)
        if name_key is not None and arguments_key is not None:
            return CallFormat(
                "object",
                shown[:start],
                name_key=name_key,
                arguments_key=arguments_key,
                end=shown[end:],
            )
    return None


def _named(written: _Written) -> CallFormat | None:
    """The format where the name is followed by its arguments as JSON."""
    shown = written.one(VALUES[0])
    edges = written.edges
    name = shown.rindex(NAME, 0, shown.index(KEYS[0]))
    for start, _, value in _values_around(shown, shown.index(KEYS[0])):
        if value == {KEYS[0]: VALUES[0]} and start > name:
            after_name = shown[name + len(NAME) : start]
            # The value's own quote and bracket are no part of the end.
            return CallFormat(
                "named",
                edges.mark,
                edges.around,
                edges.between,
                after_name=after_name,
                end=edges.end.partition("}")[2],
            )
    return None


def _pieces(written: _Written) -> CallFormat | None:
    """The format where each argument stands between marks of its own."""
    edges = written.edges
    both = written([_call(dict(zip(KEYS, VALUES, strict=True)))])
    cuts = _cuts(both.rpartition(NAME)[2], (KEYS[0], VALUES[0], KEYS[1], VALUES[1]))
    plain = _cuts(written.one(7).rpartition(NAME)[2], (KEYS[0], "7"))
    if cuts is None or plain is None:
        return None
    after_name, after_key, after_value = cuts[:3]
    opening = after_key.removeprefix(plain[1])
    closing = cuts[4][: len(cuts[4]) - len(plain[2])] if opening else ""
    empty = written([_call({})]).rpartition(NAME)[2]
    return CallFormat(
        "pieces",
        edges.mark,
        edges.around,
        edges.between,
        after_name=after_name,
        after_key=plain[1],
        after_value=after_value.removeprefix(closing),
        end=edges.end.removeprefix(closing),
        empty=empty.removesuffix(edges.around[1]),
        quote=(opening, closing),
    )


def _values_around(text: str, place: int) -> Iterator[tuple[int, int, Any]]:
    """Each JSON value with ``place`` inside it: where it begins and ends; the outermost first."""
    for found in re.finditer(r"[\[{]", text[:place]):
        value = _json_at(text, found.start())
        if value is not None and value[1] > place:
            yield found.start(), value[1], value[0]


def _json_at(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON value that begins there, and where it ends; None where there is none."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return None


def _cuts(text: str, at: Sequence[str]) -> list[str] | None:
    """The texts between those of ``at``, in order; None where one is missing."""
    parts = []
    for word in at:
        before, found, text = text.partition(word)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _loose(text: str) -> str:
    """A pattern for a text whose white space may differ, and whose names and numbers do."""
    words = [_any_name(word) for word in text.split()]
    if not words:
        return ""
    # At its edges a text or a value may begin, so no more space is taken than is written.
    left = text[: len(text) - len(text.lstrip())]
    right = text[len(text.rstrip()) :]
    edges = ["".join(f"{re.escape(space)}?" for space in edge) for edge in (left, right)]
    return edges[0] + r"\s*".join(words) + edges[1]


def _any_name(word: str) -> str:
    pattern = re.sub(r"\d+", r"\\d+", re.escape(word))
    for sentinel, any_of_it in ((ID, r"\S*?"), (NAME, r"[\w.-]+?")):
        pattern = pattern.replace(re.sub(r"\d+", r"\\d+", re.escape(sentinel)), any_of_it)
    return pattern


def _plain(text: str) -> str:
    """The text without white space, quotes and escapes, with every number as 0."""
    text = ESCAPED.sub(lambda found: str(json.loads(f'"{found[0]}"')), text)
    for constant, same in CONSTANTS.items():
        text = re.sub(rf"\b{constant}\b", same, text)
    return NUMBER.sub("0", re.sub(r"[\s\"'\\]+", "", text.replace(ID, "")))


def _bare(calls: Iterable[ToolCall]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
