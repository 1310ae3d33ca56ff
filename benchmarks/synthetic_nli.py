"""Natural-language inference by construction: a premise, a hypothesis, and what holds between them.

    items(1, seed=1)
    ->  [{"premise": "Togo sings in the garden.", "hypothesis": "Togo is quiet.", "label": 2}]

The label is drawn first, and the hypothesis is made for it: it follows from the premise (0), speaks
of what the premise leaves open (1), or contradicts it (2), as MultiNLI counts them. There are two
kinds. In the first, the premise tells of two among somebody's motion, sound and place, and the
hypothesis speaks of one of the three. In the second, all things of a kind have a property, and the
hypothesis says so of some or of none. A hypothesis alone tells nothing of its label. The fillers of held-out items, the names of
people and of things, are in no training item; they are of the same syllables.

It is a language of some sixty words beside the names and a handful of rules, and far from MultiNLI:
no item needs knowledge of the world, and the sentences are a few templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from random import Random
from typing import Any

ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)
# By what is spoken of, the two states that it can be in, and the words of a premise that say so.
SPOKEN_OF = {
    "motion": {
        "moves": ("runs", "walks", "jumps", "swims"),
        "rests": ("sleeps", "sits", "waits", "kneels"),
    },
    "sound": {
        "is loud": ("sings", "shouts", "laughs", "claps"),
        "is quiet": ("whispers", "reads", "thinks", "writes"),
    },
    "place": {
        "is inside": ("kitchen", "office", "school", "church"),
        "is outside": ("garden", "forest", "park", "field"),
    },
}
PROPERTIES = (("big", "small"), ("old", "new"), ("hot", "cold"), ("heavy", "light"))
SYLLABLES = 30
HELD_OUT = 180  # of the 900 names


def names() -> tuple[list[str], list[str]]:
    """Names of training and of held-out items, which share syllables and no name."""
    draw = Random(0)
    syllables = [one + other for one, other in product("bdfgklmnprstvz", "aeiou")]
    chosen = draw.sample(syllables, SYLLABLES)
    every = [one + other for one, other in product(chosen, repeat=2)]
    draw.shuffle(every)
    return every[HELD_OUT:], every[:HELD_OUT]


def opposite(state: str) -> str:
    """Of "moves" "rests", and the other way about."""
    pair = next(tuple(states) for states in SPOKEN_OF.values() if state in states)
    return pair[1 - pair.index(state)]


def event(draw: Random, name: str, label: int) -> tuple[str, str]:
    """Somebody is in two of three states; the third is left open."""
    who = name.capitalize()
    left_open = draw.choice(list(SPOKEN_OF))
    known = {what: draw.choice(list(of)) for what, of in SPOKEN_OF.items() if what != left_open}
    first, second = (draw.choice(SPOKEN_OF[what][state]) for what, state in known.items())
    joined = "in the" if "place" in known else "and"
    premise = f"{who} {first} {joined} {second}."
    told = draw.choice(list(known.values()))
    if label == NEUTRAL:
        told = draw.choice(list(SPOKEN_OF[left_open]))
    if label == CONTRADICTION:
        told = opposite(told)
    return premise, f"{who} {told}."


def quantity(draw: Random, name: str, label: int) -> tuple[str, str]:
    """All things of a kind have a property. There are such things, as in ordinary speech."""
    pair, other = draw.sample(PROPERTIES, 2)
    place = draw.randrange(2)
    premise = f"All {name}s are {pair[place]}."
    quantifier = draw.choice(("Some", "No"))
    if label == NEUTRAL:
        return premise, f"{quantifier} {name}s are {draw.choice(other)}."
    if (quantifier == "Some") is not (label == ENTAILMENT):
        place = 1 - place
    return premise, f"{quantifier} {name}s are {pair[place]}."


def items(count: int, *, seed: int, held_out: bool = False) -> list[dict[str, Any]]:
    """Different items with all labels equally likely, two events to one quantity; of a seed always
    the same.
    """
    draw = Random(f"{seed} {held_out}")
    some: Sequence[str] = names()[held_out]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    while len(found) < count:
        label = draw.randrange(3)
        make = draw.choice((event, event, quantity))
        premise, hypothesis = make(draw, draw.choice(some), label)
        item = {"premise": premise, "hypothesis": hypothesis, "label": label}
        found.setdefault((premise, hypothesis), item)
    return list(found.values())
