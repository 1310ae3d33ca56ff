"""Whether an answer is right: its final answer against the reference's.

>>> final_answer("7 + 8 = 15\\n#### 15")
'15'
>>> is_right("So it costs $1,200.", "#### 1200", how="numeric")
True
>>> readings("So it costs $1,200.", "#### 1200", how="numeric")
Readings(strict=False, lenient=True)

The strict reading wants the answer written as the reference writes it, the lenient one only that it
is the answer: what only the lenient reading finds right has lost the form, not the knowledge.
lm-evaluation-harness has the same pair for GSM8K, strict-match and flexible-extract.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Literal, NamedTuple

from replaykit.checks.quantity import Quantity, quantity_in
from replaykit.checks.texts import without_thought

How = Literal["exact", "numeric", "json"]


class Readings(NamedTuple):
    """Whether an answer is right, read in two ways."""

    strict: bool
    lenient: bool


class _Marked(NamedTuple):
    """A final answer that a marker announces."""

    kind: str
    text: str
    start: int


# GSM8K ends an answer with "#### N", models tuned on MATH end it with \boxed{N}, many others with a
# sentence.
MARKER = re.compile(
    r"(?P<hashes>####[ \t]*(?=\S))|(?P<boxed>\\(?:boxed|fbox)\s*\{)"
    r"|(?P<said>\banswer(?:[ \t]+is:?|[ \t*_]*:)[ \t*_]*(?=\S))",
    re.IGNORECASE,
)
# A sentence that only points at where the answer stands: "The answer is in bold above."
POINTS = re.compile(
    r"[^\d\"“]*\b(?:above|below|in bold|boxed|underlined|highlighted|oben|unten|arriba|"
    r"ci-dessus)\b[^\d\"“]*",
    re.IGNORECASE,
)
MOST_MARKERS = 20
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


def final_answer(text: str) -> str:
    """What the last marker of a final answer announces, up to the end of its line or its closing
    brace; the whole text if there is no marker. A thought before the answer is no part of it.
    """
    text = without_thought(text)
    marked = _marked(text)
    while marked and marked[-1].kind == "said" and POINTS.fullmatch(marked[-1].text):
        text = text[: marked.pop().start]
        if not marked:
            # The pointing sentence, "The answer", has begun before its marker.
            text = re.sub(r"[^.!?\n]*\Z", "", text)
            bold = BOLD.findall(text)
            return bold[-1].strip() if bold else text.strip()
    return marked[-1].text if marked else text.strip()


def _marked(text: str) -> list[_Marked]:
    """The marked answers in order, the last ones of a text that repeats its markers."""
    found = []
    for match in list(MARKER.finditer(text))[-MOST_MARKERS:]:
        kind = match.lastgroup or ""
        if kind == "boxed":
            answer = _in_braces(text, match.end())
        else:
            answer = text[match.end() :].partition("\n")[0]
        found.append(_Marked(kind, answer.strip(), match.start()))
    return found


def _in_braces(text: str, start: int) -> str:
    """What stands from here to the brace that closes it, or to the end of the line if none does."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:].partition("\n")[0]


def number_in(text: str) -> float | None:
    """The number that the final answer comes to, or None. Thousands separators, fractions, signs
    and words such as "million" are read.
    """
    found = quantity_in(final_answer(text))
    if found is None or found.kind != "number":
        return None
    return float(found.value if found.written is None else found.written)


def is_right(answer: str, reference: str, *, how: How) -> bool:
    """Whether the final answers agree in the lenient reading: as text, as quantities or formulas,
    or as JSON values. Raises as ``readings`` does.
    """
    return readings(answer, reference, how=how).lenient


def readings(answer: str, reference: str, *, how: How) -> Readings:
    """Whether the final answers agree, strictly and leniently.

    exact: the same text, case, spaces and a closing period aside; leniently also without emphasis,
    quotation marks or a closing mark, and "(B) Paris" for B. numeric: the same quantity; strictly,
    nothing but a number. json: the same value; leniently also in a code fence. Strictly, a marker
    of the reference such as "####" must be the answer's too.

    A reference that cannot be read that way is a ValueError; an answer that cannot be read is not
    right.
    """
    answer = without_thought(answer)
    match how:
        case "exact":
            return _exact(answer, reference)
        case "numeric":
            return _numeric(answer, reference)
        case "json":
            return _json(answer, reference)


def _as_reference(answer: str, reference: str) -> str | None:
    """The part of the answer that stands where the reference has its own; None if none does."""
    wanted = _marked(reference)
    if not wanted:
        return answer.strip()
    found = [marked.text for marked in _marked(answer) if marked.kind == wanted[-1].kind]
    return found[-1] if found else None


# --- text -----------------------------------------------------------------------------------------

# An option of a multiple-choice question: "B", "(B)", "B) Paris", "option B".
OPTION = re.compile(
    r"(?:(?:option|choice|answer)\s+)?"
    r"(?:\(([A-J])\)|\[([A-J])\]|([A-J])[).:](?=\s|\Z)|([A-J])(?=\Z))(.*)",
    re.IGNORECASE | re.DOTALL,
)
OTHER_OPTION = re.compile(r"\([A-J]\)|\b[A-J][).]|\bor\s+[A-J]\b")
PAIRS = {"**": "**", "__": "__", "*": "*", "_": "_", "`": "`", '"': '"', "“": "”", "'": "'"}


def _exact(answer: str, reference: str) -> Readings:
    expected = final_answer(reference)
    given = final_answer(answer)
    part = _as_reference(answer, reference)
    strict = part is not None and _plain(part) == _plain(expected)
    option = _option(expected)
    # What seems to point at the answer may be the answer: "The answer is above average".
    said = [given, *(marked.text for marked in _marked(answer)[-1:])]
    same = any(_bare(text) == _bare(expected) for text in said)
    chosen = option is not None and _option(given) == option
    return Readings(strict, strict or same or chosen)


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split()).removesuffix(".")


def _bare(text: str) -> str:
    """The plain text without what may stand around it: emphasis, quotation marks, a closing mark.
    Where nothing else is left, those marks are the text.
    """
    plain = _plain(text)
    bare = plain
    previous = ""
    while bare != previous:
        previous = bare
        for opening, closing in PAIRS.items():
            around = bare.startswith(opening) and bare.endswith(closing)
            if around and len(bare) > len(opening + closing):
                bare = bare[len(opening) : -len(closing)].strip()
        # "5!" is a factorial, "Paris!" is not.
        bare = re.sub(r"(?<=[^\W\d_])[!。！]\Z|(?<=[\w)*_\"”'`])\.\Z", "", bare).strip()
    return bare or plain


def _option(text: str) -> str | None:
    """The letter of the one option that the text names, or None."""
    bare = re.sub(r"\A[\s*_`\"]+|[\s*_`\"]+\Z", "", text).removesuffix(".")
    found = OPTION.fullmatch(bare.replace("**", ""))
    if found is None or OTHER_OPTION.search(found[5]):
        return None
    return (found[1] or found[2] or found[3] or found[4]).upper()


# --- numbers and formulas -------------------------------------------------------------------------

ONLY_A_NUMBER = re.compile(r"-?[$€£¥₹]?-?[\d.,]*\d(?:/\d+)?\s?%?\.?")


def _numeric(answer: str, reference: str) -> Readings:
    expected = quantity_in(final_answer(reference))
    if expected is None:
        raise ValueError(f"no number in the reference {reference[-80:]!r}")
    given = quantity_in(final_answer(answer))
    lenient = given is not None and given.same(expected)
    return Readings(lenient and _is_strict(answer, reference, expected), lenient)


def _is_strict(answer: str, reference: str, expected: Quantity) -> bool:
    """Whether the answer is written as the reference is: the same text, or a number alone."""
    part = _as_reference(answer, reference)
    if part is None:
        return False
    if _plain(part) == _plain(final_answer(reference)):
        return True
    found = quantity_in(part)
    alone = ONLY_A_NUMBER.fullmatch(part) is not None
    return alone and found is not None and found.same(expected)


# --- JSON -----------------------------------------------------------------------------------------

FENCE = re.compile(r"^```[\w+-]*[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


def _json(answer: str, reference: str) -> Readings:
    expected = json.loads(reference)
    strict = _is_value(answer, expected)
    fences = FENCE.findall(answer)
    # Of two fences none is the answer.
    fenced = len(fences) == 1 and _is_value(fences[0], expected)
    return Readings(strict, strict or fenced)


def _is_value(text: str, expected: Any) -> bool:
    try:
        return _same(json.loads(text), expected)
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
