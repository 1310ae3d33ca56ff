"""Units of measure behind a number, and what they mean.

    units_at("42 km/h", 2)   ->  ((Unit("length/time", 5/18),), 7)
    units_at("42 m", 2)      ->  metres or minutes
    units_at("42 apples", 2) ->  ((), 2): no known unit

A small table: the SI prefixes with their units, and the units of daily life. It makes no claim to
be whole: a word that is not in it is no unit, and a number then counts as it is written.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """One meaning of a unit: only units of one dimension can be compared."""

    dimension: str
    size: Fraction
    """How many of the dimension's base unit it is."""


PREFIXES = {
    ("", ""): "1",
    ("n", "nano"): "1e-9",
    ("µ", "micro"): "1e-6",
    ("m", "milli"): "1e-3",
    ("c", "centi"): "1e-2",
    ("d", "deci"): "1e-1",
    ("h", "hecto"): "1e2",
    ("k", "kilo"): "1e3",
    ("M", "mega"): "1e6",
    ("G", "giga"): "1e9",
    ("T", "tera"): "1e12",
}
# (dimension, symbols, names, size) of the units that take a prefix.
PREFIXED = [
    ("length", "m", "metre meter", "1"),
    ("mass", "g", "gram gramme", "1"),
    ("volume", "L l", "litre liter", "1"),
    ("time", "s", "second", "1"),
    ("power", "W", "watt", "1"),
    ("energy", "J", "joule", "1"),
    ("energy", "Wh", "watt-hour", "3600"),
    ("energy", "cal", "calorie", "4.184"),
    ("voltage", "V", "volt", "1"),
    ("current", "A", "ampere amp", "1"),
    ("frequency", "Hz", "hertz", "1"),
    ("pressure", "Pa", "pascal", "1"),
    ("force", "N", "newton", "1"),
    ("data", "B", "byte", "8"),
    ("data", "bit", "bit", "1"),
]
# (dimension, ways to write it, size) of the others. One word may have several meanings.
OTHERS = [
    ("time", "sec secs", "1"),
    ("time", "min mins minute minutes m", "60"),
    ("time", "h hr hrs hour hours", "3600"),
    ("time", "d day days", "86400"),
    ("time", "week weeks", "604800"),
    ("forenoon", "am", "1"),
    ("afternoon", "pm", "1"),
    ("calendar", "month months", "1"),
    ("calendar", "yr yrs year years", "12"),
    ("calendar", "decade decades", "120"),
    ("calendar", "century centuries", "1200"),
    ("length", "in inch inches", "0.0254"),
    ("length", "ft foot feet", "0.3048"),
    ("length", "yd yard yards", "0.9144"),
    ("length", "mi mile miles", "1609.344"),
    ("mass", "oz ounce ounces", "28.349523125"),
    ("mass", "lb lbs pound pounds", "453.59237"),
    ("mass", "t tonne tonnes", "1e6"),
    ("volume", "pint pints", "0.473176473"),
    ("volume", "quart quarts", "0.946352946"),
    ("volume", "gal gallon gallons", "3.785411784"),
    ("length/time", "mph", "0.44704"),
    ("length/time", "kph kmh", "5/18"),
    ("dollar", "$ usd us$ dollar dollars", "1"),
    ("dollar", "¢ cent cents", "1/100"),
    ("euro", "€ eur euro euros", "1"),
    ("euro", "cent cents", "1/100"),
    ("sterling", "£ gbp pound pounds", "1"),
    ("sterling", "penny pence", "1/100"),
    ("franc", "chf franc francs", "1"),
    ("yen", "¥ jpy yen", "1"),
    ("yuan", "¥ cny yuan", "1"),
    ("rupee", "₹ inr rs rupee rupees", "1"),
    ("angle", "° degree degrees", "1"),
    ("celsius", "° degree degrees °c celsius", "1"),
    ("fahrenheit", "° degree degrees °f fahrenheit", "1"),
    ("kelvin", "kelvin kelvins", "1"),
]
MONEY = frozenset({"dollar", "euro", "sterling", "franc", "yen", "yuan", "rupee"})


def _table() -> dict[str, tuple[Unit, ...]]:
    """The meanings of every way to write a unit."""
    found: dict[str, list[Unit]] = {}
    for dimension, symbols, names, size in PREFIXED:
        for (symbol, prefix), factor in PREFIXES.items():
            unit = Unit(dimension, Fraction(size) * Fraction(factor))
            ways = [symbol + base for base in symbols.split()]
            ways += [prefix + base for base in names.split()]
            ways += [f"{prefix}{base}s" for base in names.split()]
            for way in dict.fromkeys(ways):
                found.setdefault(way, []).append(unit)
    for dimension, words, size in OTHERS:
        for way in words.split():
            found.setdefault(way, []).append(Unit(dimension, Fraction(size)))
    return {way: tuple(units) for way, units in found.items()}


UNITS = _table()
WORD = re.compile(
    r"[ -]?(?:(?P<power>square|sq\.?|cubic|cu\.?)\s)?"
    r"(?:(?P<degrees>°|degrees?)\s?(?P<scale>celsius|fahrenheit|[CF])\b"
    r"|(?P<name>[^\W\d_]+(?:-hours?)?|[¢€£¥₹$°]))"
    r"(?:(?:\s?\^\s?\{?)?(?P<raised>[23])\}?(?!\w))?",
    re.IGNORECASE,
)
PER = re.compile(r"\s?/\s?|\s?per(?=\s)", re.IGNORECASE)


def meanings(name: str) -> tuple[Unit, ...]:
    """What a unit may mean; symbols keep their case, and words and long symbols need not."""
    lower = name.casefold()
    return UNITS.get(name) or (UNITS.get(lower, ()) if len(name) > 1 else ())


def units_at(text: str, start: int) -> tuple[tuple[Unit, ...], int]:
    """What the unit that stands at this place may mean, and where it ends; () and the place itself
    where none does.
    """
    units, end = _one_at(text, start)
    if not units or units[0].dimension in MONEY:
        return units, end
    per = PER.match(text, end)
    if per is None:
        return units, end
    below, below_end = _one_at(text, per.end())
    if not below:
        return units, end
    ratios = [
        Unit(f"{one.dimension}/{other.dimension}", one.size / other.size)
        for one in units
        for other in below
    ]
    return tuple(ratios), below_end


def _one_at(text: str, start: int) -> tuple[tuple[Unit, ...], int]:
    """As units_at, of one unit that is no ratio."""
    match = WORD.match(text, start)
    if match is None:
        return (), start
    if match["degrees"]:
        return meanings("°" + match["scale"][0].lower()), match.end()
    units = meanings(match["name"])
    if match["name"] == "in" and not re.match(r"\s*(?:[.,;)*]|\Z)", text[match.end() :]):
        # "5 in all" is no inch.
        units = ()
    if not units:
        return (), start
    word = (match["power"] or "").casefold()
    power = {"s": 2, "c": 3}.get(word[:1]) or int(match["raised"] or 1)
    if power > 1:
        units = tuple(Unit(f"{unit.dimension}^{power}", unit.size**power) for unit in units)
    return units, match.end()
