"""The step train: each arm on its mixture."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from replaykit.data.jsonl import read_jsonl
from replaykit.data.planned import PlannedRow, read_plan
from replaykit.data.record import TARGET, Record, is_masked
from replaykit.errors import ChatError, DataError
from replaykit.recipe import Recipe, need
from replaykit.recipe.evaluate import MEMORY
from replaykit.recipe.mix import Mix
from replaykit.recipe.remedies import StmSettings
from replaykit.recipe.train import Train
from replaykit.runs import Manifest, Step, Watch, read_manifest
from replaykit.steps.evaluate.skills import check_tests
from replaykit.steps.inputs import HeldOut, classes_of, load, load_tests, made_facts, test_facts
from replaykit.steps.mix.step import finished_mixture
from replaykit.steps.score.step import answer_logprobs
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    arms,
    chat_of,
    do_step,
    label_of,
    model_facts,
    revision_of,
)
from replaykit.steps.train.result import TrainEstimate, TrainResult, WeightSummary

if TYPE_CHECKING:
    import numpy as np

    from replaykit.model.chat import Chat, Example
    from replaykit.steps.train.controller import ControllerInputs


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[TrainResult]]:
    need(recipe, "train", "model")
    chat = cache(lambda: chat_of(recipe))
    mixtures = {arm: finished_mixture(recipe, arm) for arm in arms(recipe, context)}
    for arm, (folder, mixed) in mixtures.items():
        training = recipe.training(arm)
        inputs = {
            **model_facts(recipe),
            "seed": recipe.seed,
            "mix": made_facts(folder / "rows.jsonl"),
            "train": training.decisive(),
        }
        if training.controller is not None:
            inputs["eval"] = test_facts(recipe)
            inputs["replay"] = made_facts(folder / "replay.jsonl") | _mixed_by(mixed)
        work = _work(recipe, arm, folder, mixed, chat, context.watch)
        yield Todo("train", inputs, TrainResult, work, arm=arm)


def run(
    recipe: Recipe, context: Context, *, dry_run: bool = False, price_per_hour: float | None = None
) -> Iterator[Outcome[TrainResult] | Outcome[TrainEstimate]]:
    """Each arm on its mixture. Of several processes that torchrun started, the first one holds the
    folder. With ``dry_run``, what each will take; ``price_per_hour`` is in dollars.
    """
    if dry_run:
        yield from _estimated(recipe, context, price_per_hour)
        return
    for todo in todos(recipe, context):
        if int(os.environ.get("RANK", "0")) == 0:
            yield do_step(todo, recipe, context)
            continue
        folder = todo.folder(recipe, context)
        manifest = read_manifest(folder)
        if context.force or manifest is None or manifest.inputs != todo.inputs:
            todo.work(Step(todo.name, folder, todo.inputs, todo.arm))


def _estimated(
    recipe: Recipe, context: Context, price_per_hour: float | None
) -> Iterator[Outcome[TrainEstimate]]:
    from replaykit.steps.train.estimate import estimate

    need(recipe, "train", "model")
    chat = chat_of(recipe)
    for arm in arms(recipe, context):
        mixture, _ = finished_mixture(recipe, arm)
        folder = context.out or recipe.folder / label_of("train", arm)
        found = estimate(
            read_plan(mixture / "rows.jsonl"),
            str(recipe.model),
            recipe.revision,
            chat,
            recipe.training(arm),
            folder=folder,
            price_per_hour=price_per_hour,
        )
        yield Outcome("train", folder, found, note="dry run: nothing was trained")


def _mixed_by(mixed: Manifest) -> dict[str, Any]:
    """By which settings a mixture was made that a controller goes on with, whatever the recipe says
    now.
    """
    return {key: mixed.inputs["mix"][key] for key in ("ratio", "unit", "skill", "sources")}


def _work(
    recipe: Recipe,
    arm: str | None,
    mixture: Path,
    mixed: Manifest,
    chat: Callable[[], Chat],
    watch: Watch,
) -> Callable[[Step], TrainResult]:
    """Reads what a training needs and does it."""

    def work(step: Step) -> TrainResult:
        training = recipe.training(arm)
        replay: list[Record] = []
        if training.controller is not None:
            replay = list(read_jsonl(mixture / "replay.jsonl"))
        job = Job(
            recipe,
            training,
            read_plan(mixture / "rows.jsonl"),
            held=load_tests(recipe),
            replay=replay,
            mix=Mix.model_validate(_mixed_by(mixed)),
            what=label_of("train", arm),
        )
        return job.work(step.folder, chat(), watch)

    return work


@dataclass(frozen=True)
class Job:
    """One training: on which rows, and how. ``recipe`` gives the model, its engine and the seed."""

    recipe: Recipe
    training: Train
    rows: Sequence[PlannedRow]
    held: HeldOut = field(default_factory=HeldOut)
    """The held-out rows, for a controller."""
    replay: Sequence[Record] = ()
    """All replay rows that a controller may draw from."""
    mix: Mix = field(default_factory=Mix)
    """How the mixture was made, for a controller."""
    what: str = "train"
    """What the watch is told is being done."""

    def work(self, folder: Path, chat: Chat, watch: Watch) -> TrainResult:
        """Trains in the folder; what it leaves there is said in ``fit``."""
        from replaykit.steps.evaluate.scorable import scorable
        from replaykit.steps.train.fit import Base, Extras, check_packing, check_self_distill, fit

        recipe = self.recipe
        # Before the model is loaded to score the rows, as stm and flow want it.
        check_packing(self.training, chat)
        check_self_distill(self.training, chat)
        held = scorable(chat, self.held)
        check_tests(chat, held.rows)  # what eval would refuse after the training
        watched = self._watched(held)
        records = [row.record for row in self.rows]
        if watched is not None:
            records += watched.replay
        weighed = self._weighed(records, chat, watch)
        old = self._old(chat)
        extras = Extras(
            weights=weighed.weights,
            old=[record for record, _ in old.rows],
            watched=watched,
            what=self.what,
            examples=weighed.examples | {record.id: example for record, example in old.rows},
        )
        trained = fit(
            self.rows,
            Base(str(recipe.model), chat, recipe.revision),
            self.training,
            seed=recipe.seed,
            folder=folder,
            extras=extras,
            watch=watch,
        )
        facts = {"weights": weighed.summary, "revision": revision_of(recipe)}
        notes = [*chat.notes, *chat.of_tuned(), *chat.not_learned(records), weighed.note]
        notes += old.notes
        if chat.only_texts and self.training.adapter:
            notes += [
                f"train.remedies.{name} holds the adapter, and not the head, which learns whole"
                for name in ("ewc", "l2sp")
                if getattr(self.training.remedies, name) is not None
            ]
        if watched is not None:
            notes += held.notes
        return trained.model_copy(update=facts).noted(*notes)

    def _watched(self, held: HeldOut) -> ControllerInputs | None:
        """What a controller tests and draws from, where there is one."""
        if self.training.controller is None:
            return None
        from replaykit.steps.train.controller import ControllerInputs

        # What the base wrote is no skill that could be lost.
        old = {skill: test for skill, test in held.rows.items() if skill not in (TARGET, MEMORY)}
        _, target = held.rows.get(TARGET, (None, []))
        return ControllerInputs(
            self.training.controller, old, target, replay=self.replay, mix=self.mix
        )

    def _old(self, chat: Chat) -> _Old:
        """The old data that ewc names: so many rows as it takes, drawn by the recipe's seed from
        those that the chat template takes and that are not too long.

        Raises DataError where there is none that has an answer, or as ``readable`` does.
        """
        ewc = self.training.remedies.ewc
        if ewc is None or ewc.old is None:
            return _Old([])
        longest = self.training.max_tokens
        rows, note = load(ewc.old, "select", classes=classes_of(self.recipe, old=True))
        shuffled = random.Random(self.recipe.seed).sample(rows, len(rows))
        refused: list[str] = []
        usable = (
            (record, example)
            for record, example in _examples(shuffled, chat, refused)
            if example.loss_tokens
            and len(example.tokens) <= longest
            and chat.unreadable(example) is None
        )
        found = list(islice(usable, ewc.rows))
        if not found:
            raise DataError(
                f"{ewc.old.path}: train.remedies.ewc.old has no row with an answer and at most "
                f"{longest} tokens that the chat template takes; raise train.max_tokens, or name "
                f"other rows"
            )
        notes = [note] if note else []
        if refused:
            notes.append(
                f"{ewc.old.path}: {len(refused):,} rows are refused by the chat template and left "
                f"out of what ewc reads; the first: {refused[0]}"
            )
        return _Old(found, notes)

    def _weighed(self, records: Sequence[Record], chat: Chat, watch: Watch) -> _Weighed:
        """The rows' weights where a remedy weighs tokens by the base's probabilities."""
        remedies = self.training.remedies
        marked = any(map(is_masked, records))
        if remedies.stm is None and remedies.flow is None and not marked:
            return _Weighed()
        from replaykit.steps.score.logprobs import different_examples
        from replaykit.steps.train.remedies.weights import summary, weights

        examples = different_examples(records, chat)
        logprobs, _ = answer_logprobs(self.recipe, examples, watch)
        found = weights(records, examples, logprobs, remedies, chat, self.recipe.seed)
        told = summary(records, examples, logprobs, found, remedies, chat)
        if self.training.controller is not None:
            # Which replay comes, and how often, is decided on the way.
            told = told.model_copy(update={"share": None})
        return _Weighed(examples, found, told, _kept_nowhere(remedies.stm, examples, chat))


class _Old(NamedTuple):
    """Old data as ewc reads it."""

    rows: list[tuple[Record, Example]]
    notes: Sequence[str] = ()
    """What is said of rows that are left out."""


def _examples(
    records: Iterable[Record], chat: Chat, refused: list[str]
) -> Iterator[tuple[Record, Example]]:
    """The records that the chat template takes, with what the trainer sees of each; why it does not
    take the others goes to ``refused``.
    """
    for record in records:
        try:
            yield record, chat.example(record)
        except ChatError as error:
            refused.append(str(error))


@dataclass(frozen=True)
class _Weighed:
    """What a remedy that weighs tokens made of the rows: their examples and the weights of their
    answer tokens, by record id; nothing where there is no such remedy.
    """

    examples: dict[str, Example] = field(default_factory=dict)
    weights: dict[str, np.ndarray] | None = None
    summary: WeightSummary | None = None
    note: str = ""
    """What is said of texts that are to be kept and that no row has."""


def _kept_nowhere(stm: StmSettings | None, examples: Mapping[str, Example], chat: Chat) -> str:
    from replaykit.steps.train.remedies.weights import Kept

    found = Kept(chat, stm.keep).nowhere(examples.values()) if stm is not None else []
    if not found:
        return ""
    listed = ", ".join(map(repr, found))
    return (
        f"train.remedies.stm.keep: no answer has {listed}, by tokens of its own, so it keeps "
        "nothing there"
    )
