r"""Formulas as math-verify reads them: it parses LaTeX into SymPy
(https://github.com/huggingface/Math-Verify).

    computed(r"\frac{84}{2}")   ->  Fraction(42, 1)
    computed("x^2 + 1")         ->  SymPy's x**2 + 1
    computed("9^{9^{9^9}}")     ->  None: it would take for ever
"""

from __future__ import annotations

import logging
import re
import threading
from fractions import Fraction
from functools import cache
from typing import Any

LARGEST_EXPONENT = 400
HIGHEST_POWER = 12  # of an unknown, that is still multiplied out
FORMULA_SECONDS = 5

# A formula in plain letters: a root, pi or a function among numbers and unknowns.
MATH = re.compile(
    r"(?=.*(?:√|π|sqrt|log|ln|\bpi\b))"
    r"(?:[\d\s.,+\-*/^(){}=√π]|sqrt|log|ln|pi\b|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))+"
)
ARGUMENT = re.compile(
    r"(?:√|\b(sqrt|log|ln|sin|cos|tan))\s?(?:\(([^()]*)\)|([\w.]+))", re.IGNORECASE
)


def latex(text: str) -> str:
    """A formula in plain letters as LaTeX: "3 sqrt 2" is 3\\sqrt{2}."""
    text = ARGUMENT.sub(
        lambda m: rf"\{(m[1] or 'sqrt').lower()}{{{m[2] or m[3]}}}",
        re.sub(r"(?<=\d)(?=sqrt)", " ", text),
    )
    return re.sub(r"π|(?<!\\)\bpi\b", r"\\pi ", text).strip()


# What SymPy could compute for hours: towers of powers, large factorials, sums and integrals.
ENDLESS = re.compile(
    r"\^\s*(?:\{[^{}]*\^|-?\w+\s*\^)|\d{3}\s*!|!\s*!|\\(?:sum|prod|int|iint|lim|binom)\b"
)
EXPONENT = re.compile(r"\^\s*\{?\s*-?(\d+)")


def computed(text: str) -> Fraction | list[Any] | None:
    """What a formula comes to: a number where it is rational, else SymPy's expressions as
    math-verify reads them. None for one that it cannot read, that is a false equation, or that
    could take for ever to compute.
    """
    expression = text.replace("**", "^").replace("÷", "/")
    exponents = [int(found) for found in EXPONENT.findall(expression)]
    if ENDLESS.search(expression) or max(exponents, default=0) > LARGEST_EXPONENT:
        return None
    parsed = _parse(expression)
    if not parsed:
        return None
    if _is_false(parsed[0]):
        return None
    exact = _rational(parsed[0])
    return parsed if exact is None else exact


def _is_false(value: Any) -> bool:
    """Whether it is an equation of two numbers that are not equal, 41 = 6 * 7."""
    import sympy

    if not isinstance(value, sympy.Equality) or value.free_symbols:
        return False
    left = _rational(value.lhs)
    return left is not None and left != _rational(value.rhs)


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
    parse, _, reading = _library()
    found = parse(
        f"${expression}$", [reading], fallback_mode="no_fallback", parsing_timeout=_seconds()
    )
    return list(found)


def same_formula(reference: Any, given: Any) -> bool:
    """Whether two values are the same: Fractions, or what ``computed`` made of formulas."""
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
