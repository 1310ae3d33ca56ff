"""The step repair: a model that was tuned already is brought back towards its base.

    runs/my-task/repair/
        rows.jsonl          rows that the base writes itself
        points/step-50/     the model on the way
        items-step-50.jsonl its answers to the held-out rows
        model/              the point that is kept

Base and tuned model are measured first: where the tuned one keeps every old skill, nothing is
trained. Else the tuned model is drawn to the base's distribution on the base's own rows
(``train``), where the tuned model's new skill is not asked for, so that it stays longer than what
it has overlaid; some hundred steps of it were reported to bring instruction following back
(tinker-cookbook's SDFT recipe). With ``repair.rehearse`` a part of each step are rows of the
target, so that the new skill stays. Every point on the way is measured as ``eval`` measures models,
and ``choose`` says which is kept. It was chosen by these very rows, which a note says.

A run that was stopped goes on: the rows, the training from its checkpoint, the points one by one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.record import TARGET, Record
from replaykit.errors import RecipeError
from replaykit.model import loading
from replaykit.model.adapters import merged
from replaykit.recipe import Recipe, need
from replaykit.recipe.evaluate import Test
from replaykit.recipe.generate import Generate
from replaykit.runs import Step, Watch, stop_on_signal
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.evaluate.step import BASE, measured, scored_twice
from replaykit.steps.generate.job import Monitor
from replaykit.steps.generate.step import check_can_ask, generate_inputs, generated
from replaykit.steps.inputs import (
    Facts,
    HeldOut,
    Readable,
    load,
    load_tests,
    other_facts,
    row_facts,
    same_rows,
    test_facts,
    trained_on,
)
from replaykit.steps.repair.choose import TUNED, choose, name_of, new_is_lost, points_of
from replaykit.steps.repair.points import make_whole, saved
from replaykit.steps.repair.result import RepairPoint, RepairResult, RepairVerdict
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    arms,
    chat_of,
    do_step,
    funnel_of,
    label_of,
    need_step,
    revision_of,
)

REPAIRED = "repaired"
"""What the kept point is called in the evaluation of the result."""


def todos(
    recipe: Recipe, context: Context, tuned: str | None = None
) -> Iterator[Todo[RepairResult]]:
    """``tuned`` is a model that was trained anywhere; None stands for what the recipe's own
    training left. Raises RecipeError where there are no old skills to test.
    """
    need(recipe, "repair", "model", "eval")
    if not recipe.eval.old:
        problem = (
            "repair needs old skills, by which it is known what to keep: "
            "eval: {old: {skill: rows}} (--old SKILL=FILE)"
        )
        raise RecipeError("the recipe", [problem])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "the command line", ["repair: it is one process; start it without torchrun"]
        )
    model = tuned if tuned is not None else _trained(recipe, context)
    drawn = settings_of(recipe)
    check_can_ask(recipe, drawn)
    rehearsed = _rehearsed(recipe)
    inputs = {
        **generate_inputs(recipe, drawn),
        "repair": recipe.repair.decisive(),
        "rehearsed": _rehearsed_facts(recipe),
        "eval": test_facts(recipe),
        "margin": recipe.eval.margin,
        "twice": scored_twice(recipe),
        "tuned": other_facts(model),
    }

    def work(step: Step) -> RepairResult:
        from replaykit.steps.evaluate.scorable import scorable

        held = scorable(chat_of(recipe), load_tests(recipe))
        job = Job(recipe, model, held, target=rehearsed.records, twice=inputs["twice"])
        return job.work(step, context.watch).noted(rehearsed.note)

    yield Todo("repair", inputs, RepairResult, work)


def run(
    recipe: Recipe, context: Context, tuned: str | None = None
) -> Iterator[Outcome[RepairResult]]:
    """``tuned`` as of ``todos``."""
    for todo in todos(recipe, context, tuned):
        yield do_step(todo, recipe, context)


def _rehearsed(recipe: Recipe) -> Readable:
    """The rows of the target that are trained on beside the base's own. Raises RecipeError where
    there is no target, or where it is tested on the same rows.
    """
    if recipe.repair.rehearse is None:
        return Readable([], "")
    need(recipe, "repair", "target")
    target = recipe.target
    assert target is not None
    tested = recipe.eval.target
    if tested is not None and same_rows(target, tested):
        raise RecipeError("the recipe", [f"eval.target: {trained_on(tested)}"])
    return load(target, TARGET)


def _rehearsed_facts(recipe: Recipe) -> Facts | None:
    """What identifies the rows of the target that are trained on; None where there are none."""
    if recipe.repair.rehearse is None or recipe.target is None:
        return None
    return row_facts(recipe.target)


def settings_of(recipe: Recipe) -> Generate:
    """How the base writes the rows: as the recipe's section generate says, or as it would say them
    itself, at temperature 1.
    """
    settings = recipe.repair
    if recipe.generate is not None:
        return recipe.generate.model_copy(
            update={"n": settings.rows, "prompts": None, "verify": None, "tags": None}
        )
    return Generate(
        n=settings.rows,
        answer_temperature=1.0,
        max_question_tokens=settings.draw_tokens,
        max_answer_tokens=settings.draw_tokens,
    )


def _trained(recipe: Recipe, context: Context) -> str:
    """What the recipe's own training left. Raises RecipeError where there are several."""
    names = arms(recipe, context)
    if len(names) > 1:
        known = ", ".join(map(str, names))
        raise RecipeError(
            "the command line", [f"repair takes one model; choose it with --arm: {known}"]
        )
    folder = recipe.folder / label_of("train", names[0])
    need_step(folder, "train", otherwise="`replaykit repair TUNED --base BASE` takes another model")
    return str(folder / "model")


@dataclass(frozen=True)
class Job:
    """One repair: which model, by which held-out rows. ``recipe`` gives the base, its engine, the
    seed and the settings.
    """

    recipe: Recipe
    tuned: str
    """A folder, of an adapter too, or a name on the Hub."""
    held: HeldOut
    target: Sequence[Record] = ()
    """Rows of the new task to train on beside, for ``repair.rehearse``."""
    twice: bool = False
    """Whether the base is scored twice."""

    @property
    def tests(self) -> dict[str, Test]:
        """How each skill is scored."""
        return {skill: test for skill, (test, _) in self.held.rows.items()}

    @property
    def new_in_nats(self) -> bool:
        target = self.tests.get(TARGET)
        return target is not None and target.score == "cross_entropy"

    def work(self, step: Step, watch: Watch) -> RepairResult:
        """Repairs in the step's folder; the files that it leaves are named in the module."""
        recipe = self.recipe
        base = str(recipe.model)
        with merged(self.tuned, base, recipe.revision, step.folder) as tuned:
            whole = loading.resolve(tuned)
            found = _Repairing(self, step, whole, watch).result()
        notes = [*self.held.notes, *found.notes, *self._notes(found)]
        return found.model_copy(update={"notes": list(dict.fromkeys(notes))})

    def _notes(self, found: RepairResult) -> Iterator[str]:
        if found.step is None:
            return
        yield (
            "the kept step was chosen by these very rows, so its figures may be too good; "
            "`replaykit gate` with other rows tells (suite:NAME@7 has other items)"
        )
        after = found.after
        if after is not None and new_is_lost(after.new_gain, found.margin):
            yield (
                "the new skill is measurably worse than that of the tuned model; repair.rehearse "
                "with rows of the target keeps more of it, as training anew with replay does"
            )
        if TARGET not in self.tests:
            yield (
                "the new skill was not tested, so of the steps that are good enough the first is "
                "kept; --target FILE tests it"
            )


@dataclass(frozen=True)
class _Repairing:
    """A repair under way."""

    job: Job
    step: Step
    tuned: str
    """The whole model that is repaired, by its folder or its name on the Hub."""
    watch: Watch

    def result(self) -> RepairResult:
        from replaykit.steps.repair.train import Training, training_of

        recipe = self.job.recipe
        training = training_of(recipe.repair, loading.parameter_count(self.tuned))
        items = {BASE: self._items(BASE, str(recipe.model)), TUNED: self._items(TUNED, self.tuned)}
        evaluation = self._compared(items)
        points = points_of(evaluation, [])
        if points[0].state == "kept":
            return self._found(evaluation, "nothing_lost", points, training.method)
        rows = self._rows()
        under_way = Training(
            recipe, self.tuned, recipe.repair, training, rows, self.job.target, self.step.folder
        )
        kl = under_way.run(chat_of(recipe), self.watch)
        steps = recipe.repair.points
        items |= {name_of(step): self._of_point(under_way.points, step) for step in steps}
        points = points_of(self._compared(items), steps)
        margin = recipe.eval.margin
        verdict, kept = choose(points, margin=margin, new_in_nats=self.job.new_in_nats)
        if kept is not None:
            out = self.step.folder / "model"
            make_whole(saved(under_way.points, kept), self.tuned, out)
            shown = {BASE: items[BASE], TUNED: items[TUNED], REPAIRED: items[name_of(kept)]}
            evaluation = self._compared(shown)
        for name in ("points", "trial"):
            shutil.rmtree(self.step.folder / name, ignore_errors=True)
        found = self._found(evaluation, verdict, points, training.method)
        update = {
            "step": kept,
            "points": [point.model_copy(update={"chosen": point.step == kept}) for point in points],
            "rows": len(rows),
            "kl": kl,
            "learning_rate": training.highest_learning_rate,
            "model": self.job.tuned if kept is None else str(self.step.folder / "model"),
        }
        return found.model_copy(update=update)

    def _found(
        self, evaluation: EvalResult, verdict: RepairVerdict, points: list[RepairPoint], method: str
    ) -> RepairResult:
        """The result where the tuned model stays."""
        recipe = self.job.recipe
        in_nats = points[0].old is None
        return RepairResult(
            verdict=verdict,
            step=None,
            points=points,
            rows=0,
            method=method,
            learning_rate=None,
            margin=recipe.eval.margin,
            unit="nats" if in_nats else "score",
            new_unit="nats" if self.job.new_in_nats else "score",
            model=self.job.tuned,
            tuned=self.job.tuned,
            base=str(recipe.model),
            revision=revision_of(recipe),
            evaluation=evaluation,
        )

    def _rows(self) -> list[Record]:
        """The rows that the base writes itself, none of which asks what the tests ask."""
        path = self.step.folder / "rows.jsonl"
        if not path.exists():
            recipe = self.job.recipe
            folder = self.step.folder / "drawn"
            folder.mkdir(exist_ok=True)
            with funnel_of(self.step) as funnel, stop_on_signal() as stopping:
                monitor = Monitor(funnel, watch=self.watch, stopping=stopping)
                settings = settings_of(recipe)
                made = generated(recipe, settings, folder, held=self.job.held, monitor=monitor)
                write_jsonl(path, made)
        return list(read_jsonl(path))

    def _items(self, name: str, model: str) -> Mapping[str, Sequence[Item]]:
        return measured(self.job.recipe, self.step, name, model, self.job.held.rows, self.watch)

    def _of_point(self, points: Path, step: int) -> Mapping[str, Sequence[Item]]:
        """The items of a point; one at a time is whole on the disk."""
        name = name_of(step)
        trial = self.step.folder / "trial"
        if not (self.step.folder / f"items-{name}.jsonl").exists():
            make_whole(saved(points, step), self.tuned, trial)
        return self._items(name, str(trial))

    def _compared(self, items: Mapping[str, Mapping[str, Sequence[Item]]]) -> EvalResult:
        from replaykit.steps.evaluate import compare

        again = None
        if self.job.twice:
            again = self._items(compare.AGAIN, str(self.job.recipe.model))
        margin = self.job.recipe.eval.margin
        return compare.compare(self.job.tests, items, {}, margin, again)
