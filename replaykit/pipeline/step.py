"""What the steps share: where a step writes, when it is finished already, which arms it does, what
model it asks.

    runs/my-task/generate/       rows.jsonl  dropped.jsonl  questions.jsonl  answers.jsonl  manifest.json
    runs/my-task/train-control/  of the arm "control"

The manifest is written last, so a folder that has one is finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit import models
from replaykit.checks.funnel import Funnel
from replaykit.errors import RecipeError, RunError
from replaykit.recipe import Recipe
from replaykit.runs import Step, Watch, open_step, read_manifest, unwatched
from replaykit.training_settings import Arm, Mix

if TYPE_CHECKING:
    from replaykit.chat import Chat
    from replaykit.settings import EngineOptions

Work = Callable[
    [Step], tuple[dict[str, Any], dict[str, Any]]
]  # -> what is shown, and further facts for the manifest


@dataclass(frozen=True)
class Outcome:
    """What a step left: its folder and the result that its table shows."""

    step: str
    folder: Path
    result: Mapping[str, Any]
    skipped: bool = False  # it was finished before
    note: str = ""


@dataclass(frozen=True)
class Context:
    """How the steps are run: where to, whether anew, and who watches."""

    out: Path | None = None
    force: bool = False
    arm: str | None = None
    watch: Watch = unwatched


def do_step(
    name: str,
    recipe: Recipe,
    context: Context,
    inputs: Mapping[str, Any],
    work: Work,
    *,
    arm: str | None = None,
    asked: object = None,
) -> Outcome:
    """Does the work in the step's folder unless it is finished there; ``asked`` tells a finished
    shorter one apart.
    """
    label = label_of(name, arm)
    folder = context.out or recipe.folder / label
    with open_step(label, folder, inputs, force=context.force) as step:
        before = step.result
        if before is not None and (asked is None or before.get("asked") == asked):
            return Outcome(
                label, folder, before, skipped=True, note="finished before; --force does it again"
            )
        step.manifest_path.unlink(missing_ok=True)
        result, facts = work(step)
        note = (
            f"the earlier one is in {step.moved} ({'; '.join(step.changed) or '--force'})"
            if step.moved
            else ""
        )
        return Outcome(label, folder, step.finish(result, **facts), note=note)


def need_step(folder: Path, step: str, *, otherwise: str = "") -> Path:
    """The folder of a step that another one builds on. Raises RunError, with what to type, where it
    is not finished.
    """
    if not read_manifest(folder):
        raise RunError(
            f"{folder} is not finished; `replaykit {step}` makes "
            f"it{otherwise and ', and ' + otherwise}"
        )
    return folder


def label_of(step: str, arm: str | None) -> str:
    """The name of the folder that a step of an arm writes to."""
    return step if arm is None else f"{step}-{arm}"


def arms(recipe: Recipe, context: Context) -> list[tuple[str | None, Mix]]:
    """The arms to do and the mix of each: the recipe's, with the arm's keys changed; one without a
    name where none.
    """
    if not recipe.arms:
        if context.arm is not None:
            raise RecipeError("the command line", [f"--arm {context.arm}: the recipe has no arms"])
        return [(None, recipe.mix)]
    if context.arm is not None and context.arm not in recipe.arms:
        raise RecipeError(
            "the command line", [f"--arm {context.arm}: the recipe has {', '.join(recipe.arms)}"]
        )
    chosen: Mapping[str, Arm] = (
        {context.arm: recipe.arms[context.arm]} if context.arm else recipe.arms
    )
    if context.out is not None and len(chosen) > 1:
        raise RecipeError(
            "the command line", [f"--out takes one arm; choose it with --arm: {', '.join(chosen)}"]
        )
    return [(name, recipe.mixture(name)) for name in chosen]


def manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifests of the finished steps of a run, by step."""
    found = {
        path.parent.name: read_manifest(path.parent)
        for path in sorted(folder.glob("*/manifest.json"))
    }
    return {name: manifest for name, manifest in found.items() if manifest and ".old" not in name}


def model_facts(recipe: Recipe) -> dict[str, Any]:
    """What identifies the model and its chat: name, revision and options, and the files where it is
    a folder.
    """
    name = str(recipe.model)
    options = recipe.chat.model_dump(exclude_defaults=True)
    facts = {"model": name, "revision": recipe.revision, "weights": models.identity(name)}
    return facts | ({"chat": options} if options else {})


def revision_of(recipe: Recipe) -> str | None:
    """The commit of the recipe's model: the one asked for, or the one that was downloaded; None for
    a folder.
    """
    return recipe.revision or models.fetched(str(recipe.model))


def chat_of(recipe: Recipe) -> Chat:
    """The chat of the recipe's model, without its weights."""
    from replaykit.chat import Chat

    return Chat.load(str(recipe.model), recipe.revision, recipe.chat)


@contextmanager
def engine_and_chat(
    recipe: Recipe,
    model: str | None,
    *,
    of_recipe: bool = True,
    options: EngineOptions | None = None,
) -> Iterator[tuple[Any, Any]]:
    """A model and its chat. The recipe's chat options are for its own model and what is tuned from
    it, not for others.

    ``options`` are of the engine: those of the recipe by default.
    """
    from replaykit.chat import Chat
    from replaykit.engines import load_engine

    assert model is not None
    revision = recipe.revision if model == recipe.model else None
    chat = Chat.load(model, revision, recipe.chat if of_recipe else None)
    engine = load_engine(model, options or recipe.engine, revision=revision)
    try:
        yield engine, chat
    finally:
        engine.close()


@contextmanager
def funnel_of(step: Step) -> Iterator[Funnel]:
    """A funnel that writes each dropped row, with its reason, to dropped.jsonl."""
    with (step.folder / "dropped.jsonl").open("w", encoding="utf-8") as stream:
        yield Funnel(lambda row: stream.write(json.dumps(row, ensure_ascii=False) + "\n"))
