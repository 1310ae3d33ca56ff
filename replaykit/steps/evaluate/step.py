"""The step eval: base and tuned models on the same held-out items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record
from replaykit.errors import RecipeError
from replaykit.recipe import Recipe, need
from replaykit.recipe.evaluate import Test
from replaykit.runs import Step, Watch, read_manifest
from replaykit.steps.evaluate.judged import judge_of, judged
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.skills import Item, read_items
from replaykit.steps.inputs import Facts, load_tests, other_facts, test_facts, tests, tuned_facts
from replaykit.steps.mix.result import MixResult
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    arms,
    chat_of,
    do_step,
    engine_and_chat,
    label_of,
    model_facts,
    need_step,
    typed,
)

BASE = "base"
"""What the recipe's model is called among those that were tuned from it."""


def todos(
    recipe: Recipe, context: Context, tuned: Sequence[str] | None = None
) -> Iterator[Todo[EvalResult]]:
    """``tuned`` are models that were trained anywhere; None stands for those that the recipe's
    arms left. Raises RecipeError for two of one name, and for one that is not there.
    """
    from replaykit.engines import engine_fact

    need(recipe, "eval", "model", "eval")
    mixed: dict[str, MixResult] = {}
    if tuned is not None:
        models = _elsewhere(tuned)
        folders: dict[str, Path] = {}
        facts = {name: other_facts(model) for name, model in models.items()}
    else:
        folders = _trained(recipe, context, mixed)
        models = {name: str(folder / "model") for name, folder in folders.items()}
        facts = {name: tuned_facts(Path(model)) for name, model in models.items()}
    inputs = {
        **model_facts(recipe),
        "engine": engine_fact(recipe.engine.here, recipe.model, recipe.revision),
        "eval": test_facts(recipe),
        "margin": recipe.eval.margin,
        "twice": scored_twice(recipe),
        "tuned": facts,
    }

    def work(step: Step) -> EvalResult:
        from replaykit.steps.evaluate import compare as compared
        from replaykit.steps.evaluate.scorable import scorable

        held = scorable(chat_of(recipe), load_tests(recipe))
        items = {
            name: measured(recipe, step, name, model, held.rows, context.watch)
            for name, model in {BASE: str(recipe.model), **models}.items()
        }
        again = None
        if inputs["twice"]:
            name = compared.AGAIN
            again = measured(recipe, step, name, str(recipe.model), held.rows, context.watch)
        found = compared.compare(tests(recipe), items, mixed, recipe.eval.margin, again)
        return found.noted(*held.notes, _steered_note(folders, inputs["eval"]))

    yield Todo("eval", inputs, EvalResult, work)


def _trained(recipe: Recipe, context: Context, mixed: dict[str, MixResult]) -> dict[str, Path]:
    """The folders of the finished trainings by model; what is known of their mixtures goes into
    ``mixed``.
    """
    folders = {}
    for arm in arms(recipe, replace(context, out=None)):  # one folder is made for all arms
        name = arm or "tuned"
        folders[name] = recipe.folder / label_of("train", arm)
        need_step(folders[name], "train")
        mix_folder = recipe.folder / label_of("mix", arm)
        manifest = read_manifest(mix_folder)
        if manifest is not None:
            mixed[name] = typed(manifest, MixResult, mix_folder)
    return folders


def _elsewhere(tuned: Sequence[str]) -> dict[str, str]:
    """Models by name: what stands before an equals sign, or the last part of their path."""
    found: dict[str, str] = {}
    for given in tuned:
        name, equals, model = given.partition("=")
        if not equals or Path(given).exists():
            model = given
            name = Path(given.rstrip("/")).name
        if name in found or name == BASE:
            raise RecipeError(
                "the command line",
                [f"--tuned {given}: there is a model {name} already; call it --tuned NAME={model}"],
            )
        found[name] = model
    return found


def _steered_note(folders: Mapping[str, Path], tested: Facts) -> str:
    """What is said where a controller saw these very tests: it decided by what is scored here."""
    steered = []
    for name, folder in folders.items():
        manifest = read_manifest(folder)
        if manifest is not None and manifest.inputs.get("eval") == tested:
            steered.append(name)
    if not steered:
        return ""
    return (
        f"the controller of {', '.join(steered)} decided by these tests while it trained, so their "
        f"scores may be better than on rows that had no part in it; eval.old and eval.target with "
        f"other rows tell"
    )


def run(
    recipe: Recipe,
    context: Context,
    tuned: Sequence[str] | None = None,
    more: Sequence[str] | None = None,
) -> Iterator[Outcome[EvalResult]]:
    """``tuned`` and ``more`` as of ``todos``, the one behind the other."""
    every = [*(tuned or ()), *(more or ())]
    for todo in todos(recipe, context, every or None):
        yield do_step(todo, recipe, context)


def scored_twice(recipe: Recipe) -> bool:
    """Whether the base is scored twice: where the recipe says so, or the engine may differ."""
    from replaykit.engines import choose

    if recipe.eval.twice is not None:
        return recipe.eval.twice
    here = recipe.engine.here
    if here.batch_invariant:
        return False
    import torch

    return (
        choose(here, recipe.model, recipe.revision) != "transformers" or torch.cuda.is_available()
    )


def measured(
    recipe: Recipe,
    step: Step,
    name: str,
    model: str,
    rows: Mapping[str, tuple[Test, Sequence[Record]]],
    watch: Watch,
) -> dict[str, list[Item]]:
    """The items of one model by skill, from its file in the step's folder if it was measured
    before. Answers that wait for a judge get its score. Raises RecipeError where a test is scored
    by a judge and none is named.
    """
    from replaykit.model.adapters import merged
    from replaykit.steps.evaluate.skills import measure

    path = step.folder / f"items-{name}.jsonl"
    judge = judge_of(recipe, rows)
    if not path.exists():
        whole = merged(model, str(recipe.model), recipe.revision, step.folder)
        with (
            whole as folder,
            engine_and_chat(recipe, folder, options=recipe.engine.here) as (engine, chat),
        ):
            made = measure(engine, chat, rows, what=f"eval {name}", watch=watch)
            write_jsonl(path, (item.to_json() for item in made))
    items = read_items(path, list(rows))
    if judge is not None:
        items = judged(recipe, judge, rows, items, f"judge {name}", watch)
        write_jsonl(path, (item.to_json() for of_skill in items.values() for item in of_skill))
    return items
