"""The rows that the page shows: items that flipped, replay that was trained on, and target rows
that were rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from replaykit.recipe import Recipe
from replaykit.result import Result
from replaykit.runs import Manifest
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.mix.result import MixResult
from replaykit.steps.report.flips import Flips, flips_of
from replaykit.steps.report.replayed import FEWEST, MOST, MOST_IN_ALL, Replayed, replayed
from replaykit.steps.report.rewritten import Rewritten, rewritten
from replaykit.steps.rewrite.result import RewriteResult


@dataclass(frozen=True)
class Rows:
    """What is shown of a run's rows."""

    flips: Flips = field(default_factory=Flips)
    replayed: Sequence[Replayed] = ()
    rewritten: Rewritten = field(default_factory=Rewritten)


def rows_of(
    recipe: Recipe, manifests: Mapping[str, Manifest], results: Mapping[str, Result]
) -> Rows:
    """The rows of the run in the recipe's folder; manifests and results are by folder name."""
    flips = Flips()
    reworded = Rewritten()
    mixed = []
    for name, result in results.items():
        if isinstance(result, EvalResult):
            flips = flips_of(recipe, recipe.folder / name, manifests[name], result)
        if isinstance(result, MixResult) and result.replay_rows:
            mixed.append(name)
        if isinstance(result, RewriteResult) and (recipe.folder / name / "rows.jsonl").exists():
            reworded = rewritten(recipe.folder / name, seed=recipe.seed)
    most = max(FEWEST, min(MOST, MOST_IN_ALL // max(1, len(mixed))))
    found = [
        replayed(recipe.folder / name, name, seed=recipe.seed, most=most)
        for name in mixed
        if (recipe.folder / name / "rows.jsonl").exists()
    ]
    return Rows(flips, found, reworded)
