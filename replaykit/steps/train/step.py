"""The step train: each arm on its mixture."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit.data.jsonl import read_jsonl
from replaykit.data.planned import PlannedRow, read_plan
from replaykit.data.record import TARGET, Record
from replaykit.errors import DataError
from replaykit.recipe import Recipe, need
from replaykit.recipe.evaluate import Test
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.runs import Manifest, Step, Watch, read_manifest
from replaykit.steps.evaluate.skills import check_tests
from replaykit.steps.inputs import load, made_facts, test_facts, tests
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
from replaykit.steps.train.result import TrainResult, WeightSummary

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


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[TrainResult]]:
    """Each arm on its mixture. Of several processes that torchrun started, the first one holds the
    folder.
    """
    for todo in todos(recipe, context):
        if int(os.environ.get("RANK", "0")) == 0:
            yield do_step(todo, recipe, context)
            continue
        folder = todo.folder(recipe, context)
        manifest = read_manifest(folder)
        if context.force or manifest is None or manifest.inputs != todo.inputs:
            todo.work(Step(todo.name, folder, todo.inputs, todo.arm))


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
            tests_of={skill: (test, load(test, TARGET)) for skill, test in tests(recipe).items()},
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
    tests_of: Mapping[str, tuple[Test, Sequence[Record]]] = field(default_factory=dict)
    """The held-out rows by skill, for a controller."""
    replay: Sequence[Record] = ()
    """All replay rows that a controller may draw from."""
    mix: Mix = field(default_factory=Mix)
    """How the mixture was made, for a controller."""
    what: str = "train"
    """What the watch is told is being done."""

    def work(self, folder: Path, chat: Chat, watch: Watch) -> TrainResult:
        """Trains in the folder; what it leaves there is said in ``fit``."""
        from replaykit.steps.train.fit import Base, Extras, fit

        recipe = self.recipe
        check_tests(chat, self.tests_of)  # what eval would refuse after the training
        watched = self._watched()
        records = [row.record for row in self.rows]
        if watched is not None:
            records += watched.replay
        weighed = self._weighed(records, chat, watch)
        old = self._old(chat)
        extras = Extras(
            weights=weighed.weights,
            old=[record for record, _ in old],
            watched=watched,
            what=self.what,
            examples=weighed.examples | {record.id: example for record, example in old},
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
        return trained.model_copy(update=facts)

    def _watched(self) -> ControllerInputs | None:
        """What a controller tests and draws from, where there is one."""
        if self.training.controller is None:
            return None
        from replaykit.steps.train.controller import ControllerInputs

        old = {skill: test for skill, test in self.tests_of.items() if skill != TARGET}
        _, target = self.tests_of.get(TARGET, (None, []))
        return ControllerInputs(
            self.training.controller, old, target, replay=self.replay, mix=self.mix
        )

    def _old(self, chat: Chat) -> list[tuple[Record, Example]]:
        """The old data that ewc names: so many rows as it takes, drawn by the recipe's seed from
        those that are not too long.

        Raises DataError where all are too long, or have no answer.
        """
        ewc = self.training.remedies.ewc
        if ewc is None or ewc.old is None:
            return []
        longest = self.training.max_tokens
        rows = load(ewc.old, "select")
        shuffled = random.Random(self.recipe.seed).sample(rows, len(rows))
        examples = ((record, chat.example(record)) for record in shuffled)
        usable = (
            (record, example)
            for record, example in examples
            if example.loss_tokens and len(example.tokens) <= longest
        )
        found = list(islice(usable, ewc.rows))
        if not found:
            raise DataError(
                f"{ewc.old.path}: train.remedies.ewc.old has no row with an answer and at most "
                f"{longest} tokens; raise train.max_tokens, or name other rows"
            )
        return found

    def _weighed(self, records: Sequence[Record], chat: Chat, watch: Watch) -> _Weighed:
        """The rows' weights where a remedy weighs tokens by the base's probabilities."""
        remedies = self.training.remedies
        if remedies.stm is None and remedies.flow is None:
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
        return _Weighed(examples, found, told)


@dataclass(frozen=True)
class _Weighed:
    """What a remedy that weighs tokens made of the rows: their examples and the weights of their
    answer tokens, by record id; nothing where there is no such remedy.
    """

    examples: dict[str, Example] = field(default_factory=dict)
    weights: dict[str, np.ndarray] | None = None
    summary: WeightSummary | None = None
