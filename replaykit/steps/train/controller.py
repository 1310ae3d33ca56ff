"""Old skills are tested while the model trains, and the share of replay follows: the controller as
a Trainer callback.

    controller = Controller(inputs, chat, folder=folder)
    trainer.add_callback(controller)
    controller.ratio(1200)          # what the decisions so far say of step 1,200
    folder / "events.jsonl"         # one decision a line

What to do is decided in ``decisions``; here the live model is tested. An item of a right/wrong
skill is right where the most probable token at every position of the reference answer is the
reference's own: just then greedy decoding writes the reference, token by token, and one forward
pass sees it, without generating. It is stricter than the evaluation afterwards, which lets other
wordings pass, and it is the same for base and tuned. A skill of cross_entropy, and one of whose
items the base writes fewer than a fifth in this way, so that too little could be lost, is scored by
the mean probability of the answer's tokens instead, exp(-mean negative log-likelihood) of each
item.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
import transformers
from transformers.trainer_callback import ExportableState

from replaykit.data.record import Record
from replaykit.errors import DataError, EngineError, RecipeError, RunError
from replaykit.hashing import fingerprint
from replaykit.model.chat import Chat
from replaykit.model.classifier import TextClassifier
from replaykit.model.lm_head import Batch, Head, as_trained, evaluating, split_head
from replaykit.model.logprobs import IGNORED, target_logits
from replaykit.model.reads import stated_length
from replaykit.recipe.controller import NO_TASKS, ControllerSettings
from replaykit.recipe.evaluate import Test
from replaykit.recipe.mix import Mix
from replaykit.runs import Watch, unwatched
from replaykit.steps.train import checkpoints
from replaykit.steps.train.batches import Row, TokenisedRows, to_device
from replaykit.steps.train.decisions import Decider
from replaykit.steps.train.events import ControllerState, Event
from replaykit.steps.train.remedies import Remedy
from replaykit.steps.train.texts import collator, of_base

log = logging.getLogger(__name__)

# Of one forward pass, with padding.
BATCH_TOKENS = 4096
# The part of the items that the base must write exactly for a skill to be scored so.
LEAST_EXACT = 0.2
WATCHED = "tests of old skills"
Kind = Literal["exact", "probability"]


@dataclass(frozen=True)
class ControllerInputs:
    """What a controller tests while training, and what it may draw replay from."""

    settings: ControllerSettings
    old: Mapping[str, tuple[Test, Sequence[Record]]]
    """The tests of old skills with their rows, by name."""
    target: Sequence[Record] = ()
    """The target's held-out rows; needed for ``settings.patience``."""
    replay: Sequence[Record] = ()
    """All replay rows that can be trained on."""
    mix: Mix = field(default_factory=Mix)
    """The settings by which the mixture was made; training begins at its ratio."""


@dataclass(frozen=True)
class Answer:
    """How one row was answered: whether exactly, and how many nats its answer costs, over so many
    tokens.
    """

    exact: bool
    nll: float
    tokens: int

    def score(self, kind: Kind) -> float:
        return float(self.exact) if kind == "exact" else math.exp(-self.nll / self.tokens)


class Controller(transformers.TrainerCallback, ExportableState):
    """Tests every ``settings.every`` steps and decides. Its state is in every checkpoint, and read
    from there on resume.

    Of the first ``settings.items`` rows of each test, those are taken that fit into the model. The
    remedy ``settings.remedy`` is switched on and off among ``remedies``. The Trainer's own way to
    restore callbacks (restore_callback_states_from_checkpoint) stays off. Raises RecipeError where
    there is nothing to test.
    """

    def __init__(
        self,
        inputs: ControllerInputs,
        chat: Chat,
        *,
        folder: Path,
        remedies: Sequence[Remedy] = (),
        watch: Watch = unwatched,
    ):
        _check(inputs)
        self.inputs = inputs
        self.settings = inputs.settings
        self.start = inputs.mix.ratio
        self.watch = watch
        self.path = folder / "events.jsonl"
        self._whole = {
            skill for skill, (test, _) in inputs.old.items() if test.score == "cross_entropy"
        }
        self._stops = torch.tensor(chat.stop, dtype=torch.int64)
        self._collate = collator(chat)
        n = self.settings.items
        old = {skill: records[:n] for skill, (_, records) in inputs.old.items()}
        target = inputs.target[:n]
        self._rows = {
            skill: _rows(records, chat, last_answer=skill not in self._whole)
            for skill, records in old.items()
        }
        self._target = _rows(target, chat, last_answer=False)
        # A checkpoint remembers the items: its scores are of no use for others.
        tested = [*old.items(), ("", target)]
        self._items = fingerprint(
            [[skill, [record.id for record in records]] for skill, records in tested]
        )
        self._remedies = [remedy for remedy in remedies if remedy.name == self.settings.remedy]
        # None until the base is measured.
        self._decider: Decider | None = None
        self._kinds: dict[str, Kind] = {}
        self._head: Head | None = None

    # --- what holds -------------------------------------------------------------------------------

    def ratio(self, step: int) -> float:
        """The share of replay in the rows of a step. A decision after step k holds from step k + 2
        on, see ``Decider.at``.
        """
        return self._decider.ratio_at(step) if self._decider else self.start

    def weights(self, step: int) -> dict[str, float] | None:
        """Each skill's part of the replay in a step, their sum 1; None where ``settings.by_skill``
        is off.
        """
        if not self.settings.by_skill:
            return None
        equal = dict.fromkeys(self._rows, 1 / len(self._rows))
        return self._decider.weights_at(step) if self._decider else equal

    @property
    def remedy_on(self) -> bool | None:
        """Whether the remedy is on, from the next step on; None where none is controlled."""
        if self.settings.remedy is None:
            return None
        return bool(self._decider and self._decider.remedy)

    @property
    def stopped(self) -> bool:
        """Whether it was decided that training ends here."""
        return bool(self._decider and self._decider.stopped)

    @property
    def events(self) -> list[Event]:
        """The tests and decisions so far."""
        return list(self._decider.events) if self._decider else []

    # --- when the Trainer calls -------------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Measures the base before the first step, or takes it and all decisions from the
        checkpoint.
        """
        self._see(model)
        saved = _saved_in(state.stateful_callbacks)
        if saved is not None:
            self.take(saved)
        elif state.global_step > 0:
            raise RunError(
                "the checkpoint was made without train.controller; remove the checkpoints to train "
                "anew"
            )
        else:
            self.watch(WATCHED, 0, state.max_steps // self.settings.every, "the base")
            self._begin(model)
        self._switch()
        if state.is_world_process_zero:
            # Anew, since a run that was cut short may have written decisions after its checkpoint.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(map(_line, self.events)), encoding="utf-8")
        if self.stopped:
            # The Trainer looks at it after one more step; ``fit`` does not start it at all.
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Tests, decides and writes the decision down, where the step is one of a test."""
        if state.global_step % self.settings.every or self._decider is None:
            return
        skills, loss = self._measure(model)
        event = self._decider.decide(state.global_step, self._scores(skills), loss)
        self._switch()
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(event))
        log.info("step %d: %s", event.step, event.reason)
        tests = state.max_steps // self.settings.every
        self.watch(WATCHED, len(self._decider.events), tests, _noted(event))
        if event.stop:
            control.should_training_stop = control.should_log = True

    # --- state ------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into trainer_state.json; nothing before the base is measured."""
        attributes = {"controller": self.saved().to_json()} if self._decider else {}
        return {"args": {}, "attributes": attributes}

    def saved(self) -> ControllerState:
        """The state once the base is measured."""
        assert self._decider is not None, "the base is measured before there is state"
        return ControllerState(items=self._items, kinds=self._kinds, decider=self._decider.state())

    def take(self, state: ControllerState) -> None:
        """Takes back what ``saved`` gave. Raises RunError where the items of the tests are others
        than then.
        """
        if state.items != self._items:
            raise RunError(
                "the rows of eval have changed since the checkpoint; put them back, or remove the "
                "checkpoints to train anew"
            )
        self._kinds = dict(state.kinds)
        self._decider = Decider(self.settings, {}, ratio=self.start)
        self._decider.restore(state.decider)

    def restore(self, checkpoint: str | Path) -> None:
        """Reads the state from a checkpoint's folder before the Trainer does, so that ``stopped``
        and ``ratio`` are known.
        """
        saved = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
        state = _saved_in(saved.get("stateful_callbacks"))
        if state is not None:
            self.take(state)

    # --- the tests --------------------------------------------------------------------------------

    def _see(self, model: Any) -> None:
        """Finds the model's head, and leaves out the rows that are too long for the model."""
        self._head = split_head(model) if _is_whole(model) else None
        limit = stated_length(model.config) or 1 << 30
        self._rows = {
            skill: _fitting(rows, limit, f"eval.old.{skill}") for skill, rows in self._rows.items()
        }
        if self._target:
            self._target = _fitting(self._target, limit, "eval.target")

    def _begin(self, model: Any) -> None:
        """Measures the untrained model, and chooses how each skill is scored."""
        skills, loss = self._measure(model)
        for skill, items in skills.items():
            exact = skill not in self._whole and fmean(item.exact for item in items) >= LEAST_EXACT
            self._kinds[skill] = "exact" if exact else "probability"
        self._decider = Decider(
            self.settings, self._scores(skills), ratio=self.start, base_loss=loss
        )

    def _scores(self, skills: Mapping[str, Sequence[Answer]]) -> dict[str, list[float]]:
        return {
            skill: [item.score(self._kinds[skill]) for item in items]
            for skill, items in skills.items()
        }

    def _measure(self, model: Any) -> tuple[dict[str, list[Answer]], float | None]:
        """The items of every old skill, and the loss on the target in nats a token; the same in all
        processes.
        """
        with evaluating(model), as_trained(model):
            skills = {skill: self._answered(model, rows) for skill, rows in self._rows.items()}
            target = self._answered(model, self._target)
        loss = None
        if target:
            loss = sum(item.nll for item in target) / sum(item.tokens for item in target)
        found = [(skills, loss)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # All processes decide by the numbers of the first: another GPU may round otherwise.
            torch.distributed.broadcast_object_list(found)
        return found[0]

    @torch.no_grad()
    def _answered(self, model: Any, rows: Sequence[Row]) -> list[Answer]:
        """An answer for each row, in order; rows of like length go through the model together."""
        pair = model.config.is_encoder_decoder
        items: dict[int, Answer] = {}
        for places in _batches([len(row["tokens"]) + len(row["labels"]) for row in rows]):
            batch = self._collate([rows[place] for place in places])
            if self._decider is None:
                batch = of_base(batch)
            batch = to_device(batch, model.device)
            if pair:
                batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(
                    labels=batch["labels"]
                )
            where = batch["labels"] != IGNORED
            wrong, nll = self._tokens(model, batch)
            # The row of each answer token, to add up what they cost.
            row = where.nonzero()[:, 0]
            wrongs = torch.bincount(row, weights=wrong.double(), minlength=len(places)).tolist()
            sums = torch.bincount(row, weights=nll.double(), minlength=len(places)).tolist()
            counts = where.sum(dim=1).tolist()
            for place, bad, total, count in zip(places, wrongs, sums, counts, strict=True):
                if math.isnan(total):
                    raise EngineError(f"{_DIVERGED}; {checkpoints.last_whole(self.path.parent)}")
                items[place] = Answer(bad == 0, total, count)
        return [items[place] for place in range(len(rows))]

    def _tokens(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every answer token, [n], in order: whether greedy decoding differs, and its nats.

        One token that ends a turn is as good as another: either way the answer ends there.
        """
        stops = self._stops.to(batch["labels"].device)
        wrong = []
        nll = []
        for logits, targets in target_logits(model, self._head, batch):
            best = logits.argmax(dim=1)
            both_end = torch.isin(best, stops) & torch.isin(targets, stops)
            wrong.append((best != targets) & ~both_end)
            nll.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        return torch.cat(wrong), torch.cat(nll)

    def _switch(self) -> None:
        for remedy in self._remedies:
            remedy.on = bool(self.remedy_on)


_DIVERGED = (
    "the model's probabilities are not numbers any more: the training has diverged. A lower "
    "train.learning_rate or train.max_grad_norm usually mends it"
)


def _saved_in(callbacks: Any) -> ControllerState | None:
    """The controller's state among those of all callbacks, as trainer_state.json has them; None
    where it has none.
    """
    own = (callbacks or {}).get(Controller.__name__, {}).get("attributes")
    return ControllerState.model_validate(own["controller"]) if own else None


def _check(inputs: ControllerInputs) -> None:
    """Raises RecipeError, before a model is loaded, where there is nothing to test."""
    problems = inputs.settings.missing(old=bool(inputs.old), target=bool(inputs.target))
    problems += [
        f"eval.old.{skill}: it has no rows to test"
        for skill, (_, records) in inputs.old.items()
        if not records
    ]
    problems += [
        f"eval.old.{skill}: {NO_TASKS}"
        for skill, (test, _) in inputs.old.items()
        if test.score == "lm_eval"
    ]
    if problems:
        raise RecipeError("the recipe", problems)


def _rows(records: Sequence[Record], chat: Chat, *, last_answer: bool) -> list[Row]:
    """Tokenised rows that have an answer; with ``last_answer`` only that one is to be written, up
    to what ends it.
    """
    data = TokenisedRows(records, chat)
    rows = [data[index] for index in range(len(data))]
    # A text has one label, or a row of them, and not an answer to be written.
    if last_answer and not isinstance(chat, TextClassifier):
        rows = [{**row, "labels": _last_answer(row["labels"], chat.stop)} for row in rows]
    return [row for row in rows if bool((row["labels"] != IGNORED).any())]


def _fitting(rows: Sequence[Row], limit: int, name: str) -> list[Row]:
    """The rows of at most so many tokens. Raises DataError where none is left."""
    if not rows:
        raise DataError(f"{name}: none of its rows has an answer")
    kept = [row for row in rows if len(row["tokens"]) <= limit]
    if not kept:
        raise DataError(
            f"{name}: each of its {len(rows):,} rows is longer than the {limit:,} tokens that the "
            f"model reads"
        )
    return kept


def _last_answer(labels: torch.Tensor, stops: Sequence[int]) -> torch.Tensor:
    """Labels [length] of the last run of answer tokens alone, up to and with the first that ends a
    turn.
    """
    carries = (labels != IGNORED).tolist()
    last = max((place for place, on in enumerate(carries) if on), default=-1)
    first = last
    while first > 0 and carries[first - 1]:
        first -= 1
    end = next((place for place in range(first, last) if int(labels[place]) in stops), last)
    kept = torch.full_like(labels, IGNORED)
    kept[first : end + 1] = labels[first : end + 1]
    return kept


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of rows, of like length together, at most BATCH_TOKENS with padding in each batch, or
    a single row.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and lengths[place] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _is_whole(model: Any) -> bool:
    """Whether the weights of the head are all here, and not a part of them on each of several
    GPUs.
    """
    head = model.get_output_embeddings()
    weight: Any = getattr(head, "weight", None)
    return type(weight) is torch.nn.Parameter and weight.dim() == 2 and not hasattr(weight, "ds_id")


def _noted(event: Event) -> str:
    replay = f"replay {100 * event.ratio:.3g} %"
    return f"{replay}, {event.reason}" if event.changes else replay


def _line(event: Event) -> str:
    return json.dumps(event.to_json(), ensure_ascii=False) + "\n"
