"""From the arguments of a call to what the steps take: settings, records, a recipe, a watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, get_args

from pydantic import ValidationError

from replaykit.api.keywords import ModelOptions
from replaykit.checks.evalsets import EvalItem, eval_items
from replaykit.checks.overlap import Decontamination
from replaykit.data.formats import read_records, record_of
from replaykit.data.record import TARGET, Record, Source
from replaykit.errors import CallError, DataError, RecipeError, did_you_mean
from replaykit.recipe import Recipe
from replaykit.recipe.base import Strict
from replaykit.recipe.evaluate import Score, Test
from replaykit.recipe.messages import explain
from replaykit.runs import Watch, unwatched

Rows = str | Path | Iterable[Record | Mapping[str, object]]
"""A file, a folder or a Hub data set by its name; or the rows themselves, as records, as mappings
of any format that files may have, or as a datasets.Dataset."""

Tests = Mapping[str, Rows | tuple[Rows, Score]]
"""Held-out rows by skill, the new one under "target"; with another score than "exact" as a pair."""

IN_MEMORY = "rows in memory"  # the name of rows that have no file
ScoredRows = dict[str, tuple[Test, list[Record]]]
S = TypeVar("S", bound=Strict)


def settings_of(function: str, kind: type[S], keywords: Mapping[str, object], **more: object) -> S:
    """The section of the recipe that the keywords of a call are; ``more`` are no keywords of it.

    Raises CallError for a keyword that the section does not have, RecipeError for a wrong value.
    """
    check_keywords(function, keywords, [name for name in kind.model_fields if name not in more])
    return validated(function, kind, {**keywords, **more})


def check_keywords(function: str, keywords: Iterable[str], known: Iterable[str]) -> None:
    """Raises CallError for the first keyword that is not known."""
    names = list(known)
    for name in keywords:
        if name not in names:
            raise CallError(f"{function}() has no keyword '{name}'{did_you_mean(name, names)}")


def validated(function: str, kind: type[S], values: Mapping[str, object]) -> S:
    """The values as a section. Raises RecipeError, with all that is wrong in the call."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(f"{function}()", explain(error, kind)) from None


def model_of(
    function: str, model: str, seed: int, keywords: Mapping[str, object]
) -> tuple[Recipe, dict[str, object]]:
    """The recipe of a call: its model, that model's options, and the seed; and the other keywords.

    Raises RecipeError for a wrong value.
    """
    options: dict[str, object] = {"model": model, "seed": seed}
    others = dict(keywords)
    for name in ModelOptions.__annotations__:
        if name in others:
            options[name] = others.pop(name)
    return validated(function, Recipe, options), others


def stream(
    rows: Rows, source: Source, unparsed: Callable[[str, DataError], object] | None = None
) -> Iterator[Record]:
    """The rows as records of this source. Raises DataError for one that is of no known format, or
    calls ``unparsed`` with its place and the error.
    """
    if isinstance(rows, (str, Path)):
        yield from read_records(rows, source, unparsed=unparsed)
        return
    for number, row in enumerate(rows, 1):
        if isinstance(row, Record):
            # Old rows that a model once generated are "select" rows here: what counts is their use.
            yield replace(row, source=source)
            continue
        place = f"row:{number}"
        try:
            record = record_of(place, row, source)
        except DataError as error:
            if unparsed is None:
                raise
            unparsed(place, error)
            continue
        yield record


def records_of(rows: Rows, source: Source) -> list[Record]:
    """The rows as a list. Raises DataError if there are none."""
    found = list(stream(rows, source))
    if not found:
        raise DataError(f"{name_of(rows)}: there is no row in it")
    return found


def name_of(rows: object) -> str:
    """What messages and results call the rows."""
    return str(rows) if isinstance(rows, (str, Path)) else IN_MEMORY


def tests_of(function: str, tests: Tests | None, *, max_tokens: int = 256) -> ScoredRows:
    """The held-out rows by skill, the old skills first, each with how it is scored.

    Raises CallError for a score that does not exist, DataError for a skill without rows.
    """
    found: ScoredRows = {}
    for skill, given in sorted((tests or {}).items(), key=lambda item: item[0] == TARGET):
        # Rows are no tuple, so a tuple is a pair of rows and score.
        pair = given if isinstance(given, tuple) else (given, "exact")
        rows, score = pair
        if score not in get_args(Score):
            known = ", ".join(get_args(Score))
            raise CallError(f"{function}(): {skill} is scored by {known}, not '{score}'")
        values = {"path": f"{skill}: {name_of(rows)}", "score": score, "max_tokens": max_tokens}
        found[skill] = (validated(function, Test, values), records_of(rows, TARGET))
    return found


def facts_of(tests: ScoredRows) -> dict[str, object]:
    """What identifies held-out rows and how they are scored, for a step's inputs."""
    return {
        skill: test.model_dump() | {"rows": [row.id for row in rows]}
        for skill, (test, rows) in tests.items()
    }


def kept_apart(tests: ScoredRows, against: Iterable[str]) -> Decontamination | None:
    """What no row may hold: held-out rows by skill, and evaluation sets by name."""
    sets = {name: eval_items(name) for name in against}
    for skill, (_, rows) in tests.items():
        sets[skill] = [EvalItem(str(number), row.question) for number, row in enumerate(rows, 1)]
    return Decontamination(sets) if sets else None


@contextmanager
def place_of(folder: str | Path | None) -> Iterator[Path]:
    """The folder, or one that is gone afterwards."""
    if folder is not None:
        yield Path(folder)
        return
    with TemporaryDirectory() as temporary:
        # A step's lock lies beside its folder.
        yield Path(temporary) / "step"


@contextmanager
def watching(progress: bool, watch: Watch | None) -> Iterator[Watch]:
    """Who is told how far the work is: the watch, or bars on stderr, or nobody."""
    if watch is not None:
        yield watch
    elif progress:
        from replaykit.steps.report.progress import progress as bars

        with bars() as shown:
            yield shown
    else:
        yield unwatched
