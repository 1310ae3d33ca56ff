r"""Quantities in running text: numbers with their signs, units and words, dates, times, tuples.

    quantity_in("42 kg (about 93 lb)")   ->  42 kg
    quantity_in("41, not 42")            ->  the number 41
    quantity_in("40 or 42")              ->  None: it does not decide
    quantity_in("3 hours 20 minutes")    ->  200 minutes

Formulas are read by math-verify (``checks.formulas``). It knows no prose: it reads "42 million" as
42, "9:30" as 9, "40 or 42" as 42 and "1 1/2" as 1, so what words say about a number is read here.
"""

from __future__ import annotations

import re
import unicodedata
from calendar import month_name
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from replaykit.checks.formulas import LARGEST_EXPONENT, MATH, computed, latex, same_formula
from replaykit.checks.units import Unit, meanings, units_at

LONGEST_TEXT = 4000  # characters from its end in which a text's quantity is looked for
MOST_QUANTITIES = 60  # the last ones of a text, which are read
LONGEST_NUMBER = 400  # characters: a model in a loop writes thousands of digits
LONGEST_FORMULA = 300  # characters that are given to a parser of formulas
ROUNDED = 4  # digits after the point from which 0.6667 may stand for 2/3


@dataclass(frozen=True)
class Quantity:
    """One quantity, as far as it can be compared."""

    kind: Literal["number", "date", "time", "tuple", "version", "formula"]
    value: Any
    """A Fraction; (year, month, day); minutes after midnight; Fractions; "1.2.3"; or a SymPy
    expression."""
    units: tuple[Unit, ...] = ()
    """What the unit of a number may mean; () where it has none. "42 m" is metres or minutes."""
    decimals: int | None = None
    """Digits after the point; None for a fraction or a formula, which may have no end."""
    percent: bool = False
    twelve: bool = False
    """A time without a.m. or p.m. that may be either."""
    shape: str = ""
    """The brackets of a tuple."""
    relation: str = ""
    """"≥", "<" and the like, where the text names a bound; "of" where it names a part or a
    function of the number; "?" where it only asks."""
    name: str = ""
    """The letter that the text says it is the value of: "x" of "x = 3"."""

    def same(self, reference: Quantity) -> bool:
        """Whether this is the quantity that the reference gives."""
        names = {self.name, reference.name} - {""}
        if self.relation != reference.relation or len(names) > 1:
            return False
        if "formula" in (self.kind, reference.kind):
            return same_formula(reference.value, self.value)
        if self.kind != reference.kind:
            return False
        match self.kind:
            case "number":
                return self._same_number(reference)
            case "time":
                apart = self.value - reference.value
                return apart == 0 or (apart % 720 == 0 and (self.twelve or reference.twelve))
            case "tuple":
                return self.shape == reference.shape and bool(self.value == reference.value)
        return bool(self.value == reference.value)

    def _same_number(self, reference: Quantity) -> bool:
        """Units are converted where both have one, and "50%" is 50 as well as 0.5."""
        if self.units and reference.units:
            return any(
                near(self.value * unit.size / other.size, self, reference)
                for unit in self.units
                for other in reference.units
                if unit.dimension == other.dimension
            )
        if near(self.value, self, reference):
            return True
        if self.percent == reference.percent:
            return False
        factor = Fraction(1, 100) if self.percent else Fraction(100)
        return near(self.value * factor, self, reference)


def near(value: Fraction, given: Quantity, reference: Quantity) -> bool:
    """Whether a value is the reference's as far as both are written: whole numbers exactly,
    decimals to half of the reference's last digit, all others to a millionth, or rounded by the
    answer to four digits after the point or more.
    """
    expected = reference.value
    tolerance = Fraction(1, 10**6) * max(Fraction(1), abs(expected))
    if expected.denominator == 1:
        tolerance = Fraction(1, 10**6)
    elif reference.decimals:
        tolerance = min(tolerance, Fraction(1, 2 * 10**reference.decimals))
    elif reference.decimals is None and (given.decimals or 0) >= ROUNDED:
        tolerance = Fraction(1, 2 * 10 ** (given.decimals or 0))
    return bool(abs(value - expected) <= tolerance)


# --- how quantities are written -------------------------------------------------------------------

SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "m": 10**6,
    "b": 10**9,
    "k": 1000,
    "bn": 10**9,
    "万": 10**4,
    "萬": 10**4,
    "亿": 10**8,
    "億": 10**8,
}
MONTHS = {name.casefold(): number for number, name in enumerate(month_name) if name}

GROUPS = r"\d{1,3}(?:,\d{3})+(?![\d,])|[1-9]\d{0,2}(?:[ \u00a0\u202f\u2009]\d{3})+(?!\d)"
DIGITS = rf"(?:(?:{GROUPS}|\d+)(?:\.\d+)?|\.\d+)"
SCALE = (
    r"(?:\s?(?:hundred|thousand|million|billion|trillion)s?\b|(?:k|bn|(?-i:[MB]))\b|\s?[万萬亿億])"
)
SIGN = r"(?:(?<![\w)])-\s?)?"
MONEY = r"(?:\b(?:US\$|USD|EUR|GBP|CHF|JPY|CNY|INR|Rs\b\.?)|[$€£¥₹])"
NUMBER = (
    rf"(?P<sign>{SIGN})(?P<money>{MONEY}\s?)?(?P<inner>-)?(?:"
    r"(?P<whole>\d+)(?:-| {1,2}| and )(?P<over>\d+)/(?P<under>\d+)"
    rf"|(?P<digits>{DIGITS})"
    r"(?:[eE](?P<e>[+-]?\d+)(?!\w)"
    r"|\s?[×x*·]\s?10\s?(?:\^|\*\*)\s?\{?(?P<ten>-?\d+)\}?"
    rf"|\s?(?:\^|\*\*)\s?\{{?(?P<power>-?\d+)\}}?(?P<tower>\s?(?:\^|\*\*))?"
    rf"|\s?/\s?(?P<below>{DIGITS}))?)"
    rf"(?P<scale>{SCALE})?"
    r"(?P<percent>\s?(?:%|percent\b|per cent\b))?"
)
# A number in a tuple: signs, digits and fractions only.
PART = rf"-?\s?(?:{DIGITS})(?:/\d+)?"
MONTH = "|".join(MONTHS)
FUNCTION = r"(?:√|(?<![a-z\\])(?:sqrt|log|ln|sin|cos|tan))"
# A number with a root, a function, pi or an unknown: "3 sqrt 2", "log 3", "4π", "4x".
TERM = (
    rf"{SIGN}(?:{DIGITS}\s?)?{FUNCTION}\s?(?:\(\s?{DIGITS}\s?\)|{DIGITS})"
    rf"|{SIGN}{DIGITS}(?:\s?(?:π|pi\b)|(?-i:[abceijnopqruvwxyz])(?![\w/^]))"
)
TOKEN = re.compile(
    r"(?P<date>\b(?P<y>\d{4})(?P<dash>[-/.])(?P<m>\d{1,2})(?P=dash)(?P<d>\d{1,2})\b"
    rf"|\b(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m2>{MONTH}),? (?P<y2>\d{{4}})\b"
    rf"|\b(?P<m3>{MONTH}) (?P<d3>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y3>\d{{4}})\b)"
    r"|(?P<version>(?<![\w.])\d+(?:\.\d+){2,}(?!\w))"
    rf"|(?P<term>{TERM})"
    r"|(?P<time>(?<![\d:])(?P<h>\d{1,2}):(?P<min>[0-5]\d)(?!\d)(?:\s?(?P<half>[ap])\.?m\b\.?)?)"
    rf"|(?P<tuple>(?P<open>[(\[{{])\s?(?P<parts>{PART}(?:\s?[,;]\s?{PART})+)\s?(?P<close>[)\]}}]))"
    r"|(?P<range>(?<![\w.,/-])(?P<low>\d+)-(?P<high>\d+)(?![\w.,/-]*\d))"
    rf"|(?P<number>{NUMBER})",
    re.IGNORECASE,
)

JOINS = re.compile(r"\s?,?\s?(?:and )?", re.IGNORECASE)

# What a number is not, rather than what it is.
NOT = re.compile(
    r"(?:\bnot|n't|\bcannot|\bnever|\bnor|\brather than|\binstead of|\bother than|"
    r"\b(?:any|every)thing but|\bnicht|\bne pas|不是|并非)"
    r"(?:\s+(?:be|been|have|equal|equals|to|the|an?|exactly|simply|even|number|value|answer|result)\b)*"
    r"\W*\Z",
    re.IGNORECASE,
)
# A statement that is denied or doubted as a whole, up to where the clause ends.
DOUBT = re.compile(
    r"(?:\b(?:not|cannot|never)|n't)\s+(?:the case|true|correct|right|possible|likely|think|"
    r"believe|sure|certain|say|mean)\b|\bdoubt(?:s|ful)?\b|\bden(?:y|ies)\b|"
    r"\b(?:wrong|false|incorrect|untrue|impossible|unlikely|mistaken)\s+(?:that|to|for)\b",
    re.IGNORECASE,
)
CLAUSE = re.compile(r"[.,;:!?\n](?!\d)|\b(?:but|so|and|thus|therefore|hence)\b", re.IGNORECASE)
FALSE = r"(?:wrong|incorrect|false|impossible|mistaken|unlikely|too (?:low|high|small|large|big))"
# "42 is not it", "42 cannot be right"; of "42 apples are not red" the number is no subject.
DENIED_AFTER = re.compile(
    r"[\"'*_)\]]*\s+(?:(?:[^\W\d]+\s+)?(?:is|was|are|were|seems?|looks?|would be)\s+"
    rf"(?:\w+ly\s+)?{FALSE}"
    r"|(?:is|was|would be|can|could|may|must|will|should|does)(?:\s+not\b|n't)|cannot\b|can't\b)",
    re.IGNORECASE,
)
# A word of one of these three: most texts have none, and need no closer look.
DENIALS = re.compile(
    r"not\b|n't|never|\bnor\b|rather than|instead of|other than|thing but|nicht|ne pas|不是|并非|"
    rf"doubt|den(?:y|ies)|untrue|{FALSE}",
    re.IGNORECASE,
)
OR = re.compile(r"\W*(?:[^\W\d]+\W+)?(?:or|oder|ou|或者?|または)\b\W*(?:maybe |perhaps )?\W*\Z")
# What joins quantities to a list, a range, a ratio, or a sum that is not worked out.
JOINED = re.compile(
    r"[ \t]*(?:,?[ \t]*(?:and|&|to|through|until|mod)|[;|–—+*/-]|to)[ \t]*|:| : ", re.IGNORECASE
)
# Where a list begins for which a comma is enough: "x = 1, 2", but not "in 2023, 42".
LIST_AFTER = re.compile(r"(?:.*(?:[=:]|\b(?:is|are|be)\b))?\W*", re.DOTALL)
BECAUSE = re.compile(r"\b(?:because|since|weil|denn|parce que|porque)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?]\s|\n")
# A name, "B42" or "v42", is no number; "5h20m" is two.
IDENTIFIER = re.compile(r"(?<![\w\\])[A-Za-z_]\w*\Z")
SIGNS = ("=", "<", ">", "≤", "≥", "≠")
NAMED = re.compile(r"(?<![\w\\])([A-Za-z])\s*(?:=|[<>≤≥≠]=?)\s*\Z")
# What the number is said to be: "≥" a bound, "of" a part or a function of it ("half of 42").
RELATIONS = {
    "±": r"±|\+/-|\bplus or minus",
    "≠": r"≠|!=",
    "≥": r"≥|>=|\bat least|\b(?:no|not) (?:less|fewer) than|\ba minimum of",
    "≤": r"≤|(?<!<)<=|\bat most|\b(?:no|not) more than|\bup to|\ba maximum of",
    ">": r"(?<![=>-])>|\b(?:more|greater|larger|higher) than|\b(?:exceeds?|above)",
    "<": r"(?<!<)<|\b(?:less|fewer|smaller|lower) than|\b(?:below|under)",
    "of": r"(?:\d%?|\bpercent|\bhalf|\bthird|\bquarter|\bopposite|\broot|\bsquare|\bcube|"
    r"\breciprocal|\bfactorial) of|\b(?:twice|double|triple|half)",
}
RELATION = re.compile(
    rf"(?:{'|'.join(f'({words})' for words in RELATIONS.values())})[\"'(*_]*\s*\Z", re.IGNORECASE
)
RELATION_AFTER = re.compile(
    r"\s*(?:[^\W\d]+\s)?(?P<sign>or (?:more|less|fewer|higher|lower|above|below)\b)"
    r"|[\"'*_)\]]*(?P<asks>\?)",
    re.IGNORECASE,
)
BELOW_ZERO = re.compile(r"\s*below zero\b", re.IGNORECASE)


class Found(NamedTuple):
    """A quantity, None if it cannot be read, and its place in the text."""

    quantity: Quantity | None
    start: int
    end: int


def quantity_in(text: str) -> Quantity | None:
    """The last quantity of the text, remarks in brackets and what it is said not to be aside; None
    where there is none or the text does not decide.
    """
    plain = _plain(text[-LONGEST_TEXT:])
    found = _stated(plain)
    if not found:
        return None
    last = found[-1].quantity
    if len(found) > 1:
        between = plain[found[-2].end : found[-1].start]
        if OR.fullmatch(between.lower()) and not _agree(found[-2], found[-1]):
            return None
    return last


def quantities_in(text: str) -> tuple[Quantity, ...]:
    """All the quantities that a reference gives, in order; () where there is none or one of them
    cannot be read. Raises ValueError where several sentences name some: none says it is the answer.
    """
    plain = _plain(text[-LONGEST_TEXT:])
    found = _stated(plain)
    if found and (len(text) > LONGEST_TEXT or len(found) >= MOST_QUANTITIES // 2):
        raise ValueError(f"the reference {text[-80:]!r} is too long to be compared as numbers")
    for one, other in pairwise(found):
        between = plain[one.end : other.start]
        if SENTENCE_END.search(between) and re.search(r"[^\W\d_]", between):
            raise ValueError(
                f"several numbers in the reference {text[-80:]!r}; "
                "write '#### ' before the one that is the answer"
            )
    quantities = [one.quantity for one in found if one.quantity is not None]
    return tuple(quantities) if len(quantities) == len(found) else ()


def says(text: str, expected: tuple[Quantity, ...]) -> bool:
    """Whether the text comes to the quantities of a reference: it ends with all of them, in their
    order, and does not list others beside them.
    """
    plain = _plain(text[-LONGEST_TEXT:])
    if DECIMAL_COMMA.fullmatch(plain) and says(plain.replace(",", "."), expected):
        return True
    found = _stated(plain)
    return any(_ends_with(plain, found, way) for way in _ways(expected))


DECIMAL_COMMA = re.compile(r"-?\d+,\d{1,2}")


def _ways(expected: tuple[Quantity, ...]) -> list[tuple[Quantity, ...]]:
    """The quantities, and "(2, 3)" also as 2, 3 or the other way round."""
    ways = [expected]
    if len(expected) == 1 and expected[0].shape == "()":
        ways.append(tuple(Quantity("number", part) for part in expected[0].value))
    if len(expected) > 1 and all(
        one == Quantity("number", one.value, decimals=one.decimals) for one in expected
    ):
        parts = tuple(one.value for one in expected)
        ways.append((Quantity("tuple", parts, shape="()"),))
    return ways


def _ends_with(text: str, found: list[Found], expected: tuple[Quantity, ...]) -> bool:
    """Whether the last of what was found is what is expected, and no more belongs to its list."""
    first = len(found) - len(expected)
    if first < 0:
        return False
    given = [one.quantity for one in found[first:]]
    wanted = list(expected)
    if len(wanted) > 1 and all(one.name for one in wanted):
        # Named values may come in any order.
        given.sort(key=lambda one: one.name if one is not None else "")
        wanted.sort(key=lambda one: one.name)
    same = all(
        one is not None and one.same(other) for one, other in zip(given, wanted, strict=True)
    )
    if not same or first == 0:
        return same
    if len(expected) == 1 and _agree(found[-2], found[-1]):
        return True
    return not _is_listed(text, found[:first], found[first])


def _agree(one: Found, other: Found) -> bool:
    """Whether two quantities are one, "42 or 42.0"."""
    if one.quantity is None or other.quantity is None:
        return False
    return other.quantity.same(one.quantity)


def _is_listed(text: str, earlier: list[Found], one: Found) -> bool:
    """Whether the last of the earlier quantities is one item of a list and this is the next."""
    between = NAMED.sub("", text[earlier[-1].end : one.start])
    if OR.fullmatch(between.lower()) or JOINED.fullmatch(between):
        return True
    start = one.start
    for before in reversed(earlier):
        if NAMED.sub("", text[before.end : start]).strip(" \t$") != ",":
            break
        start = before.start
    return start != one.start and LIST_AFTER.fullmatch(text[:start]) is not None


def _stated(text: str) -> list[Found]:
    """The quantities that the text states: no remarks, nothing denied, no working; the one that a
    formula comes to.
    """
    if _is_formula(text):
        return [Found(_formula(text), 0, len(text))]
    found: list[Found] = []
    denies = DENIALS.search(text) is not None
    because = False
    end = 0
    for one in _all(text):
        before = text[end : one.start]
        end = one.end
        if SENTENCE_END.search(before):
            because = False
        elif found and BECAUSE.search(before):
            because = True
        if because or (denies and _is_denied(text, one)):
            continue
        if found and _is_remark(text, found[-1].end, one.start, one.end):
            continue
        found.append(one)
    return _without_working(text, found)


WORKING = re.compile(r"[ \t]*[-+*/][ \t]*")
EQUALS = re.compile(r"[^\w\n]*=[^\w\n]*")


def _without_working(text: str, found: list[Found]) -> list[Found]:
    """What is left without the terms of a sum that is worked out: 7 of "3 + 4 = 7"."""
    kept = found[-1:]
    is_term = False
    for one, other in reversed(list(pairwise(found))):
        between = text[one.end : other.start]
        equals = EQUALS.fullmatch(between) is not None
        is_term = equals or (is_term and WORKING.fullmatch(between) is not None)
        if not is_term:
            kept.append(one)
    return kept[::-1]


def _is_denied(text: str, one: Found) -> bool:
    """Whether the words around a quantity say that it is not the one."""
    before = text[max(0, one.start - 100) : one.start]
    if NOT.search(before) or DENIED_AFTER.match(text, one.end):
        return True
    return is_doubted(before)


def is_doubted(before: str) -> bool:
    """Whether the clause that leads up to a statement denies or doubts it, "I doubt that"."""
    doubts = list(DOUBT.finditer(before))
    return bool(doubts) and CLAUSE.search(before, doubts[-1].end()) is None


def _is_remark(text: str, before: int, start: int, end: int) -> bool:
    """Whether words in brackets hold the quantity, and an earlier one stands just before them:
    "42 kg (about 93 lb)". A bracket that holds nothing else, "(93)", is no remark.
    """
    opened = text.rfind("(", before, start)
    if opened < 0 or ")" in text[opened:start] or "\n" in text[before:start]:
        return False
    closed = text.find(")", end)
    within = text[opened + 1 : closed] if closed > 0 else ""
    return any(sign.isalpha() for sign in within)


def _all(text: str) -> Iterator[Found]:
    """The last quantities with their places; None for one that cannot be read, such as 1/0.

    Neighbours with units of one dimension, the larger first, are one: "5 hours and 20 minutes".
    """
    pending: Found | None = None
    for match in deque(TOKEN.finditer(text), maxlen=MOST_QUANTITIES):
        if IDENTIFIER.search(text[max(0, match.start() - 24) : match.start()]):
            continue
        found = _found(match, text)
        joined = None
        if pending is not None:
            joined = _joined(pending, found, text)
            if joined is None:
                yield pending
        pending = joined or found
    if pending is not None:
        yield pending


def _found(match: re.Match[str], text: str) -> Found:
    """The quantity of a match, a number with its unit and what the words around say of it."""
    quantity = _read(match)
    end = match.end()
    if quantity is None:
        return Found(None, match.start(), end)
    value = quantity.value
    units: tuple[Unit, ...] = ()
    if quantity.kind == "number" and match["number"]:
        if match["money"]:
            units = meanings(match["money"].strip().rstrip(".").casefold())
        elif not quantity.percent:
            units, end = units_at(text, end)
        below = BELOW_ZERO.match(text, end)
        if below is not None:
            value = -value
            end = below.end()
    before = text[max(0, match.start() - 24) : match.start()]
    named = NAMED.search(before) if before.rstrip().endswith(SIGNS) else None
    name = named[1] if named else ""
    relation = _relation(before, text, end)
    if units or name or relation or value is not quantity.value:
        quantity = replace(quantity, value=value, units=units, relation=relation, name=name)
    return Found(quantity, match.start(), end)


def _relation(before: str, text: str, end: int) -> str:
    """The sign of the bound that a quantity is, "≥" of "at least 42"; "" where it is none."""
    found = RELATION.search(before)
    if found is not None:
        return list(RELATIONS)[(found.lastindex or 1) - 1]
    after = RELATION_AFTER.match(text, end)
    if after is None:
        return ""
    if after["asks"]:
        return "?"
    return "≥" if after["sign"].lower()[3:] in ("more", "higher", "above") else "≤"


def _joined(one: Found, other: Found, text: str) -> Found | None:
    """Two neighbours as one quantity in the smaller unit, or None if they are two."""
    first = one.quantity
    second = other.quantity
    if first is None or second is None or not (first.units and second.units):
        return None
    if JOINS.fullmatch(text[one.end : other.start]) is None:
        return None
    for large in first.units:
        for small in second.units:
            if large.dimension == small.dimension and large.size > small.size:
                value = first.value * large.size / small.size + second.value
                merged = replace(first, value=value, units=(small,), decimals=second.decimals)
                return Found(merged, one.start, other.end)
    return None


def _read(match: re.Match[str]) -> Quantity | None:
    if match["date"]:
        year = match["y"] or match["y2"] or match["y3"]
        month = match["m"] or match["m2"] or match["m3"]
        day = match["d"] or match["d2"] or match["d3"]
        number = MONTHS.get(month.casefold()) or int(month)
        return Quantity("date", (int(year), number, int(day)))
    if match["version"]:
        return Quantity("version", match["version"])
    if match["term"]:
        return _formula(latex(match["term"]))
    if match["time"]:
        hour = int(match["h"])
        half = match["half"]
        if half is not None:
            hour = hour % 12 + (12 if half.lower() == "p" else 0)
        early = half is None and hour <= 12
        return Quantity("time", hour * 60 + int(match["min"]), twelve=early)
    if match["tuple"]:
        if match["open"] == "(" and re.fullmatch(GROUPS, match["parts"]):
            return Quantity("number", Fraction(match["parts"].replace(",", "")), decimals=0)
        parts = tuple(_number_of(part) for part in re.split(r"[,;]", match["parts"]))
        shape = match["open"] + match["close"]
        if None in parts:
            return None
        if shape == "{}":
            return Quantity("tuple", frozenset(parts), shape=shape)
        return Quantity("tuple", parts, shape=shape)
    if match["range"]:
        ends = (_number_of(match["low"]), _number_of(match["high"]))
        return None if None in ends else Quantity("tuple", ends, shape="-")
    return _number(match)


def _number_of(text: str) -> Fraction | None:
    above, _, below = re.sub(r"[\s,]", "", text).partition("/")
    if len(text) > LONGEST_NUMBER or (below and not int(below)):
        return None
    return Fraction(above) / Fraction(below or 1)


def _number(match: re.Match[str]) -> Quantity | None:
    if len(match[0]) > LONGEST_NUMBER:
        return None
    decimals: int | None = None
    if match["whole"]:
        value = _number_of(match["whole"])
        part = _number_of(f"{match['over']}/{match['under']}")
        if value is None or part is None:
            return None
        value += part
    else:
        digits = re.sub(r"[\s,]", "", match["digits"])
        value = Fraction(digits)
        decimals = len(digits.partition(".")[2])
        if match["below"]:
            below = _number_of(match["below"])
            if not below:
                return None
            value /= below
            decimals = None
        exponent = match["e"] or match["ten"]
        power = match["power"]
        if match["tower"] or abs(int(exponent or power or 0)) > LARGEST_EXPONENT:
            return None
        if power and not value and int(power) < 0:
            return None
        if exponent:
            value *= Fraction(10) ** int(exponent)
        elif power:
            value = value ** int(power)
        decimals = None if exponent or power else decimals
    scale = (match["scale"] or "").strip().casefold().removesuffix("s")
    if scale:
        value *= SCALES[scale]
        decimals = None
    if "-" in match["sign"] or match["inner"]:
        value = -value
    return Quantity("number", value, decimals=decimals, percent=bool(match["percent"]))


# --- number words ---------------------------------------------------------------------------------

BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
WORDS = {word: number for number, word in enumerate(BELOW_TWENTY)}
WORDS |= {word: 10 * number for number, word in enumerate(TENS, 2)}
WORD = "|".join(["hundred", "thousand", "million", "billion", *sorted(WORDS, key=len)[::-1]])
# A text that is a number in words and at most one word behind it, "forty-two apples".
NUMBER_WORDS = re.compile(
    rf"[^\w-]*((?:minus|negative)\s|-\s?)?((?:{WORD})(?:(?:[ -]| and )(?:{WORD}))*)\b"
    r"\s?([^\W\d]*)\W*",
    re.IGNORECASE,
)


def _spelt(words: str) -> int:
    """The number that is written in words: "two hundred and five" is 205."""
    total = 0
    part = 0
    for word in re.findall(r"[a-z]+", words.lower()):
        if word in WORDS:
            part += WORDS[word]
        elif word == "hundred":
            part = max(part, 1) * 100
        elif word != "and":
            total += max(part, 1) * SCALES[word]
            part = 0
    return total + part


# --- one way to write it --------------------------------------------------------------------------

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
SIMPLE_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}|\\[dt]?frac(\d)(\d)")


def _plain(text: str) -> str:
    """The text with one minus sign, and without emphasis and LaTeX that says nothing of a value."""
    if not text.isascii():
        text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^" + m[0].translate(SUPERSCRIPTS), text)
        text = re.sub(
            "[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("⁄", "/"), text
        )
        text = text.replace("\N{MINUS SIGN}", "-").replace("×", "*")
        text = re.sub(r"(?<![\w)])[\N{EN DASH}\N{EM DASH}](?=\s?[$€£¥₹]?\d)", "-", text)
        text = text.replace("’", "'")
    text = re.sub(r"\b(?:minus|negative)\s+(?=[$€£¥₹]?\.?\d)", "-", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d)\s?[xX]\s?(?=\d)", " * ", text)
    text = re.sub(r"</?[a-zA-Z]+>", "", text)
    words = NUMBER_WORDS.fullmatch(text)
    if words is not None:
        sign = "-" if words[1] else ""
        text = f"{sign}{_spelt(words[2])} {words[3]}"
    text = text.replace("{,}", ",").replace(r"\{", "{").replace(r"\}", "}")
    if MATH.fullmatch(text):
        text = latex(text)
    if "\\" in text:
        text = SIMPLE_FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]}", text)
        text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\{([^{}]*)\}", r" \1", text)
        text = re.sub(r"\\[,;:! ]|\\[()\[\]]|\\(?:left|right|displaystyle)\b", " ", text)
        text = text.replace(r"\%", "%").replace(r"\$", "$")
        text = re.sub(r"\\(?:times|cdot)\b", "*", text)
        text = re.sub(r"\^\s?\{?\\circ\}?", " degrees", text)
    text = re.sub(r"\*\*(?!\s*\d+\s*(?:\D|\Z))|(?<![\d)\s])\*\*|(?<!\w)__|__(?!\w)", "", text)
    # "$42$" is LaTeX, "$42" is money.
    return re.sub(r"\$([^$\n]+)\$(?!\d)", r" \1 ", text).strip()


# --- formulas -------------------------------------------------------------------------------------

COMMAND = re.compile(r"\\(?!boxed)[a-zA-Z]+")
SUM = re.compile(r"[\d\s.,+\-*/^(){}÷!]+")
# Single letters joined by operators or to digits: 2x + 1, (a+b)^2. "42 m" and "5 km/h" are units.
ALGEBRA = re.compile(r"(?:[\d\s.+\-*/^(){}=]|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]{2}))+")
OPERATOR = re.compile(r"[\w)}]\s*[+*^-]\s*[\w({]|(?<!\w)[a-zA-Z]\s?/\s?[\d(]|\d!")
WITH_UNIT = re.compile(r"-?[\d.,]+\s?[a-zA-Z]{1,3}(?:\^?[23])?(?:/[a-zA-Z]{1,3}(?:\^?[23])?)?")


def _is_formula(text: str) -> bool:
    """Whether the whole text is to be computed or compared as algebra, not read as prose."""
    if len(text) > LONGEST_FORMULA:
        return False
    if COMMAND.search(text):
        return True
    text = text.rstrip(".")
    right = text.rpartition("=")[2].strip()
    if TOKEN.fullmatch(right) or WITH_UNIT.fullmatch(text):
        return False
    if SUM.fullmatch(right):
        return OPERATOR.search(right) is not None
    return bool(ALGEBRA.fullmatch(text) and OPERATOR.search(text))


def _formula(text: str) -> Quantity | None:
    value = computed(text)
    if value is None:
        return None
    return Quantity("number" if isinstance(value, Fraction) else "formula", value)
