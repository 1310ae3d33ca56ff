"""What a scorer reads of a row beside the answer: its references, and columns."""

from __future__ import annotations

from collections.abc import Mapping

import regex

from replaykit.data.record import Record, column_of

# Scripts that are written without spaces between words: each of their characters is a unit.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
UNIT = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[\w--[{UNSPACED}]]+", regex.V1)


def units(text: str) -> list[str]:
    """The words of a text, and each character of a script that has no spaces between words."""
    found: list[str] = UNIT.findall(text)
    return found


def references(record: Record) -> list[str]:
    """The reference answer and those of the column ``answers``, of which one is enough: a list of
    texts, or SQuAD's ``{"text": [...]}``. Raises ValueError where it is neither.
    """
    found = column_of(record, "answers", [])
    if isinstance(found, Mapping):
        found = found.get("text")
    return list(dict.fromkeys([record.answer, *texts_of(found, "answers")]))


def texts_of(value: object, column: str) -> list[str]:
    """A column's texts. Raises ValueError where it is no list of texts."""
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        raise ValueError(f"its column '{column}' is no list of texts")
    return list(value)


def text_of(record: Record, column: str) -> str:
    """A column's text, lines of a list joined; "" without the column. Raises ValueError where it
    is neither.
    """
    value = column_of(record, column)
    if value is None or isinstance(value, str):
        return value or ""
    return "\n".join(texts_of(value, column))
