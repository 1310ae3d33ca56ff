"""The step select: old data for the new task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replaykit.checks.funnel import Funnel
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import TARGET, Record
from replaykit.errors import RunError
from replaykit.recipe import Recipe, need
from replaykit.recipe.select import SCORED, Select
from replaykit.runs import Step
from replaykit.steps.inputs import (
    Readable,
    classes_of,
    held_out,
    held_out_facts,
    load,
    not_read,
    row_facts,
    rows_of,
    task_facts,
)
from replaykit.steps.select.result import Explanation, NearestRow, SelectResult
from replaykit.steps.step import Context, Outcome, Todo, do_step


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[SelectResult]]:
    if recipe.select is None or recipe.select.method in SCORED:
        need(recipe, "select", "target", "select")
    settings = recipe.select
    assert settings is not None
    target = recipe.target
    inputs = {
        "select": settings.decisive(),
        "seed": recipe.seed,
        "target": row_facts(target) if target is not None else None,
        "eval": held_out_facts(recipe, settings.overlap),
        **task_facts(recipe),
    }

    def work(step: Step) -> SelectResult:
        from replaykit.steps.select.rows import LineFunnel
        from replaykit.steps.select.selection import select_records

        wanted = Readable([], "")
        if target is not None:
            wanted = load(target, TARGET, classes=classes_of(recipe, old=False))
        apart = held_out(recipe, settings.overlap, settings.against)
        with (step.folder / "dropped.jsonl").open("wb") as dropped:
            funnel = LineFunnel(dropped)
            selection = select_records(
                _pool(recipe, settings, funnel),
                wanted.records,
                settings=settings,
                seed=recipe.seed,
                folder=step.folder,
                held_out=apart,
                funnel=funnel,
                watch=context.watch,
            )
        write_jsonl(step.folder / "rows.jsonl", selection.records)
        return selection.result.noted(wanted.note, not_read(settings.pool))

    yield Todo("select", inputs, SelectResult, work)


def _pool(recipe: Recipe, settings: Select, funnel: Funnel) -> Iterator[Record]:
    unparsed = None if settings.strict else funnel.unparsed
    return rows_of(settings.pool, "select", unparsed, classes_of(recipe, old=True))


def run(
    recipe: Recipe, context: Context, *, explain: str | None = None
) -> Iterator[Outcome[SelectResult] | Outcome[Explanation]]:
    """The selection; with ``explain``, why the row whose id begins so was chosen or was not."""
    if explain is not None:
        folder = context.out or recipe.folder / "select"
        yield Outcome("select", folder, _explained(recipe, folder, explain))
        return
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def _explained(recipe: Recipe, folder: Path, wanted: str) -> Explanation:
    """What the step wrote of a row, by the beginning of its id."""
    for name in ("rows.jsonl", "dropped.jsonl"):
        path = folder / name
        if not path.exists():
            raise RunError(f"{folder} is not finished; `replaykit select` makes it")
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                if str(row.get("id", "")).startswith(wanted):
                    return _explanation(recipe, row)
    raise RunError(
        f"{folder}: no row has an id that begins with {wanted}; rows.jsonl and dropped.jsonl have "
        "the ids"
    )


def _explanation(recipe: Recipe, row: dict[str, Any]) -> Explanation:
    meta = row["meta"]
    known = ("rank", "score", "terms", "twin", "match", "line")
    nearest = None
    if "nearest" in meta and recipe.target is not None:
        labels = classes_of(recipe, old=False)
        target = rows_of(recipe.target, TARGET, lambda *_: None, labels)
        prompt = next((row.prompt for row in target if row.id == meta["nearest"]), None)
        nearest = NearestRow(id=meta["nearest"], prompt=prompt)
    return Explanation(
        id=row["id"],
        chosen="reason" not in row,
        reason=row.get("reason"),
        text=row["messages"],
        nearest=nearest,
        **{key: meta[key] for key in known if key in meta},
    )
