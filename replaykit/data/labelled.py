"""The words for the labels that rows have: names, numbers, or a 1 or 0 for each.

    word_for("a.jsonl:1", "label", 2, ("yes", "no", "maybe"), names=True)           # "maybe"
    words_for("a.jsonl:1", "labels", [1, 0, 1], ("yes", "no", "maybe"), names=True)   # yes, maybe

A text that is a label's name is that label, and a number is the place of one, from 0 on. Where
labels have numbers as names ("1" to "5"), a number that may be either is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from replaykit.errors import DataError

Labels = Sequence[str] | Mapping[int | str, str]
NUMBER = re.compile(r"\d{1,9}")


def word_for(place: str, column: str, value: Any, labels: Labels, *, names: bool) -> str:
    """The word for the value of a row's ``column``: of a map the value's, else the label's.

    ``names`` says that the labels are a classifier's own, by whose names rows may call them; else
    they are words for 0, 1, ... that a recipe lists beside a path. Raises DataError, which begins
    with ``place``, where there is no word, or two.
    """
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    word = None
    if isinstance(labels, Mapping):
        if isinstance(value, (str, int)):
            # A table has the numbers of the map as texts.
            as_texts = {str(key): word for key, word in labels.items()}
            word = labels.get(value, as_texts.get(str(value)))
    elif isinstance(value, (str, int)):
        word = _of_list(f"{place}: '{column}' is {value!r}", value, labels, names)
    if word is None:
        raise DataError(f"{place}: '{column}' is {value!r}, for which `labels` has no word")
    return word


def _of_list(said: str, value: str | int, labels: Sequence[str], names: bool) -> str | None:
    """The label of this name or in this place; None where there is none."""
    text = str(value)
    is_text = isinstance(value, str)
    placed = None
    if NUMBER.fullmatch(text) and int(text) < len(labels):
        placed = labels[int(text)]
    if is_text and text in labels and (names or placed in (None, text)):
        return text
    if names:
        numbered = any(NUMBER.fullmatch(name) for name in labels)
        unclear = numbered and placed != text and (text in labels or placed is not None)
    else:
        # A list beside a path is of words for numbers, whatever the words are.
        unclear = is_text and text in labels
    if not unclear:
        return placed
    meant = text if text in labels else placed
    raise DataError(
        f"{said}, which may be a label's place, from 0 on, or its name, since labels have numbers "
        f"as names; write the name as text, or say beside the path what each number means: "
        f'`labels: {{{value}: "{meant}", ...}}`'
    )


def words_for(
    place: str, column: str, values: Sequence[Any], labels: Labels, *, names: bool
) -> list[str]:
    """The words for a list in a row: of names or numbers, or of a 1 or 0 for each of the labels, as
    transformers takes them. Raises DataError as ``word_for`` does, and for a label that is there
    twice.
    """
    marked = None
    if not isinstance(labels, Mapping):
        marked = _marked(f"{place}: '{column}' is {list(values)}", values, labels)
    if marked is not None:
        return marked
    words = [word_for(place, column, value, labels, names=names) for value in values]
    again = sorted({word for word in words if words.count(word) > 1})
    if again:
        raise DataError(f"{place}: '{column}' is {list(values)}, which has {again[0]} twice")
    return words


def _marked(said: str, values: Sequence[Any], labels: Sequence[str]) -> list[str] | None:
    """The labels that have a 1 in a list of a 1 or 0 for each; None for another list."""
    is_marks = all(isinstance(value, (int, float)) and value in (0, 1) for value in values)
    if not values or not is_marks:
        return None
    are_numbers = all(type(value) is int for value in values)
    if len(values) != len(labels):
        if are_numbers:
            return None
        raise DataError(
            f"{said}, {len(values)} marks for {len(labels)} labels ({', '.join(labels)})"
        )
    # Places are not given twice, and end before the number of the labels.
    if are_numbers and len(set(values)) == len(values) and max(values) < len(labels):
        raise DataError(
            f"{said}, which may be places of labels or a mark for each of {', '.join(labels)}; "
            "write their names, or true and false"
        )
    return [label for label, value in zip(labels, values, strict=True) if value]
