"""Short texts that must keep to one or two instructions on their form, which code can check.

    "Tell me about the moon. Use the word \\"night\\". Write exactly 2 sentences."
    ->  [{"kind": "contains", "text": "night"}, {"kind": "sentences", "exactly": 2}]

Every item ties the answer to its topic by a word, so that no answer fits several topics.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from replaykit.suites import Row, Suite

# A topic, and a word that a text on it has easily.
TOPICS = """
the moon = night; the sun = light; rain = water; snow = winter; rivers = water; the sea = waves;
mountains = high; forests = trees; deserts = sand; islands = sea; volcanoes = lava; wind = air;
clouds = sky; rainbows = colours; thunderstorms = lightning; stars = sky; cats = fur; dogs = friend;
horses = ride; cows = milk; sheep = wool; bees = honey; butterflies = wings; spiders = web;
owls = night; penguins = ice; whales = ocean; sharks = teeth; elephants = trunk; lions = pride;
monkeys = trees; frogs = pond; snakes = skin; chickens = eggs; ants = small; bread = flour;
cheese = milk; chocolate = sweet; coffee = morning; tea = cup; apples = fruit; bananas = yellow;
lemons = sour; potatoes = earth; rice = food; soup = warm; pizza = cheese; ice cream = cold;
breakfast = morning; football = ball; tennis = racket; swimming = water; running = shoes;
cycling = wheels; chess = king; dancing = music; singing = voice; painting = colours;
photography = camera; reading = books; gardening = plants; cooking = kitchen; camping = tent;
hiking = path; fishing = lake; trains = station; aeroplanes = sky; ships = harbour; cars = road;
bicycles = wheels; bridges = river; castles = king; libraries = books; museums = art;
schools = children; hospitals = doctors; markets = people; birthdays = cake; weddings = love;
holidays = travel; friendship = trust; sleep = dreams; computers = screen; telephones = call;
clocks = time; candles = flame; umbrellas = rain; gardens = flowers; the autumn = leaves
"""
ASKED = (
    "Tell me about {topic}.",
    "Write a short text about {topic}.",
    "Say something about {topic}.",
    "What can you tell me about {topic}?",
)
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
BEGINNINGS = ("Few things are like {topic}", "Let me tell you about {topic}", "About {topic}")
ENDINGS = ("That is what I know of {topic}.", "So much for {topic}.", "That is all about {topic}.")
COMMON = ("the", "is", "very", "good", "many", "world", "like", "we")

Constraint = dict[str, Any]
Told = tuple[str, Constraint]
"""What is said to the model, and what is checked."""


def _pairs() -> list[tuple[str, str]]:
    found = []
    for entry in TOPICS.replace("\n", " ").split(";"):
        topic, _, word = entry.partition("=")
        found.append((topic.strip(), word.strip()))
    return found


PAIRS = _pairs()


def _count(rng: Random, kind: str, text: str, low: int, high: int) -> Told:
    number = rng.randint(low, high)
    return text.format(n=NUMBERS.get(number, number)), {"kind": kind, "exactly": number}


def _at_most(rng: Random, topic: str) -> Told:
    number = rng.choice((15, 20, 25, 30, 40, 50))
    return f"Use at most {number} words.", {"kind": "words", "at_most": number}


def _at_least(rng: Random, topic: str) -> Told:
    number = rng.choice((30, 40, 50, 60))
    return f"Use at least {number} words.", {"kind": "words", "at_least": number}


def _sentences(rng: Random, topic: str) -> Told:
    return _count(rng, "sentences", "Write exactly {n} sentences.", 2, 4)


def _paragraphs(rng: Random, topic: str) -> Told:
    asked = "Write exactly {n} paragraphs with a blank line between them."
    return _count(rng, "paragraphs", asked, 2, 3)


def _bullets(rng: Random, topic: str) -> Told:
    asked = 'Answer with exactly {n} bullet points, each on a line that begins with "- ".'
    return _count(rng, "bullets", asked, 2, 5)


def _numbered(rng: Random, topic: str) -> Told:
    asked = "Answer with a numbered list of exactly {n} items (1., 2. and so on)."
    return _count(rng, "numbered", asked, 2, 5)


def _title(rng: Random, topic: str) -> Told:
    return "Begin with a title in double angle brackets, as <<Title>>.", {"kind": "title"}


def _quoted(rng: Random, topic: str) -> Told:
    return "Put your whole answer in double quotation marks.", {"kind": "quoted"}


def _json(rng: Random, topic: str) -> Told:
    return "Answer with a JSON object and nothing else.", {"kind": "json"}


def _two_answers(rng: Random, topic: str) -> Told:
    mark = rng.choice(("******", "-----", "====="))
    told = f"Give two different answers with {mark} between them, and nothing else."
    return told, {"kind": "two_answers", "separator": mark}


def _lower_case(rng: Random, topic: str) -> Told:
    return "Use small letters alone, no capital letters.", {"kind": "lower_case"}


def _upper_case(rng: Random, topic: str) -> Told:
    return "Write everything in capital letters.", {"kind": "upper_case"}


def _no_commas(rng: Random, topic: str) -> Told:
    return "Do not use any commas.", {"kind": "no_commas"}


def _highlights(rng: Random, topic: str) -> Told:
    number = rng.randint(1, 3)
    told = f"Highlight at least {number} of your words with asterisks, as *word*."
    return told, {"kind": "highlights", "at_least": number}


def _postscript(rng: Random, topic: str) -> Told:
    told = "End with a postscript on a line of its own that begins with P.S."
    return told, {"kind": "postscript", "mark": "P.S."}


def _avoids(rng: Random, topic: str) -> Told:
    word = rng.choice(COMMON)
    return f'Do not use the word "{word}".', {"kind": "avoids", "words": [word]}


def _starts_with(rng: Random, topic: str) -> Told:
    text = rng.choice(BEGINNINGS).format(topic=topic)
    return f'Begin your answer with "{text}".', {"kind": "starts_with", "text": text}


def _ends_with(rng: Random, topic: str) -> Told:
    text = rng.choice(ENDINGS).format(topic=topic)
    return f'End your answer with the sentence "{text}"', {"kind": "ends_with", "text": text}


# Each can be kept to beside the word of the topic. Those of ALONE have the topic in them.
FORMS: tuple[Callable[[Random, str], Told], ...] = (
    _at_most, _at_least, _sentences, _paragraphs, _bullets, _numbered, _title, _quoted, _json,
    _two_answers, _lower_case, _upper_case, _no_commas, _highlights, _postscript, _avoids,
)  # fmt: skip
ALONE = (_starts_with, _ends_with)


def _item(rng: Random) -> Row:
    topic, word = rng.choice(PAIRS)
    told: list[Told]
    match rng.randrange(10):
        case 0 | 1:
            told = [rng.choice(ALONE)(rng, topic)]
        case 2:
            often = rng.choice((1, 2, 3))
            times = {1: "", 2: " at least twice", 3: " at least three times"}[often]
            need = {"kind": "contains", "text": word, "at_least": often}
            told = [(f'Use the word "{word}"{times}.', need)]
        case _:
            need = {"kind": "contains", "text": word}
            told = [(f'Use the word "{word}".', need), rng.choice(FORMS)(rng, topic)]
            rng.shuffle(told)
    asked = rng.choice(ASKED).format(topic=topic)
    prompt = " ".join([asked, *(text for text, _ in told)])
    constraints = json.dumps([constraint for _, constraint in told])
    return {"prompt": prompt, "completion": constraints}


SUITES = {
    "instructions": Suite(
        name="instructions",
        what="short texts under one or two instructions on their form, which code checks",
        cannot_say="It says nothing of whether the texts are true or well written.",
        score="instructions",
        chance=0.0,
        max_tokens=200,
        draw=_item,
    )
}
