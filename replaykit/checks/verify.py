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

from replaykit.checks.quantity import Quantity, is_doubted, quantities_in, quantity_in, says
from replaykit.checks.texts import THOUGHT_END, THOUGHT_START, without_thought

How = Literal["exact", "numeric", "json"]


class Readings(NamedTuple):
    """Whether an answer is right, read in two ways; between 0 and 1 where it is graded."""

    strict: float
    lenient: float


class _Marked(NamedTuple):
    """A final answer that a marker announces."""

    kind: str
    text: str
    start: int
    end: int


# GSM8K ends an answer with "#### N", models tuned on MATH end it with \boxed{N}, many others with a
# sentence.
MARKER = re.compile(
    r"(?P<hashes>####[ \t]*(?=\S))|(?P<boxed>\\(?:boxed|fbox)\s*\{)"
    r"|(?P<said>\banswer(?:[ \t]+is:?|[ \t*_]*:)[*_]*[ \t]*(?=\S))",
    re.IGNORECASE,
)
# A sentence that only points at where the answer stands: "The answer is in bold above."
POINTS = re.compile(
    r"[^\d\"“]*\b(?:above|below|in bold|boxed|underlined|highlighted|oben|unten|arriba|"
    r"ci-dessus)\b[^\d\"“]*",
    re.IGNORECASE,
)
POINTS_ON = re.compile(r"\b(?:below|unten|abajo|ci-dessous)\b", re.IGNORECASE)
# What takes back the answer before it.
WITHDRAWN = re.compile(
    r"^\W*(?:wait|actually|correction|no\b[,.:]|sorry|oops|hmm)\b"
    r"|\b(?:(?:that|this|it|which) (?:is|was)|that's) (?:wrong|incorrect|not (?:right|correct))\b"
    r"|\A[ \t$*]*(?:is|was) (?:wrong|incorrect|false|not)\b"
    r"|\bI (?:made|have made) a(?:n error| mistake)\b",
    re.IGNORECASE | re.MULTILINE,
)
BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|;|and|or|und|oder)?[\s$]*", re.IGNORECASE)
MOST_MARKERS = 20
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


def final_answer(text: str) -> str:
    """What the last marker of a final answer announces, up to the end of its line or its closing
    brace; the whole text if there is no marker. A thought before the answer is no part of it.
    What takes the marked answer back, "Wait, that is wrong: 41", is the answer instead.
    """
    return _final(without_thought(text))


def _final(text: str) -> str:
    """As final_answer, of a text without a thought."""
    marked = _marked(text)
    while marked and marked[-1].kind == "said" and POINTS.fullmatch(marked[-1].text):
        last = marked.pop()
        after = text[last.start :].partition("\n")[2].strip()
        if after and POINTS_ON.search(last.text):
            return after
        text = text[: last.start]
        if not marked:
            # The pointing sentence, "The answer", has begun before its marker.
            text = re.sub(r"[^.!?\n]*\Z", "", text)
            bold = BOLD.findall(text)
            return bold[-1].strip() if bold else text.strip()
    if not marked:
        return text.strip()
    after = text[marked[-1].end :]
    if WITHDRAWN.search(after):
        return after.strip()
    return marked[-1].text


def _marked(text: str) -> list[_Marked]:
    """The marked answers in order, the last ones of a text that repeats its markers. Boxes that
    follow one another are one answer: "\\boxed{1} and \\boxed{2}" is 1 and 2.
    """
    found: list[_Marked] = []
    for match in list(MARKER.finditer(text))[-MOST_MARKERS:]:
        kind = match.lastgroup or ""
        if kind == "said" and _is_denied(text, match):
            continue
        if kind == "boxed":
            answer = _in_braces(text, match.end())
            end = match.end() + len(answer) + 1
        else:
            answer = text[match.end() :].partition("\n")[0]
            end = match.end() + len(answer)
        marked = _Marked(kind, answer.strip(), match.start(), end)
        if found and kind == found[-1].kind == "boxed" and match.start() >= found[-1].end:
            between = text[found[-1].end : match.start()]
            if BETWEEN_BOXES.fullmatch(between) and "\n" not in between:
                last = found.pop()
                joined = f"{last.text}{between}{marked.text}".replace("$", "")
                marked = _Marked(kind, joined, last.start, end)
        found.append(marked)
    return found


def _is_denied(text: str, said: re.Match[str]) -> bool:
    """Whether a sentence tells what the answer is not, or doubts that it is what it tells."""
    before = text[max(0, said.start() - 100) : said.start()]
    return is_doubted(before) or re.match(r"not\b", text[said.end() :]) is not None


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
    return float(found.value)


def is_right(answer: str, reference: str, *, how: How) -> bool:
    """Whether the final answers agree in the lenient reading: as text, as quantities or formulas,
    or as JSON values. Raises as ``readings`` does.
    """
    return bool(readings(answer, reference, how=how).lenient)


def readings(answer: str, reference: str, *, how: How) -> Readings:
    """Whether the final answers agree, strictly and leniently.

    exact: the same text, case, spaces and a closing period aside; leniently also without emphasis,
    quotation marks or a closing mark, and "(B) Paris" for B. numeric: all the quantities of the
    reference, in their order; a unit counts where both name one; strictly, nothing but a number.
    json: the same value; leniently also in a code fence. Strictly, a marker of the reference such
    as "####" must be the answer's too. An answer that is denied, or taken back later, is not given.

    A reference that cannot be read that way is a ValueError; an answer that cannot be read is not
    right.
    """
    answer, reference = _without_thoughts(answer, reference)
    match how:
        case "exact":
            return _exact(answer, reference)
        case "numeric":
            return _numeric(answer, reference)
        case "json":
            return _json(answer, reference)


def _without_thoughts(answer: str, reference: str) -> tuple[str, str]:
    """Both without the thought before them. A reference that speaks of the mark of a thought, as
    text, has none, and then the answer's marks are text too.
    """
    if THOUGHT_START.match(reference):
        reference = without_thought(reference)
    elif THOUGHT_END.search(reference):
        return answer, reference
    return without_thought(answer), reference


def _as_reference(answer: str, reference: str) -> str | None:
    """The part of the answer that stands where the reference has its own; None if none does."""
    wanted = _marked(reference)
    if not wanted:
        return answer.strip()
    found = [marked for marked in _marked(answer) if marked.kind == wanted[-1].kind]
    if not found or WITHDRAWN.search(answer[found[-1].end :]):
        return None
    return found[-1].text


# --- text -----------------------------------------------------------------------------------------

# An option of a multiple-choice question: "B", "(B)", "B) Paris", "option B".
OPTION = re.compile(
    r"(?:(?:option|choice|answer)\s+)?"
    r"(?:\((?P<round>[A-Z])\)|\[(?P<square>[A-Z])\]|(?P<open>[A-Z])[).:](?=\s|\Z)"
    r"|(?P<alone>[A-Z])(?=\Z|\s+is\b|,?\s+(?:and\s+)?not\b))(?P<behind>.*)",
    re.IGNORECASE | re.DOTALL,
)
# What may be said of an option without naming another text for it.
CONFIRMED = re.compile(r"\s+is (?:the )?(?:correct|right|answer|correct answer|right answer)")
REFUSED = re.compile(r"\s*,?\s*(?:and )?not (?:option )?\(?[A-Z]\)?")
OTHER_OPTION = re.compile(
    r"\([A-Z]\)|\b[A-Z][).](?=\s|\Z)|\b[A-Z]\s+is\b|\b(?:or|and)\s+(?:maybe\s+)?[A-Z]\b"
    r"|\bis\s+(?:wrong|incorrect)\Z"
)
# A clause about the option rather than its text: "C. is wrong", "(C) or maybe D".
CLAUSE_BEHIND = re.compile(
    r"[\s,;]*(?:is|isn't|was|are|or|and|but|not|nor|cannot|can't|maybe|seems?|looks?)\b"
)
PAIRS = {
    "**": "**",
    "*": "*",
    "`": "`",
    '"': '"',
    "“": "”",
    "„": "“",
    "«": "»",
    "'": "'",
    "‘": "’",
    "\\text{": "}",
}


class _Option(NamedTuple):
    """An option of a multiple-choice question, with the text that stands behind its letter."""

    letter: str
    text: str


def _exact(answer: str, reference: str) -> Readings:
    expected = _final(reference)
    given = _final(answer)
    part = _as_reference(answer, reference)
    strict = part is not None and _plain(part) == _plain(expected)
    same = any(_bare(text) == _bare(expected) for text in _said(answer, given))
    chosen = _is_option(_option(given), _option(expected))
    return Readings(strict, strict or same or chosen)


def _said(answer: str, given: str) -> list[str]:
    """The texts that may be the final answer."""
    texts = [given]
    marked = _marked(answer)[-1:]
    if marked and marked[0].kind == "said" and not WITHDRAWN.search(answer[marked[0].end :]):
        # What seems to point at the answer may be the answer: "The answer is above average".
        texts.append(marked[0].text)
        first, *others = re.split(r"(?<=\w{3})[.!](?:\*\*)?\s+(?=[A-Z])", marked[0].text)
        if not any(TURN.search(other) for other in others):
            texts.append(first)
    return texts


# A later sentence that may turn the answer round.
TURN = re.compile(
    r"\b(?:no|not|never|but|however|or|also|could|may|might|wait|actually|sorry|wrong)\b|n't",
    re.IGNORECASE,
)


def _is_option(given: _Option | None, expected: _Option | None) -> bool:
    """Whether both are one option: the same letter, and the same text where both have one."""
    if given is None or expected is None or given.letter != expected.letter:
        return False
    return not given.text or not expected.text or given.text == expected.text


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
        bare = re.sub(r"(?<=[^\W\d_]{2})[!。！]+\Z|(?<=[\w)*_\"”'`])\.\Z", "", bare).strip()
    return bare or plain


def _option(text: str) -> _Option | None:
    """The one option that the text names, or None."""
    bare = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).replace("**", "")
    bare = re.sub(r"\A[\s*_`\"]+|[\s*_`\"]+\Z", "", bare).removesuffix(".")
    found = OPTION.fullmatch(bare)
    if found is None:
        return None
    behind = found["behind"]
    confirmed = CONFIRMED.match(behind)
    if confirmed is not None:
        behind = behind[confirmed.end() :]
    if REFUSED.fullmatch(behind):
        behind = ""
    if CLAUSE_BEHIND.match(behind) or OTHER_OPTION.search(behind) or (confirmed and behind):
        return None
    letter = found["round"] or found["square"] or found["open"] or found["alone"]
    return _Option(letter.upper(), _bare(behind))


# --- numbers and formulas -------------------------------------------------------------------------

ONLY_A_NUMBER = re.compile(r"-?[$€£¥₹]?-?[\d.,]*\d(?:/\d+)?\s?%?\.?")


def _numeric(answer: str, reference: str) -> Readings:
    expected = quantities_in(_final(reference))
    if not expected:
        raise ValueError(f"no number in the reference {reference[-80:]!r}")
    given = _final(answer)
    if (marked := _marked(answer)) and marked[-1].kind == "said":
        # "The answer is 42!" is no factorial.
        given = given.removesuffix("!")
    lenient = says(given, expected)
    return Readings(lenient and _is_strict(answer, reference, expected), lenient)


def _is_strict(answer: str, reference: str, expected: tuple[Quantity, ...]) -> bool:
    """Whether the answer is written as the reference is: the same text, or a number alone."""
    part = _as_reference(answer, reference)
    if part is None:
        return False
    if _plain(part) == _plain(_final(reference)):
        return True
    return ONLY_A_NUMBER.fullmatch(part) is not None and says(part, expected)


# --- JSON -----------------------------------------------------------------------------------------

FENCE = re.compile(
    r"^```[\w+-]*[ \t]*\n(.*?)^```[ \t]*$|```(?:[\w+-]+[ \t])?([^\n`]*)```",
    re.DOTALL | re.MULTILINE,
)


def fences(text: str) -> list[str]:
    """What stands in each code fence, in order."""
    return [block or inline for block, inline in FENCE.findall(text)]


def _json(answer: str, reference: str) -> Readings:
    expected = json.loads(reference)
    strict = _is_value(answer, expected)
    found = fences(answer)
    # Of two fences none is the answer.
    fenced = len(found) == 1 and _is_value(found[0], expected)
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
