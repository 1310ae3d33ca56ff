"""A whole run on the embedded model, so small that it takes seconds: what tests of views show.

run = tiny.Run(folder)                      # the data and the recipe
run.do("select", "generate", "mix")         # real steps
run.manifests["select"].result              # what they left
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from replaykit.nano import world
from replaykit.recipe import Recipe
from replaykit.result import Result
from replaykit.runs import Manifest
from replaykit.steps.pipeline import step_of
from replaykit.steps.step import Context, manifests

ARMS = {"no-replay": {"ratio": 0.0}, "generated": {"sources": ["generate"]}}


def write_tasks(path: Path, tasks: Iterable[world.Task]) -> None:
    """Tasks of the nano world as conversations, with the skill of each."""
    with path.open("w", encoding="utf-8") as stream:
        for task in tasks:
            messages = [
                {"role": "user", "content": task.prompt},
                {"role": "assistant", "content": task.answer},
            ]
            stream.write(json.dumps({"messages": messages, "skill": task.skill}) + "\n")


def base_model(folder: Path) -> Path:
    """The embedded model without its chat template, as a base model is."""
    copy = folder / "base-model"
    shutil.copytree(Path(world.__file__).parent / "weights", copy)
    (copy / "chat_template.jinja").unlink()
    return copy


def with_sections(found: dict[str, Any], changes: Mapping[str, Any]) -> Recipe:
    """A recipe with other sections; a mapping is merged into the section that is there."""
    for section, settings in changes.items():
        before = found.get(section)
        if isinstance(before, dict) and isinstance(settings, dict):
            settings = before | settings
        found[section] = settings
    return Recipe.model_validate(found)


def done(recipe: Recipe, *steps: str, **options: Any) -> dict[str, Any]:
    """The steps in order; their results by folder name."""
    return {
        outcome.step: outcome.result
        for step in steps
        for outcome in step_of(step)(recipe, Context(), **options)
    }


class Run:
    """Data and a recipe in a folder. ``changes`` are sections of the recipe; a mapping is merged
    into the section that is there.
    """

    def __init__(self, folder: Path, **changes: Any):
        self.data = folder
        write_tasks(folder / "target.jsonl", world.draw("referral", 12, seed=1))
        write_tasks(folder / "pool.jsonl", world.draw_old(60, seed=1))
        for skill in ("capital", "json", "referral"):
            tasks = world.draw(skill, 4, seed=1, held_out=True)
            write_tasks(folder / f"test-{skill}.jsonl", tasks)
        self.recipe = self.changed(**changes)

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    def path(self, name: str) -> str:
        return str(self.data / name)

    def changed(self, **changes: Any) -> Recipe:
        """The recipe with other sections."""
        found: dict[str, Any] = {
            "out": self.path("run"),
            "model": "nano",
            "engine": "transformers",
            "target": self.path("target.jsonl"),
            "select": {"pool": self.path("pool.jsonl"), "n": 12, "processes": 1},
            "generate": {"n": 6, "max_question_tokens": 64, "max_answer_tokens": 32},
            "mix": {"ratio": 0.2},
            "train": {"steps": 3, "batch_rows": 8, "learning_rate": 1e-3, "log_every": 1},
            "eval": {
                "target": {"path": self.path("test-referral.jsonl"), "max_tokens": 32},
                "old": {
                    "capital": {"path": self.path("test-capital.jsonl"), "max_tokens": 32},
                    "nll": {"path": self.path("test-json.jsonl"), "score": "cross_entropy"},
                },
            },
        }
        return with_sections(found, changes)

    def do(self, *steps: str, **options: Any) -> dict[str, Result]:
        """The steps in order; their results by folder name."""
        return done(self.recipe, *steps, **options)

    @property
    def manifests(self) -> dict[str, Manifest]:
        return manifests(self.folder)
