"""The step describe: what a text model says of recordings or pictures by their descriptions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaykit.checks.funnel import FunnelCounts
from replaykit.data.jsonl import write_jsonl
from replaykit.data.ledger import Ledger
from replaykit.recipe import Recipe, need
from replaykit.recipe.describe import Describe
from replaykit.runs import Step, Watch
from replaykit.steps.describe.result import DescribeResult
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    chat_of,
    do_step,
    engine_and_chat,
    model_facts,
)

if TYPE_CHECKING:
    from pathlib import Path

    from replaykit.steps.describe.rows import Rows, Turns
    from replaykit.steps.describe.words import Answered, Placed

LACKING = "missing_attribute"


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[DescribeResult]]:
    from replaykit.engines import engine_fact

    need(recipe, "describe", "model", "describe")
    settings = recipe.describe
    assert settings is not None
    inputs = {
        **model_facts(recipe),
        "seed": recipe.seed,
        "engine": engine_fact(recipe.engine, recipe.model, recipe.revision),
        "describe": settings.decisive(),
    }

    def work(step: Step) -> DescribeResult:
        from replaykit.steps.describe.rows import rows_of

        rows = rows_of(settings.rows)
        made = make(rows, recipe, settings, step.folder, context.watch)
        path = rows.write(step.folder, settings.column, made.turns)
        return made.result(path.name, rows, recipe)

    yield Todo("describe", inputs, DescribeResult, work)


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[DescribeResult]]:
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


@dataclass(frozen=True)
class Made:
    """What came of all rows."""

    settings: Describe
    turns: Turns
    """The instruction and the answer of the rows that come out."""
    instructions: Counter[str]
    dropped: Counter[str]

    def result(self, file: str, rows: Rows, recipe: Recipe) -> DescribeResult:
        return DescribeResult(
            rows=len(self.turns),
            file=file,
            column=self.settings.column,
            columns=rows.columns,
            instructions=dict(self.instructions.most_common()),
            model=str(recipe.model),
            funnel=FunnelCounts(
                made=len(self.turns) + self.dropped.total(),
                dropped=dict(self.dropped.most_common()),
                kept=len(self.turns),
            ),
        )


def make(rows: Rows, recipe: Recipe, settings: Describe, folder: Path, watch: Watch) -> Made:
    """Asks the model of every row, with its replies in a ledger in the folder, where dropped.jsonl
    has those that are left out.

    Raises DataError as ``described`` does, and for a column that is there already.
    """
    from replaykit.steps.describe.rows import check_free
    from replaykit.steps.describe.words import answers, described

    check_free(rows, settings.column)
    placed = rows.placed(settings.attributes)
    found = described(placed, settings)
    # What the model's template cannot do is said before its weights are loaded.
    chat_of(recipe)
    with ExitStack() as stack:
        engine, chat = stack.enter_context(engine_and_chat(recipe, str(recipe.model)))
        ledger = stack.enter_context(Ledger(folder / "answers.jsonl"))
        answered = dict(
            answers(
                found,
                settings,
                engine=engine,
                chat=chat,
                seed=recipe.seed,
                ledger=ledger,
                watch=watch,
            )
        )
    kept = {row: each for row, each in answered.items() if not each.why}
    left_out = {row: each for row, each in answered.items() if each.why}
    reasons = Counter(each.why for each in left_out.values())
    reasons.update(LACKING for _ in found.left_out)
    lines = [_left_out(placed[row], LACKING) for row in found.left_out]
    lines += [_left_out(placed[row], each.why, each) for row, each in left_out.items()]
    write_jsonl(folder / "dropped.jsonl", lines)
    return Made(
        settings,
        {row: each.messages for row, each in kept.items()},
        Counter(each.instruction for each in kept.values()),
        reasons,
    )


def _left_out(row: Placed, why: str, answered: Answered | None = None) -> dict[str, object]:
    """A row that is left out, without its media: its place, the reason, and what the model said."""
    line: dict[str, object] = {"reason": why, "place": row.place}
    line["attributes"] = dict(row.attributes)
    if answered is not None:
        line["messages"] = [dict(turn) for turn in answered.messages]
    return line
