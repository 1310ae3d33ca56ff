"""The rows that a recipe names: how they are read, what identifies them, which are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit.data.files import Hub, Unparsed
from replaykit.data.formats import Columns, read_prompts, read_records
from replaykit.data.record import TARGET, Record, Source
from replaykit.errors import DataError, RecipeError
from replaykit.hashing import file_fingerprint
from replaykit.model import loading
from replaykit.recipe import Recipe
from replaykit.recipe.data import Data, Prompts
from replaykit.recipe.evaluate import Test

if TYPE_CHECKING:
    from replaykit.checks.overlap import Decontamination


def tests(recipe: Recipe) -> dict[str, Test]:
    """The held-out tests by skill, the old ones first, the target's under "target"."""
    if TARGET in recipe.eval.old:
        problem = f"eval.old.{TARGET}: that name is the new skill's; call the old one otherwise"
        raise RecipeError("the recipe", [problem])
    found = dict(recipe.eval.old)
    if recipe.eval.target is not None:
        found[TARGET] = recipe.eval.target
    return found


def load(data: Data, source: Source) -> list[Record]:
    """The rows that a recipe names. Raises DataError if there are none, or for a bad one."""
    rows = list(rows_of(data, source))
    if not rows:
        raise DataError(f"{data.path}: there is no row in it")
    return rows


def rows_of(data: Data, source: Source, unparsed: Unparsed | None = None) -> Iterator[Record]:
    """The rows that a recipe names, one by one; ``unparsed`` is called for one that is bad."""
    prompt = data.prompt
    answer = data.answer
    if data.labels is not None:
        prompt = prompt or "text"
        answer = answer or "label"
    return read_records(
        data.path,
        source,
        columns=Columns(prompt, answer, data.labels, data.preferred),
        split=data.split,
        hub=Hub(data.subset, data.revision),
        skip=data.skip,
        limit=data.n,
        unparsed=unparsed,
    )


def prompts_of(data: Prompts) -> Iterator[Record]:
    """The questions that a recipe names, one by one."""
    return read_prompts(
        data.path,
        prompt=data.prompt,
        split=data.split,
        hub=Hub(data.subset, data.revision),
        skip=data.skip,
        limit=data.n,
    )


# What identifies the rows that a step reads is a part of its inputs, under the keys of the recipe:
# a difference is then said as "eval.target.n was 10, is 20", or as "test.jsonl has changed".
Facts = dict[str, Any]


def row_facts(data: Prompts) -> Facts:
    """What identifies rows: how they are read, and the bytes of local files."""
    facts = data.decisive()
    # How answers are scored decides no row that is trained on.
    return {key: value for key, value in facts.items() if key not in ("score", "max_tokens")}


def made_facts(file: Path) -> Facts:
    """What identifies a file that an earlier step made: its name in the run, and its bytes."""
    # Not the path: a run that is moved to another place stays finished.
    return {"path": f"{file.parent.name}/{file.name}", "content": file_fingerprint(file)}


def tuned_facts(model: Path) -> Facts:
    """What identifies a model that an earlier step made: its name in the run, and its weights."""
    return {"path": f"{model.parent.name}/{model.name}", "content": loading.identity(str(model))}


def held_out_facts(recipe: Recipe, own: bool = True) -> Facts:
    """What identifies the rows of the held-out tests; empty where ``own`` is false."""
    if not own:
        return {}
    return _by_section(recipe, row_facts)


def test_facts(recipe: Recipe) -> Facts:
    """What identifies the held-out tests: their rows, and how answers are scored."""
    return _by_section(recipe, Test.decisive)


def _by_section(recipe: Recipe, facts_of: Callable[[Test], Facts]) -> Facts:
    """Facts of each test, under the keys of the recipe's section eval."""
    tests(recipe)  # refuses an old skill with the new one's name
    facts: Facts = {"old": {s: facts_of(test) for s, test in recipe.eval.old.items()}}
    if recipe.eval.target is not None:
        facts["target"] = facts_of(recipe.eval.target)
    return facts


def held_out(recipe: Recipe, own: bool, against: Sequence[str] = ()) -> Decontamination | None:
    """What no row of training may hold: the recipe's tests, and further evaluation sets.

    None where there are none.
    """
    from replaykit.checks.evalsets import EvalItem, eval_items
    from replaykit.checks.overlap import Decontamination

    sets = {name: eval_items(name) for name in against}
    if own:
        for skill, test in tests(recipe).items():
            rows = load(test, TARGET)
            sets[skill] = [EvalItem(str(row.meta["line"]), row.question) for row in rows]
    return Decontamination(sets) if sets else None
