"""Three tiny tasks in a row on the embedded model, so small that a run takes seconds.

recipe = sequences.recipe(folder)                          # the data and the recipe
sequences.recipe(folder, buffer={"answers": "on_policy"})  # with other sections
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny import with_sections, write_tasks

from replaykit.nano import world
from replaykit.recipe import Recipe

TASKS = ("capital", "referral", "arithmetic")
ROWS = 16
HELD_OUT = 5


def in_other_words(task: world.Task) -> world.Task:
    """A capital as the embedded model does not say it, which a test finds right all the same."""
    return replace(task, answer=f"The answer is {task.answer}.")


def recipe(
    folder: Path, own: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any
) -> Recipe:
    """Data and a recipe in a folder; a mapping is merged into the section that is there, and
    ``own`` has further keys by task. The first task is known to the model in other words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for skill in TASKS:
        drawn = world.draw(skill, ROWS, seed=1)
        if skill == "capital":
            drawn = [in_other_words(task) for task in drawn]
        write_tasks(folder / f"{skill}.jsonl", drawn)
        tests = folder / f"test-{skill}.jsonl"
        write_tasks(tests, world.draw(skill, HELD_OUT, seed=1, held_out=True))
        held_out = {"path": str(tests), "max_tokens": 32}
        task = {"name": skill, "target": str(folder / f"{skill}.jsonl"), "eval": held_out}
        tasks.append(task | dict((own or {}).get(skill, {})))
    write_tasks(folder / "test-topic.jsonl", world.draw("topic", HELD_OUT, seed=1, held_out=True))
    found: dict[str, Any] = {
        "out": str(folder / "run"),
        "model": "nano",
        "engine": "transformers",
        "tasks": tasks,
        "buffer": {"rows": 10, "method": "balanced"},
        "mix": {"ratio": 0.25},
        "train": {"steps": 2, "batch_rows": 8, "learning_rate": 2e-4, "save_every": 1},
        "eval": {"old": {"topic": {"path": str(folder / "test-topic.jsonl"), "max_tokens": 8}}},
    }
    return with_sections(found, changes)
