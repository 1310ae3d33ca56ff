"""The step augment: further target rows, made of those that there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.ledger import Ledger
from replaykit.data.record import TARGET, noted
from replaykit.errors import RecipeError
from replaykit.recipe import Recipe, need
from replaykit.recipe.augment import Augment
from replaykit.runs import Step
from replaykit.steps.augment.result import AugmentResult
from replaykit.steps.inputs import Readable, load, made_facts, row_facts
from replaykit.steps.mix.step import rewritten_rows
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    do_step,
    engine_and_chat,
    funnel_of,
    model_facts,
)

if TYPE_CHECKING:
    from replaykit.engines import Engine
    from replaykit.model.chat import Chat

NOTHING_ASKED = (
    "augment: say how rows are made: `back_translation: {}`, the questions in other words "
    "(--back-translation), or `counterfactual: {}`, pairs that differ in one fact "
    "(--counterfactual)"
)


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[AugmentResult]]:
    settings = recipe.augment or Augment()
    check_asked(settings)
    keys = ["model", "target"] if asks_models(settings) else ["target"]
    need(recipe, "augment", *keys)
    assert recipe.target is not None
    rewritten = rewritten_rows(recipe)
    inputs = {
        "seed": recipe.seed,
        "target": row_facts(recipe.target),
        "rewritten": None if rewritten is None else made_facts(rewritten),
        "augment": settings.decisive(),
        **asked_facts(recipe, settings),
    }

    def work(step: Step) -> AugmentResult:
        from replaykit.steps.augment.augment import augmented, counted

        target = _target(recipe, rewritten)
        with Ledger(step.folder / "replies.jsonl") as ledger, funnel_of(step) as funnel:
            attempts = list(
                augmented(
                    target.records,
                    settings=settings,
                    seed=recipe.seed,
                    ledger=ledger,
                    open_model=lambda name: opened(recipe, name),
                    watch=context.watch,
                )
            )
            for attempt in attempts:
                row = attempt.made or noted(attempt.parent, path=attempt.path)
                funnel.passes(row, attempt.why or None)
        rows = (attempt.made for attempt in attempts if attempt.made is not None)
        write_jsonl(step.folder / "rows.jsonl", rows)
        return counted(attempts, settings, len(target.records)).noted(target.note)

    yield Todo("augment", inputs, AugmentResult, work)


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[AugmentResult]]:
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def check_asked(settings: Augment) -> None:
    """Raises RecipeError where no way of making rows is asked for."""
    if settings.back_translation is None and settings.counterfactual is None:
        raise RecipeError("the recipe", [NOTHING_ASKED])


def asks_models(settings: Augment) -> bool:
    """Whether a model writes any of it."""
    edited = settings.counterfactual is not None and settings.counterfactual.by == "editor"
    return edited or settings.back_translation is not None


def asked_facts(recipe: Recipe, settings: Augment) -> dict[str, Any]:
    """What identifies the recipe's model and its engine; empty where none is asked."""
    from replaykit.engines import engine_fact

    if not asks_models(settings):
        return {}
    engine = engine_fact(recipe.engine, recipe.model, recipe.revision)
    return {**model_facts(recipe), "engine": engine}


def opened(recipe: Recipe, model: str | None) -> AbstractContextManager[tuple[Engine, Chat]]:
    """A model of this name, or the recipe's for None."""
    if model is None:
        return engine_and_chat(recipe, str(recipe.model))
    return engine_and_chat(recipe, model, of_recipe=False)


def _target(recipe: Recipe, rewritten: Path | None) -> Readable:
    """The target's rows as they are trained on."""
    if rewritten is not None:
        return Readable(list(read_jsonl(rewritten)), "")
    assert recipe.target is not None
    return load(recipe.target, TARGET)
