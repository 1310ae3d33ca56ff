"""The step eval: base and tuned models on the same held-out items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record
from replaykit.recipe import Recipe, need
from replaykit.recipe.evaluate import Test
from replaykit.runs import Step, Watch, read_manifest
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.skills import Item, read_items
from replaykit.steps.inputs import Facts, load_tests, test_facts, tests, tuned_facts
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


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[EvalResult]]:
    from replaykit.engines import engine_fact

    need(recipe, "eval", "model", "eval")
    folders: dict[str, Path] = {}
    mixed: dict[str, MixResult] = {}
    for arm in arms(recipe, replace(context, out=None)):  # one folder is made for all arms
        name = arm or "tuned"
        folders[name] = recipe.folder / label_of("train", arm)
        need_step(folders[name], "train")
        mix_folder = recipe.folder / label_of("mix", arm)
        manifest = read_manifest(mix_folder)
        if manifest is not None:
            mixed[name] = typed(manifest, MixResult, mix_folder)
    models = {name: str(folder / "model") for name, folder in folders.items()}
    inputs = {
        **model_facts(recipe),
        "engine": engine_fact(recipe.engine.here, recipe.model, recipe.revision),
        "eval": test_facts(recipe),
        "margin": recipe.eval.margin,
        "tuned": {name: tuned_facts(Path(model)) for name, model in models.items()},
    }

    def work(step: Step) -> EvalResult:
        from replaykit.steps.evaluate.compare import compare
        from replaykit.steps.evaluate.scorable import scorable

        held = scorable(chat_of(recipe), load_tests(recipe))
        items = {
            name: measured(recipe, step, name, model, held.rows, context.watch)
            for name, model in {"base": str(recipe.model), **models}.items()
        }
        found = compare(tests(recipe), items, mixed, recipe.eval.margin)
        return found.noted(*held.notes, _steered_note(folders, inputs["eval"]))

    yield Todo("eval", inputs, EvalResult, work)


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


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[EvalResult]]:
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def measured(
    recipe: Recipe,
    step: Step,
    name: str,
    model: str,
    rows: Mapping[str, tuple[Test, Sequence[Record]]],
    watch: Watch,
) -> dict[str, list[Item]]:
    """The items of one model by skill, from its file in the step's folder if it was measured
    before.
    """
    from replaykit.steps.evaluate.skills import measure

    path = step.folder / f"items-{name}.jsonl"
    if not path.exists():
        with engine_and_chat(recipe, model, options=recipe.engine.here) as (engine, chat):
            made = measure(engine, chat, rows, what=f"eval {name}", watch=watch)
            write_jsonl(path, (item.to_json() for item in made))
    return read_items(path, list(rows))
