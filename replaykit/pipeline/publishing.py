"""The step push: the replay of a run as a data set on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from replaykit.errors import RunError
from replaykit.pipeline.step import Context, Outcome, manifests
from replaykit.recipe import Recipe, need


def push(recipe: Recipe, context: Context, *, dry_run: bool = False) -> Iterator[Outcome]:
    from replaykit.publish.hub import prepare, upload

    need(recipe, "push", "push.repo")
    assert recipe.push.repo is not None
    found = manifests(recipe.folder)
    files: dict[str, Path] = {
        s: recipe.folder / s / "rows.jsonl" for s in ("select", "generate") if s in found
    }
    if not files:
        raise RunError(
            f"{recipe.folder}: no replay to publish; `replaykit generate` or `replaykit select` "
            f"first"
        )
    folder = context.out or recipe.folder / "push"
    result = prepare(folder, recipe.push.repo, recipe, files, found)
    if not dry_run:
        context.watch("upload", 0, None)
        result["url"] = upload(folder, recipe.push.repo, private=recipe.push.private)
    yield Outcome("push", folder, result, note="dry run: nothing was uploaded" if dry_run else "")
