"""A short passage about people who do not exist, and a question whose answer stands in it.

    Nora Weber is a baker who lives in Lisbon. On Tuesday Nora buys a green lamp for 40 coins.
    What does Nora buy on Tuesday?  ->  a green lamp

Nothing of it can be known but by reading: who, where, when and what are drawn anew for each item,
and every passage has another person, of whom the same is told and differs. Scored by ``contains``,
not by F1: answers are names, places and things of at most three words, and a model that says them
in a whole sentence has read as well as one that says them alone. Right and wrong also let losses be
counted item by item.
"""

from __future__ import annotations

from random import Random

from replaykit.suites import Row, Suite
from replaykit.suites.tables import words

NAMES = words("""
Nora Weber; Ivan Petrov; Clara Lindqvist; Omar Haddad; Sofia Marino; Felix Bauer; Lena Novak; Paul
Okafor; Mira Patel; Jonas Keller; Elsa Moreau; Diego Ramos; Greta Olsen; Hassan Karimi; Ruth
Fletcher; Marco Vitale; Yuki Tanaka; Anton Dvorak; Alice Porter; Leo Fontaine; Zara Malik; Viktor
Sokolov; Emma Castle; Bruno Almeida
""")
JOBS = words("""
baker; nurse; carpenter; teacher; gardener; painter; librarian; plumber; tailor; pilot; farmer;
dentist; photographer; translator; electrician; musician
""")
TOWNS = words("""
Lisbon; Krakow; Bergen; Porto; Ghent; Turin; Seville; Graz; Lyon; Malmo; Cork; Dresden; Basel;
Split; Tartu; Varna
""")
COLOURS = words("green; red; blue; white; yellow; black; brown; grey")
THINGS = words(
    "lamp; chair; bicycle; coat; clock; teapot; suitcase; mirror; drum; carpet; kite; vase"
)
SHOPS = words(
    "market; harbour; old mill; railway station; museum shop; town hall; bridge; castle square"
)
DAYS = words("Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday")
PETS = words("parrot; rabbit; goat; turtle; cat; dog; pony; hedgehog")
PET_NAMES = words("Pepper; Biscuit; Comet; Olive; Marble; Ziggy; Clover; Bramble; Waffle; Juno")
DISHES = words("""
onion soup; rice pudding; apple cake; fish stew; bean salad; mushroom pie; lemon tart; potato bread
""")
MONTHS = words("January; March; April; June; August; September; October; December")


def _two(rng: Random, of: list[str]) -> list[str]:
    return rng.sample(of, 2)


def _facts(rng: Random) -> dict[str, list[str]]:
    """What is told of two people, the one and the other."""
    names = _two(rng, NAMES)
    while names[0].split()[0] == names[1].split()[0]:
        names = _two(rng, NAMES)
    coins = rng.sample(range(12, 90), 2)
    colours = _two(rng, COLOURS)
    things = _two(rng, THINGS)
    return {
        "full": names,
        "name": [name.split()[0] for name in names],
        "job": _two(rng, JOBS),
        "town": _two(rng, TOWNS),
        "day": _two(rng, DAYS),
        "item": [f"{colour} {thing}" for colour, thing in zip(colours, things, strict=True)],
        "coins": [str(number) for number in coins],
        "place": _two(rng, SHOPS),
        "pet": _two(rng, PETS),
        "pet_name": _two(rng, PET_NAMES),
        "dish": _two(rng, DISHES),
        "month": _two(rng, MONTHS),
    }


# Sentences about one person, in this order.
OPENING = (
    "{full} is {a_job} who lives in {town}.",
    "{full} works as {a_job} and lives in {town}.",
    "In {town} lives {full}, who earns a living as {a_job}.",
)
BUYING = (
    "On {day} {name} buys {a_item} for {coins} coins near the {place}.",
    "Near the {place}, {name} finds {a_item} on {day} and pays {coins} coins for it.",
)
HOME = (
    "At home {name} has {a_pet} called {pet_name}.",
    "{name} looks after {a_pet} whose name is {pet_name}.",
)
COOKING = (
    "Every {month}, {name} makes {dish} for the neighbours.",
    "The neighbours know {name} for the {dish} that is served every {month}.",
)

# By what is asked for: the sentences that it needs, and the questions. No question says its answer.
QUESTIONS = {
    "job": ("opening", ("What is the job of {full}?", "What does {name} do for a living?")),
    "town": ("opening", ("In which town does {name} live?", "Where does {full} live?")),
    "item": ("buying", ("What does {name} buy?", "Which thing does {name} pay for on {day}?")),
    "coins": (
        "buying",
        ("How many coins does {name} pay?", "How many coins does {name} give for the {item}?"),
    ),
    "day": (
        "buying",
        ("On which day does {name} buy something?", "On which day does {name} get the {item}?"),
    ),
    "place": ("buying", ("Near which place does {name} buy the {item}?",)),
    "pet": (
        "home",
        ("What kind of animal does {name} have?", "What kind of animal is {pet_name}?"),
    ),
    "pet_name": (
        "home",
        ("What is the name of the {pet}?", "What is the animal of {name} called?"),
    ),
    "dish": ("cooking", ("What does {name} make for the neighbours?",)),
    "month": ("cooking", ("In which month do the neighbours get {dish}?",)),
    "full": ("buying", ("Who buys the {item}?", "Who pays {coins} coins?")),
}
SENTENCES = {"opening": OPENING, "buying": BUYING, "home": HOME, "cooking": COOKING}


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _reading(rng: Random) -> Row:
    facts = _facts(rng)
    asked = rng.choice(list(QUESTIONS))
    needed, questions = QUESTIONS[asked]
    others = [kind for kind in ("buying", "home", "cooking") if kind != needed]
    kinds = ["opening", *rng.sample(others, 1), needed]
    if needed == "opening":
        kinds = ["opening", *rng.sample(others, 2)]
    told = [kind for kind in SENTENCES if kind in kinds]
    people = [{key: both[one] for key, both in facts.items()} for one in (0, 1)]
    for person in people:
        person |= {f"a_{key}": _with_article(person[key]) for key in ("job", "item", "pet")}
    parts = [[rng.choice(SENTENCES[kind]).format(**person) for kind in told] for person in people]
    rng.shuffle(parts)
    passage = " ".join(sentence for part in parts for sentence in part)
    person = people[0]
    question = rng.choice(questions).format(**person)
    answer = person[asked]
    answers = [answer]
    if asked == "full":
        answers.append(person["name"])
    return {
        "prompt": f"{passage}\n\n{question} Answer in a few words.",
        "completion": answer,
        "answers": answers,
    }


SUITES = {
    "reading": Suite(
        name="reading",
        what="questions whose answer stands in a short passage about two people",
        cannot_say=(
            "It says nothing of long texts, of inference, or of whether an answer is well put."
        ),
        score="contains",
        chance=0.03,
        max_tokens=64,
        draw=_reading,
    )
}
