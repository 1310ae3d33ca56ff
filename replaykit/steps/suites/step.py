"""The step suites: what a base can do of the old skills on hand, before anything is trained.

Each suite's answers are in items-<suite>.jsonl as soon as it is done; a run that was stopped goes
on with the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import TARGET, Record
from replaykit.errors import ChatError, DataError, RecipeError
from replaykit.recipe import Recipe, need
from replaykit.recipe.evaluate import Test
from replaykit.runs import Step
from replaykit.steps.evaluate.claims import ALPHA, can_do
from replaykit.steps.evaluate.statistics import detectable_drop, proportion
from replaykit.steps.inputs import HeldOut, load
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    chat_of,
    do_step,
    engine_and_chat,
    model_facts,
)
from replaykit.steps.suites.result import SuiteScore, SuitesResult
from replaykit.suites import ITEMS, MODULES, MOST, PREFIX, rows, suite_of

GAINED = 0.05
"""The part of the items that is taken to turn right by chance where no tuned model is known: each
of them hides one that was lost."""

Rows = Mapping[str, tuple[Test, Sequence[Record]]]


def todos(
    recipe: Recipe,
    context: Context,
    names: Sequence[str] = (),
    n: int = ITEMS,
    seed: int | None = None,
) -> Iterator[Todo[SuitesResult]]:
    """Raises RecipeError as ``tests_of`` does, and for a text classifier, which answers nothing."""
    from replaykit.engines import engine_fact

    need(recipe, "suites", "model")
    if recipe.task != "language":
        problem = f"task: {recipe.task}: suites ask for answers in words, and it gives labels"
        raise RecipeError("the recipe", [problem])
    tests = tests_of(names, n, seed)
    inputs = {
        **model_facts(recipe),
        "engine": engine_fact(recipe.engine.here, recipe.model, recipe.revision),
        "suites": {name: test.decisive() for name, test in tests.items()},
    }

    def work(step: Step) -> SuitesResult:
        asked, notes = _askable(recipe, tests)
        _measure(recipe, step, asked, context)
        found = [_scored(step, test, name, asked=name in asked) for name, test in tests.items()]
        result = SuitesResult(model=str(recipe.model), items=n, gained=GAINED, suites=found)
        return result.noted(*notes)

    yield Todo("suites", inputs, SuitesResult, work)


def run(
    recipe: Recipe,
    context: Context,
    names: Sequence[str] = (),
    n: int = ITEMS,
    seed: int | None = None,
) -> Iterator[Outcome[SuitesResult]]:
    for todo in todos(recipe, context, names, n, seed):
        yield do_step(todo, recipe, context)


def tests_of(names: Sequence[str], n: int, seed: int | None) -> dict[str, Test]:
    """A test of each suite, of all without names. Raises DataError for a suite that does not exist,
    RecipeError for a number of items that no suite has.
    """
    if not 1 <= n <= MOST:
        raise RecipeError("the command line", [f"-n {n}: a suite gives 1 to {MOST:,} items"])
    at = "" if seed is None else f"@{seed}"
    paths = {name: f"{PREFIX}{name}{at}" for name in names or MODULES}
    for path in paths.values():
        suite_of(path)  # raises DataError
    return {name: Test(path=path, n=n) for name, path in paths.items()}


def listed(names: Sequence[str] = (), n: int = ITEMS, seed: int | None = None) -> SuitesResult:
    """The suites without a model. Raises as ``tests_of`` does."""
    found = []
    for test in tests_of(names, n, seed).values():
        items = len(rows(test.path, n))
        found.append(_described(test, items, detectable=_detectable(items, None)))
    return SuitesResult(model=None, items=n, gained=GAINED, suites=found)


def _askable(recipe: Recipe, tests: Mapping[str, Test]) -> tuple[Rows, list[str]]:
    """The rows of the suites that the model can be asked, and why it cannot be asked others: its
    chat template has no tools, say.
    """
    from replaykit.steps.evaluate.scorable import scorable

    chat = chat_of(recipe)
    asked: dict[str, tuple[Test, Sequence[Record]]] = {}
    notes = []
    for name, test in tests.items():
        held = HeldOut({name: (test, load(test, TARGET).records)})
        try:
            left = scorable(chat, held)
        except (ChatError, DataError) as error:
            notes.append(f"{name} is not measured: {error}")
            continue
        asked |= left.rows
        notes += left.notes
    return asked, notes


def _measure(recipe: Recipe, step: Step, asked: Rows, context: Context) -> None:
    """Writes the items of every suite that has none yet."""
    from replaykit.steps.evaluate.skills import measure

    left = {name: of for name, of in asked.items() if not _path(step, name).exists()}
    if not left:
        return
    model = str(recipe.model)
    with engine_and_chat(recipe, model, options=recipe.engine.here) as (engine, chat):
        for name, of_suite in left.items():
            what = f"suites {name}"
            items = measure(engine, chat, {name: of_suite}, what=what, watch=context.watch)
            write_jsonl(_path(step, name), (item.to_json() for item in items))


def _path(step: Step, name: str) -> Path:
    return step.folder / f"items-{name}.jsonl"


def _scored(step: Step, test: Test, name: str, *, asked: bool) -> SuiteScore:
    """The suite with the model's score; without one where the model was not asked."""
    from replaykit.steps.evaluate.skills import read_items

    scores = []
    if asked:
        items = read_items(_path(step, name), [name])[name]
        scores = [item.score for item in items if item.score is not None]
    if not scores:
        return _described(test, 0, detectable=None)
    score = proportion(scores)
    found = _described(test, len(scores), detectable=_detectable(len(scores), score.mean))
    return found.model_copy(update={"score": score.rounded(), "can": can_do(test, scores)})


def _described(test: Test, n: int, *, detectable: float | None) -> SuiteScore:
    suite = suite_of(test.path)
    return SuiteScore(
        suite=suite.name,
        what=suite.what,
        cannot_say=suite.cannot_say,
        how=suite.score,
        chance=suite.chance,
        n=n,
        score=None,
        detectable=detectable,
        can=None,
    )


def _detectable(n: int, score: float | None) -> float | None:
    """The smallest true drop of one skill that n items show four times in five, at the level of
    ``claims`` for a single skill.

    GAINED of the items turn right by chance, but no more than would if the two models were right
    independently of one another: score * (1 - score). Of graded items it is an upper bound. None
    where the score is lower than the drop.
    """
    gained = GAINED
    if score is not None:
        gained = min(GAINED, score * (1 - score))
    drop = detectable_drop(n, gained=gained, alpha=ALPHA)
    if score is not None and drop > score:
        return None
    return round(drop, 6)
