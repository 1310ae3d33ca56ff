"""The step score: how probable the model finds the answers that it will be trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from replaykit.data.planned import read_plan
from replaykit.model.chat import Example
from replaykit.recipe import Recipe, need
from replaykit.recipe.remedies import StmSettings
from replaykit.runs import Step, Watch
from replaykit.steps.inputs import made_facts
from replaykit.steps.mix.step import finished_mixture
from replaykit.steps.score.result import ScoreResult
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    arms,
    chat_of,
    do_step,
    model_facts,
    revision_of,
)

if TYPE_CHECKING:
    import numpy as np

    from replaykit.model.chat import Chat


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[ScoreResult]]:
    need(recipe, "score", "model")
    chat = cache(lambda: chat_of(recipe))
    for arm in arms(recipe, context):
        folder, _ = finished_mixture(recipe, arm)
        mixture = folder / "rows.jsonl"
        stm = recipe.training(arm).remedies.stm or StmSettings()
        limit = stm.max_perplexity or StmSettings().max_perplexity
        assert limit is not None
        inputs = {**model_facts(recipe), "mix": made_facts(mixture), "max_perplexity": limit}
        work = _work(recipe, mixture, limit, chat, context.watch)
        yield Todo("score", inputs, ScoreResult, work, arm=arm)


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[ScoreResult]]:
    """Each arm's mixture; what is known already is not scored again."""
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def answer_logprobs(
    recipe: Recipe, examples: Mapping[str, Example], watch: Watch
) -> tuple[dict[str, np.ndarray], int]:
    """The log-probabilities of each example's answer tokens under the recipe's model, by record id,
    and how many rows were new; the model is loaded only for those.

    All arms of a run share one file of what is known.
    """
    from replaykit.engines import load_engine
    from replaykit.steps.score.logprobs import Scores, model_key, score_examples, unscored

    model = str(recipe.model)
    with Scores(recipe.folder / "logprobs.jsonl", model_key(model, recipe.revision)) as known:
        new = len(unscored(examples, known))
        if not new:
            return score_examples(examples, None, known), 0
        with closing(load_engine(model, recipe.engine, revision=recipe.revision)) as engine:
            return score_examples(examples, engine, known, watch=watch), new


def _work(
    recipe: Recipe, mixture: Path, limit: float, chat: Callable[[], Chat], watch: Watch
) -> Callable[[Step], ScoreResult]:
    def work(_: Step) -> ScoreResult:
        from replaykit.steps.score.logprobs import by_source, different_examples

        records = [row.record for row in read_plan(mixture)]
        examples = different_examples(records, chat())
        logprobs, new = answer_logprobs(recipe, examples, watch)
        return ScoreResult(
            rows=len(logprobs),
            scored=new,
            max_perplexity=limit,
            sources=by_source(records, logprobs, max_perplexity=limit),
            model=str(recipe.model),
            revision=revision_of(recipe),
        )

    return work
