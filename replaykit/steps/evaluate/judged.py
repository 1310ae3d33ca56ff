"""What a judge model says of answers that wait for it, after all of a model's answers are there.

{"score": null, "reason": "unjudged", ...}  ->  {"score": 0.75, ...}  or  "reason": "unparsed"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from replaykit.checks.scoring.judge import Answered, grades
from replaykit.data.record import Record
from replaykit.errors import RecipeError
from replaykit.recipe import Recipe
from replaykit.recipe.evaluate import NO_JUDGE, Judge, Test
from replaykit.runs import Watch
from replaykit.steps.evaluate.skills import UNJUDGED, Item
from replaykit.steps.step import engine_and_chat

Rows = Mapping[str, tuple[Test, Sequence[Record]]]


def judge_of(recipe: Recipe, rows: Rows) -> Judge | None:
    """The judge of a recipe whose tests need one; None where none does. Raises RecipeError where
    they do, and none is named.
    """
    wanted = [skill for skill, (test, _) in rows.items() if test.score == "judge"]
    if wanted and recipe.eval.judge is None:
        raise RecipeError("the recipe", [f"{', '.join(wanted)}: {NO_JUDGE}"])
    return recipe.eval.judge if wanted else None


def judged(
    recipe: Recipe,
    judge: Judge,
    rows: Rows,
    items: Mapping[str, Sequence[Item]],
    what: str,
    watch: Watch,
) -> dict[str, list[Item]]:
    """The items, those that were unjudged with the judge's score; where its reply cannot be read
    there is none, with the reason of ``grades``.
    """
    waiting = [
        (skill, place)
        for skill, of_skill in items.items()
        for place, item in enumerate(of_skill)
        if item.reason == UNJUDGED
    ]
    found = {skill: list(of_skill) for skill, of_skill in items.items()}
    if not waiting:
        return found
    answers = []
    for skill, place in waiting:
        item = items[skill][place]
        answers.append(Answered(rows[skill][1][item.row], item.answer or ""))
    options = recipe.engine.here
    if judge.server is not None:
        options = recipe.engine.model_copy(update={"name": "openai", "server": judge.server})
    judging = engine_and_chat(recipe, judge.model, of_recipe=False, options=options)
    with judging as (engine, chat):
        for number, grade in grades(engine, chat, answers, what=what, watch=watch):
            skill, place = waiting[number]
            item = items[skill][place]
            if isinstance(grade, str):
                found[skill][place] = replace(item, reason=grade)
            else:
                found[skill][place] = replace(item, score=grade, reason=None)
    return found
