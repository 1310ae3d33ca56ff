"""The rows of a .json file, of any size: a list of objects, or an object around one.

    {"version": 2, "data": [{"text": "a"}, {"text": "b"}]}  ->  {"text": "a"}, {"text": "b"}

The file is read through a window that holds one row and a little more. Python's own parser works
on it, so a row means here what it means in JSON Lines (NaN is read, as pandas and Python write it);
the streaming parser ijson refuses NaN and ends at the first row that it cannot read.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator, Mapping
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from replaykit.data.columns import is_row
from replaykit.data.streams import MAX_LINE, TOO_LONG, Row, Unparsed, not_utf8, opened, tell
from replaykit.errors import DataError

CHUNK = 1 << 16
NEAR_END = 32  # characters: an error so near to the window's end may be an end that is yet to come
MAX_DEPTH = 200  # of lists and objects in each other; Python ends at some 900
MARKS = re.compile(r'["\\\[\]{}]')
DECODER = json.JSONDecoder()


def json_rows(path: Path, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    """The objects of a .json file, each numbered from 1.

    Of an object that is no row itself, they are those of its first list of objects. A row that
    cannot be read is passed over by its brackets. Raises DataError for what has no rows.
    """
    with opened(path) as stream:
        window = _Window(path, stream)
        begin = window.next_mark()
        if begin == "[":
            yield from _list_rows(window, unparsed)
        elif begin == "{":
            yield from _object_rows(window, unparsed)
        else:
            raise _no_list(path)
        if window.next_mark():
            raise DataError(f"{path}: more follows after its end; one object a line is .jsonl")


def plain_json(text: str) -> Any:
    """The value of a text. Raises DataError, which says only what is wrong."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(said(error)) from error


def said(error: Exception) -> str:
    """What is wrong with a text that the parser refused."""
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

        Raises ValueError or RecursionError, and stays, for one that cannot be read.
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
                    check = self.bad_bytes or suspect(self.text, self.at, end)
                    self.at = end
                    return found, check
            self.more()

    def fits(self) -> bool:
        """Whether what begins here can be as long as a row may be."""
        return len(self.text) - self.at <= MAX_LINE

    def pass_over(self) -> None:
        """Over the value that begins here, by its brackets alone."""
        depth = 0
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
    number = 0
    if window.next_mark() == "]":
        window.step()
        return
    while True:
        number += 1
        place = f"{window.path}:{number}"
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


def _object_rows(window: _Window, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    """An object that is a row; or the rows of the first list of objects in it."""
    try:
        whole, check = window.value()
    except (ValueError, RecursionError):
        yield from _around(window, unparsed)
        return
    lists = [value for value in whole.values() if _is_rows(value)]
    if is_row(whole) or not lists:
        place = f"{window.path}:1"
        try:
            if check:
                refuse_unwritable(place, whole)
        except DataError as error:
            tell(unparsed, place, error)
        else:
            yield place, whole
        return
    for number, row in enumerate(lists[0], 1):
        place = f"{window.path}:{number}"
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


def _around(window: _Window, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    """The rows of the first list in an object that is too large, or too broken, to be one value."""
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
            if colon == ":" and begin == "[" and not found and not is_row({str(key): None}):
                found = True
                yield from _list_rows(window, unparsed)
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
