"""The step push: the replay of a run as a data set on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from replaykit.errors import RunError
from replaykit.recipe import Recipe, need
from replaykit.steps.push.result import PushResult
from replaykit.steps.step import Context, Outcome, manifests


def run(
    recipe: Recipe, context: Context, *, dry_run: bool = False
) -> Iterator[Outcome[PushResult]]:
    from replaykit.steps.push.hub import prepare, upload

    need(recipe, "push", "push.repo")
    repo = recipe.push.repo
    assert repo is not None
    found = manifests(recipe.folder)
    files: dict[str, Path] = {
        source: recipe.folder / source / "rows.jsonl"
        for source in ("select", "generate")
        if source in found
    }
    if not files:
        raise RunError(
            f"{recipe.folder}: no replay to publish; `replaykit generate` or `replaykit select` "
            "first"
        )
    folder = context.out or recipe.folder / "push"
    result = prepare(folder, repo, recipe, files, found)
    if dry_run:
        yield Outcome("push", folder, result, note="dry run: nothing was uploaded")
        return
    context.watch("upload", 0, None)
    url = upload(folder, repo, private=recipe.push.private)
    yield Outcome("push", folder, result.model_copy(update={"url": url}))
