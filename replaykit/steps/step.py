"""The frame of every step: from a recipe to a folder and a typed result.

    def todos(recipe, context) -> Iterator[Todo[SelectResult]]:      # one for each arm
        inputs = {"select": settings.decisive(), "seed": recipe.seed, ...}

        def work(step: Step) -> SelectResult: ...

        yield Todo("select", inputs, SelectResult, work)


    def run(recipe, context) -> Iterator[Outcome[SelectResult]]:
        for todo in todos(recipe, context):
            yield do_step(todo, recipe, context)

    runs/my-task/generate/       inputs.json  rows.jsonl  dropped.jsonl  manifest.json
    runs/my-task/train-control/  of the arm "control"

A step whose inputs are those in its folder is skipped, or resumed; with others it is done anew.
``status`` compares the same inputs without doing anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ValidationError

from replaykit.checks.funnel import Funnel
from replaykit.errors import RecipeError, RunError
from replaykit.model import loading
from replaykit.model.gguf import is_gguf, kept_in
from replaykit.recipe import Recipe
from replaykit.result import Result
from replaykit.runs import (
    Manifest,
    Step,
    Watch,
    differences,
    open_step,
    read_json,
    read_manifest,
    unwatched,
)
from replaykit.steps.inputs import Facts, task_facts

if TYPE_CHECKING:
    from replaykit.engines import Engine
    from replaykit.model.chat import Chat
    from replaykit.recipe.engine import EngineOptions

R = TypeVar("R", bound=Result)
R_co = TypeVar("R_co", bound=Result, covariant=True)


@dataclass(frozen=True)
class Outcome(Generic[R_co]):
    """What a step left: its folder and its result."""

    step: str
    """The name of the step's folder in a run."""
    folder: Path
    result: R_co
    skipped: bool = False
    """Whether it was finished before."""
    note: str = ""
    """For people: why it was skipped, or where an earlier result is now, and why."""


@dataclass(frozen=True)
class Context:
    """How the steps are run."""

    out: Path | None = None
    """Another folder than the step's own in the run."""
    force: bool = False
    """Do a finished step again."""
    arm: str | None = None
    """Of the recipe's arms this one alone."""
    watch: Watch = unwatched


@dataclass(frozen=True)
class Todo(Generic[R]):
    """One step of one arm, before it is known whether it is to be done."""

    name: str
    """Of the step, such as "mix"."""
    inputs: Mapping[str, Any]
    """What decides the result, as JSON: settings under the keys of the recipe, files with their
    content."""
    kind: type[R]
    """The class of the result."""
    work: Callable[[Step], R]
    """Makes the result, and the files beside it, in the step's folder."""
    arm: str | None = None
    """None where the recipe has no arms, or the step is done once for all."""
    lacking: Callable[[R], list[str]] = lambda _: []
    """Why a finished result will not do, as ``differences`` says it; empty where it will. A
    generation of fewer rows is finished, and still goes on where more are asked for."""

    @property
    def label(self) -> str:
        """The name of the folder that it writes to."""
        return label_of(self.name, self.arm)

    def folder(self, recipe: Recipe, context: Context) -> Path:
        return context.out or recipe.folder / self.label

    def changes(self, folder: Path) -> list[str]:
        """In what the inputs differ from those that the folder was made from; empty where it is not
        begun.
        """
        before = read_json(folder / "inputs.json")
        if before is None:
            return []
        # In the folder they are as JSON gives them back: lists for tuples, words for keys.
        now = json.loads(json.dumps(self.inputs, default=str))
        return differences(before, now)

    def finished(self, folder: Path) -> R | None:
        """The result in the folder, where it is finished and will do. Raises RunError where it
        cannot be read.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        result = typed(manifest, self.kind, folder)
        return None if self.lacking(result) else result


def do_step(todo: Todo[R], recipe: Recipe, context: Context) -> Outcome[R]:
    """Does the work in the step's folder unless it is finished there."""
    folder = todo.folder(recipe, context)
    # Held by this process alone; what was made from other inputs is moved aside.
    with open_step(todo.name, folder, todo.inputs, arm=todo.arm, force=context.force) as step:
        before = todo.finished(folder)
        if before is not None:
            note = "finished before; --force does it again"
            return Outcome(todo.label, folder, before, skipped=True, note=note)
        # From here on the folder is unfinished, whatever happens in between.
        step.manifest_path.unlink(missing_ok=True)
        with kept_in(recipe.folder):
            result = todo.work(step)
        step.finish(result)
    note = ""
    if step.moved is not None:
        why = "; ".join(step.changed) or "--force"
        note = f"the earlier one is in {step.moved} ({why})"
    return Outcome(todo.label, folder, result, note=note)


def typed(manifest: Manifest, kind: type[R], folder: Path) -> R:
    """A finished step's result. Raises RunError where another version of replaykit wrote it."""
    try:
        # As JSON: a recipe's section within a result is strict, and there it takes a key "0.5" for
        # the number.
        text = json.dumps(manifest.result, ensure_ascii=False)
        # Half of a surrogate pair, which a row may have, is no UTF-8 and becomes "?".
        return kind.model_validate_json(text.encode("utf-8", "replace"))
    except ValidationError as error:
        raise RunError(
            f"{folder}: the result was written by another version of replaykit; --force makes it "
            "anew"
        ) from error


def need_step(folder: Path, step: str, *, otherwise: str = "") -> Manifest:
    """The manifest of a step that another one builds on.

    Raises RunError, with what to type, where it is not finished.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        todo = f"`replaykit {step}` makes it"
        if otherwise:
            todo += f", and {otherwise}"
        raise RunError(f"{folder} is not finished; {todo}")
    return manifest


def label_of(step: str, arm: str | None) -> str:
    """The name of the folder that a step of an arm writes to."""
    if arm is None:
        return step
    return f"{step}-{arm}"


def arms(recipe: Recipe, context: Context) -> list[str | None]:
    """The arms to do: the recipe's, or the one of --arm; None alone where the recipe has none.

    Raises RecipeError for an arm that the recipe does not have, and for --out with several.
    """
    names = ", ".join(recipe.arms)
    if context.arm is not None and context.arm not in recipe.arms:
        problem = f"--arm {context.arm}: the recipe has {names or 'no arms'}"
        raise RecipeError("the command line", [problem])
    if context.arm is not None:
        return [context.arm]
    # One folder cannot hold several arms.
    if context.out is not None and len(recipe.arms) > 1:
        problem = f"--out takes one arm; choose it with --arm: {names}"
        raise RecipeError("the command line", [problem])
    return list(recipe.arms) or [None]


def manifests(folder: Path) -> dict[str, Manifest]:
    """The manifests of the finished steps of a run, by folder name; those moved aside are left
    out.
    """
    found = {}
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = read_manifest(path.parent)
        if manifest is not None and not moved_aside(path.parent):
            found[path.parent.name] = manifest
    return found


def moved_aside(folder: Path) -> bool:
    """Whether the folder holds what a step made from other inputs than it has now."""
    return ".old" in folder.name


def model_facts(recipe: Recipe) -> Facts:
    """What identifies the model and its chat: name, revision, options, and a folder's files."""
    facts: Facts = {
        "model": model_name(recipe),
        "revision": recipe.revision,
        "weights": loading.identity(str(recipe.model)),
    }
    # Only what the recipe says: a new option with its default does nothing anew.
    options = recipe.chat.model_dump(exclude_defaults=True)
    if options:
        facts["chat"] = options
    return facts | task_facts(recipe)


def model_name(recipe: Recipe) -> str:
    """What the inputs call the recipe's model; one that an earlier stage of the run left by its
    place in the run, which may be moved.
    """
    model = Path(str(recipe.model))
    if recipe.tasks and model.is_relative_to(recipe.folder):
        return str(model.relative_to(recipe.folder))
    return str(recipe.model)


def revision_of(recipe: Recipe) -> str | None:
    """The commit of the recipe's model: the one asked for, or the one that was downloaded; None for
    a folder.
    """
    return recipe.revision or loading.fetched(str(recipe.model))


def chat_of(recipe: Recipe) -> Chat:
    """The chat of the recipe's model, without its weights."""
    from replaykit.model.chat import Chat
    from replaykit.model.classifier import TextClassifier
    from replaykit.model.labels import refuse_classifier

    if recipe.task == "classification":
        return TextClassifier.of_recipe(recipe)
    if not is_gguf(str(recipe.model)):
        refuse_classifier(str(recipe.model), recipe.revision)
    return Chat.load(str(recipe.model), recipe.revision, recipe.chat)


@contextmanager
def engine_and_chat(
    recipe: Recipe, model: str, *, of_recipe: bool = True, options: EngineOptions | None = None
) -> Iterator[tuple[Engine, Chat]]:
    """A model and its chat. The recipe's chat options are for its own model and what is tuned from
    it, not for others.

    ``options`` are of the engine: those of the recipe by default.
    """
    from replaykit.engines import load_engine
    from replaykit.model.chat import Chat

    if recipe.task == "classification":
        from replaykit.engines.classifier import ClassifierEngine
        from replaykit.model.classifier import TextClassifier

        classifier = TextClassifier.of_recipe(recipe)
        yield ClassifierEngine(classifier, model), classifier
        return
    # A revision is of the recipe's own model; a judge or a tuned model has others.
    revision = recipe.revision if model == recipe.model else None
    chat_options = recipe.chat if of_recipe else None
    chat = Chat.load(model, revision, chat_options)
    engine = load_engine(model, options or recipe.engine, revision=revision)
    try:
        yield engine, chat
    finally:
        engine.close()


@contextmanager
def funnel_of(step: Step) -> Iterator[Funnel]:
    """A funnel that writes each dropped row, with its reason, to dropped.jsonl."""
    with (step.folder / "dropped.jsonl").open("w", encoding="utf-8") as stream:
        yield Funnel(lambda row: stream.write(json.dumps(row, ensure_ascii=False) + "\n"))
