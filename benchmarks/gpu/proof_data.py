"""What the proof teaches and tests: general instructions, seven skills that are scored right or
wrong, and a new task.

The seven are the six of the embedded world, and cards, a convention that stands in no text:

    Write a card: Anna Smith of Paris, born in 1970.
    {"who": "Smith, Anna", "where": "PARIS", "born": 1970}

so that whoever no longer follows it has forgotten it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from replaykit.data.formats import Columns, read_records
from replaykit.data.record import Record, dialogue
from replaykit.nano import world
from replaykit.recipe.evaluate import Test

GENERAL = ("alpaca_train", "dolly_train", "lima_train", "t0_pool")
OLD = (*world.OLD_SKILLS, "card")


@dataclass(frozen=True)
class Size:
    """Everything that is larger on a GPU than in miniature. Without a ``hidden`` the base begins
    as the embedded model.
    """

    hidden: int | None
    layers: int
    intermediate: int
    vocabulary: int
    general: int
    """Rows of each general data set at most."""
    skill: int
    """Rows of each taught skill."""
    epochs: int
    """Of the base's training."""
    target: int
    """Rows of the new task."""
    target_epochs: int
    replay: int
    """Rows of each set."""
    items: int
    """Of each old skill's test; twice as many of the new task."""
    answer_tokens: int
    """Of an answer to the new task at most."""
    batch_rows: int
    max_tokens: int
    """Of a row."""
    base_rate: float
    full_rate: float
    lora_rate: float
    fisher_rows: int


GPU = Size(
    512,
    8,
    1408,
    16_384,
    general=30_000,
    skill=8_000,
    epochs=4,
    target=3_000,
    target_epochs=2,
    replay=2_000,
    items=100,
    answer_tokens=256,
    batch_rows=64,
    max_tokens=512,
    base_rate=1e-3,
    full_rate=5e-4,
    lora_rate=2e-3,
    fisher_rows=256,
)
MINI = Size(
    None,
    0,
    0,
    0,
    general=8,
    skill=8,
    epochs=1,
    target=16,
    target_epochs=1,
    replay=8,
    items=4,
    answer_tokens=24,
    batch_rows=8,
    max_tokens=256,
    base_rate=1e-5,
    full_rate=5e-4,
    lora_rate=1e-3,
    fisher_rows=4,
)


def cards(n: int, *, seed: int, held_out: bool = False) -> list[world.Task]:
    """n different tasks of the taught convention, from one side of the world's split by prompts."""
    rng = Random(f"card/{seed}/{held_out}")
    tasks = dict[str, world.Task]()
    while len(tasks) < n:
        first = rng.choice(world.FIRST_NAMES)
        last = rng.choice(world.SURNAMES)
        city = rng.choice(sorted(world.CAPITALS.values()))
        born = rng.randint(1935, 2006)
        ask = rng.choice(["Write a card:", "Make a card for the file.", "Card, please:"])
        text = rng.choice(
            [
                f"{first} {last} of {city}, born in {born}.",
                f"{first} {last} was born in {born} and lives in {city}.",
                f"Born in {born}, {first} {last} comes from {city}.",
            ]
        )
        prompt = f"{ask} {text}"
        answer = json.dumps({"who": f"{last}, {first}", "where": city.upper(), "born": born})
        if world.is_held_out(prompt) is held_out:
            tasks.setdefault(prompt, world.Task("card", prompt, answer))
    return list(tasks.values())


def as_records(tasks: Sequence[world.Task]) -> list[Record]:
    return [
        Record(dialogue(task.prompt, task.answer), "target", {"skill": task.skill})
        for task in tasks
    ]


def taught(size: Size) -> list[Record]:
    """The rows of the seven skills that the base is trained on, ``size.skill`` of each by the
    mean.
    """
    stream = islice(world.stream(seed=1), len(world.OLD_SKILLS) * size.skill)
    return as_records([*stream, *cards(size.skill, seed=1)])


def general(data: Path, size: Size) -> list[Record]:
    """The general rows in a seeded order, ``size.general`` of each data set at most."""
    chosen = []
    for name in GENERAL:
        rows = [
            Record(record.messages, "target", {"skill": name})
            for record in read_records(data / f"{name}.jsonl.gz", "target")
        ]
        chosen += Random(name).sample(rows, min(size.general, len(rows)))
    Random(1).shuffle(chosen)
    return chosen


def new_task(task: str, data: Path, size: Size) -> tuple[list[Record], list[Record], Test]:
    """Rows to learn, rows to test, and how an answer is scored: by the number, or the decision,
    after ``####``.
    """
    if task == "gsm8k":
        parts = (
            read_records(data / f"gsm8k_{part}.jsonl.gz", "target") for part in ("train", "test")
        )
        learn, tests = (
            list(islice(part, n))
            for part, n in zip(parts, (size.target, size.items * 2), strict=True)
        )
        return learn, tests, Test(path=task, score="numeric", max_tokens=size.answer_tokens)
    rows = [
        Record(
            dialogue(
                "\n".join([*row.meta["contexts"], row.prompt]),
                f"{row.answer}\n#### {row.meta['final_decision']}",
            ),
            "target",
        )
        for row in read_records(
            data / "pubmedqa.jsonl.gz", "target", columns=Columns("question", "long_answer")
        )
    ]
    Random(1).shuffle(rows)
    held = min(size.items * 2, len(rows) // 5)
    return (
        rows[held : held + size.target],
        rows[:held],
        Test(path=task, score="exact", max_tokens=size.answer_tokens),
    )
