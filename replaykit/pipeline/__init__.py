"""The steps in order, each from a recipe to a folder: what the commands call.

    select, generate, rewrite  ->  mix  ->  train  ->  eval  ->  report

With ``arms`` in the recipe, mix and train are done once for each arm (``mix-<arm>``,
``train-<arm>``), and eval compares them all with the base. A step reads what earlier steps left in
their folders, never the memory of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from replaykit.pipeline import merging, proof, publishing, replay, training
from replaykit.pipeline.step import Context, Outcome
from replaykit.recipe import Recipe, need

STEPS: dict[str, Callable[..., Iterator[Outcome]]] = {
    "probe": replay.probe,
    "select": replay.select,
    "generate": replay.generate,
    "rewrite": replay.rewrite,
    "mix": training.mix,
    "score": training.score,
    "train": training.train,
    "merge": merging.merge,
    "eval": proof.evaluate,
    "report": proof.report,
    "push": publishing.push,
}


def run(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    """All steps that the recipe asks for, in order."""
    need(recipe, "run", "model", "target")
    asked = {"select": recipe.select, "generate": recipe.generate, "rewrite": recipe.rewrite}
    for step in (*(name for name, section in asked.items() if section is not None), "mix", "train"):
        yield from STEPS[step](recipe, context)
    if recipe.eval.target or recipe.eval.old:
        yield from proof.evaluate(recipe, context)
    yield from proof.report(recipe, context)
