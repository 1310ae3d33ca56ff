"""JSON: the facts of a sentence under given keys, and invented objects that a schema allows."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from replaykit.suites import Row, Suite

NAMES = (
    "Anna", "Omar", "Lucia", "Peter", "Mei", "Tom", "Fatima", "Jonas", "Priya", "Carlos", "Ingrid",
    "Kofi", "Sofia", "Liam", "Yuki", "Elena", "David", "Amara", "Noah", "Greta",
)  # fmt: skip
CITIES = (
    "Oslo", "Lima", "Cairo", "Lyon", "Osaka", "Quebec", "Dublin", "Nairobi", "Prague", "Hanoi",
    "Porto", "Denver", "Riga", "Perth", "Salzburg",
)  # fmt: skip
JOBS = ("baker", "nurse", "teacher", "pilot", "farmer", "lawyer", "painter", "plumber", "dentist")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("March", "April", "May", "June", "July", "August", "September", "October")
THINGS = ("lamps", "chairs", "books", "bottles", "shirts", "mugs", "blankets", "pencils", "plates")
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "grey")
PETS = ("dog", "cat", "rabbit", "parrot", "hamster", "pony")
TEAMS = ("Rovers", "Eagles", "Comets", "Tigers", "Sharks", "Wolves", "Hawks", "Lions")
DISHES = ("lentil soup", "apple pie", "fried rice", "tomato salad", "fish stew", "carrot cake")

# Values by the name of a field: texts to choose from, or the ends of a range.
VALUES: dict[str, tuple[str, ...] | tuple[int, int]] = {
    "name": NAMES,
    "customer": NAMES,
    "owner": NAMES,
    "host": NAMES,
    "city": CITIES,
    "from": CITIES[:8],
    "to": CITIES[8:],
    "job": JOBS,
    "day": DAYS,
    "month": MONTHS,
    "product": THINGS,
    "colour": COLOURS,
    "animal": PETS,
    "home": TEAMS[:4],
    "guest": TEAMS[4:],
    "dish": DISHES,
    "age": (18, 80),
    "years": (2, 15),
    "quantity": (2, 60),
    "price": (5, 95),
    "nights": (2, 14),
    "guests": (3, 30),
    "minutes": (10, 90),
    "servings": (2, 8),
    "home_goals": (0, 5),
    "guest_goals": (0, 5),
    "floor": (1, 20),
}
# The fields of a kind of sentence are those in its braces; each is one that a reader cannot miss.
SENTENCES = (
    "{name} is {age} years old, lives in {city} and works as a {job}.",
    "In {city} there lives a {job} called {name}, who is {age} years old.",
    "{customer} ordered {quantity} {colour} {product} for {price} euros.",
    "For {price} euros, {customer} bought {quantity} {product}, all of them {colour}.",
    "{name} will stay in {city} for {nights} nights in {month}.",
    "A room in {city} is booked for {name}: {nights} nights in {month}.",
    "On {day} {host} expects {guests} guests in {city}.",
    "{guests} guests come to the party that {host} gives in {city} on {day}.",
    "{owner} has a {colour} {animal} that is {years} years old.",
    "The {colour} {animal} of {owner} is {years} years old.",
    "On {day} the {home} played against the {guest} at home: {home_goals} goals to {guest_goals}.",
    "The train from {from} to {to} leaves on {day} and takes {minutes} minutes.",
    "{name} flies from {from} to {to} on {day} for {price} euros.",
    "The {dish} takes {minutes} minutes and makes {servings} servings.",
    "{name} moved to {city} and rents a flat on floor {floor} with {colour} walls.",
)
ASKED = (
    "Extract the facts of this sentence as a JSON object with exactly these keys: {keys}. Answer "
    "with the JSON alone.\n\n{sentence}",
    "{sentence}\n\nWrite what the sentence says as a JSON object with exactly these keys: {keys}. "
    "Answer with the JSON alone.",
)


def _value(rng: Random, field: str) -> str | int:
    values = VALUES[field]
    if isinstance(values[0], int):
        low, high = values
        return rng.randint(int(low), int(high))
    return str(rng.choice(values))


def _facts(rng: Random) -> Row:
    sentence = rng.choice(SENTENCES)
    fields = [part.partition("}")[0] for part in sentence.split("{")[1:]]
    facts = {field: _value(rng, field) for field in fields}
    order = list(facts)
    rng.shuffle(order)
    keys = [f'"{key}" ({"text" if isinstance(facts[key], str) else "number"})' for key in order]
    prompt = rng.choice(ASKED).format(keys=", ".join(keys), sentence=sentence.format(**facts))
    answer = json.dumps({key: facts[key] for key in order})
    return {"prompt": prompt, "completion": answer}


# --- by schema ------------------------------------------------------------------------------------

# What is invented, and the keys that it may have.
OBJECTS = {
    "a person": "name age city job hobbies married",
    "a book": "title author year pages genres available",
    "a film": "title director year minutes genres dubbed",
    "a recipe": "name servings minutes ingredients vegetarian difficulty",
    "a house": "address rooms floors colour features furnished",
    "a car": "brand model year colour features electric",
    "a pet": "name animal age colour toys friendly",
    "a city": "name country inhabitants river sights coastal",
    "a hotel": "name city rooms rating services open",
    "a restaurant": "name city tables rating dishes open",
    "a song": "title singer year seconds genres live",
    "a plant": "name family height colour uses edible",
    "a school": "name city pupils founded subjects public",
    "a shop": "name city employees founded products open",
    "a football team": "name city founded members colours professional",
    "a planet in a story": "name diameter moons colour creatures habitable",
}
WHOLE = set(
    "age year pages minutes servings rooms floors inhabitants tables seconds height pupils founded "
    "employees members diameter moons".split()
)
LISTS = set(
    "hobbies genres ingredients features toys sights services dishes uses subjects products "
    "colours creatures".split()
)
FLAGS = set(
    "married available dubbed vegetarian furnished electric friendly coastal open live edible "
    "public professional habitable".split()
)
CHOICES = {"difficulty": ("easy", "medium", "hard"), "rating": ("good", "average", "bad")}


def _described(rng: Random, key: str) -> tuple[str, dict[str, Any]]:
    """What is said of a key, and its schema."""
    if key in WHOLE:
        return f'"{key}" (a whole number)', {"type": "integer"}
    if key in FLAGS:
        return f'"{key}" (true or false)', {"type": "boolean"}
    if key in CHOICES:
        options = CHOICES[key]
        return f'"{key}" (one of {", ".join(options)})', {"enum": list(options)}
    if key in LISTS:
        number = rng.randint(2, 4)
        schema = {"type": "array", "items": {"type": "string"}}
        bounds = {"minItems": number, "maxItems": number}
        return f'"{key}" (a list of exactly {number} texts)', {**schema, **bounds}
    return f'"{key}" (text)', {"type": "string", "minLength": 1}


def _invented(rng: Random) -> Row:
    what = rng.choice(tuple(OBJECTS))
    keys = rng.sample(OBJECTS[what].split(), rng.randint(3, 5))
    described = {key: _described(rng, key) for key in keys}
    asked = ", ".join(text for text, _ in described.values())
    prompt = (
        f"Invent {what} and describe it as one JSON object with exactly these keys: {asked}. "
        "Answer with the JSON alone."
    )
    schema = {
        "type": "object",
        "properties": {key: of_key for key, (_, of_key) in described.items()},
        "required": keys,
        "additionalProperties": False,
    }
    return {"prompt": prompt, "completion": json.dumps(schema)}


SUITES = {
    "json": Suite(
        name="json",
        what="the facts of a sentence as JSON under given keys",
        cannot_say="It says nothing of long documents, or of objects within objects.",
        score="json",
        chance=0.0,
        max_tokens=128,
        draw=_facts,
    ),
    "json_schema": Suite(
        name="json_schema",
        what="an invented object as JSON that a schema allows",
        cannot_say="It says nothing of what the JSON holds, which is invented and not checked.",
        score="json_schema",
        chance=0.0,
        max_tokens=200,
        draw=_invented,
    ),
}
