"""The steps in order, each from a recipe to a folder: what the commands call.

    select, generate, rewrite  ->  mix  ->  train  ->  eval  ->  report

With ``arms`` in the recipe, mix and train are done once for each arm (``mix-<arm>``,
``train-<arm>``), and eval compares them all with the base. A step reads what earlier steps left in
their folders, never the memory of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from replaykit.recipe import Recipe, need
from replaykit.recipe.mix import is_made
from replaykit.steps.mix.step import replay_sources, takes_rewritten
from replaykit.steps.step import Context, Outcome, Todo, arms, chat_of, label_of

# By name: the package under ``steps`` whose module ``step`` has ``run``.
STEPS = {
    "probe": "probe",
    "select": "select",
    "generate": "generate",
    "rewrite": "rewrite",
    "mix": "mix",
    "score": "score",
    "train": "train",
    "merge": "merge",
    "eval": "evaluate",
    "report": "report",
    "push": "push",
}
# Of the steps of a run those that are done once for each arm.
BY_ARM = ("mix", "train")


def _module(name: str) -> ModuleType:
    # Imported when it is used: a step brings what is heavy, such as torch.
    return import_module(f"replaykit.steps.{STEPS[name]}.step")


def step_of(name: str) -> Callable[..., Iterator[Outcome[Any]]]:
    """The function that does a step: ``(recipe, context, ...) -> outcomes``."""
    return _module(name).run


def todos_of(name: str) -> Callable[..., Iterator[Todo[Any]]]:
    """The function that says what a step would do: ``(recipe, context, ...) -> todos``. Report and
    push have none.
    """
    return _module(name).todos


def wanted(recipe: Recipe) -> list[str]:
    """The steps that ``run`` does, in order."""
    replay = {"select": recipe.select, "generate": recipe.generate, "rewrite": recipe.rewrite}
    names = [name for name, section in replay.items() if section is not None]
    names += ["mix", "train"]
    if recipe.eval.target or recipe.eval.old:
        names.append("eval")
    return [*names, "report"]


def needed(recipe: Recipe, name: str, arm: str | None) -> list[str]:
    """The folders of the earlier steps that a step of ``wanted`` reads."""
    # What is done once for all arms needs each of them.
    trained = [label_of("train", each) for each in arms(recipe, Context())]
    match name:
        case "mix":
            replay = replay_sources(recipe, recipe.mixture(arm))
            # A file of the user's own is no step.
            sources = [source for source in replay if is_made(source)]
            if takes_rewritten(recipe):
                sources.append("rewrite")
            return sources
        case "train":
            return [label_of("mix", arm)]
        case "eval":
            return trained
        case "report":
            return ["eval"] if "eval" in wanted(recipe) else trained
        case _:
            return []


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[Any]]:
    """All steps that the recipe asks for, in order.

    Raises RecipeError for what training would refuse of such a model, before any replay is made.
    """
    need(recipe, "run", "model", "target")
    _check_training(recipe)
    for name in wanted(recipe):
        yield from step_of(name)(recipe, context)


def _check_training(recipe: Recipe) -> None:
    trainings = [recipe.training(arm) for arm in arms(recipe, Context())]
    packing = [training for training in trainings if training.packing]
    if not packing:
        return
    from replaykit.steps.train.fit import check_packing

    chat = chat_of(recipe)
    for training in packing:
        check_packing(training, chat)
