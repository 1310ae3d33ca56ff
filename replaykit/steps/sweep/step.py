"""``sweep`` and ``advise``: every point trained and measured, and one result over all of them.

    runs/my-task/sweep-points/base/                                   the base's items, once
    runs/my-task/sweep-points/length/ratio-0.1/mix/                   by which the length is known
    runs/my-task/sweep-points/170-steps/ratio-0.05/seed-1/mix/        as of any run
    runs/my-task/sweep-points/170-steps/ratio-0.05/seed-1/train/
    runs/my-task/sweep-points/170-steps/ratio-0.05/seed-1/measured/   its items
    runs/my-task/sweep/                                               the result

Each is a step's folder of its own, so a sweep that was stopped goes on where it was, and one with a
share more trains that share alone. Replay is the run's own, made once; a point that selects or
generates otherwise has its own. Points come one after the other, each with all its seeds.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from replaykit.errors import ReplaykitError, RunError, Stopped
from replaykit.recipe import Recipe
from replaykit.recipe.load import changed
from replaykit.recipe.mix import is_made
from replaykit.runs import Step, Watch, read_manifest
from replaykit.steps import pipeline
from replaykit.steps.evaluate.compare import Items
from replaykit.steps.evaluate.skills import read_items
from replaykit.steps.evaluate.step import BASE, measured
from replaykit.steps.inputs import (
    Facts,
    HeldOut,
    load_tests,
    made_facts,
    memory_rows,
    test_facts,
    tests,
    tuned_facts,
)
from replaykit.steps.mix.result import MixResult
from replaykit.steps.mix.step import replay_sources, takes_augmented, takes_rewritten
from replaykit.steps.step import Context, Outcome, Todo, chat_of, do_step, model_facts, typed
from replaykit.steps.sweep.advise import advice, short_ratios
from replaykit.steps.sweep.curve import Taken, curve
from replaykit.steps.sweep.plan import OF_SOURCES, Planned, check, planned
from replaykit.steps.swept import AdviseResult, MeasureResult, SweepResult

log = logging.getLogger(__name__)

MEASURED = "measured"
QUARTER = 4  # what advise divides the steps by


@dataclass
class Sweeping:
    """A sweep under way: what is finished, and what failed, by point and seed."""

    recipe: Recipe
    context: Context
    seeds: list[int]
    part: int = 1
    """The steps are divided by this."""
    taken: Taken = field(default_factory=Taken)
    files: dict[str, Facts] = field(default_factory=dict)
    """What identifies the items of each, by point and seed."""
    notes: list[str] = field(default_factory=list)
    full_steps: int = 0
    """Optimiser steps of a whole training."""

    @property
    def root(self) -> Path:
        return self.recipe.folder / "sweep-points"

    @property
    def steps(self) -> int:
        return max(1, self.full_steps // self.part)

    @cached_property
    def held(self) -> HeldOut:
        """The held-out rows: the same for every point."""
        from replaykit.steps.evaluate.scorable import scorable

        return scorable(chat_of(self.recipe), load_tests(self.recipe))

    def run(self, points: list[Planned]) -> Iterator[Outcome[Any]]:
        """Every point with every seed; a failure is kept and the next one goes on.

        Raises RunError where no training could be measured.
        """
        yield from pipeline.first(self.recipe, "mix", self.context.watch)
        yield from self._replay(points)
        yield self._measured(BASE, self.root / BASE, str(self.recipe.model), {})
        self.taken.base = self._items(self.root / BASE, BASE)
        yield from self._length(points)
        for point in points:
            for seed in self.seeds:
                if {(point.name, seed)} & (self.taken.items.keys() | self.taken.errors.keys()):
                    continue  # advise comes back with a share more
                try:
                    yield from self._trained(point, seed)
                except Stopped:
                    raise
                except ReplaykitError as error:
                    self.taken.errors[point.name, seed] = str(error)
                    log.warning(
                        "%s, seed %d, failed; the others go on: %s", point.name, seed, error
                    )
        if not self.taken.items:
            first = next(iter(self.taken.errors.values()))
            raise RunError(f"no point could be trained and measured; the first: {first}")

    def _replay(self, points: list[Planned]) -> Iterator[Outcome[Any]]:
        """The replay of the run, as far as a point takes it."""
        wanted = []
        for point in points:
            if point.ratio > 0 and not point.own_sources:
                try:
                    made = point.recipe(self.recipe, steps=1)
                except ReplaykitError:
                    continue  # it is said where the point is trained
                wanted += replay_sources(made, made.mix)
        sections = [name for name in OF_SOURCES if getattr(self.recipe, name) is not None]
        for name in sections:
            if name in wanted or name in ("rewrite", "augment"):
                yield from pipeline.step_of(name)(self.recipe, replace(self.context, force=False))

    def _length(self, points: list[Planned]) -> Iterator[Outcome[Any]]:
        """How many steps every point has: as stated, or as many as the point with the most would
        have by its own length. That is one of the largest share.
        """
        if self.full_steps:
            return  # advise comes back with a share more, of the same length
        stated = self.recipe.sweep.steps or self.recipe.train.steps
        if stated is not None:
            self.full_steps = stated
            return
        regular = [point for point in points if point.control != "all-old"]
        highest = max(point.ratio for point in regular)
        lengths = []
        for point in regular:
            if point.ratio < highest or point.own_length:
                continue
            folder = self.root / "length" / point.name
            try:
                outcome = yield from self._mixed(point, self.seeds[0], folder, steps=None)
            except ReplaykitError as error:
                # What fails at this length may do at that of the others.
                self.notes.append(f"{point.name} had no part in the number of steps: {error}")
                continue
            lengths.append(outcome.steps)
        if not lengths:
            raise RunError(
                "the number of steps is not known, since no mixture of the largest share can be "
                f"made; state it as --steps N. {self.notes[0]}"
            )
        self.full_steps = max(lengths)

    def _mixed(
        self, point: Planned, seed: int, folder: Path, *, steps: int | None
    ) -> Generator[Outcome[Any], None, MixResult]:
        """The mixture of a point, from the replay where it lies; returns its result."""
        home = self.recipe.folder
        if point.own_sources and point.ratio > 0:
            home = self.root / "sources" / point.name
            self._with_memory(home)
            yield from self._own_replay(point, home)
        made = point.recipe(self.recipe, steps=steps, seed=seed, out=str(home))
        context = replace(self._told(point, seed), out=folder / "mix")
        (outcome,) = pipeline.step_of("mix")(made, context)
        yield replace(outcome, step=self._label(folder / "mix"))
        mixture: MixResult = outcome.result
        return mixture

    def _with_memory(self, folder: Path) -> None:
        """Puts the run's rows of memory where a point's steps look for them, to keep apart from
        them.
        """
        there = memory_rows(self.recipe).parent
        if self.recipe.eval.memory is not None and not (folder / there.name).exists():
            shutil.copytree(there, folder / there.name)

    def _own_replay(self, point: Planned, home: Path) -> Iterator[Outcome[Any]]:
        """The replay of a point that selects or generates otherwise. What it does as the run does
        is taken from there, not made again.
        """
        made = point.recipe(self.recipe, steps=None, out=str(home))
        touched = {key.partition(".")[0] for key in (*point.values, *(point.more or {}))}
        needed = [source for source in replay_sources(made, made.mix) if is_made(source)]
        if takes_rewritten(self.recipe):
            needed.append("rewrite")
        if takes_augmented(self.recipe):
            needed.append("augment")
        for name in needed:
            there = self.recipe.folder / name
            copied = name not in touched and read_manifest(there) is not None
            if copied and not (home / name).exists():
                shutil.copytree(there, home / name)
            if getattr(made, name) is not None:
                (outcome,) = pipeline.step_of(name)(made, replace(self.context, force=False))
                yield replace(outcome, step=self._label(home / name))

    def _trained(self, point: Planned, seed: int) -> Iterator[Outcome[Any]]:
        """One training and its measurement."""
        length = "own-length" if point.own_length else f"{self.steps}-steps"
        folder = self.root / length / point.name / f"seed-{seed}"
        mixture = yield from self._mixed(point, seed, folder, steps=self.steps)
        self._with_memory(folder)
        made = point.recipe(self.recipe, steps=self.steps, seed=seed, out=str(folder))
        (trained,) = pipeline.step_of("train")(made, self._told(point, seed))
        yield replace(trained, step=self._label(folder / "train"))
        model = folder / "train" / "model"
        place = folder / MEASURED
        yield self._measured(point.name, place, str(model), tuned_facts(model), seed)
        self.taken.items[point.name, seed] = self._items(place, point.name)
        self.taken.mixed[point.name, seed] = mixture

    def _measured(
        self, name: str, folder: Path, model: str, facts: Facts, seed: int | None = None
    ) -> Outcome[MeasureResult]:
        """The items of one model in a folder of their own."""
        from replaykit.engines import engine_fact

        recipe = self.recipe
        inputs = {
            **model_facts(recipe),
            "engine": engine_fact(recipe.engine.here, recipe.model, recipe.revision),
            "eval": test_facts(recipe),
            "tuned": facts,
        }
        context = self.context if seed is None else self._told(name, seed)

        def work(step: Step) -> MeasureResult:
            found = measured(recipe, step, name, model, self.held.rows, context.watch)
            return MeasureResult(items=sum(map(len, found.values())), notes=list(self.held.notes))

        todo = Todo("measure", inputs, MeasureResult, work)
        outcome = do_step(todo, recipe, replace(context, out=folder))
        self.files[self._label(folder)] = made_facts(folder / f"items-{name}.jsonl")
        return replace(outcome, step=self._label(folder))

    def _items(self, folder: Path, name: str) -> Items:
        return read_items(folder / f"items-{name}.jsonl", list(tests(self.recipe)))

    def _told(self, point: Planned | str, seed: int) -> Context:
        """The context with a watch that names the point."""
        name = point if isinstance(point, str) else point.name
        return replace(self.context, watch=partial(_under, self.context.watch, f"{name} {seed}"))

    def _label(self, folder: Path) -> str:
        return str(folder.relative_to(self.recipe.folder))

    def result(self, points: Sequence[Planned]) -> SweepResult:
        measured_as = read_manifest(self.root / BASE)
        assert measured_as is not None  # it was measured first
        notes = typed(measured_as, MeasureResult, self.root / BASE).notes
        found = curve(self.recipe, points, self.taken, seeds=self.seeds, steps=self.steps)
        return found.noted(*self.notes, *notes)

    def inputs(self, points: Sequence[Planned]) -> Facts:
        """What decides the result: the points, and the items of every model."""
        named = [{"name": each.name, "values": each.values} for each in points]
        errors = {f"{name}/{seed}": error for (name, seed), error in self.taken.errors.items()}
        return {
            **model_facts(self.recipe),
            "eval": test_facts(self.recipe),
            "margin": self.recipe.eval.margin,
            "points": named,
            "seeds": self.seeds,
            "steps": self.steps,
            "items": self.files,
            "failed": errors,
        }


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[Any]]:
    """Trains and measures every point, then says the smallest share that is enough.

    Raises RecipeError for a recipe that cannot be swept, RunError where no point could be measured.
    """
    check(recipe, "sweep")
    points = planned(recipe)
    sweeping = Sweeping(recipe, context, recipe.sweep.seeds or [recipe.seed])
    yield from sweeping.run(points)
    todo = Todo("sweep", sweeping.inputs(points), SweepResult, lambda _: sweeping.result(points))
    yield do_step(todo, recipe, context)


def advise(recipe: Recipe, context: Context) -> Iterator[Outcome[Any]]:
    """The same with short trainings, a quarter of the steps each unless their number is stated, and
    a curve through them. Where the recipe names no shares and none of the first is enough, one more
    is trained. Raises as ``run`` does.
    """
    check(recipe, "advise")
    seeds = recipe.sweep.seeds or [recipe.seed]
    part = 1 if recipe.sweep.steps is not None else QUARTER
    sweeping = Sweeping(recipe, context, seeds, part)
    for ratios in short_ratios(recipe):
        own = {"sweep.ratio": ratios, "sweep.over": {}, "sweep.controls": False}
        points = planned(changed(recipe, own))
        yield from sweeping.run(points)
        sweep = sweeping.result(points)
        full = None if recipe.sweep.steps is not None else sweeping.full_steps
        found = advice(recipe, sweeping.taken, sweep, full_steps=full)
        if found.ratio is not None or not sweep.could_do_more:
            break
    result = found
    todo = Todo("advise", sweeping.inputs(points), AdviseResult, lambda _: result)
    yield do_step(todo, recipe, context)


def _under(
    watch: Watch, name: str, what: str, done: int, total: int | None, note: str = ""
) -> None:
    """The watch, with the point before what is done for it."""
    watch(f"{name}: {what}", done, total, note)
