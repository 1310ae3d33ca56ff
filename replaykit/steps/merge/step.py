"""The step merge: averages of the base and what was tuned from it, and which of them keeps the old
skills.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from replaykit.data.record import TARGET
from replaykit.errors import RecipeError, RunError
from replaykit.model import loading
from replaykit.recipe import Recipe, need
from replaykit.runs import INPUTS, Step, Watch, differences, read_json, read_manifest, write_json
from replaykit.steps.evaluate.step import measured
from replaykit.steps.inputs import load_tests, test_facts, tests, tuned_facts
from replaykit.steps.merge.result import MergeResult
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    arms,
    chat_of,
    do_step,
    label_of,
    model_facts,
    need_step,
    revision_of,
    typed,
)


@dataclass(frozen=True)
class MergeOptions:
    """What is merged, and how: the flags of the command."""

    method: str = "wise-ft"
    alpha: float | None = None
    """From base (0) to tuned (1); by default 0.5, and 1 for ties."""
    tuned: Sequence[str] = ()
    """Tuned models; by default what `train` left."""
    sweep: Sequence[float] | None = None
    """Measure these alphas instead, and keep the best."""
    density: float = 0.2
    """For ties: the part of the changes that is kept."""

    @property
    def amount(self) -> float:
        """The alpha of a merge that is no sweep."""
        if self.alpha is not None:
            return self.alpha
        return 1.0 if self.method == "ties" else 0.5


def todos(
    recipe: Recipe, context: Context, options: MergeOptions | None = None
) -> Iterator[Todo[MergeResult]]:
    from replaykit.engines import engine_fact

    options = options or MergeOptions()
    needed = ["model"]
    if options.sweep is not None:
        needed.append("eval")
    need(recipe, "merge", *needed)
    _check(recipe, options)
    for arm, names in _tuned(recipe, context, options):
        inputs = {
            **model_facts(recipe),
            "method": options.method,
            "alpha": None if options.sweep is not None else options.amount,
            "tuned": {name: tuned_facts(Path(name)) for name in names},
        }
        if options.method == "ties":
            inputs["density"] = options.density
        if options.sweep is not None:
            inputs["engine"] = engine_fact(recipe.engine.here, recipe.model, recipe.revision)
            inputs["eval"] = test_facts(recipe)
            inputs["margin"] = recipe.eval.margin
        yield Todo(
            "merge",
            inputs,
            MergeResult,
            _work(recipe, options, names, context.watch),
            arm=arm,
            lacking=partial(_lacking, options),
        )


def run(
    recipe: Recipe,
    context: Context,
    *,
    method: str = "wise-ft",
    alpha: float | None = None,
    tuned: Sequence[str] = (),
    sweep: Sequence[float] | None = None,
    density: float = 0.2,
) -> Iterator[Outcome[MergeResult]]:
    """An average of the base and what was tuned from it: of each arm, or with ties of all arms
    together.

    With ``sweep`` the average at each of its alphas is measured as ``eval`` measures models, and
    the best is kept.
    """
    for todo in todos(recipe, context, MergeOptions(method, alpha, tuned, sweep, density)):
        yield do_step(todo, recipe, context)


def _lacking(options: MergeOptions, result: MergeResult) -> list[str]:
    """In what the alphas of a finished result are others than these."""
    now = None if options.sweep is None else list(options.sweep)
    return differences({"sweep": _alphas(result)}, {"sweep": now})


def _alphas(result: MergeResult) -> list[float] | None:
    """The alphas that were measured; None where it was no sweep."""
    return None if result.table is None else [row.alpha for row in result.table]


def options_of(folder: Path) -> MergeOptions:
    """The flags that a merge in a folder was made with. Raises RunError where it is damaged."""
    inputs = read_json(folder / INPUTS) or {}
    sweep = None
    if inputs["alpha"] is None:
        manifest = read_manifest(folder)
        # Of a sweep that is not finished the alphas are not known, and they decide no input.
        sweep = [0.0, 1.0]
        if manifest is not None:
            sweep = _alphas(typed(manifest, MergeResult, folder))
    return MergeOptions(
        method=inputs["method"],
        alpha=inputs["alpha"],
        tuned=list(inputs["tuned"]),
        sweep=sweep,
        density=inputs.get("density", 0.2),
    )


def _work(
    recipe: Recipe, options: MergeOptions, names: Sequence[str], watch: Watch
) -> Callable[[Step], MergeResult]:
    def work(step: Step) -> MergeResult:
        from replaykit.steps.merge.folders import folder_of

        out = step.folder / "model"
        shutil.rmtree(out, ignore_errors=True)  # of a merge that was stopped before its manifest
        widened = step.folder / "widened-base"
        if recipe.task == "classification":
            notes = _save_widened(recipe, widened)
            base = widened
        else:
            notes = []
            base = folder_of(str(recipe.model), recipe.revision)
        folders = [folder_of(name) for name in names]
        if options.sweep is not None:
            found = _best_average(recipe, base, folders[0], options.sweep, step, watch)
            shutil.rmtree(widened, ignore_errors=True)
            return found.noted(*notes)
        changed = _write_average(options, base, folders, out, watch)
        shutil.rmtree(widened, ignore_errors=True)
        return MergeResult(
            method=options.method,
            alpha=options.amount,
            notes=notes,
            changed=changed,
            table=None,
            model=str(out),
            base=str(recipe.model),
            revision=revision_of(recipe),
        )

    return work


def _save_widened(recipe: Recipe, folder: Path) -> list[str]:
    """Writes a classifier's base, as its training began: its own head has no rows for new labels.

    Returns what is said of that.
    """
    from replaykit.model.classifier import TextClassifier

    chat = TextClassifier.of_recipe(recipe)
    chat.save_base(folder)
    return [f"{note}; the average is with the base so widened" for note in chat.notes]


def _write_average(
    options: MergeOptions, base: Path, tuned: Sequence[Path], out: Path, watch: Watch
) -> int:
    from replaykit.steps.merge.average import interpolate, scale_adapter, ties

    if options.method == "adapter":
        return scale_adapter(tuned[0], out, options.amount)
    if options.method == "ties":
        return ties(base, tuned, out, density=options.density, scale=options.amount, watch=watch)
    return interpolate(base, tuned[0], out, options.amount, watch=watch)


def _best_average(
    recipe: Recipe, base: Path, tuned: Path, alphas: Sequence[float], step: Step, watch: Watch
) -> MergeResult:
    """Measures the average at each alpha, whose items stay in the step's folder, and keeps the best
    one's model.
    """
    from replaykit.steps.evaluate.scorable import scorable
    from replaykit.steps.merge.average import interpolate
    from replaykit.steps.merge.choose import best_alpha, scores_of

    held = scorable(chat_of(recipe), load_tests(recipe))
    items = {"base": measured(recipe, step, "base", str(recipe.model), held.rows, watch)}
    # One trial model at a time is on the disk; its items stay, so nothing is measured twice.
    trial = step.folder / "trial"
    for alpha in alphas:
        name = f"alpha-{alpha:g}"
        shutil.rmtree(trial, ignore_errors=True)
        if alpha > 0 and not (step.folder / f"items-{name}.jsonl").exists():
            interpolate(base, tuned, trial, alpha, watch=partial(_under, watch, name))
        if alpha > 0:
            items[name] = measured(recipe, step, name, str(trial), held.rows, watch)
        else:
            items[name] = items["base"]  # at alpha 0 it is the base
    shutil.rmtree(trial, ignore_errors=True)
    scores = scores_of(tests(recipe), items)
    by_alpha = {alpha: scores[f"alpha-{alpha:g}"] for alpha in alphas}
    choice = best_alpha(scores["base"], by_alpha, margin=recipe.eval.margin)
    write_json(step.folder / "table.json", [row.to_json() for row in choice.table])
    if choice.alpha is None:
        least = min(choice.table, key=lambda row: row.old_drop.high)
        raise RunError(
            f"no alpha keeps the drop of old skills within {100 * recipe.eval.margin:g} points "
            f"(eval.margin): the least upper bound is "
            f"{100 * least.old_drop.high:.1f} points, at {least.alpha:g} "
            f"({step.folder / 'table.json'}). Add smaller alphas to --sweep; 0 is the base, and "
            f"what was measured is kept"
        )
    interpolate(base, tuned, step.folder / "model", choice.alpha, watch=watch)
    return MergeResult(
        method="wise-ft",
        alpha=choice.alpha,
        notes=list(held.notes),
        changed=None,
        table=choice.table,
        model=str(step.folder / "model"),
        base=str(recipe.model),
        revision=revision_of(recipe),
    )


def _under(
    watch: Watch, name: str, what: str, done: int, total: int | None, note: str = ""
) -> None:
    """The watch, with another name for each of several pieces of the same work."""
    watch(f"{what} {name}", done, total, note)


def _check(recipe: Recipe, options: MergeOptions) -> None:
    """Raises RecipeError for what cannot be merged or swept, all problems at once."""
    problems = []
    if options.method not in ("wise-ft", "ties", "adapter"):
        problems.append(f"--method {options.method}: it is wise-ft, ties or adapter")
    if len(options.tuned) > 1 and options.method != "ties":
        problems.append(f"--tuned: {options.method} takes one; several are merged by --method ties")
    if options.sweep is not None:
        problems += _sweep_problems(recipe, options.method, options.sweep)
    if problems:
        raise RecipeError("the command line", problems)


def _sweep_problems(recipe: Recipe, method: str, sweep: Sequence[float]) -> Iterator[str]:
    if method != "wise-ft":
        yield (
            "--sweep: it is for wise-ft; an adapter is swept merged, as train leaves it in "
            "train/model"
        )
    if not sweep or min(sweep) < 0 or max(sweep) > 1:
        yield "--sweep: alphas from 0 to 1, such as 0,0.1,...,1"
    if TARGET not in tests(recipe):
        yield "--sweep: it needs eval.target, by which the best alpha is known"
    if not any(test.score != "cross_entropy" for test in recipe.eval.old.values()):
        yield "--sweep: it needs a skill in eval.old that is scored right or wrong"


def _tuned(
    recipe: Recipe, context: Context, options: MergeOptions
) -> list[tuple[str | None, list[str]]]:
    """What to merge with the base, by arm: what was given, or what was trained; with ties all
    together.
    """
    if options.tuned:
        return [(None, [loading.resolve(name) for name in options.tuned])]
    if options.method == "ties":
        context = replace(context, out=None)  # one folder is made of all arms
    found: list[tuple[str | None, list[str]]] = []
    for arm in arms(recipe, context):
        folder = recipe.folder / label_of("train", arm)
        need_step(folder, "train", otherwise="--tuned takes another folder")
        # An adapter is scaled where it lies; everything else takes the merged model.
        made = folder / "model"
        if options.method == "adapter":
            made = folder / "adapter"
        if not made.is_dir():
            raise RunError(
                f"{made}: there is no adapter; train.method: lora leaves one, --method wise-ft "
                "needs none"
            )
        found.append((arm, [str(made)]))
    if options.method == "ties":
        return [(None, [name for _, names in found for name in names])]
    return found
