"""Several tasks in a row: each stage trains from what the last one left, and replays earlier ones.

tasks:
  - {name: clinics, target: clinics.jsonl, eval: clinics-test.jsonl}
  - {name: sums, target: sums.jsonl, eval: {path: sums-test.jsonl, score: numeric}}
buffer: {method: balanced, rows: 500, answers: on_policy}
mix: {ratio: 0.05}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import yaml
from pydantic import PositiveInt, ValidationError, model_validator

from replaykit.recipe.base import Strict, TunedName
from replaykit.recipe.data import TargetOrPath
from replaykit.recipe.evaluate import TestOrPath
from replaykit.recipe.messages import explain
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train

if TYPE_CHECKING:
    from replaykit.recipe.recipe import Recipe

BUFFER = "buffer"
"""The source of replay that is the earlier tasks' rows, and the step that keeps them."""
DEFAULT_ROWS = 1000  # of the buffer, where neither rows nor bytes are given


class NewTask(Strict):
    """One of several tasks that are learned one after the other."""

    name: TunedName
    """A part of the names of its folders, and its column in the accuracy matrix."""
    target: TargetOrPath
    """The rows that it is learned from."""
    eval: TestOrPath
    """Its held-out rows, tested before and after every stage."""
    mix: Mix | None = None
    """Keys in the place of those of mix, in this stage; null: none."""
    train: Train | None = None
    """Keys in the place of those of train, in this stage; null: none."""

    @model_validator(mode="after")
    def _right_or_wrong(self) -> NewTask:
        if self.eval.score in ("cross_entropy", "judge"):
            raise ValueError(
                "eval.score: the accuracy matrix is of answers that are right or wrong; say exact, "
                "numeric, json or tool_call"
            )
        return self


class Limit(NamedTuple):
    """How much the buffer holds at most."""

    unit: Literal["rows", "bytes"]
    n: int


class Buffer(Strict):
    """The rows of earlier tasks that later stages replay; it never holds more than so much."""

    method: Literal["reservoir", "balanced", "herding"] = "reservoir"
    """Which rows stay. reservoir: a uniform sample of all rows seen; balanced: equally much of each
    task, at random; herding: equally much of each, whose mean follows the task's (iCaRL)."""
    rows: PositiveInt | None = None
    """Rows at most; null: 1000, or what bytes allows."""
    bytes: PositiveInt | None = None
    """Bytes at most, of its JSON Lines file; null: rows are counted."""
    answers: Literal["kept", "on_policy"] = "kept"
    """kept: as the tasks have them; on_policy: before each stage the latest model answers the
    questions anew, and what its task's test finds right replaces the old answer."""

    @model_validator(mode="after")
    def _one_limit(self) -> Buffer:
        if self.rows is not None and self.bytes is not None:
            raise ValueError("bytes stands instead of rows; leave one out")
        return self

    @property
    def limit(self) -> Limit:
        """What it holds at most."""
        if self.bytes is not None:
            return Limit("bytes", self.bytes)
        return Limit("rows", self.rows or DEFAULT_ROWS)


# --- one stage ------------------------------------------------------------------------------------


def stage_mix(recipe: Recipe, number: int) -> Mix:
    """The mix of the stage of a task, counted from 0: the recipe's, with the task's own keys.

    The first stage has no buffer: without another source of replay it has none. Raises
    ValidationError where the keys do not combine.
    """
    own = _given(recipe.tasks[number].mix)
    # As in an arm: a ratio without a schedule is a constant one.
    if "ratio" in own:
        own = {"schedule": None} | own
    mix = Mix.model_validate(recipe.mix.model_dump() | own)
    sources: dict[str, float] = dict(mix.sources or {})
    if not sources:
        sources = dict.fromkeys([*recipe.replay_sources, BUFFER], 1.0)
    if number == 0:
        sources.pop(BUFFER, None)
    if sources:
        return mix.model_copy(update={"sources": sources})
    return mix.model_copy(update={"sources": None, "ratio": 0.0, "schedule": None, "min_rows": {}})


def stage_train(recipe: Recipe, number: int) -> Train:
    """The training of the stage of a task: the recipe's, with the task's own keys. Raises
    ValidationError where they do not combine.
    """
    return Train.model_validate(recipe.train.model_dump() | _given(recipe.tasks[number].train))


def _given(section: Strict | None) -> dict[str, object]:
    """The keys that a task gives a section, a section within it as a whole."""
    return {} if section is None else section.model_dump(exclude_unset=True)


def replays(mix: Mix) -> bool:
    """Whether a share of replay is asked for at any time."""
    return mix.ratio > 0 or mix.schedule is not None


# --- what cannot combine --------------------------------------------------------------------------


def wrong_for_tasks(recipe: Recipe) -> Iterator[str]:
    """What a recipe asks for that several tasks do not go with, or that needs several tasks."""
    if not recipe.tasks:
        yield from _without_tasks(recipe)
        return
    if len(recipe.tasks) == 1:
        yield "tasks: one task alone is `target`, with eval.target; tasks are two or more"
    for section, todo in {
        "target": "each task has its own",
        "arms": "write a recipe for each sequence that is to be compared",
        "rewrite": "it puts one target into the model's own words",
        "augment": "it makes rows of one target",
    }.items():
        if getattr(recipe, section):
            yield f"{section}: it does not go with tasks: {todo}; leave it out"
    if recipe.task == "classification":
        yield "tasks: a text classifier learns one task; name it by target"
    if recipe.eval.target is not None:
        yield "eval.target: it does not go with tasks: each has its own eval; leave it out"
    named = recipe.mix.sources
    if recipe.buffer != Buffer() and named is not None and BUFFER not in named:
        yield "buffer: mix.sources does not name it, so no stage replays it; add `buffer` there"
    names = Counter(task.name for task in recipe.tasks)
    taken = {"target", *recipe.eval.old} | {name for name, n in names.items() if n > 1}
    for number, task in enumerate(recipe.tasks):
        if task.name in taken:
            yield (
                f"tasks.{number}.name: '{task.name}' is the name of another skill; each task and "
                "each skill of eval.old has its own"
            )
        yield from _wrong_in_stage(recipe, number)
    yield from _without_effect(recipe)


def _without_tasks(recipe: Recipe) -> Iterator[str]:
    if recipe.buffer != Buffer():
        yield "buffer: it keeps the rows of earlier tasks, and there are no `tasks`; leave it out"
    sources = {"mix.sources": recipe.mix.sources}
    sources |= {f"arms.{name}.sources": arm.sources for name, arm in recipe.arms.items()}
    for section, named in sources.items():
        if BUFFER in (named or {}):
            yield f"{section}: the buffer holds rows of earlier tasks, and there are no `tasks`"


def _without_effect(recipe: Recipe) -> Iterator[str]:
    """Settings of training that do nothing: of a task in its stage, of the recipe in any."""
    try:
        trains = [stage_train(recipe, number) for number in range(len(recipe.tasks))]
    except ValidationError:
        return  # it is said of the stage
    found = [train.without_effect for train in trains]
    for number, task in enumerate(recipe.tasks):
        for name, why in found[number].items():
            if name in _given(task.train):
                yield f"tasks.{number}.train.{name}: {why}"
    for name, why in found[0].items():
        given = getattr(recipe.train, name) != getattr(Train(), name)
        if given and all(name in of for of in found):
            yield f"train.{name}: {why}"


def _wrong_in_stage(recipe: Recipe, number: int) -> Iterator[str]:
    """What the stage of a task cannot be."""
    try:
        mix = stage_mix(recipe, number)
        train = stage_train(recipe, number)
    except ValidationError as error:
        section = Mix if error.title == "Mix" else Train
        place = f"tasks.{number}.{section.__name__.lower()}"
        yield from (f"{place}.{problem}" for problem in explain(error, section))
        return
    if train.controller is not None:
        yield (
            f"tasks.{number}: train.controller does not go with tasks, since it would test skills "
            "that are still to be learned; leave it out"
        )
    needy = [name for name in train.remedies.need_replay if not (name == "ewc" and number > 0)]
    if replays(mix) or not needy:
        return
    others = train.remedies.model_dump(exclude_defaults=True, exclude=set(needy))
    kept = yaml.safe_dump(others, default_flow_style=True, sort_keys=False, width=10_000).strip()
    yield (
        f"tasks.{number}: nothing is replayed in its stage, and {' and '.join(needy)} cannot do "
        f"without; give the task `train: {{remedies: {kept}}}`, which it has instead of those of "
        "train"
    )
