"""From the arguments of a call to what the steps take: settings, records, a recipe, a watch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast, get_args

from pydantic import ValidationError

from replaykit.api.keywords import ModelOptions
from replaykit.checks.evalsets import eval_items, items_of
from replaykit.checks.overlap import Decontamination
from replaykit.data.files import Unparsed, raw_rows, tell
from replaykit.data.formats import Columns, record_of
from replaykit.data.planned import PlannedRow
from replaykit.data.record import SOURCES, TARGET, Record, Source
from replaykit.data.tables import dataset_rows
from replaykit.errors import CallError, DataError, RecipeError, did_you_mean
from replaykit.recipe import Recipe
from replaykit.recipe.base import Strict
from replaykit.recipe.data import Data
from replaykit.recipe.evaluate import Score, Test
from replaykit.recipe.lm_eval import identity, is_task
from replaykit.recipe.messages import explain
from replaykit.runs import Watch, unwatched
from replaykit.steps.inputs import (
    HeldOut,
    Readable,
    classes_of,
    default_split,
    for_task,
    load,
    readable,
    same_rows,
    split_note,
)
from replaykit.suites import ITEMS, is_suite

Rows = str | Path | Iterable[Record | PlannedRow | Mapping[str, object]]
"""A file, a folder or a Hub data set by its name; or the rows themselves, as records, as the rows
of a mixture, as mappings of any format that files may have, or as a datasets.Dataset."""

# A type checker takes a score in a dict for any str, and a dict of a path and of a pair of path and
# score for one of Sequence[str]. Which score there is, and that it is a pair, is checked in a call.
Tests = Mapping[str, Rows | tuple[Rows, str] | Sequence[str]]
"""Held-out rows by skill, the new one under "target"; with another score than "exact" as a pair."""

TAKEN = "a path, or a list, an iterator or a datasets.Dataset of rows"
IN_MEMORY = "rows in memory"  # the name of rows that have no file
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
            near = did_you_mean(name, [*names, *_own_keywords(function)])
            raise CallError(f"{function}() has no keyword '{name}'{near}")


def _own_keywords(function: str) -> list[str]:
    """The keywords that a function has itself, and those of its model."""
    # Looked up by name, since the module of the function imports this one.
    own = inspect.signature(getattr(import_module("replaykit.api"), function)).parameters.values()
    names = [each.name for each in own if each.kind is not each.VAR_KEYWORD]
    if function == "select":
        return names
    return [*names, *ModelOptions.__annotations__]


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

    Raises CallError for a model that is no name, RecipeError for a wrong value.
    """
    check_model(f"{function}(): model", model)
    options: dict[str, object] = {"model": model, "seed": seed}
    others = dict(keywords)
    for name in ModelOptions.__annotations__:
        if name in others:
            options[name] = others.pop(name)
    return validated(function, Recipe, options), others


def check_model(argument: str, model: object) -> None:
    """Raises CallError for what is no model's name, such as the result of a training."""
    if isinstance(model, str):
        return
    hint = ""
    if isinstance(getattr(model, "model", None), str):
        hint = "; its .model is one"
    kind = type(model).__name__
    raise CallError(f"{argument} is a {kind}; a model is an alias, a Hub id or a folder{hint}")


def check_rows(argument: str, rows: object) -> None:
    """Raises CallError for what cannot be rows. ``argument`` is such as "select(): pool"."""
    kind = type(rows).__name__
    if isinstance(rows, Mapping):
        raise CallError(
            f"{argument} is one {kind}; it takes {TAKEN}: choose a part of it, or put one row in a "
            f"list"
        )
    if not isinstance(rows, (Iterable, Path)):
        raise CallError(f"{argument} is a {kind}; it takes {TAKEN}")


def stream(
    argument: str,
    rows: Rows | Sequence[str],
    source: Source | None,
    unparsed: Unparsed | None = None,
    *,
    split: str = "train",
    columns: Columns | None = None,
) -> Iterator[Record]:
    """The rows as records of this source; None: each of the source that it names, and without one
    old data, as of select. ``split`` is that of a folder or a Hub data set; ``columns`` say how
    rows are read.

    Raises CallError, which names the ``argument`` of the call, for what are no rows, DataError for
    one that is of no known format, or calls ``unparsed`` with its place and the error.
    """
    check_rows(argument, rows)
    if isinstance(rows, (str, Path)):
        placed: Iterable[tuple[str, Any]] = raw_rows(rows, split=split, unparsed=unparsed)
        if is_suite(rows):
            placed = islice(placed, ITEMS)
    else:
        placed = ((f"row:{number}", row) for number, row in enumerate(in_memory(rows), 1))
    for number, (place, row) in enumerate(placed, 1):
        if isinstance(row, (Record, PlannedRow)):
            record = row.record if isinstance(row, PlannedRow) else row
            # Old rows that a model once generated are "select" rows here: what counts is their use.
            yield record if source is None else replace(record, source=source)
            continue
        values = mapping_of(argument, number, row)
        try:
            record = record_of(place, values, source or _named_source(values), columns)
        except DataError as error:
            tell(unparsed, place, error)
            continue
        yield record


def in_memory(rows: Iterable[Any]) -> Iterable[Any]:
    """The rows; those of a ``datasets.Dataset`` as ``dataset_rows`` gives them."""
    # By its name, since to import datasets takes seconds.
    if any(kind.__module__.startswith("datasets.") for kind in type(rows).__mro__):
        return dataset_rows(rows)
    return rows


def _named_source(row: Mapping[str, Any]) -> Source:
    """The source that a row of replaykit's own names; that of old data where it names none."""
    named = row.get("source")
    return cast(Source, named) if named in SOURCES else "select"


def mapping_of(argument: str, number: int, row: object) -> Mapping[str, Any]:
    """The row itself. Raises CallError for what is no mapping."""
    if not isinstance(row, Mapping):
        kind = type(row).__name__
        raise CallError(f"{argument}: row {number} is a {kind}; a row is a dict or a Record")
    return row


def records_of(
    argument: str,
    rows: Rows | Sequence[str],
    source: Source,
    unparsed: Unparsed | None = None,
    *,
    split: str | None = None,
    columns: Columns | None = None,
) -> Readable:
    """The rows that can be read. Raises CallError as ``stream`` does, DataError as ``readable``
    does, which calls ``unparsed`` too.
    """
    return readable(
        name_of(rows),
        lambda told: stream(argument, rows, source, told, split=split or "train", columns=columns),
        unparsed,
        split=split,
    )


def name_of(rows: object) -> str:
    """What messages and results call the rows."""
    return str(rows) if isinstance(rows, (str, Path)) else IN_MEMORY


def tests_of(
    argument: str,
    tests: Tests | None,
    *,
    max_tokens: int = 256,
    target: Rows | None = None,
    recipe: Recipe | None = None,
) -> HeldOut:
    """The held-out rows by skill, the old skills first, each with how it is scored. Of a folder or
    a Hub data set the split is that of a recipe's test. ``recipe`` says the task of the model.

    ``argument`` is such as "evaluate(): tests". Raises CallError for what are no rows by skill, for
    a score that does not exist, and for rows that are those of the ``target``; DataError for a
    skill without rows.
    """
    if tests is not None and not isinstance(tests, Mapping):
        kind = type(tests).__name__
        raise CallError(f"{argument} is a {kind}; it takes rows by skill: {{'my skill': rows}}")
    found: dict[str, tuple[Test, Sequence[Record]]] = {}
    notes: list[str] = []
    for skill, given in sorted((tests or {}).items(), key=lambda item: item[0] == TARGET):
        # Rows are no tuple, so a tuple is a pair of rows and score.
        rows, *ways = given if isinstance(given, tuple) else (given,)
        if isinstance(given, tuple) and len(ways) != 1:
            raise CallError(f"{argument}: {skill} is rows, or a pair of rows and score")
        values: dict[str, object] = {"path": name_of(rows)}
        named_here = isinstance(rows, (str, Path)) and (is_suite(rows) or is_task(rows))
        if not named_here:
            values["max_tokens"] = max_tokens  # a suite and a task have their own
        for score in ways:
            if score not in get_args(Score):
                known = ", ".join(get_args(Score))
                raise CallError(f"{argument}: {skill} is scored by {known}, not '{score}'")
            values["score"] = score
        test = validated(argument.partition("(")[0], Test, values)
        if _is_target(rows, test, target):
            raise CallError(
                f"{argument}: {skill} has the very rows of the target ({test.path}), which would "
                "be tested on what it is trained on; give held-out rows"
            )
        if is_task(test.path):
            asked = _documents(argument, skill, test, recipe)
            found[skill] = (test, asked.records)
            notes.append(asked.note)
            continue
        split = None
        if isinstance(rows, (str, Path)):
            split = default_split(test)
            notes.append(split_note(test))
        classes = None
        if recipe is not None:
            test = for_task(recipe, test)
            classes = classes_of(recipe, old=skill != TARGET)
        columns = Columns(classes=classes, constraints=test.score == "instructions")
        records, note = records_of(
            f"{argument}: {skill}", rows, TARGET, split=split, columns=columns
        )
        named = test.model_copy(update={"path": f"{skill}: {test.path}"})
        found[skill] = (named, records)
        notes.append(note)
    return HeldOut(found, [note for note in notes if note])


def _documents(argument: str, skill: str, test: Test, recipe: Recipe | None) -> Readable:
    """What a task of lm-eval asks. Raises CallError for the ``recipe`` of a text classifier."""
    if recipe is not None and recipe.task == "classification":
        raise CallError(
            f"{argument}: {skill}: tasks of lm-eval ask language models; give rows with labels"
        )
    return load(test, TARGET)


def _is_target(rows: object, test: Test, target: Rows | None) -> bool:
    """Whether the rows of a test are those of the target."""
    if isinstance(rows, (str, Path)) and isinstance(target, (str, Path)):
        return same_rows(Data(path=str(target)), test)
    return target is not None and rows is target


def facts_of(tests: HeldOut) -> dict[str, object]:
    """What identifies held-out rows and how they are scored, for a step's inputs."""
    return {
        skill: {**test.model_dump(), **_task_facts(test), "rows": [row.id for row in rows]}
        for skill, (test, rows) in tests.rows.items()
    }


def _task_facts(test: Test) -> dict[str, object]:
    """What identifies a task of lm-eval beside its documents; empty for rows."""
    return identity(test.path) if is_task(test.path) else {}


def kept_apart(tests: HeldOut, against: Iterable[str]) -> Decontamination | None:
    """What no row may hold: held-out rows by skill, and evaluation sets by name."""
    sets = {name: eval_items(name) for name in against}
    for skill, (_, rows) in tests.rows.items():
        sets[skill] = items_of((str(number), row) for number, row in enumerate(rows, 1))
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
