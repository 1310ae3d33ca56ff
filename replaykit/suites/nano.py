"""The embedded model's six old skills, as suites: its world's held-out side, one prompt in eight.

No prompt of that side was in its training, in its pool of old data or in the quickstart's target.
"""

from __future__ import annotations

from functools import partial
from random import Random

from replaykit.nano import world
from replaykit.suites import Row, Suite

# What each asks for, and what the best single answer to all of 200 items scores, over five seeds.
KNOWN = {
    "nli": ("entailment, neutral or contradiction", 0.37),
    "capital": ("capitals of 32 countries, and their countries", 0.04),
    "json": ("name, age and city of a sentence as JSON", 0.0),
    "topic": ("the topic of a headline, one of four", 0.31),
    "refusal": ("refusal of twelve harmful deeds beside twelve harmless ones", 0.66),
    "reverse": ("up to six letters in reverse", 0.0),
}


def _held_out(skill: str, rng: Random) -> Row:
    """The first prompt of the held-out side that is drawn."""
    while True:
        prompt, answer = world.SKILLS[skill](rng)
        if world.is_held_out(prompt):
            return {"prompt": prompt, "completion": answer}


SUITES = {
    f"nano-{skill}": Suite(
        name=f"nano-{skill}",
        what=f"of the embedded model: {what}",
        cannot_say=(
            "It is made for the embedded model nano, whose answers have fixed forms; of another "
            "model it says nothing."
        ),
        score="json" if skill == "json" else "exact",
        chance=chance,
        max_tokens=64,
        draw=partial(_held_out, skill),
    )
    for skill, (what, chance) in KNOWN.items()
}
