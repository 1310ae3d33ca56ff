"""A number of a question is changed, and the calculation of its answer is done anew.

    changed("What is 27 + 15?", "27 + 15 = 42", Random(1))
    ->  Change("What is 81 + 15?", "81 + 15 = 96", fact=("27", "81"))

What is calculated stands as equations in the answer ("14 + 5 = 19", GSM8K's "<<48/2=24>>"), or, of
a question that holds one calculation, in the question. All numbers of the answer have to be known:
of the question, or the result of an earlier equation. So nothing is guessed: a row of which a
number is not explained, or whose own equation is wrong, is refused with the reason.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from random import Random
from typing import NamedTuple

NUMBER = r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
ALONE = re.compile(rf"(?<![\w.])(?:{NUMBER})(?![\w]|\.\d)")
SIGN = r"plus|minus|times|multiplied by|divided by|[-+*/·×÷−]|(?<=[\d\s])x(?=[\d\s])"
MONEY = r"[$€£]?"
CALCULATION = rf"(?:{NUMBER})(?:\s*(?:{SIGN})\s*{MONEY}(?:{NUMBER}))+"
IN_QUESTION = re.compile(rf"(?<![\w.]){CALCULATION}(?![\w]|\.\d)", re.IGNORECASE)
EQUATION = re.compile(
    rf"(?<![\w.])(?P<left>{CALCULATION})\s*=\s*{MONEY}(?P<right>{NUMBER})(?![\w]|\.\d)",
    re.IGNORECASE,
)
TERM = re.compile(rf"(?P<number>{NUMBER})|(?P<sign>{SIGN})", re.IGNORECASE)
WORDS = {"plus": "+", "minus": "-", "−": "-", "times": "*", "multiplied by": "*", "x": "*"}
WORDS |= {"×": "*", "·": "*", "divided by": "/", "÷": "/"}
DO: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
TRIES = 40  # new numbers that are tried in the place of one


class Change(NamedTuple):
    """The question and its answer with one number changed."""

    question: str
    answer: str
    fact: tuple[str, str]
    """The number before and now."""


class Refused(Exception):
    """Why the calculation cannot be done anew; its text is the reason."""


def changed(question: str, answer: str, rng: Random) -> Change | str:
    """The pair with one number changed, drawn by ``rng``; or the reason why there is none:

    no_calculation      neither the answer has an equation nor the question one calculation
    wrong_calculation   an equation is wrong as it stands, or the answer is not its result
    unexplained_number  the answer has a number that is neither of the question nor a result
    ambiguous           a number of the answer may be another one as well
    no_other_number     no number that was tried gives another, whole and positive result
    """
    numbers = list(ALONE.finditer(question))
    values = [_value(found[0]) for found in numbers]
    try:
        # Nothing is changed yet: what the row says has to be right.
        _redone(question, answer, values, {})
    except Refused as refused:
        return str(refused)
    # A number that stands twice would be two facts, or one that is said twice.
    single = [place for place, value in enumerate(values) if values.count(value) == 1]
    why = "ambiguous" if values and not single else "no_other_number"
    for place in rng.sample(single, len(single)):
        for _ in range(TRIES):
            number = _other(numbers[place][0], rng)
            if _value(number) in values:
                continue
            before = numbers[place]
            now = question[: before.start()] + number + question[before.end() :]
            try:
                redone = _redone(now, answer, values, {values[place]: _value(number)})
            except Refused as refused:
                why = str(refused)
                continue
            # A number beside the calculation changes words, but not what comes out.
            if ALONE.findall(redone)[-1] != ALONE.findall(answer)[-1]:
                return Change(now, redone, (before[0], number))
    return why


def _redone(
    question: str, answer: str, values: list[Fraction], known: dict[Fraction, Fraction]
) -> str:
    """The answer with its calculations done anew. ``question`` is the new one, ``values`` are the
    numbers of the parent's, and ``known`` says which of them became which.

    Raises Refused with the reason.
    """
    now = {value: value for value in values} | known
    equations = list(EQUATION.finditer(answer))
    if not equations:
        _of_question(question, answer, now)
    pieces: list[str] = []
    end = 0
    for equation in equations:
        pieces += _substituted(answer[end : equation.start()], now)
        left = "".join(_substituted(equation["left"], now))
        before = _calculated(equation["left"])
        if before != _value(equation["right"]):
            raise Refused("wrong_calculation")
        _learn(now, before, _calculated(left))
        pieces.append(left)
        pieces.append(answer[equation.end("left") : equation.start("right")])
        pieces += _substituted(equation["right"], now)
        end = equation.end()
    pieces += _substituted(answer[end:], now)
    return "".join(pieces)


def _of_question(question: str, answer: str, now: dict[Fraction, Fraction]) -> None:
    """Adds the result of the question's one calculation; the answer has to say it."""
    found = IN_QUESTION.findall(question)
    if len(found) != 1:
        raise Refused("no_calculation")
    back = {value: key for key, value in now.items()}
    result = _calculated(found[0])
    before = _calculated(TERM.sub(lambda term: _back(term, back), found[0]))
    if before not in [_value(number[0]) for number in ALONE.finditer(answer)]:
        raise Refused("wrong_calculation")
    _learn(now, before, result)


def _back(term: re.Match[str], back: dict[Fraction, Fraction]) -> str:
    """A number of the new question as it was in the parent's; a sign as it is."""
    if term["number"] is None:
        return term[0]
    value = _value(term[0])
    return _written(back.get(value, value), term[0])


def _learn(now: dict[Fraction, Fraction], before: Fraction, result: Fraction) -> None:
    """A result became another one; the same number may not have become something else."""
    if before.denominator == 1 and (result.denominator != 1 or result < 0 <= before):
        raise Refused("no_other_number")
    if now.setdefault(before, result) != result:
        raise Refused("ambiguous")


def _substituted(text: str, now: dict[Fraction, Fraction]) -> Iterator[str]:
    """The text with every number as it is now, in pieces."""
    end = 0
    # Within a calculation a number may stand against a sign or a letter x.
    for term in re.finditer(NUMBER, text):
        value = _value(term[0])
        if value not in now:
            raise Refused("unexplained_number")
        yield text[end : term.start()]
        yield _written(now[value], term[0])
        end = term.end()
    yield text[end:]


def _calculated(text: str) -> Fraction:
    """What a calculation comes to: products and quotients first, from left to right."""
    terms = list(TERM.finditer(text))
    total = [_value(terms[0][0])]
    for sign, number in zip(terms[1::2], terms[2::2], strict=True):
        word = sign[0].lower()
        do = WORDS.get(word, word)
        value = _value(number[0])
        if do == "/" and value == 0:
            raise Refused("no_other_number")
        if do in "*/":
            total[-1] = DO[do](total[-1], value)
        else:
            total.append(DO[do](Fraction(0), value))
    return sum(total, Fraction(0))


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _written(value: Fraction, like: str) -> str:
    """A number with the decimals and the thousands separators of another one. Raises Refused where
    it has more decimals.
    """
    decimals = len(like.partition(".")[2])
    scaled = value * 10**decimals
    if scaled.denominator != 1 or value < 0:
        raise Refused("no_other_number")
    comma = "," if "," in like else ""
    return f"{float(value):{comma}.{decimals}f}" if decimals else f"{int(value):{comma}}"


def _other(number: str, rng: Random) -> str:
    """Another number of as many digits, written alike."""
    decimals = len(number.partition(".")[2])
    digits = sum(sign.isdigit() for sign in number)
    least = 10 ** (digits - 1) if digits > 1 and not number.startswith("0") else 1
    drawn = rng.randrange(least, 10**digits)
    return _written(Fraction(drawn, 10**decimals), number)
