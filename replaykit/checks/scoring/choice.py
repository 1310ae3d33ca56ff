"""Multiple choice: which options there are, and whether a written answer names the right one.

    choices {"A": "Paris", "B": "Rome"}, answer "Rome"    ->  options "Paris", "Rome"; right: 1
    the same, answer "B"                                  ->  options "A", "B"; right: 1

The score of such an item is by log-likelihood (``steps.evaluate.skills``): right where the whole
right answer, its end of turn too, is more probable than that of every other option. What the model
writes by itself is the strict reading: a model that knows the answer and has forgotten how to give
one loses that alone. lm-evaluation-harness's ``acc`` compares the same sums, without the end of
the turn, which a chat model's answer has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from replaykit.checks.verify import Readings, readings
from replaykit.data.record import Record


class Options(NamedTuple):
    """What may be answered, as the model would write it."""

    texts: list[str]
    right: int
    """The place of the right one."""


def options_of(record: Record) -> Options:
    """The options of a row in order. They are written as its answer is: texts, letters, or both.

    Raises ValueError where it has fewer than two, or its answer is none of them.
    """
    choices = _choices(record)
    answer = record.answer.strip()
    ways = [
        list(choices.values()),
        list(choices),
        [f"{letter}. {text}" for letter, text in choices.items()],
    ]
    for texts in ways:
        if texts.count(answer) == 1:
            return Options(texts, texts.index(answer))
    raise ValueError(f"its answer {answer[:60]!r} is none, or several, of its choices")


def written(answer: str, record: Record) -> Readings:
    """Whether an answer in words names the right option: its letter, its text, or both."""
    options = options_of(record)
    letter, text = list(_choices(record).items())[options.right]
    if text in ("", letter):
        found = readings(answer, letter, how="exact").lenient
    else:
        ways = (text, f"{letter}. {text}")
        found = max(readings(answer, way, how="exact").lenient for way in ways)
    return Readings(strict=found, lenient=found)


def _choices(record: Record) -> Mapping[str, str]:
    """Text by letter."""
    choices = record.meta.get("choices")
    if not isinstance(choices, Mapping) or len(choices) < 2:
        raise ValueError("it has no column 'choices' with two texts or more")
    return choices
