"""The step matrix: after each stage, its model on the held-out rows of all tasks and of the base's
skills, beside those of the stages before.

    matrix-clinics/   items-base.jsonl  items-clinics.jsonl  manifest.json
    matrix-sums/      items-sums.jsonl  manifest.json
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from replaykit.recipe import Recipe
from replaykit.runs import Step
from replaykit.steps.evaluate.skills import read_items
from replaykit.steps.evaluate.step import measured
from replaykit.steps.inputs import load_tests, made_facts, test_facts, tests, tuned_facts
from replaykit.steps.matrix.result import MatrixResult
from replaykit.steps.stages import folder_of, model_of, number_of
from replaykit.steps.step import Context, Outcome, Todo, chat_of, do_step, model_facts, need_step


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[MatrixResult]]:
    """The matrix after the stage of this recipe."""
    from replaykit.engines import engine_fact
    from replaykit.steps.matrix.figures import BASE, matrix_of

    number = number_of(recipe)
    name = recipe.tasks[number].name
    need_step(folder_of(recipe, "train", number), "run")
    model = model_of(recipe, number)
    measured_before = _items_before(recipe, number)
    inputs = {
        **model_facts(recipe),
        "engine": engine_fact(recipe.engine.here),
        "eval": test_facts(recipe),
        "margin": recipe.eval.margin,
        "tuned": {name: tuned_facts(model)},
        "before": {after: made_facts(file) for after, file in measured_before.items()},
    }

    def work(step: Step) -> MatrixResult:
        from replaykit.steps.evaluate.scorable import scorable

        skills = tests(recipe)
        held = scorable(chat_of(recipe), load_tests(recipe))
        items = {after: read_items(file, list(skills)) for after, file in measured_before.items()}
        models = {name: str(model)}
        if number == 0:
            models = {BASE: str(recipe.model), **models}
        for after, path in models.items():
            items[after] = measured(recipe, step, after, path, held.rows, context.watch)
        names = [task.name for task in recipe.tasks]
        found = matrix_of(skills, names, items, recipe.eval.margin)
        return found.noted(*held.notes)

    yield Todo("matrix", inputs, MatrixResult, work, arm=name)


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[MatrixResult]]:
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def _items_before(recipe: Recipe, number: int) -> dict[str, Path]:
    """The items of the base and of the stages before this one, in order. Raises RunError where one
    of them is not measured.
    """
    from replaykit.steps.matrix.figures import BASE

    found = {}
    for earlier in range(number):
        folder = folder_of(recipe, "matrix", earlier)
        need_step(folder, "run")
        if earlier == 0:
            found[BASE] = folder / f"items-{BASE}.jsonl"
        name = recipe.tasks[earlier].name
        found[name] = folder / f"items-{name}.jsonl"
    return found
