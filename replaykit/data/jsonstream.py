"""The rows of a .json file, of any size: a list of objects, or an object around one.

    {"version": 2, "data": [{"text": "a"}, {"text": "b"}]}  ->  {"text": "a"}, {"text": "b"}
    {"train": [{"text": "a"}], "test": [{"text": "b"}]}     ->  {"text": "a"} of the split train

The file is read through a window that holds one row and a little more. Python's own parser works
on it, so a row means here what it means in JSON Lines (NaN is read, as pandas and Python write it);
the streaming parser ijson refuses NaN and ends at the first row that it cannot read.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from replaykit.data.columns import is_row
from replaykit.data.folders import KEYWORDS, no_split
from replaykit.data.streams import MAX_LINE, TOO_LONG, Row, Unparsed, not_utf8, opened, tell
from replaykit.errors import DataError

CHUNK = 1 << 16
NEAR_END = 32  # characters: an error so near to the window's end may be an end that is yet to come
NO_SPLIT = ""  # no list is of it
MAX_DEPTH = 200  # of lists and objects in each other; Python ends at some 900
NO_OBJECT = '"[]-0123456789'  # how a list begins whose first item is no object
MARKS = re.compile(r'["\\\[\]{}]')
DECODER = json.JSONDecoder()


def json_rows(
    path: Path, unparsed: Unparsed | None, split: str | None = None
) -> Iterator[tuple[str, Row]]:
    """The objects of a .json file, each numbered from 1.

    Of an object that is no row itself, they are those of its only list of objects, or of the lists
    of a ``split``, see ``_Lists``. A row that cannot be read is passed over by its brackets. Raises
    DataError for what has no rows, and for several lists that are no splits.
    """
    with opened(path) as stream:
        window = _Window(path, stream)
        begin = window.next_mark()
        if begin == "[":
            yield from _list_rows(window, unparsed)
        elif begin == "{":
            lists = _Lists(path, split)
            yield from _object_rows(window, unparsed, lists)
            lists.check()
        else:
            raise _no_list(path)
        if window.next_mark():
            raise DataError(f"{path}: more follows after its end; one object a line is .jsonl")


def json_splits(path: Path) -> list[str]:
    """The splits of a .json file that is an object of lists; none of any other.

    Raises DataError as ``json_rows`` does.
    """
    with opened(path) as stream:
        window = _Window(path, stream)
        if window.next_mark() != "{":
            return []
        lists = _Lists(path, NO_SPLIT)
        for _ in _object_rows(window, lambda *_: None, lists):
            return []  # one row, or the only list, which has no split's name
        return lists.splits()


class _Lists:
    """Which of an object's lists of objects are read.

    Lists that all have names of splits are splits, as the files of a folder are, and without a
    ``split`` there may be only one list. Two lists of which one has another name are no splits: to
    take the first, or all, would be to guess.
    """

    def __init__(self, path: Path, split: str | None):
        self._path = path
        self._split = split
        self._names: list[str] = []
        self._taken = False

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Those of the next lists that are read.

        Raises DataError for several lists that are no splits.
        """
        new = list(names)
        self._names += new
        if self._split is not None and self.splits():
            new = [name for name in new if self._split in ("all", name, KEYWORDS[name.lower()])]
        elif len(self._names) > 1:
            last = json.dumps(self._names[-1])
            raise DataError(
                f"{self._path}: which list? It has {', '.join(map(repr, self._names))}; make a "
                f"file of the one that is meant, as `jq '.[{last}]'` does"
            )
        self._taken = self._taken or bool(new)
        return new

    def splits(self) -> list[str]:
        """The splits that the lists so far are; none where one of them has no split's name."""
        said = {KEYWORDS.get(name.lower(), "") for name in self._names}
        return [] if "" in said else sorted(said)

    def place(self, name: str) -> str:
        """What the rows of a list stand under, before their number."""
        return f"{self._path}[{name}]" if self.splits() else str(self._path)

    def check(self) -> None:
        """Raises DataError where there are lists, and none is of the split."""
        if self._names and not self._taken:
            raise no_split(self._path, "list", str(self._split), self.splits())


def plain_json(text: str) -> Any:
    """The value of a text. Raises DataError, which says only what is wrong."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(said(error)) from error


class _TooLong(ValueError):
    """A value is longer than a row may be."""


def said(error: Exception) -> str:
    """What is wrong with a text that the parser refused."""
    if isinstance(error, _TooLong):
        return TOO_LONG
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    if isinstance(error, RecursionError):
        return "not JSON that can be read (nested too deep)"
    return "not JSON that can be read (a whole number of more than 4,300 digits)"


def suspect(text: str, start: int = 0, end: int | None = None) -> bool:
    """Whether the value of this text needs ``refuse_unwritable``; few texts do."""
    escapes = text.find("\\u", start, end) >= 0
    if escapes and (text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0):
        return True
    return text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH


def refuse_unwritable(place: str, row: Any) -> None:
    """Raises DataError for a value that could not be written as JSON again.

    That is one that is nested too deep, and a text with half of a surrogate pair.

    JSON can escape one, but it is no character: no UTF-8 file and no tokenizer takes it. In a
    window, a byte that is no UTF-8 stands as one too, as Python's "surrogateescape" writes it.
    """
    if _deeper(row, MAX_DEPTH):
        raise DataError(f"{place}: {said(RecursionError())}")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            raise not_utf8(place, f"byte 0x{code - 0xDC00:02x}") from error
        half = json.dumps(error.object[error.start])
        raise DataError(
            f"{place}: {half} is half of a surrogate pair and no character; take it out"
        ) from error


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(_deeper(inner, levels - 1) for inner in value)


class _Window:
    """The part of a text file from where the reader is."""

    def __init__(self, path: Path, stream: io.BufferedReader):
        self.path = path
        self.text = ""
        self.at = 0
        self.ended = False
        self.bad_bytes = False
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.more()
        self.text = self.text.removeprefix("\ufeff")  # a byte order mark

    def more(self) -> None:
        """Doubles what lies before the reader, at least; forgets what lies behind."""
        data = self._stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not data
        chunk = self._decode(data, self.ended)
        if not chunk.isascii():
            self.bad_bytes = self.bad_bytes or re.search("[\udc80-\udcff]", chunk) is not None
        self.text = self.text[self.at :] + chunk
        self.at = 0

    def next_mark(self) -> str:
        """To the next character that is no white space, which is returned; "" at the end."""
        while True:
            self.at = WHITESPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def step(self) -> None:
        """Over one character."""
        self.at += 1

    def value(self) -> tuple[Any, bool]:
        """The value that begins here, and whether it needs ``refuse_unwritable``.

        Raises ValueError or RecursionError, and stays, for one that cannot be read, or is longer
        than a row may be.
        """
        while True:
            left = len(self.text) - self.at
            try:
                found, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos + NEAR_END > len(self.text)
                if self.ended or not cut or left > MAX_LINE:
                    raise
            else:
                # A number that reaches the end of the window may go on behind it.
                if end < len(self.text) or self.ended:
                    if end - self.at > MAX_LINE:
                        raise _TooLong
                    check = self.bad_bytes or suspect(self.text, self.at, end)
                    self.at = end
                    return found, check
            self.more()

    def fits(self) -> bool:
        """Whether what begins here can be as long as a row may be."""
        return len(self.text) - self.at <= MAX_LINE

    def pass_over(self, depth: int = 0) -> None:
        """Over the value that begins here, by its brackets alone; ``depth`` are those behind."""
        quoted = False
        while True:
            mark = MARKS.search(self.text, self.at)
            if mark is None or (mark.group() == "\\" and mark.end() == len(self.text)):
                if self.ended:
                    self.at = len(self.text)
                    return
                self.at = len(self.text) if mark is None else mark.start()
                self.more()
                continue
            self.at = mark.end()
            if mark.group() == "\\":
                self.at += 1
            elif mark.group() == '"':
                quoted = not quoted
            elif not quoted:
                depth += 1 if mark.group() in "[{" else -1
                if depth <= 0:
                    self.at -= depth < 0  # the list's own end stays
                    return


def _list_rows(window: _Window, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    """The objects of the list that begins here; the reader then stands behind it."""
    window.step()
    yield from _items(window, str(window.path), unparsed)


def _items(window: _Window, name: str, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    """The objects of a list whose bracket lies behind the reader."""
    number = 0
    if window.next_mark() == "]":
        window.step()
        return
    while True:
        number += 1
        place = f"{name}:{number}"
        window.next_mark()
        try:
            row = _row(window, place)
        except DataError as error:
            tell(unparsed, place, error)
        else:
            yield place, row
        mark = window.next_mark()
        window.step()
        if mark == "]":
            return
        if mark != ",":
            raise DataError(
                f"{place}: not JSON (no ',' or ']' behind this row); what comes after it was not "
                "read"
            )


def _row(window: _Window, place: str) -> Row:
    """The object that begins here; of one that cannot be read, the reader stands behind it too."""
    try:
        row, check = window.value()
    except (ValueError, RecursionError) as error:
        fits = window.fits()
        window.pass_over()
        reason = said(error) if fits else TOO_LONG
        raise DataError(f"{place}: {reason}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row is a JSON object, this is a {type(row).__name__}")
    if check:
        refuse_unwritable(place, row)
    return row


def _object_rows(
    window: _Window, unparsed: Unparsed | None, lists: _Lists
) -> Iterator[tuple[str, Row]]:
    """An object that is a row; or the rows of the lists in it that are read."""
    try:
        whole, check = window.value()
    except (ValueError, RecursionError):
        yield from _around(window, unparsed, lists)
        return
    found = {name: value for name, value in whole.items() if _is_rows(value)}
    if is_row(whole) or not found:
        yield from _checked(str(window.path), [whole], check, unparsed)
        return
    for name in lists.chosen(found):
        yield from _checked(lists.place(name), found[name], check, unparsed)


def _checked(
    name: str, rows: list[Any], check: bool, unparsed: Unparsed | None
) -> Iterator[tuple[str, Row]]:
    """The rows with their places; ``check`` says whether they need ``refuse_unwritable``."""
    for number, row in enumerate(rows, 1):
        place = f"{name}:{number}"
        try:
            if not isinstance(row, Mapping):
                raise DataError(f"{place}: a row is a JSON object, this is a {type(row).__name__}")
            if check:
                refuse_unwritable(place, row)
        except DataError as error:
            tell(unparsed, place, error)
            continue
        yield place, row


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _around(window: _Window, unparsed: Unparsed | None, lists: _Lists) -> Iterator[tuple[str, Row]]:
    """The rows of the lists in an object that is too large, or too broken, to be one value."""
    mark = window.next_mark()
    found = False
    while mark in ("{", ","):
        window.step()
        window.next_mark()
        try:
            key, _ = window.value()
            colon = window.next_mark()
            window.step()
            begin = window.next_mark()
            if colon == ":" and begin == "[" and not is_row({str(key): None}):
                window.step()
                rows = window.next_mark() not in NO_OBJECT
                found = found or rows
                if rows and lists.chosen([str(key)]):
                    yield from _items(window, lists.place(str(key)), unparsed)
                else:
                    window.pass_over(depth=1)
            else:
                window.value()
        except (ValueError, RecursionError) as error:
            raise DataError(f"{window.path}: {said(error)}; one object a line is .jsonl") from error
        mark = window.next_mark()
    window.step()
    if mark != "}" or not found:
        raise _no_list(window.path)


def _no_list(path: Path) -> DataError:
    return DataError(f"{path}: expected a list of objects")
