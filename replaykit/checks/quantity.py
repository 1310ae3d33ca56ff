r"""Quantities in running text: numbers with their signs, units and words, dates, times, tuples.

    quantity_in("42 kg (about 93 lb)")   ->  the number 42
    quantity_in("41, not 42")            ->  the number 41
    quantity_in("40 or 42")              ->  None: it does not decide
    quantity_in("3 hours 20 minutes")    ->  12000 seconds

Formulas are read by math-verify (https://github.com/huggingface/Math-Verify), which parses LaTeX
into SymPy. It knows no prose: it reads "42 million" as 42, "9:30" as 9, "40 or 42" as 42 and
"1 1/2" as 1, so what words say about a number is read here.
"""

from __future__ import annotations

import logging
import re
import threading
import unicodedata
from calendar import month_name
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal

LONGEST_TEXT = 4000  # characters from its end in which a text's quantity is looked for
LONGEST_NUMBER = 400  # characters: a model in a loop writes thousands of digits
LONGEST_FORMULA = 300  # characters that are given to a parser of formulas
LARGEST_EXPONENT = 400
HIGHEST_POWER = 12  # of an unknown, that is still multiplied out
FORMULA_SECONDS = 5


@dataclass(frozen=True)
class Quantity:
    """One quantity, as far as it can be compared."""

    kind: Literal["number", "date", "time", "tuple", "formula"]
    value: Any
    """A Fraction; (year, month, day); minutes after midnight; Fractions; or a SymPy expression."""
    unit: str | None = None
    """The dimension of a unit that can be converted, whose smallest unit the value then has."""
    written: Fraction | None = None
    """A number as it is written, before its unit was converted."""
    decimals: int | None = None
    """Digits after the point; None for a fraction or a formula, which may have no end."""
    percent: bool = False
    twelve: bool = False
    """A time without a.m. or p.m. that may be either."""
    shape: str = ""
    """The brackets of a tuple."""

    def same(self, reference: Quantity) -> bool:
        """Whether this is the quantity that the reference gives."""
        if "formula" in (self.kind, reference.kind):
            return _same_formula(reference.value, self.value)
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
        if self.unit is not None and reference.unit is not None:
            return self.unit == reference.unit and near(self.value, reference.value, reference)
        given = self.value if self.written is None else self.written
        expected = reference.value if reference.written is None else reference.written
        if near(given, expected, reference):
            return True
        if self.percent and not reference.percent:
            return near(given / 100, expected, reference)
        return reference.percent and not self.percent and near(given, expected / 100, reference)


def near(given: Fraction, expected: Fraction, reference: Quantity) -> bool:
    """Whether two numbers are equal as far as they are written: whole numbers exactly, decimals to
    half of the reference's last digit, all others to a millionth.
    """
    tolerance = Fraction(1, 10**6) * max(Fraction(1), abs(expected))
    if expected.denominator == 1:
        tolerance = Fraction(1, 10**6)
    elif reference.decimals:
        tolerance = min(tolerance, Fraction(1, 2 * 10**reference.decimals))
    return abs(given - expected) <= tolerance


# --- how quantities are written -------------------------------------------------------------------

# (dimension, how many of its smallest unit), by every way to write the unit. Letters that mean
# several units ("m", "s") are left out: they are no unit here, and the number counts as written.
UNITS = {
    name: (dimension, Fraction(size))
    for dimension, sizes in {
        "time": {
            "second|seconds|sec|secs": 1,
            "minute|minutes|min|mins": 60,
            "hour|hours|hr|hrs": 3600,
            "day|days": 86400,
            "week|weeks": 604800,
        },
        "length": {
            "mm|millimetre|millimetres|millimeter|millimeters": 1,
            "cm|centimetre|centimetres|centimeter|centimeters": 10,
            "metre|metres|meter|meters": 1000,
            "km|kilometre|kilometres|kilometer|kilometers": 1_000_000,
        },
        "imperial length": {
            "inch|inches": 1,
            "foot|feet|ft": 12,
            "yard|yards": 36,
            "mile|miles": 63360,
        },
        "mass": {"gram|grams": 1, "kg|kilogram|kilograms": 1000},
        "imperial mass": {"ounce|ounces|oz": 1, "pound|pounds|lb|lbs": 16},
        "money": {"cent|cents|¢": 1, "dollar|dollars": 100},
    }.items()
    for names, size in sizes.items()
    for name in names.split("|")
}
SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
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
SCALE = r"(?:\s?(?:hundred|thousand|million|billion|trillion)s?\b|(?:k|K|bn)\b|\s?[万萬亿億])"
SIGN = r"(?:(?<![\w)])-\s?)?"
MONEY = r"[$€£¥₹]"
NUMBER = (
    rf"(?P<sign>{SIGN})(?P<money>{MONEY}\s?)?(?P<inner>-)?(?:"
    r"(?P<whole>\d+)[ -](?P<over>\d+)/(?P<under>\d+)"
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
TOKEN = re.compile(
    r"(?P<date>\b(?P<y>\d{4})(?P<dash>[-/.])(?P<m>\d{1,2})(?P=dash)(?P<d>\d{1,2})\b"
    rf"|\b(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m2>{MONTH}),? (?P<y2>\d{{4}})\b"
    rf"|\b(?P<m3>{MONTH}) (?P<d3>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y3>\d{{4}})\b)"
    r"|(?P<time>(?<![\d:])(?P<h>\d{1,2}):(?P<min>[0-5]\d)(?!\d)(?:\s?(?P<half>[ap])\.?m\b\.?)?)"
    rf"|(?P<tuple>(?P<open>[(\[{{])\s?(?P<parts>{PART}(?:\s?[,;]\s?{PART})+)\s?(?P<close>[)\]}}]))"
    r"|(?P<range>(?<![\w.,/-])(?P<low>\d+)-(?P<high>\d+)(?![\w.,/-]*\d))"
    rf"|(?P<number>{NUMBER})",
    re.IGNORECASE,
)
WORD_AFTER = re.compile(r"[ -]?([^\W\d_]+|¢)")

# What a number is not, rather than what it is.
NOT = re.compile(
    r"(?:\bnot|n't|\bnever|\bnor|\brather than|\binstead of|\bnicht|\bne pas|不是|并非)"
    r"\s+(?:equal to |exactly |simply )?\W*\Z",
    re.IGNORECASE,
)
OR = re.compile(r"\W*(?:[^\W\d]+\W+)?(?:or|oder|ou|或者?|または)\b\W*(?:maybe |perhaps )?\W*\Z")


def quantity_in(text: str) -> Quantity | None:
    """The quantity that the text comes to: the last one, remarks in brackets and what it is said
    not to be aside; None where there is none or the text does not decide.
    """
    plain = _plain(text[-LONGEST_TEXT:])
    if len(plain) <= LONGEST_FORMULA and _is_formula(plain):
        return formula(plain)
    found: list[tuple[Quantity | None, int, int]] = []
    for quantity, start, end in _all(plain):
        if NOT.search(plain[max(0, start - 40) : start]):
            continue
        if found and _is_remark(plain, found[-1][2], start, end):
            continue
        found.append((quantity, start, end))
    if not found:
        return None
    last, start, _ = found[-1]
    if len(found) > 1:
        other, _, end = found[-2]
        between = plain[end:start]
        agree = last is not None and other is not None and last.same(other)
        if OR.fullmatch(between.lower()) and not agree:
            return None
    return last


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


def _all(text: str) -> Iterator[tuple[Quantity | None, int, int]]:
    """Every quantity with its place; None for one that cannot be read, such as 1/0.

    Neighbours with units of one dimension, the larger first, are one: "5 hours and 20 minutes".
    """
    pending: tuple[Quantity, int, int, Fraction] | None = None
    for match in TOKEN.finditer(text):
        quantity = _read(match)
        start = match.start()
        end = match.end()
        size = None
        if quantity is not None and quantity.kind == "number":
            quantity, end, size = _with_unit(quantity, match, text)
        if pending is not None:
            held, first, last, larger = pending
            joins = re.fullmatch(r"\s?,?\s?(?:and )?", text[last:start])
            if quantity and size and joins and quantity.unit == held.unit and size < larger:
                held = Quantity("number", held.value + quantity.value, unit=held.unit, decimals=0)
                pending = (held, first, end, size)
                continue
            yield held, first, last
            pending = None
        if quantity is not None and size is not None:
            pending = (quantity, start, end, size)
        else:
            yield quantity, start, end
    if pending is not None:
        yield pending[:3]


def _with_unit(
    number: Quantity, match: re.Match[str], text: str
) -> tuple[Quantity, int, Fraction | None]:
    """The number in the smallest unit of its dimension, where its unit ends, and how large that
    is; the number itself where no known unit follows.
    """
    name = ""
    end = match.end()
    word = WORD_AFTER.match(text, end)
    if match["money"] and match["money"][0] == "$":
        name = "dollar"
    elif word is not None and not number.percent:
        name = word[1].casefold()
    if name not in UNITS:
        return number, end, None
    if word is not None and word[1].casefold() in UNITS:
        end = word.end()
    dimension, size = UNITS[name]
    converted = Quantity(
        "number",
        number.value * size,
        unit=dimension,
        written=number.value,
        decimals=number.decimals,
    )
    return converted, end, size


def _read(match: re.Match[str]) -> Quantity | None:
    if match["date"]:
        year = match["y"] or match["y2"] or match["y3"]
        month = match["m"] or match["m2"] or match["m3"]
        day = match["d"] or match["d2"] or match["d3"]
        number = MONTHS.get(month.casefold()) or int(month)
        return Quantity("date", (int(year), number, int(day)))
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
    text = re.sub(r"\b(?:minus|negative)\s+(?=[$€£¥₹]?\.?\d)", "-", text, flags=re.IGNORECASE)
    text = text.replace("{,}", ",")
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
SUM = re.compile(r"[\d\s.,+\-*/^(){}÷]+")
# Single letters joined by operators or to digits: 2x + 1, (a+b)^2. "42 m" and "5 km/h" are units.
ALGEBRA = re.compile(r"(?:[\d\s.+\-*/^(){}=]|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]{2}))+")
OPERATOR = re.compile(r"[\w)}]\s*[+*^-]\s*[\w({]")
WITH_UNIT = re.compile(r"-?[\d.,]+\s?[a-zA-Z]{1,3}(?:\^?[23])?(?:/[a-zA-Z]{1,3}(?:\^?[23])?)?")


def _is_formula(text: str) -> bool:
    """Whether the whole text is to be computed or compared as algebra, not read as prose."""
    if COMMAND.search(text):
        return True
    text = text.rstrip(".")
    right = text.rpartition("=")[2].strip()
    if TOKEN.fullmatch(right) or WITH_UNIT.fullmatch(text):
        return False
    if SUM.fullmatch(right):
        return OPERATOR.search(right) is not None
    return bool(ALGEBRA.fullmatch(text) and OPERATOR.search(text))


# What SymPy could compute for hours: towers of powers, large factorials, sums and integrals.
ENDLESS = re.compile(
    r"\^\s*(?:\{[^{}]*\^|-?\w+\s*\^)|\d{3}\s*!|!\s*!|\\(?:sum|prod|int|iint|lim|binom)\b"
)
EXPONENT = re.compile(r"\^\s*\{?\s*-?(\d+)")


def formula(text: str) -> Quantity | None:
    """The formula as math-verify reads it, a number where it comes to a rational one; None for one
    that it cannot read, or that could take for ever to compute.
    """
    expression = text.replace("**", "^").replace("÷", "/")
    exponents = [int(found) for found in EXPONENT.findall(expression)]
    if ENDLESS.search(expression) or max(exponents, default=0) > LARGEST_EXPONENT:
        return None
    parsed = _parse(expression)
    if not parsed:
        return None
    exact = _rational(parsed[0])
    if exact is not None:
        return Quantity("number", exact)
    return Quantity("formula", parsed)


def _rational(value: Any) -> Fraction | None:
    import sympy

    if isinstance(value, sympy.Equality):
        value = value.rhs
    if not isinstance(value, sympy.Expr) or value.free_symbols:
        return None
    powers = [power for power in value.atoms(sympy.Pow) if power.exp.is_number]
    if any(not power.exp.is_Number or abs(power.exp) > LARGEST_EXPONENT for power in powers):
        return None
    exact = sympy.nsimplify(value.doit())
    if not isinstance(exact, sympy.Rational):
        return None
    return Fraction(int(exact.p), int(exact.q))


def _seconds() -> int | None:
    """math-verify's own limit is a signal, which only the main thread may set; elsewhere the limits
    on length and exponents stand alone.
    """
    main = threading.current_thread() is threading.main_thread()
    return FORMULA_SECONDS if main else None


@cache
def _library() -> tuple[Any, Any, Any]:
    """math-verify's parse, verify and its reading of LaTeX."""
    from math_verify import LatexExtractionConfig, parse, verify

    # It warns where its signal is off, which is meant (see _seconds).
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse, verify, LatexExtractionConfig()


def _parse(expression: str) -> list[Any]:
    parse, _, latex = _library()
    found = parse(
        f"${expression}$", [latex], fallback_mode="no_fallback", parsing_timeout=_seconds()
    )
    return list(found)


def _same_formula(reference: Any, given: Any) -> bool:
    _, verify, _ = _library()
    if _is_high(reference) or _is_high(given):
        # To multiply it out could take minutes.
        return _in_order(reference) == _in_order(given)
    return bool(verify(_sympy(reference), _sympy(given), timeout_seconds=_seconds()))


def _in_order(value: Any) -> list[Any]:
    """A parsed formula with its terms in SymPy's own order, so that x + 1 is 1 + x."""
    parts = value if isinstance(value, list) else [value]
    return [part.doit() if hasattr(part, "doit") else part for part in parts]


def _is_high(value: Any) -> bool:
    """Whether a parsed formula has a power that is too high to be multiplied out."""
    import sympy

    if not isinstance(value, list):
        return False
    parts = [part for part in value if isinstance(part, sympy.Basic)]
    powers = [power for part in parts for power in part.atoms(sympy.Pow) if power.free_symbols]
    return any(power.exp.is_Number and abs(power.exp) > HIGHEST_POWER for power in powers)


def _sympy(value: Any) -> Any:
    """The value as SymPy's, so that 1/3 and a formula can be compared."""
    import sympy

    if isinstance(value, Fraction):
        return sympy.Rational(value.numerator, value.denominator)
    return value
