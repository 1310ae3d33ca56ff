r"""Answers against the reference answer: the same text, the same number, the same JSON, the same
formula.

    symbolic(r"so it is $2\sqrt{2}$", record)    # record's answer is "\sqrt{8}": right
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from replaykit.checks.formulas import computed, latex, same_formula
from replaykit.checks.verify import Readings, final_answer, readings
from replaykit.data.record import Record

# A formula within a sentence: $x$, \(x\), \[x\].
INSIDE = re.compile(r"\$+([^$]+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# A word, which would be read as a product of its letters; functions are none.
WORD = re.compile(r"(?<![\\a-zA-Z])(?!(?:sqrt|log|ln|sin|cos|tan|exp|pi)(?![a-zA-Z]))[a-zA-Z]{2,}")

# What LaTeX has in braces that is no product of letters either.
NO_WORDS = re.compile(r"\\(?:text|mathrm|begin|end)\{[^{}]*\}")


def exact(answer: str, record: Record) -> Readings:
    return readings(answer, record.answer, how="exact")


def numeric(answer: str, record: Record) -> Readings:
    return readings(answer, record.answer, how="numeric")


def as_json(answer: str, record: Record) -> Readings:
    return readings(answer, record.answer, how="json")


def symbolic(answer: str, record: Record) -> Readings:
    """Whether the final answer is the reference's formula, number, set or equation, as math-verify
    compares them; leniently it may be the last formula of a sentence.

    Raises ValueError for a reference that is no formula.
    """
    expected = _formula(final_answer(record.answer))
    if expected is None:
        raise ValueError(f"no formula in the reference {record.answer[-80:]!r}")
    final = final_answer(answer)
    strict = _same(expected, _formula(final))
    inside = ["".join(found) for found in INSIDE.findall(final)]
    lenient = strict or (bool(inside) and _same(expected, _formula(inside[-1])))
    return Readings(strict=strict, lenient=lenient)


def _formula(text: str) -> Fraction | list[Any] | None:
    """What the text comes to as a formula alone; None for words."""
    bare = text.strip().rstrip(".").strip()
    whole = INSIDE.fullmatch(bare)
    if whole is not None:
        bare = "".join(part or "" for part in whole.groups())
    if not bare or WORD.search(NO_WORDS.sub("", bare)):
        return None
    return computed(latex(bare))


def _same(expected: Fraction | list[Any], given: Fraction | list[Any] | None) -> bool:
    return given is not None and same_formula(expected, given)
