"""Several tasks in a row: each stage is a run of one task, from the model that the last one left.

    stage(recipe, 1)  ->  model: runs/mine/train-clinics/model
                          target: sums.jsonl
                          arms: {sums: {}}

    runs/mine/  mix-clinics train-clinics matrix-clinics
                buffer-sums mix-sums train-sums matrix-sums

The one arm of a stage is its task, so that the steps do what they do for any arm, and leave their
folders beside one another. The tests stay those of all tasks.
"""

from __future__ import annotations

from pathlib import Path

from replaykit.data.record import TARGET
from replaykit.errors import DataError, RecipeError
from replaykit.recipe import Recipe
from replaykit.recipe.arms import Arm
from replaykit.recipe.data import Data
from replaykit.recipe.tasks import BUFFER, replays, stage_mix, stage_train
from replaykit.recipe.train import Train
from replaykit.steps.inputs import rows_of, same_rows, section_of, tests, trained_on
from replaykit.steps.step import label_of


def stages(recipe: Recipe) -> list[Recipe]:
    """The recipes of the stages, in order."""
    return [stage(recipe, number) for number in range(len(recipe.tasks))]


def stage(recipe: Recipe, number: int) -> Recipe:
    """The recipe of the stage of a task, counted from 0."""
    task = recipe.tasks[number]
    changes = {
        "out": str(recipe.folder),
        "target": task.target,
        "mix": stage_mix(recipe, number),
        "train": _train(recipe, number),
        "arms": {task.name: Arm()},
    }
    if number > 0:
        # What is trained here is on this machine.
        changes["engine"] = recipe.engine.here
        changes["model"] = str(model_of(recipe, number - 1))
        changes["revision"] = None
    return recipe.model_copy(update=changes)


def _train(recipe: Recipe, number: int) -> Train:
    """How a stage is trained. Where nothing is replayed, ewc reads the buffer."""
    train = stage_train(recipe, number)
    ewc = train.remedies.ewc
    if number == 0 or ewc is None or ewc.old is not None or replays(stage_mix(recipe, number)):
        return train
    old = Data(path=str(folder_of(recipe, BUFFER, number) / "rows.jsonl"))
    ewc = ewc.model_copy(update={"old": old})
    return train.model_copy(update={"remedies": train.remedies.model_copy(update={"ewc": ewc})})


def number_of(recipe: Recipe) -> int:
    """Which task the recipe of a stage learns, counted from 0."""
    (learned,) = recipe.arms
    return [task.name for task in recipe.tasks].index(learned)


def reads_buffer(recipe: Recipe) -> bool:
    """Whether the stage of this recipe reads rows of earlier tasks."""
    if number_of(recipe) == 0:
        return False
    replayed = replays(recipe.mix) and BUFFER in (recipe.mix.sources or {})
    ewc = recipe.train.remedies.ewc
    buffer = folder_of(recipe, BUFFER, number_of(recipe)) / "rows.jsonl"
    return replayed or (ewc is not None and ewc.old == Data(path=str(buffer)))


def check_tasks(recipe: Recipe) -> None:
    """Raises RecipeError where a task is trained on held-out rows of any, and DataError where it
    has no row: before the first stage rather than after hours.
    """
    problems = [
        f"{section_of(recipe, skill)}: {trained_on(test)}"
        for skill, test in tests(recipe).items()
        if any(same_rows(task.target, test) for task in recipe.tasks)
    ]
    if problems:
        raise RecipeError("the recipe", problems)
    for task in recipe.tasks:
        if next(rows_of(task.target, TARGET, lambda *_: None), None) is None:
            raise DataError(f"{task.target.path}: no row of the task {task.name} can be read")


def folder_of(recipe: Recipe, step: str, number: int) -> Path:
    """The folder of a step of the stage of a task."""
    return recipe.folder / label_of(step, recipe.tasks[number].name)


def model_of(recipe: Recipe, number: int) -> Path:
    """The model that the stage of a task leaves."""
    return folder_of(recipe, "train", number) / "model"
