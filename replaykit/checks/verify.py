"""Whether an answer is right: its final answer against the reference's.

>>> final_answer("7 + 8 = 15\\n#### 15")
'15'
>>> is_right("So it costs $1,200.", "#### 1200", how="numeric")
True
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

How = Literal["exact", "numeric", "json"]

# GSM8K ends an answer with "#### N", models tuned on MATH end it with \boxed{N}, many others with a
# sentence.
MARKED = re.compile(
    r"####[ \t]*(.+)|\\boxed\{([^{}]*)\}|\banswer(?: is:?|:)[ \t]*(.+)", re.IGNORECASE
)
NUMBER = re.compile(
    r"(?:(?<![\d)])[-−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?"
)


def final_answer(text: str) -> str:
    """What follows the last marker of a final answer, up to the end of its line; the whole text if
    there is no marker.
    """
    found = text
    for match in MARKED.finditer(text):
        # Each marker has a group of its own, and one of them matched.
        found = next(group for group in match.groups() if group is not None)
    return found.strip()


def number_in(text: str) -> float | None:
    """The last number of the final answer, or None. Thousands separators and simple fractions are
    read.
    """
    found = NUMBER.findall(final_answer(text))
    if not found:
        return None
    above, _, below = found[-1].replace(",", "").replace("−", "-").partition("/")
    if below and float(below) == 0:  # no number, such as 1/0
        return None
    return float(above) / float(below or 1)


def is_right(answer: str, reference: str, *, how: How) -> bool:
    """Whether the final answers agree: as text (case, spaces and a closing period aside), as
    numbers, or as JSON values.

    A reference that cannot be read that way is a ValueError; an answer that cannot be read is not
    right.
    """
    match how:
        case "exact":
            return _plain(final_answer(answer)) == _plain(final_answer(reference))
        case "numeric":
            expected = number_in(reference)
            given = number_in(answer)
            if expected is None:
                raise ValueError(f"no number in the reference {reference[-80:]!r}")
            return given is not None and abs(given - expected) <= 1e-6 * max(1.0, abs(expected))
        case "json":
            expected_value = json.loads(reference)
            try:
                return _same(json.loads(answer), expected_value)
            except (ValueError, RecursionError):
                # A model in a loop writes thousands of digits (ValueError) or opening brackets.
                return False


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values, where true is not 1 as it is in Python."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
        case list(), list():
            return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
