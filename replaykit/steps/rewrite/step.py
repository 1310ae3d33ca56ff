"""The step rewrite: the target in the model's own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.ledger import Ledger
from replaykit.data.record import TARGET, Record
from replaykit.recipe import Recipe, need
from replaykit.recipe.rewrite import Rewrite
from replaykit.runs import Step, Watch
from replaykit.steps.inputs import load, row_facts
from replaykit.steps.rewrite.result import RewriteResult
from replaykit.steps.step import Context, Outcome, Todo, do_step, engine_and_chat, model_facts


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[RewriteResult]]:
    from replaykit.engines import engine_fact

    need(recipe, "rewrite", "model", "target")
    settings = recipe.rewrite or Rewrite()
    target = recipe.target
    assert target is not None
    inputs = {
        **model_facts(recipe),
        "seed": recipe.seed,
        "engine": engine_fact(recipe.engine, recipe.model, recipe.revision),
        "target": row_facts(target),
        "rewrite": settings.decisive(),
    }

    def work(step: Step) -> RewriteResult:
        from replaykit.steps.rewrite.reword import counts

        path = step.folder / "rows.jsonl"
        found = load(target, TARGET)
        records = _reworded(recipe, settings, step, found.records, context.watch)
        rows = write_jsonl(path, records)
        result = RewriteResult(
            rows=rows,
            paths=counts(read_jsonl(path)),
            method=settings.method,
            model=str(recipe.model),
        )
        return result.noted(found.note)

    yield Todo("rewrite", inputs, RewriteResult, work)


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[RewriteResult]]:
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def _reworded(
    recipe: Recipe, settings: Rewrite, step: Step, target: list[Record], watch: Watch
) -> Iterator[Record]:
    from replaykit.steps.rewrite.reword import reword

    with ExitStack() as stack:
        engine, chat = stack.enter_context(engine_and_chat(recipe, str(recipe.model)))
        editor = None
        if settings.editor is not None:
            editing = engine_and_chat(recipe, settings.editor, of_recipe=False)
            editor = stack.enter_context(editing)
        yield from reword(
            target,
            engine=engine,
            chat=chat,
            editor=editor,
            settings=settings,
            seed=recipe.seed,
            ledger=stack.enter_context(Ledger(step.folder / "replies.jsonl")),
            watch=watch,
        )
