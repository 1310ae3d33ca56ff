"""Sums told as stories, in one step or two; every number is a small whole one.

Mia has 14 shells. She finds 9 more and gives 5 to Tom. How many shells does Mia have now?  ->  18
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from replaykit.suites import Row, Suite
from replaykit.suites.tables import words

GIRLS = words("Mia; Anna; Lucy; Sara; Nina; Eva; Ruth; Clara")
BOYS = words("Tom; Ben; Leo; Paul; Max; Omar; Hugo; Ivan")
THINGS = words(
    "shells; marbles; stamps; stickers; apples; coins; postcards; pencils; buttons; cards"
)
SHOPPING = words("notebook; pen; ticket; cake; toy car; scarf; mug; plant; puzzle; ball")
BOXES = words("box; bag; basket; crate; packet; shelf; row; jar")

Problem = tuple[str, int]  # the story, and its answer


def _person(rng: Random) -> tuple[str, str, str]:
    """A name, its pronoun, and another person's name."""
    girl = rng.choice(GIRLS)
    boy = rng.choice(BOYS)
    if rng.random() < 0.5:
        return girl, "she", boy
    return boy, "he", girl


def _gained(rng: Random) -> Problem:
    name, _, other = _person(rng)
    thing = rng.choice(THINGS)
    a = rng.randint(5, 40)
    b = rng.randint(3, 30)
    story = rng.choice(
        (
            f"{name} has {a} {thing} and gets {b} more from {other}.",
            f"{name} had {a} {thing} yesterday. Today {other} brings {b} more for {name}.",
        )
    )
    return f"{story} How many {thing} does {name} have now?", a + b


def _given(rng: Random) -> Problem:
    name, _, other = _person(rng)
    thing = rng.choice(THINGS)
    b = rng.randint(3, 20)
    a = b + rng.randint(2, 30)
    story = rng.choice(
        (
            f"{name} has {a} {thing} and gives {b} of them to {other}.",
            f"{name} had {a} {thing}, but {b} of them got lost.",
        )
    )
    return f"{story} How many {thing} does {name} have left?", a - b


def _gained_and_given(rng: Random) -> Problem:
    name, pronoun, other = _person(rng)
    thing = rng.choice(THINGS)
    a = rng.randint(5, 30)
    b = rng.randint(3, 20)
    c = rng.randint(2, a)
    return (
        f"{name} has {a} {thing}. {pronoun.capitalize()} finds {b} more and gives {c} to {other}. "
        f"How many {thing} does {name} have now?",
        a + b - c,
    )


def _packed(rng: Random) -> Problem:
    thing = rng.choice(THINGS)
    box = rng.choice(BOXES)
    a = rng.randint(2, 9)
    b = rng.randint(3, 12)
    return f"Each {box} holds {b} {thing}. How many {thing} do {_several(a, box)} hold?", a * b


def _packed_and_more(rng: Random) -> Problem:
    name, _, _ = _person(rng)
    thing = rng.choice(THINGS)
    box = rng.choice(BOXES)
    a = rng.randint(2, 8)
    b = rng.randint(3, 10)
    c = rng.randint(2, 15)
    return (
        f"{name} has {_several(a, box)} with {b} {thing} each, and {c} single {thing}. How many "
        f"{thing} does {name} have in all?",
        a * b + c,
    )


def _shared(rng: Random) -> Problem:
    name, _, _ = _person(rng)
    thing = rng.choice(THINGS)
    a = rng.randint(2, 9)
    b = rng.randint(2, 12)
    return (
        f"{name} shares {a * b} {thing} equally among {a} children. How many {thing} does each "
        f"child get?",
        b,
    )


def _change(rng: Random) -> Problem:
    name, pronoun, _ = _person(rng)
    thing = rng.choice(SHOPPING)
    price = rng.randint(2, 9)
    count = rng.randint(2, 5)
    paid = rng.choice([note for note in (20, 50, 100) if note > price * count])
    return (
        f"A {thing} costs {price} dollars. {name} buys {count} of them and pays with {paid} "
        f"dollars. How many dollars does {pronoun} get back?",
        paid - price * count,
    )


def _cost(rng: Random) -> Problem:
    first, second = rng.sample(SHOPPING, 2)
    name, pronoun, _ = _person(rng)
    a = rng.randint(2, 9)
    b = rng.randint(3, 20)
    count = rng.randint(2, 6)
    return (
        f"A {first} costs {a} dollars and a {second} costs {b} dollars. {name} buys "
        f"{_several(count, first)} and one {second}. How many dollars does {pronoun} pay?",
        a * count + b,
    )


def _age(rng: Random) -> Problem:
    name, _, other = _person(rng)
    a = rng.randint(4, 30)
    b = rng.randint(2, 12)
    c = rng.randint(2, 15)
    return (
        f"{name} is {a} years old. {other} is {b} years older than {name}. How old will {other} be "
        f"in {c} years?",
        a + b + c,
    )


def _distance(rng: Random) -> Problem:
    name, pronoun, _ = _person(rng)
    speed = rng.randint(3, 20)
    hours = rng.randint(2, 6)
    return (
        f"{name} cycles {speed} kilometres every hour. How many kilometres does {pronoun} cycle in "
        f"{hours} hours?",
        speed * hours,
    )


def _read(rng: Random) -> Problem:
    name, pronoun, _ = _person(rng)
    pages = rng.randint(5, 20)
    days = rng.randint(2, 7)
    left = rng.randint(10, 60)
    return (
        f"A book has {pages * days + left} pages. {name} reads {pages} pages a day. How many pages "
        f"are left when {pronoun} has read for {days} days?",
        left,
    )


def _several(count: int, noun: str) -> str:
    plural = {"box": "boxes", "shelf": "shelves", "scarf": "scarves"}.get(noun, f"{noun}s")
    return f"{count} {plural}"


PROBLEMS: tuple[Callable[[Random], Problem], ...] = (
    _gained,
    _given,
    _gained_and_given,
    _packed,
    _packed_and_more,
    _shared,
    _change,
    _cost,
    _age,
    _distance,
    _read,
)


def _word_problem(rng: Random) -> Row:
    story, result = rng.choice(PROBLEMS)(rng)
    return {"prompt": f"{story} Answer with the number.", "completion": str(result)}


SUITES = {
    "word_problems": Suite(
        name="word_problems",
        what="sums told as stories, in one step or two",
        cannot_say="It says nothing of longer problems, of fractions, or of how they are solved.",
        score="numeric",
        chance=0.05,
        max_tokens=200,
        draw=_word_problem,
    )
}
