"""The step memory: rows that the model writes itself, at temperature 1 and never trained on.

    runs/my-task/memory/rows.jsonl

Under a tuned model their answers' loss rises. As they are drawn from the base itself, the mean rise
is an unbiased estimate of the Kullback-Leibler divergence of the tuned model from the base, in nats
a token, on what the base says: how far it has drifted, whether or not a skill is lost by it. So all
that is drawn stays, whatever it says; a question that was cut has no answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from replaykit.hashing import derive_seed
from replaykit.recipe import Recipe, need
from replaykit.recipe.evaluate import MEMORY
from replaykit.recipe.generate import Checks, Generate
from replaykit.steps.generate import step as generate
from replaykit.steps.generate.result import GenerateResult
from replaykit.steps.step import Context, Outcome, Todo, do_step

# Rows are drawn with every check off: what is left out would bias the estimate.
EVERY = Checks(
    min_chars=0, max_repeat=None, near_duplicate=None, leaks=False, overlap=False, secrets=False
)
TOKENS = 256  # of a question and of an answer, at most
SEED = derive_seed(MEMORY) >> 32
"""Of the draws, in runs of every seed: their arms are compared on the same rows."""


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[GenerateResult]]:
    need(recipe, "memory", "model", "eval.memory")
    own = recipe.model_copy(update={"seed": SEED, "generate": settings_of(recipe)})
    yield from generate.drawn(own, context, MEMORY)


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[GenerateResult]]:
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def settings_of(recipe: Recipe) -> Generate:
    """How the rows are drawn: as the model itself would say them."""
    return Generate(
        n=recipe.eval.memory,
        answer_temperature=1.0,
        max_question_tokens=TOKENS,
        max_answer_tokens=TOKENS,
        min_yield=0.0,
        checks=EVERY,
    )
