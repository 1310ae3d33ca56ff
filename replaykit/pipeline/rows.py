"""The rows that a recipe names: how they are read, what tells them from others, and which of them
are held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit.errors import DataError, RecipeError
from replaykit.evaluate.skills import TARGET
from replaykit.recipe import Recipe
from replaykit.records import Record, Source, file_fingerprint, read_records
from replaykit.settings import Data, Prompts, Test

if TYPE_CHECKING:
    from replaykit.checks.overlap import Decontamination


def tests(recipe: Recipe) -> dict[str, Test]:
    """The held-out tests by skill, the old ones first, the target's under "target"."""
    if TARGET in recipe.eval.old:
        raise RecipeError(
            "the recipe",
            [f"eval.old.{TARGET}: that name is the new skill's; call the old one otherwise"],
        )
    return recipe.eval.old | ({TARGET: recipe.eval.target} if recipe.eval.target else {})


def load(data: Data, source: Source) -> list[Record]:
    """The rows that a recipe names. Raises DataError if there are none."""
    rows = list(
        read_records(
            data.path,
            source,
            prompt=data.prompt,
            answer=data.answer,
            split=data.split,
            skip=data.skip,
            limit=data.n,
        )
    )
    if not rows:
        raise DataError(f"{data.path}: there is no row in it")
    return rows


def data_facts(data: Prompts) -> dict[str, Any]:
    """What identifies rows: how they are read, and the bytes of local files."""
    path = Path(data.path)
    content = {"content": file_fingerprint(path)} if path.exists() else {}
    return data.model_dump(include={"path", "prompt", "answer", "split", "skip", "n"}) | content


def test_facts(recipe: Recipe) -> dict[str, Any]:
    """What identifies the rows of the held-out tests, by skill."""
    return {skill: data_facts(test) for skill, test in tests(recipe).items()}


def scored_facts(recipe: Recipe) -> dict[str, Any]:
    """What identifies the held-out tests, by skill: their rows, and how answers to them are written
    and scored.
    """
    return {
        skill: data_facts(test) | test.model_dump(include={"score", "max_tokens"})
        for skill, test in tests(recipe).items()
    }


def file_facts(name: str) -> dict[str, Any]:
    """What identifies an evaluation set: its name, and its bytes where it is a local file."""
    path = Path(name)
    return {"path": name, **({"content": file_fingerprint(path)} if path.exists() else {})}


def held_out(recipe: Recipe, own: bool, against: Sequence[str] = ()) -> Decontamination | None:
    """What no row of training may hold: the recipe's tests, and further evaluation sets; None where
    there are none.
    """
    from replaykit.checks.evalsets import EvalItem, eval_items
    from replaykit.checks.overlap import Decontamination

    sets = {name: eval_items(name) for name in against}
    for skill, test in tests(recipe).items() if own else ():
        sets[skill] = [
            EvalItem(str(row.meta["line"]), asked_text(row), row.answer)
            for row in load(test, "target")
        ]
    return Decontamination(sets) if sets else None


def held_out_facts(recipe: Recipe, own: bool, against: Sequence[str]) -> dict[str, Any]:
    """What identifies the evaluation sets that ``held_out`` takes."""
    held = test_facts(recipe) if own else {}
    return {"held_out": held, "against": [file_facts(name) for name in against]}


def asked_text(record: Record) -> str:
    """The question of a row, or the text of a row that has none."""
    return record.prompt or record.messages[-1]["content"]
