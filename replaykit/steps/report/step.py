"""The step report: what a run found, on one page."""

from __future__ import annotations

from collections.abc import Iterator

from replaykit.errors import RunError
from replaykit.recipe import Recipe
from replaykit.steps.public.settings import private_names, public_recipe
from replaykit.steps.report.result import ReportResult
from replaykit.steps.step import Context, Outcome, manifests
from replaykit.written import refuse_foreign


def run(
    recipe: Recipe, context: Context, *, price_per_hour: float | None = None, png: bool = False
) -> Iterator[Outcome[ReportResult]]:
    from replaykit.steps.report.html import write_report
    from replaykit.steps.report.html.page import MARK, results_of
    from replaykit.steps.report.html.standalone import pictures, write_pictures
    from replaykit.steps.report.rows import rows_of

    found = manifests(recipe.folder)
    if not found:
        raise RunError(
            f"{recipe.folder}: nothing is finished here, so there is nothing to report; `replaykit "
            "run` first"
        )
    folder = context.out or recipe.folder
    folder.mkdir(parents=True, exist_ok=True)
    refuse_foreign(folder / "report.html", lambda page: MARK in page)
    results = results_of(found)
    made = write_pictures(folder / "pictures", pictures(results), png=png)
    path = write_report(
        folder / "report.html",
        title=recipe.folder.name,
        manifests=found,
        # A page is sent around, so of the recipe it has what may leave.
        recipe_yaml=public_recipe(recipe),
        private=private_names(recipe),
        rows=rows_of(recipe, found, results),
        price_per_hour=price_per_hour,
    )
    yield Outcome(
        "report",
        folder,
        ReportResult(report=str(path), pictures=[str(picture) for picture in made]),
    )
