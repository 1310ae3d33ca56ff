"""The steps in order, each from a recipe to a folder: what the commands call.

    select, generate, rewrite, augment  ->  mix  ->  train  ->  eval  ->  report

With ``arms`` in the recipe, mix and train are done once for each arm (``mix-<arm>``,
``train-<arm>``), and eval compares them all with the base. With ``tasks`` there is a stage for
each, and one report:

    select, generate  ->  mix  ->  train  ->  matrix       of the first task
              buffer  ->  mix  ->  train  ->  matrix       of every later one

A step reads what earlier steps left in their folders, never the memory of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from replaykit.errors import RecipeError
from replaykit.recipe import Recipe, need
from replaykit.recipe.mix import is_made
from replaykit.recipe.tasks import stage_train
from replaykit.runs import Watch
from replaykit.steps.inputs import memory_rows
from replaykit.steps.mix.step import replay_label, replay_sources, takes_augmented, takes_rewritten
from replaykit.steps.stages import check_tasks, number_of, reads_buffer, stage, stages
from replaykit.steps.step import Context, Outcome, Todo, arms, chat_of, label_of

# By name: the package under ``steps`` whose module ``step`` has ``run``.
STEPS = {
    "probe": "probe",
    "memory": "memory",
    "select": "select",
    "generate": "generate",
    "rewrite": "rewrite",
    "augment": "augment",
    "describe": "describe",
    "buffer": "buffer",
    "mix": "mix",
    "score": "score",
    "train": "train",
    "merge": "merge",
    "repair": "repair",
    "eval": "evaluate",
    "matrix": "matrix",
    "suites": "suites",
    "report": "report",
    "push": "push",
}
# Of the steps of a run those that are done once for each arm, or stage.
BY_ARM = ("buffer", "mix", "train", "matrix")
# Of these the commands that do the step of one task: train, so that several processes can.
BY_STAGE = ("mix", "train")


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


def planned(recipe: Recipe) -> Iterator[tuple[Recipe, str]]:
    """The steps that ``run`` does, in order, each with the recipe that it is done by: the stage's,
    where there are tasks.
    """
    if not recipe.tasks:
        yield from ((recipe, name) for name in wanted(recipe))
        return
    every = stages(recipe)
    for number, own in enumerate(every):
        if number == 0:
            yield from ((own, name) for name in recipe.replay_sources)
        # A later stage reads the buffer of the one before it.
        elif any(reads_buffer(later) for later in every[number:]):
            yield own, "buffer"
        yield from ((own, name) for name in ("mix", "train", "matrix"))
    yield recipe, "report"


def wanted(recipe: Recipe) -> list[str]:
    """The steps that ``run`` does for a recipe of one task, in order."""
    made = {
        "select": recipe.select,
        "generate": recipe.generate,
        "rewrite": recipe.rewrite,
        "augment": recipe.augment,
    }
    # No row of training may repeat those of memory, so they come first.
    names = [] if recipe.eval.memory is None else ["memory"]
    names += [name for name, section in made.items() if section is not None]
    names += ["mix", "train"]
    if recipe.eval.target or recipe.eval.old or recipe.eval.memory:
        names.append("eval")
    return [*names, "report"]


def needed(recipe: Recipe, name: str, arm: str | None) -> list[str]:
    """The folders of the earlier steps that a step of ``planned`` reads."""
    if recipe.tasks:
        return _needed_in_stage(recipe, name, arm)
    # What is done once for all arms needs each of them.
    trained = [label_of("train", each) for each in arms(recipe, Context())]
    memory = [] if recipe.eval.memory is None else ["memory"]
    match name:
        case "select" | "generate" | "rewrite":
            return memory
        case "augment":
            return [*memory, "rewrite"] if takes_rewritten(recipe) else memory
        case "mix":
            return [*memory, *_needed_to_mix(recipe, arm)]
        case "train":
            return [label_of("mix", arm)]
        case "eval":
            return [*memory, *trained]
        case "report":
            return ["eval"] if "eval" in wanted(recipe) else trained
        case _:
            return []


def _needed_to_mix(recipe: Recipe, arm: str | None) -> list[str]:
    replay = replay_sources(recipe, recipe.mixture(arm))
    # A file of the user's own is no step.
    sources = [replay_label(source, arm) for source in replay if is_made(source)]
    if takes_rewritten(recipe):
        sources.append("rewrite")
    if takes_augmented(recipe):
        sources.append("augment")
    return sources


def _needed_in_stage(recipe: Recipe, name: str, arm: str | None) -> list[str]:
    names = [task.name for task in recipe.tasks]
    if name == "report":
        return [label_of("matrix", names[-1])]
    before = names[: number_of(recipe)]
    # The model of the stage is what the one before it left.
    model = [label_of("train", task) for task in before[-1:]]
    match name:
        case "buffer":
            last = [label_of("buffer", task) for task in before[1:][-1:]]
            return [*model, *(label_of("mix", task) for task in before[-1:]), *last]
        case "mix":
            return [*model, *_needed_to_mix(recipe, arm)]
        case "train":
            buffer = [label_of("buffer", arm)] if reads_buffer(recipe) else []
            return [label_of("mix", arm), *buffer]
        case "matrix":
            return [label_of("train", arm), *(label_of("matrix", task) for task in before)]
        case _:
            return []


def first(recipe: Recipe, name: str, watch: Watch) -> Iterator[Outcome[Any]]:
    """What a step typed alone needs and nobody chooses: the rows of memory, where there are none
    yet, since no row of training may repeat theirs.
    """
    if recipe.eval.memory is None or memory_rows(recipe).exists():
        return
    if "memory" in needed(recipe, name, None) or name in ("merge", "repair"):
        yield from step_of("memory")(recipe, Context(watch=watch))


def of_arm(recipe: Recipe, name: str, arm: str | None) -> Recipe:
    """The recipe by which a step alone is done: where there are tasks, that of the stage of the one
    that ``arm`` names. Raises RecipeError for a step or a task that the recipe does not have.
    """
    if not recipe.tasks or arm is None:
        return recipe
    tasks = [task.name for task in recipe.tasks]
    problem = ""
    if name not in BY_STAGE:
        problem = f"{name}: of a recipe with tasks, --arm is for {' and '.join(BY_STAGE)}"
    elif arm not in tasks:
        problem = f"--arm {arm}: the recipe has the tasks {', '.join(tasks)}"
    if problem:
        raise RecipeError("the command line", [problem])
    return stage(recipe, tasks.index(arm))


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[Any]]:
    """All steps that the recipe asks for, in order. Raises as ``check`` does, before any replay is
    made.
    """
    check(recipe)
    for own, name in planned(recipe):
        yield from step_of(name)(own, context)


def check(recipe: Recipe) -> None:
    """Raises RecipeError for what a run cannot do without, and for what training would refuse of
    such a model.
    """
    if recipe.tasks:
        need(recipe, "run", "model")
        check_tasks(recipe)
    else:
        need(recipe, "run", "model", "target")
    _check_training(recipe)


def _check_training(recipe: Recipe) -> None:
    trainings = [recipe.training(arm) for arm in arms(recipe, Context())]
    trainings += [stage_train(recipe, number) for number in range(len(recipe.tasks))]
    doubtful = [
        training
        for training in trainings
        if training.packing or training.remedies.self_distill is not None
    ]
    if not doubtful:
        return
    from replaykit.steps.train.fit import check_packing, check_self_distill

    chat = chat_of(recipe)
    for training in doubtful:
        check_packing(training, chat)
        check_self_distill(training, chat)
