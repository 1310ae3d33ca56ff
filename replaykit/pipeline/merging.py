"""The step merge: averages of the base and what was tuned from it, and which of them keeps the old
skills.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from replaykit import models
from replaykit.errors import RecipeError, RunError
from replaykit.evaluate.skills import TARGET
from replaykit.pipeline.proof import measured
from replaykit.pipeline.rows import load, scored_facts, tests
from replaykit.pipeline.step import (
    Context,
    Outcome,
    arms,
    do_step,
    label_of,
    model_facts,
    need_step,
    revision_of,
)
from replaykit.recipe import Recipe, need
from replaykit.runs import Step, Watch, write_json


def merge(
    recipe: Recipe,
    context: Context,
    *,
    method: str = "wise-ft",
    alpha: float | None = None,
    tuned: Sequence[str] = (),
    sweep: Sequence[float] | None = None,
    density: float = 0.2,
) -> Iterator[Outcome]:
    """An average of the base and what was tuned from it: of each arm, or with ties of all arms
    together.

    With ``sweep`` the average at each of its alphas is measured as ``eval`` measures models, and
    the best is kept.
    """
    from replaykit.engines import choose

    need(recipe, "merge", "model", *(["eval"] if sweep is not None else []))
    _can_merge(recipe, method, tuned, sweep)
    amount = (
        None
        if sweep is not None
        else alpha
        if alpha is not None
        else 1.0
        if method == "ties"
        else 0.5
    )
    for arm, names in _tuned(recipe, context, method, tuned):
        identities = {name: models.identity(name) for name in names}
        inputs = {**model_facts(recipe), "method": method, "alpha": amount, "tuned": identities}
        if method == "ties":
            inputs["density"] = density
        if sweep is not None:
            inputs |= {"engine": choose(recipe.engine.here), "tests": scored_facts(recipe)}

        def work(step: Step, names: Sequence[str] = names) -> tuple[dict[str, Any], dict[str, Any]]:
            from replaykit.train.merge import folder_of

            shutil.rmtree(
                step.folder / "model", ignore_errors=True
            )  # of a merge that was stopped before its manifest
            base = folder_of(str(recipe.model), recipe.revision)
            folders = [folder_of(name) for name in names]
            facts = {"base": recipe.model, "revision": revision_of(recipe)}
            if sweep is not None:
                return _best_average(recipe, base, folders[0], sweep, step, context.watch), facts
            changed = _average(
                method, base, folders, step.folder / "model", amount or 0.0, density, context.watch
            )
            return {
                "method": method,
                "alpha": amount,
                "changed": changed,
                "model": str(step.folder / "model"),
            }, facts

        yield do_step("merge", recipe, context, inputs, work, arm=arm, asked=sweep)


def _average(
    method: str,
    base: Path,
    tuned: Sequence[Path],
    out: Path,
    alpha: float,
    density: float,
    watch: Watch,
) -> int:
    from replaykit.train.merge import interpolate, scale_adapter, ties

    if method == "adapter":
        return scale_adapter(tuned[0], out, alpha)
    if method == "ties":
        return ties(base, tuned, out, density=density, scale=alpha, watch=watch)
    return interpolate(base, tuned[0], out, alpha, watch=watch)


def _best_average(
    recipe: Recipe, base: Path, tuned: Path, alphas: Sequence[float], step: Step, watch: Watch
) -> dict[str, Any]:
    """Measures the average at each alpha, whose items stay in the step's folder, and keeps the best
    one's model.
    """
    from replaykit.evaluate.compare import best_alpha, scores_of
    from replaykit.train.merge import interpolate

    rows = {skill: (test, load(test, "target")) for skill, test in tests(recipe).items()}
    items = {"base": measured(recipe, step, "base", str(recipe.model), rows, watch)}
    trial = step.folder / "trial"
    for alpha in alphas:
        name = f"alpha-{alpha:g}"
        shutil.rmtree(trial, ignore_errors=True)
        if alpha > 0 and not (step.folder / f"items-{name}.jsonl").exists():
            interpolate(base, tuned, trial, alpha, watch=partial(_under, watch, name))
        items[name] = (
            measured(recipe, step, name, str(trial), rows, watch) if alpha > 0 else items["base"]
        )
    shutil.rmtree(trial, ignore_errors=True)
    scores = scores_of(tests(recipe), items)
    choice = best_alpha(scores["base"], {alpha: scores[f"alpha-{alpha:g}"] for alpha in alphas})
    write_json(step.folder / "table.json", choice.table)
    if choice.alpha is None:
        least = min(choice.table, key=lambda row: row["old_drop"]["high"])
        raise RunError(
            f"no alpha keeps the drop of old skills within 2 points: the least upper bound is "
            f"{100 * least['old_drop']['high']:.1f} points, at {least['alpha']:g} "
            f"({step.folder / 'table.json'}). "
            f"Add smaller alphas to --sweep; 0 is the base, and what was measured is kept"
        )
    interpolate(base, tuned, step.folder / "model", choice.alpha, watch=watch)
    return {
        "method": "wise-ft",
        "alpha": choice.alpha,
        "table": choice.table,
        "model": str(step.folder / "model"),
        "asked": list(alphas),
    }


def _under(
    watch: Watch, name: str, what: str, done: int, total: int | None, note: str = ""
) -> None:
    """The watch, with another name for each of several pieces of the same work."""
    watch(f"{what} {name}", done, total, note)


def _can_merge(
    recipe: Recipe, method: str, tuned: Sequence[str], sweep: Sequence[float] | None
) -> None:
    """Raises RecipeError for what cannot be merged or swept, all problems at once."""
    problems = []
    if method not in ("wise-ft", "ties", "adapter"):
        problems.append(f"--method {method}: it is wise-ft, ties or adapter")
    if len(tuned) > 1 and method != "ties":
        problems.append(f"--tuned: {method} takes one; several are merged by --method ties")
    if sweep is not None:
        if method != "wise-ft":
            problems.append(
                "--sweep: it is for wise-ft; an adapter is swept merged, as train leaves it in "
                "train/model"
            )
        if not sweep or min(sweep) < 0 or max(sweep) > 1:
            problems.append("--sweep: alphas from 0 to 1, such as 0,0.1,...,1")
        if TARGET not in tests(recipe):
            problems.append("--sweep: it needs eval.target, by which the best alpha is known")
        if not any(test.score != "cross_entropy" for test in recipe.eval.old.values()):
            problems.append("--sweep: it needs a skill in eval.old that is scored right or wrong")
    if problems:
        raise RecipeError("the command line", problems)


def _tuned(
    recipe: Recipe, context: Context, method: str, given: Sequence[str]
) -> list[tuple[str | None, list[str]]]:
    """What to merge with the base, by arm: what was given, or what was trained; with ties all
    together.
    """
    if given:
        return [(None, [models.resolve(name) for name in given])]
    found = []
    for arm, *_ in arms(recipe, replace(context, out=None) if method == "ties" else context):
        trained = recipe.folder / label_of("train", arm)
        folder = need_step(trained, "train", otherwise="--tuned takes another folder")
        made = folder / ("adapter" if method == "adapter" else "model")
        if not made.is_dir():
            raise RunError(
                f"{made}: there is no adapter; train.method: lora leaves one, --method wise-ft "
                f"needs none"
            )
        found.append((arm, [str(made)]))
    return [(None, [name for _, names in found for name in names])] if method == "ties" else found
