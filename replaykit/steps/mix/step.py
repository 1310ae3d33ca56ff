"""The step mix: the mixture of each arm, in training order; and its exports to other trainers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from replaykit.checks.funnel import Funnel
from replaykit.data.formats import Columns, read_records
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.planned import write_plan
from replaykit.data.record import TARGET
from replaykit.errors import RecipeError, RunError
from replaykit.recipe import Recipe, need
from replaykit.recipe.base import file_facts
from replaykit.recipe.mix import Mix, Replay, is_made
from replaykit.recipe.tasks import BUFFER
from replaykit.runs import Manifest, Step, Watch, differences, read_manifest
from replaykit.steps.inputs import (
    Facts,
    Readable,
    classes_of,
    held_out,
    held_out_facts,
    load,
    made_facts,
    row_facts,
)
from replaykit.steps.mix.replay import made_replay, own_replay
from replaykit.steps.mix.result import MixResult
from replaykit.steps.mix.schedule import most
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    arms,
    chat_of,
    do_step,
    funnel_of,
    label_of,
    model_facts,
    model_name,
    need_step,
)


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[MixResult]]:
    need(recipe, "mix", "model", "target")
    assert recipe.target is not None
    rewritten = rewritten_rows(recipe)
    augmented = _augmented(recipe, rewritten)
    for arm in arms(recipe, context):
        settings = recipe.mixture(arm)
        replay = _replay_files(recipe, settings, arm)
        inputs = {
            **model_facts(recipe),
            "seed": recipe.seed,
            "target": row_facts(recipe.target),
            "rewritten": None if rewritten is None else made_facts(rewritten),
            "augmented": None if augmented is None else made_facts(augmented),
            "replay": {source: _replay_facts(source, file) for source, file in replay.items()},
            "mix": settings.decisive(),
            # Rows that hold a prompt of these tests are left out.
            "eval": held_out_facts(recipe, settings.overlap),
            "train": _length_facts(recipe),
        }
        job = _Mixing(recipe, settings, rewritten, augmented, replay, context.watch)
        yield Todo("mix", inputs, MixResult, job.work, arm=arm)


def run(
    recipe: Recipe, context: Context, *, export: Sequence[str] = ()
) -> Iterator[Outcome[MixResult]]:
    """The mixture of each arm; then, from its rows, what each of the trainers named in ``export``
    reads.
    """
    from replaykit.steps.mix.export import check

    # A misspelt name is an error before anything is done.
    check(export)
    if export and recipe.task == "classification":
        problem = f"--export {export[0]}: the exports are for trainers of language models"
        raise RecipeError("the command line", [problem])
    for todo in todos(recipe, context):
        done = do_step(todo, recipe, context)
        if export:
            done = replace(done, result=_exported(recipe, done, export, context.watch))
        yield done


@dataclass(frozen=True)
class _Mixing:
    """The mixture of one arm: what it is made from, and how."""

    recipe: Recipe
    settings: Mix
    rewritten: Path | None
    """The target in the model's own words, where that is taken."""
    augmented: Path | None
    """The rows that ``augment`` made of the target, where they are taken."""
    replay: Mapping[str, Path | str]
    """The rows of each source: of a step the file that it made, or what the user named."""
    watch: Watch

    def work(self, step: Step) -> MixResult:
        from replaykit.steps.mix.build import build_mixture

        apart = held_out(self.recipe, self.settings.overlap, self.settings.against)
        with funnel_of(step) as funnel:
            target = self._target(funnel)
            replay = {source: self._rows(source, funnel) for source in self.replay}
            mixture = build_mixture(
                target.records,
                {source: found.records for source, found in replay.items()},
                chat=chat_of(self.recipe),
                settings=self.settings,
                train=self.recipe.train,
                seed=self.recipe.seed,
                held_out=apart,
                folder=step.folder,
                funnel=funnel,
                watch=self.watch,
            )
        path = step.folder / "rows.jsonl"
        write_plan(path, mixture.planned_rows())
        if self.recipe.train.controller is not None:
            # A controller may draw more rows than the plan, or others.
            write_jsonl(step.folder / "replay.jsonl", mixture.replay())
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        result = mixture.result(
            self.settings,
            sha256=digest,
            sources={source: str(file) for source, file in self.replay.items()},
            funnel=funnel.result(),
            decontamination=None if apart is None else apart.result(),
        )
        return result.noted(target.note, *(found.note for found in replay.values()))

    def _rows(self, source: str, funnel: Funnel) -> Readable:
        """The replay rows of a source. Raises DataError as ``readable`` does."""
        if is_made(source):
            return Readable(made_replay(read_jsonl(self.replay[source])), "")
        return own_replay(
            source,
            lambda unparsed: read_records(
                source,
                "select",
                columns=Columns(classes=classes_of(self.recipe, old=True)),
                unparsed=unparsed,
            ),
            funnel.unparsed,
        )

    def _target(self, funnel: Funnel) -> Readable:
        """The target's rows, those that were made of them among them: to the plan all of them are
        of the target, so replay keeps its share beside them.
        """
        own = self._own_target(funnel)
        if self.augmented is None:
            return own
        further = [replace(record, source=TARGET) for record in read_jsonl(self.augmented)]
        note = (
            f"{len(further):,} rows of augment count as target rows, beside {len(own.records):,} "
            "of the target itself"
        )
        return Readable([*own.records, *further], "; ".join(filter(None, (own.note, note))))

    def _own_target(self, funnel: Funnel) -> Readable:
        if self.rewritten is not None:
            found = [replace(record, source=TARGET) for record in read_jsonl(self.rewritten)]
            return Readable(found, "")
        assert self.recipe.target is not None
        classes = classes_of(self.recipe, old=False)
        return load(self.recipe.target, TARGET, funnel.unparsed, classes)


def _exported(
    recipe: Recipe, done: Outcome[MixResult], names: Sequence[str], watch: Watch
) -> MixResult:
    """The result with the places of the exports, which are made now."""
    from replaykit.steps.mix.export import export_mixture

    places = export_mixture(
        names,
        done.folder,
        model=str(recipe.model),
        revision=recipe.revision,
        chat=chat_of(recipe),
        train=recipe.train,
        watch=watch,
    )
    exported = {name: str(place) for name, place in places.items()}
    return done.result.model_copy(update={"exported": exported})


def finished_mixture(recipe: Recipe, arm: str | None) -> tuple[Path, Manifest]:
    """The folder and the manifest of an arm's finished mixture.

    Raises RunError where it was made for another model, or another length of training. That its
    share is another than the recipe's is no error: `mix --ratio 0.1` has made it so.
    """
    folder = recipe.folder / label_of("mix", arm)
    manifest = need_step(folder, "mix")
    now = {"model": model_name(recipe), "train": _length_facts(recipe)}
    _refuse_other(folder, manifest, now, "`replaykit mix` makes it anew")
    return folder, manifest


def replay_sources(recipe: Recipe, settings: Mix) -> list[str]:
    """The sources of an arm's replay: those that it names, steps or files, or the steps that the
    recipe has, or else all that are finished in the run.
    """
    if most(settings.schedule, settings.ratio) == 0:
        return []
    if settings.sources is not None:
        return list(settings.sources)
    if recipe.replay_sources:
        return [*recipe.replay_sources]
    every: tuple[str, ...] = get_args(Replay)
    return [source for source in every if read_manifest(recipe.folder / source) is not None]


def replay_label(source: str, arm: str | None) -> str:
    """The name of the folder of the step that makes this replay: of the buffer there is one for
    each stage.
    """
    return label_of(source, arm if source == BUFFER else None)


def _replay_files(recipe: Recipe, settings: Mix, arm: str | None) -> dict[str, Path | str]:
    """The replay of an arm, by source. Raises RunError where a step that it asks for is not
    finished.
    """
    files: dict[str, Path | str] = {}
    for source in replay_sources(recipe, settings):
        files[source] = source
        if is_made(source):
            folder = recipe.folder / replay_label(source, arm)
            need_step(folder, "run" if recipe.tasks else source)
            files[source] = folder / "rows.jsonl"
    return files


def _replay_facts(source: str, file: Path | str) -> Facts:
    """What identifies the rows of a source of replay."""
    return made_facts(Path(file)) if is_made(source) else file_facts(source)


def takes_rewritten(recipe: Recipe) -> bool:
    """Whether the target is mixed in the model's own words: the recipe asks for it, or `rewrite`
    has made it.
    """
    return recipe.rewrite is not None or read_manifest(recipe.folder / "rewrite") is not None


def rewritten_rows(recipe: Recipe) -> Path | None:
    """The target in the model's own words, where it is taken.

    Raises RunError where it is not finished, or is of another target.
    """
    if not takes_rewritten(recipe):
        return None
    assert recipe.target is not None
    folder = recipe.folder / "rewrite"
    manifest = need_step(folder, "rewrite")
    todo = "`replaykit rewrite` makes it anew"
    if recipe.rewrite is None:
        todo += "; without that folder the target is taken as it is"
    _refuse_other(folder, manifest, {"target": row_facts(recipe.target)}, todo)
    return folder / "rows.jsonl"


def takes_augmented(recipe: Recipe) -> bool:
    """Whether rows that were made of the target are trained on too: the recipe asks for them, or
    `augment` has made them.
    """
    return recipe.augment is not None or read_manifest(recipe.folder / "augment") is not None


def _augmented(recipe: Recipe, rewritten: Path | None) -> Path | None:
    """The rows that were made of the target, where they are taken.

    Raises RunError where they are not finished, or are of another target.
    """
    if not takes_augmented(recipe):
        return None
    assert recipe.target is not None
    folder = recipe.folder / "augment"
    manifest = need_step(folder, "augment")
    todo = "`replaykit augment` makes it anew"
    if recipe.augment is None:
        todo += "; without that folder the target is taken as it is"
    now = {
        "target": row_facts(recipe.target),
        "rewritten": None if rewritten is None else made_facts(rewritten),
    }
    _refuse_other(folder, manifest, now, todo)
    return folder / "rows.jsonl"


def _length_facts(recipe: Recipe) -> Facts:
    """What of the training decides which rows a mixture has, and in how many steps."""
    # A controller needs all replay rows beside the planned ones.
    facts = recipe.train.model_dump(include={"epochs", "steps", "batch_rows", "max_tokens"})
    return facts | {"controller": recipe.train.controller is not None}


def _refuse_other(folder: Path, manifest: Manifest, now: Mapping[str, Any], todo: str) -> None:
    """Raises RunError, with what to do, where one of these inputs of a finished step was
    another.
    """
    before = {key: manifest.inputs.get(key) for key in now}
    changed = differences(before, now)
    if changed:
        raise RunError(f"{folder} was made otherwise: {'; '.join(changed)}. {todo}")
