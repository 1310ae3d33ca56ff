"""The step probe: what a model's chat template gives, and what the model writes from it."""

from __future__ import annotations

from collections.abc import Iterator

from replaykit.model.loading import named_sampling
from replaykit.recipe import Recipe, need
from replaykit.runs import Step
from replaykit.steps.probe.result import ProbeResult
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    chat_of,
    do_step,
    engine_and_chat,
    model_facts,
)


def todos(recipe: Recipe, context: Context, *, samples: int = 20) -> Iterator[Todo[ProbeResult]]:
    from replaykit.engines import engine_fact
    from replaykit.steps.probe.describe import described, drawn

    need(recipe, "probe", "model")
    model = str(recipe.model)
    inputs = {
        **model_facts(recipe),
        "seed": recipe.seed,
        "samples": samples,
        "engine": engine_fact(recipe.engine, recipe.model, recipe.revision),
    }

    def work(_: Step) -> ProbeResult:
        chat = chat_of(recipe)
        found = described(chat, model=model, deployed=named_sampling(model, recipe.revision))
        if not samples:
            return found
        with engine_and_chat(recipe, model) as (engine, _chat):
            return drawn(found, engine, chat, samples, seed=recipe.seed, watch=context.watch)

    yield Todo("probe", inputs, ProbeResult, work)


def run(recipe: Recipe, context: Context, *, samples: int = 20) -> Iterator[Outcome[ProbeResult]]:
    for todo in todos(recipe, context, samples=samples):
        yield do_step(todo, recipe, context)
