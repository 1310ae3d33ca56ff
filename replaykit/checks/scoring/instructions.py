"""Whether an answer keeps to what it was told of its form, as far as a program can see it.

The reference is a JSON list of constraints, and all of them are to hold:

    [{"kind": "bullets", "exactly": 3}, {"kind": "contains", "text": "rain"}]

The idea is IFEval's (Zhou et al. 2023, arXiv 2311.07911), and so are the two readings. Strict is
the answer as it stands. Lenient is also without asterisks, without its first line, without its last
line, and without both, as a model that says "Sure, here it is:" has kept to the rest; a constraint
holds if it does in any of these, each constraint on its own. An answer that is empty is not right.

The kinds are our own; what each counts stands at its function. A kind that counts takes one or two
of ``at_least``, ``at_most`` and ``exactly``; ``contains`` alone may go without, and means at least
once. A constraint of IFEval's rows is {"ifeval": "punctuation:no_comma", ...}; ``ifeval`` says
which of ours that is.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from typing import Any, get_type_hints

from replaykit.checks.scoring.ifeval import constraints_of
from replaykit.checks.texts import OTHER_CODES, PARTS, language, wrong_language
from replaykit.checks.verify import Readings
from replaykit.data.record import Record
from replaykit.errors import RecipeError, did_you_mean
from replaykit.text import MARKS, UNSPACED

Holds = Callable[[str], bool]
LIMITS = ("at_least", "at_most", "exactly")


def instructions(answer: str, record: Record) -> Readings:
    """Both readings, 0 or 1. Raises ValueError for a reference that is no list of constraints, with
    the kind or the parameter that is wrong.
    """
    constraints = read(record.answer)
    ways = variants(answer)
    strict = bool(answer.strip()) and all(holds(answer) for holds in constraints)
    lenient = all(any(holds(way) for way in ways) for holds in constraints)
    return Readings(float(strict), float(lenient))


def variants(answer: str) -> list[str]:
    """The answer as it is read leniently, itself first; those that say nothing are left out."""
    lines = answer.split("\n")
    cut = [answer]
    cut += ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    ways = [*cut, *(way.replace("*", "") for way in cut)]
    return [way for way in dict.fromkeys(ways) if way.strip()]


# --- what is counted ------------------------------------------------------------------------------

# Letters and digits; an apostrophe, a hyphen or a point between two of them parts no word.
_INNER = rf"(?:(?![{UNSPACED}_])[\w{MARKS}])"
WORD = re.compile(rf"[{UNSPACED}]|{_INNER}+(?:['’‑.-]{_INNER}+)*")
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*(?=\s|\Z)|[。！？।]+[」』”]*")
# What a full stop behind it does not end: one letter (J., U.S., e.g.), titles, an item's number.
GOES_ON = re.compile(
    r"(?:\b(?!I)[^\W\d_]|\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc)|^[ \t]*\d+)\Z", re.MULTILINE
)
LOOK_BACK = 40  # characters before a full stop, in which such a thing has room
SPACES = re.compile(r"\s*")
BLANK = re.compile(r"\n[ \t]*\n\s*")
BULLET = re.compile(r"^[ \t]*[-*+•][ \t]+\S", re.MULTILINE)
NUMBERED = re.compile(r"^[ \t]*\d+[.)][ \t]+\S", re.MULTILINE)
PLACEHOLDER = re.compile(r"\[[^\[\]\n]*[^\W\d_][^\[\]\n]*\](?!\()")
HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,3})(?=[^\s*])[^*\n]*[^\s*]\1(?!\*)")


def words(answer: str) -> int:
    """Words. "don't", "well-known" and "3.5" are one each; in writing without spaces it is each
    character.
    """
    return len(WORD.findall(answer))


def sentences(answer: str) -> int:
    """Sentences. One ends with a closing mark before a space, unless it goes on in a small letter,
    and a full stop behind one letter (J., e.g.), a title or an item's number is none; words behind
    the last mark are one more. A line without a mark is a part of what follows it.
    """
    found = 0
    before = 0  # where the mark before ended
    open_words = False  # whether words stand behind the last sentence
    for mark in SENTENCE_END.finditer(answer):
        open_words = open_words or WORD.search(answer, before, mark.start()) is not None
        before = mark.end()
        behind = SPACES.match(answer, mark.end())
        assert behind is not None
        following = answer[behind.end() : behind.end() + 1]
        last = answer[max(0, mark.start() - LOOK_BACK) : mark.start()]
        goes_on = bool(following) and mark[0][0] == "." and GOES_ON.search(last) is not None
        if open_words and not goes_on and not following.islower():
            found += 1
            open_words = False
    return found + (open_words or WORD.search(answer, before) is not None)


def paragraphs(answer: str, between: str = "") -> int:
    """Parts with words between blank lines, or between such marks as ``between`` is."""
    parts = answer.split(between) if between else BLANK.split(answer)
    return sum(WORD.search(part) is not None for part in parts)


def bullets(answer: str) -> int:
    """Lines that begin with -, *, + or • and a space."""
    return len(BULLET.findall(answer))


def numbered(answer: str) -> int:
    """Lines that begin with a number, a full stop or a bracket, and a space."""
    return len(NUMBERED.findall(answer))


def contains(answer: str, text: str) -> int:
    """How often the text stands there, in longer words too ("cats" has "cat"), whatever its case;
    places that overlap count once.
    """
    return answer.casefold().count(text.casefold())


def letters(answer: str, letter: str) -> int:
    """How often a letter or another sign stands there, whatever its case."""
    return answer.casefold().count(letter.casefold())


def capital_words(answer: str) -> int:
    """Words all of whose letters are capitals; "I" and "A" are such."""
    return sum(word.isupper() for word in WORD.findall(answer))


def placeholders(answer: str) -> int:
    """Square brackets on one line with a letter in them, as [name]; no links, "[1]" or "[ ]"."""
    return len(PLACEHOLDER.findall(answer))


def highlights(answer: str) -> int:
    """Places between one to three asterisks each side, on one line: *so* or **so**."""
    return len(HIGHLIGHT.findall(answer))


def sections(answer: str, word: str) -> int:
    """Lines that begin with this word, as it is written, and a number: "Section 2". Marks of
    Markdown may stand before it.
    """
    return len(re.findall(rf"^[ \t#*_>]*{re.escape(word)}[ \t]*\d+", answer, re.MULTILINE))


# --- what holds or does not -----------------------------------------------------------------------

QUOTATION = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」"}
OPENING = "\"“„«'"
CLOSING = "\"”“»'"
AROUND = "\"“”„«»'‘’*_` \t\n"
FENCED = re.compile(r"```\w*[ \t]*\n(.*?)\n?```", re.DOTALL)
COMMAS = re.compile("[,，、،]")


def avoids(answer: str, words: list[str]) -> bool:
    """None of these words stands there as a word of its own, whatever its case."""
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in words
    )


def starts_with(answer: str, text: str) -> bool:
    """The first words are these, whatever their case and spacing; a quotation mark may stand
    before them.
    """
    given = _flat(answer).lstrip(OPENING)
    wanted = _flat(text).lstrip(OPENING)
    behind = given[len(wanted) :]
    parted = not (wanted[-1:].isalnum() and behind[:1].isalnum())
    return given.startswith(wanted) and parted


def ends_with(answer: str, text: str) -> bool:
    """The last words are these, whatever their case and spacing; a quotation mark may follow."""
    return _flat(answer).rstrip(CLOSING).endswith(_flat(text).rstrip(CLOSING))


def repeats(answer: str, text: str) -> bool:
    """It begins with this text, the request, as it stands but for case and spacing."""
    return _flat(answer).startswith(_flat(text))


def lower_case(answer: str) -> bool:
    """There are letters, and none is a capital."""
    return answer.islower()


def upper_case(answer: str) -> bool:
    """There are letters, and all are capitals."""
    return answer.isupper()


def no_commas(answer: str) -> bool:
    """There is no comma, of Chinese and Arabic neither; "1,000" has one."""
    return COMMAS.search(answer) is None


def quoted(answer: str) -> bool:
    """The whole answer stands in double quotation marks, straight or of a language's own."""
    bare = answer.strip()
    return len(bare) > 2 and QUOTATION.get(bare[0]) == bare[-1]


def json_object(answer: str) -> bool:
    """The whole answer is a JSON object or list, bare or in one code fence."""
    fenced = FENCED.fullmatch(answer.strip())
    text = fenced[1] if fenced else answer
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        # A model in a loop writes thousands of digits (ValueError) or opening brackets.
        return False


def title(answer: str) -> bool:
    """Somewhere on one line stand words in double angle brackets: <<My day>>."""
    for line in answer.splitlines():
        opening = line.find("<<")
        closing = line.rfind(">>")
        if 0 <= opening < closing and WORD.search(line, opening, closing):
            return True
    return False


def two_answers(answer: str, separator: str = "******") -> bool:
    """Two parts with words and the separator between them, once; they are not the same."""
    parts = [_flat(part) for part in answer.split(separator)]
    inner = [part for place, part in enumerate(parts) if part or 0 < place < len(parts) - 1]
    return len(inner) == 2 and all(map(WORD.search, inner)) and inner[0] != inner[1]


def one_of(answer: str, options: list[str]) -> bool:
    """The answer is one of these and nothing else, whatever its case; quotation marks, emphasis and
    a full stop around it do not count.
    """
    return _bare(answer) in map(_bare, options)


def says_one(answer: str, options: list[str]) -> bool:
    """At least one of these texts stands there, as it is written."""
    return any(option in answer for option in options)


def postscript(answer: str, mark: str) -> bool:
    """A line begins with this mark, such as P.S., whatever its case and the spaces within."""
    wanted = "".join(mark.split()).casefold()
    lines = ("".join(line.split()).lstrip("*_#>").casefold() for line in answer.splitlines())
    return any(line.startswith(wanted) for line in lines)


def paragraph_begins(answer: str, number: int, word: str) -> bool:
    """The paragraph of this number, from 1, between blank lines, begins with this word, whatever
    its case; quotation marks and emphasis may stand before it.
    """
    parts = [part for part in BLANK.split(answer.strip()) if part.strip()]
    if not 1 <= number <= len(parts):
        return False
    first = WORD.search(parts[number - 1])
    opening = parts[number - 1][: first.start()] if first else "."
    return first is not None and not opening.strip(AROUND) and _bare(first[0]) == _bare(word)


def in_language(answer: str, code: str) -> bool:
    """It is in the language of this ISO 639 code. Of under 20 bytes nobody can tell, and then it is
    not: a closing line alone would be in every language. What stands in capitals alone is read in
    small letters, since py3langid has read few capitals.
    """
    own = OTHER_CODES.get(code, code)
    read_as = answer.casefold() if answer.isupper() else answer
    return language(read_as) in {own, *PARTS.get(own, ())}


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


def _bare(text: str) -> str:
    return _flat(text).strip(AROUND + ".!")


COUNTED: dict[str, Callable[..., int]] = {
    "words": words,
    "sentences": sentences,
    "paragraphs": paragraphs,
    "bullets": bullets,
    "numbered": numbered,
    "contains": contains,
    "letters": letters,
    "capital_words": capital_words,
    "placeholders": placeholders,
    "highlights": highlights,
    "sections": sections,
}
CONDITIONS: dict[str, Callable[..., bool]] = {
    "avoids": avoids,
    "starts_with": starts_with,
    "ends_with": ends_with,
    "repeats": repeats,
    "lower_case": lower_case,
    "upper_case": upper_case,
    "no_commas": no_commas,
    "quoted": quoted,
    "json": json_object,
    "title": title,
    "two_answers": two_answers,
    "one_of": one_of,
    "says_one": says_one,
    "postscript": postscript,
    "paragraph_begins": paragraph_begins,
    "language": in_language,
}
KINDS: dict[str, Callable[..., Any]] = {**COUNTED, **CONDITIONS}


# --- constraints as they are written --------------------------------------------------------------


@lru_cache(maxsize=4096)
def read(reference: str) -> tuple[Holds, ...]:
    """The constraints of a reference as functions of an answer. Raises ValueError, naming the
    constraint, the kind and the parameter, for one that cannot be checked.
    """
    try:
        given = json.loads(reference)
    except ValueError as error:
        raise ValueError(f"the reference is no JSON list of constraints: {error}") from error
    if not isinstance(given, list) or not given:
        raise ValueError('the reference is a JSON list: [{"kind": "words", "at_most": 50}]')
    found = []
    for number, constraint in enumerate(given, 1):
        where = f"constraint {number}"
        if not isinstance(constraint, Mapping):
            raise ValueError(f'{where} is no object such as {{"kind": "no_commas"}}')
        ours = constraints_of(constraint) if "ifeval" in constraint else [constraint]
        found += [_holds(where, one) for one in ours]
    return tuple(found)


def _holds(where: str, constraint: Mapping[str, Any]) -> Holds:
    kind = constraint.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        near = did_you_mean(str(kind), KINDS)
        raise ValueError(f"{where}: there is no kind {kind!r}{near}: {', '.join(KINDS)}")
    where = f"{where} ({kind})"
    parameters = {key: value for key, value in constraint.items() if key != "kind"}
    limits = {}
    if kind in COUNTED:
        limits = _limits(where, kind, parameters)
        parameters = {key: value for key, value in parameters.items() if key not in LIMITS}
    _check(where, KINDS[kind], parameters)
    if kind == "language":
        _check_code(where, parameters["code"])
    if kind in CONDITIONS:
        return partial(CONDITIONS[kind], **parameters)
    return partial(_within, COUNTED[kind], parameters, limits)


def _check_code(where: str, code: str) -> None:
    try:
        wrong_language("", [code])
    except RecipeError as error:
        raise ValueError(f"{where}: there is no language of the code {code!r}") from error


def _limits(where: str, kind: str, parameters: Mapping[str, Any]) -> dict[str, int]:
    limits = {name: parameters[name] for name in LIMITS if name in parameters}
    for name, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{where}: {name} is {value!r}, not a whole number from 0")
    if not limits and kind == "contains":
        return {"at_least": 1}
    if not limits or ("exactly" in limits and len(limits) > 1):
        raise ValueError(f"{where}: how many? At_least, at_most or both, or exactly, says it")
    return limits


def _within(
    count: Callable[..., int], parameters: Mapping[str, Any], limits: Mapping[str, int], answer: str
) -> bool:
    """Whether there are as many as the limits say."""
    found = count(answer, **parameters)
    exactly = limits.get("exactly", found)
    return limits.get("at_least", 0) <= found <= limits.get("at_most", found) and found == exactly


WANTED = {"str": "a text that is not empty", "list": "a list of such texts", "int": "a number"}


def _check(where: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raises ValueError where the parameters are not those that the function takes."""
    known = _parameters(function)
    for name in given:
        if name not in known:
            near = did_you_mean(name, known)
            raise ValueError(f"{where}: there is no parameter '{name}'{near}")
    for name, (kind, needed) in known.items():
        if name not in given:
            if needed:
                raise ValueError(f"{where}: '{name}' is missing, {WANTED[kind]}")
        elif not _is(kind, given[name]):
            raise ValueError(f"{where}: {name} is {given[name]!r}, not {WANTED[kind]}")


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, tuple[str, bool]]:
    """Of each parameter behind the answer its kind, and whether it is needed."""
    hints = get_type_hints(function)
    found = {}
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        kind = "list" if hints[name] == list[str] else hints[name].__name__
        found[name] = (kind, parameter.default is inspect.Parameter.empty)
    return found


def _is(kind: str, value: Any) -> bool:
    match kind:
        case "str":
            return isinstance(value, str) and bool(value.strip())
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, list) and bool(value) and all(_is("str", part) for part in value)
