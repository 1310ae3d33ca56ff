"""Calls of tools: a request, a few tools of which one fits, and the call that answers it.

In one item of five no tool fits, and nothing is to be called.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from replaykit.suites import Row, Suite

CITIES = (
    "Oslo", "Lima", "Cairo", "Lyon", "Osaka", "Quebec", "Dublin", "Nairobi", "Prague", "Hanoi",
    "Porto", "Denver", "Riga", "Perth", "Salzburg", "Boston",
)  # fmt: skip
NAMES = ("Anna", "Omar", "Lucia", "Peter", "Mei", "Tom", "Fatima", "Jonas", "Priya", "Carlos")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "CAD")
ROOMS = ("kitchen", "bedroom", "bathroom", "hall", "garage", "office")
LANGUAGES = ("French", "German", "Spanish", "Italian", "Dutch", "Polish")
WORDS = ("bread", "window", "winter", "station", "garden", "brother", "letter", "spoon")
SONGS = ("Yellow River", "Blue Morning", "Silent Streets", "Paper Moon", "Golden Hour", "Old Oak")
ITEMS = ("milk", "eggs", "rice", "apples", "coffee", "soap", "butter", "onions")
COMPANIES = ("Siemens", "Toyota", "Nestle", "Samsung", "Volvo", "Airbus")

# What stands for an argument in a request: texts to choose from, or the ends of a range.
Values = tuple[str, ...] | tuple[int, int]


@dataclass(frozen=True)
class _Tool:
    """A tool, the values of its arguments, and requests that it answers."""

    name: str
    what: str
    arguments: dict[str, tuple[str, Values]]
    """What each is, and its values."""
    asked: tuple[str, ...]


TOOLS = (
    _Tool(
        "get_weather",
        "The weather in a city now.",
        {"city": ("The city", CITIES)},
        ("What is the weather like in {city}?", "Is it raining in {city} right now?"),
    ),
    _Tool(
        "set_timer",
        "Starts a kitchen timer.",
        {"minutes": ("How many minutes", (2, 90))},
        ("Set a timer for {minutes} minutes.", "Please start a timer of {minutes} minutes."),
    ),
    _Tool(
        "convert_currency",
        "Converts an amount of money.",
        {
            "amount": ("The amount", (5, 900)),
            "source": ("The code of the currency that it is in", CURRENCIES[:3]),
            "target": ("The code of the currency that is wanted", CURRENCIES[3:]),
        },
        ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?"),
    ),
    _Tool(
        "switch_light",
        "Switches the light of a room.",
        {"room": ("The room", ROOMS), "state": ("on or off", ("on", "off"))},
        ("Switch the light in the {room} {state}.", "Please turn the {room} light {state}."),
    ),
    _Tool(
        "translate_word",
        "Translates an English word.",
        {"word": ("The word", WORDS), "language": ("The language", LANGUAGES)},
        ('How do you say "{word}" in {language}?', 'Translate the word "{word}" into {language}.'),
    ),
    _Tool(
        "find_train",
        "The next trains between two cities.",
        {"start": ("Where it starts", CITIES[:8]), "goal": ("Where it goes", CITIES[8:])},
        ("When does the next train go from {start} to {goal}?", "Find a train {start} to {goal}."),
    ),
    _Tool(
        "play_song",
        "Plays a song.",
        {"title": ("The title", SONGS)},
        ('Play the song "{title}".', 'I would like to hear "{title}", please.'),
    ),
    _Tool(
        "call_contact",
        "Calls somebody in the address book.",
        {"name": ("The first name", NAMES)},
        ("Call {name}, please.", "Phone {name} for me."),
    ),
    _Tool(
        "add_to_list",
        "Adds something to the shopping list.",
        {"item": ("What to buy", ITEMS), "quantity": ("How many", (2, 12))},
        ("Put {quantity} {item} on the shopping list.", "Shopping list: add {quantity} {item}."),
    ),
    _Tool(
        "book_table",
        "Books a table at the restaurant.",
        {"day": ("The day of the week", DAYS), "people": ("How many people", (2, 12))},
        ("Book a table for {people} people on {day}.", "We are {people} on {day}: book a table."),
    ),
    _Tool(
        "get_share_price",
        "The price of a company's share.",
        {"company": ("The company's name", COMPANIES)},
        ("What does a share of {company} cost?", "Look up the share price of {company}."),
    ),
    _Tool(
        "set_temperature",
        "Sets the heating of a room.",
        {"room": ("The room", ROOMS), "degrees": ("Degrees Celsius", (15, 25))},
        ("Heat the {room} to {degrees} degrees.", "Set the {room} to {degrees} degrees."),
    ),
)
# What no tool answers, with an answer in words.
TALK = {
    "Thank you, that was all.": "You are welcome.",
    "Good morning! How are you?": "Good morning! I am well, thank you.",
    "Tell me a short joke.": "Why did the clock go to school? To learn to tell the time.",
    "What is your favourite season?": "I like the spring, when everything grows.",
    "Which is larger, a cat or an elephant?": "An elephant is larger.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "How many days does a week have?": "A week has seven days.",
    "What do bees make?": "Bees make honey.",
    "Who wrote Hamlet?": "William Shakespeare wrote Hamlet.",
    "Name three colours.": "Red, blue and green.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What is the largest ocean?": "The Pacific is the largest ocean.",
    "Give me a rhyme on cat.": "A word that rhymes on cat is hat.",
    "What are clouds made of?": "Clouds are made of small drops of water or ice.",
    "Write one sentence about friendship.": "A friend is there when it counts.",
    "Which animal says moo?": "A cow says moo.",
    "How many letters does the alphabet have?": "The English alphabet has 26 letters.",
    "What colour is a ripe banana?": "A ripe banana is yellow.",
    "Suggest a name for a kitten.": "How about Mimi?",
    "What do plants need to grow?": "Plants need light, water and air.",
}
OPENINGS = ("", "Hello! ", "One more thing: ", "A question: ", "Hi there. ")


def _schema(tool: _Tool) -> dict[str, Any]:
    """The tool in OpenAI's form."""
    properties: dict[str, Any] = {}
    for name, (what, values) in tool.arguments.items():
        kind = "integer" if isinstance(values[0], int) else "string"
        properties[name] = {"type": kind, "description": what}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": tool.name, "description": tool.what, "parameters": parameters}
    return {"type": "function", "function": function}


def _value(rng: Random, values: Values) -> str | int:
    if isinstance(values[0], int):
        low, high = values
        return rng.randint(int(low), int(high))
    return str(rng.choice(values))


def _talk(rng: Random) -> tuple[str, str]:
    """What no tool answers, and an answer in words."""
    match rng.randrange(3):
        case 0:
            return rng.choice(list(TALK.items()))
        case 1:
            one, other = rng.sample(range(1, 100), 2)
            return f"Which number is larger, {one} or {other}?", f"{max(one, other)} is larger."
    first, second = rng.sample(NAMES, 2)
    asked = f"Which name comes first in the alphabet, {first} or {second}?"
    return asked, f"{min(first, second)} comes first."


def _call(rng: Random) -> Row:
    offered = rng.sample(TOOLS, rng.randint(3, 5))
    opening = rng.choice(OPENINGS)
    answer: dict[str, Any]
    if rng.random() < 0.2:
        asked, said = _talk(rng)
        answer = {"role": "assistant", "content": said}
    else:
        fitting = rng.choice(offered)
        arguments = {name: _value(rng, of) for name, (_, of) in fitting.arguments.items()}
        asked = rng.choice(fitting.asked).format(**arguments)
        call = {"type": "function", "function": {"name": fitting.name, "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    question = {"role": "user", "content": f"{opening}{asked}"}
    return {"messages": [question, answer], "tools": [_schema(tool) for tool in offered]}


SUITES = {
    "tools": Suite(
        name="tools",
        what="calls of one of several tools, and requests where none is to be called",
        cannot_say="It says nothing of several calls in a row, or of what a tool's result is for.",
        score="tool_call",
        chance=0.2,
        max_tokens=160,
        draw=_call,
    )
}
