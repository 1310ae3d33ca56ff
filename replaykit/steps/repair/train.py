"""The training of a repair: the KL divergence from the base, and nothing else, on its own rows."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record
from replaykit.errors import DataError, RecipeError
from replaykit.hashing import derive_seed
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.recipe import Recipe
from replaykit.recipe.repair import Repair
from replaykit.recipe.train import ADAPTER_LEARNING_RATE, FULL_PARAMETERS, Train, full_rate
from replaykit.runs import Watch, read_json, write_json
from replaykit.steps.repair.points import SavePoints, saved

TRAINED = "trained.json"
"""What is known of the training once it is over."""
LOGGED = 10  # steps, at most, between two lines of the log
SAVED = 50  # steps between two checkpoints, from which a training goes on


def training_of(settings: Repair, parameters: int) -> Train:
    """How a model of so many parameters is trained: of the base's own answers the loss is the KL
    divergence at temperature 1 from the base to the model, of rows of the target their own.
    """
    method = settings.method
    if method == "auto":
        method = "full" if parameters <= FULL_PARAMETERS else "lora"
    rate = settings.learning_rate
    if rate is None:
        rate = full_rate(parameters) if method == "full" else ADAPTER_LEARNING_RATE
    distill = {"weight": 1.0, "temperature": 1.0, "rows": "replay", "teacher": "copy"}
    options: dict[str, Any] = {
        "method": method,
        "learning_rate": rate,
        # So that a point is the same however many steps follow it.
        "schedule": "constant",
        "warmup": 0.0,
        "steps": settings.steps,
        "batch_rows": settings.batch_rows,
        "save_every": SAVED,
        "log_every": min(LOGGED, settings.points[0]),
        "conflict": False,
        "remedies": {"distill": distill},
    }
    return Train.model_validate(options)


@dataclass(frozen=True)
class Training:
    """Which model is trained, towards which base, on which rows, and where."""

    recipe: Recipe
    """Its model is the base."""
    tuned: str
    """A whole model."""
    settings: Repair
    training: Train
    rows: Sequence[Record]
    """The base's own."""
    target: Sequence[Record]
    """Rows of the new task, for ``settings.rehearse``."""
    folder: Path

    @property
    def points(self) -> Path:
        return self.folder / "points"

    def run(self, chat: Chat, watch: Watch) -> tuple[float, float]:
        """Trains, and leaves the points; returns the KL divergence a token of the first and the
        last log. What was trained before stays.

        Raises RecipeError for a tuned model with other tokens than the base, and what ``fit``
        raises.
        """
        from replaykit.steps.train.fit import Base, Extras, fit

        found = read_json(self.folder / TRAINED)
        if found is not None:
            return found["kl"][0], found["kl"][1]
        self._check()
        self.points.mkdir(exist_ok=True)
        under_way = self.folder / "training"
        trained = fit(
            self._order(chat),
            Base(self.tuned, chat),
            self.training,
            seed=self.recipe.seed,
            folder=under_way,
            extras=Extras(
                teacher=Base(str(self.recipe.model), chat, self.recipe.revision),
                callbacks=[SavePoints(self.points, self.settings.points)],
                what="repair",
            ),
            watch=watch,
        )
        missing = [step for step in self.settings.points if not saved(self.points, step).exists()]
        assert not missing, f"points {missing} were not saved"
        logs = [log["distill/kl"] for log in trained.losses if "distill/kl" in log]
        write_json(self.folder / TRAINED, {"kl": [logs[0], logs[-1]]})
        shutil.rmtree(under_way)  # its model is the last point
        return logs[0], logs[-1]

    def _check(self) -> None:
        base = loading.vocabulary_size(str(self.recipe.model), self.recipe.revision)
        tuned = loading.vocabulary_size(self.tuned)
        if base != tuned:
            problem = (
                f"repair: the tuned model has {tuned:,} tokens and the base {base:,}, so their "
                f"probabilities cannot be compared; name the base that it was tuned from"
            )
            raise RecipeError("the command line", [problem])

    def _order(self, chat: Chat) -> list[PlannedRow]:
        """The rows of every step, those of the target first. Raises DataError where the model can
        read none of a kind.
        """
        settings = self.settings
        kinds = [(self.target, settings.rehearsed, "of the target")]
        own = settings.batch_rows - settings.rehearsed
        kinds.append((self.rows, own, "that the base wrote"))
        streams = [
            (self._evenly(self._usable(rows, chat, what), count * settings.steps, what), count)
            for rows, count, what in kinds
            if count
        ]
        planned = []
        for step in range(settings.steps):
            for rows, count in streams:
                some = rows[step * count : (step + 1) * count]
                planned += [PlannedRow(step, record) for record in some]
        return planned

    def _evenly(self, rows: Sequence[Record], wanted: int, what: str) -> list[Record]:
        """So many of the rows, none of them more than once oftener than another."""
        found: list[Record] = []
        while len(found) < wanted:
            seed = derive_seed(self.recipe.seed, "repair", what, len(found))
            found += random.Random(seed).sample(rows, len(rows))
        return found[:wanted]

    def _usable(self, rows: Sequence[Record], chat: Chat, what: str) -> list[Record]:
        """Those that the model can read and learn from. Raises DataError where there is none."""
        found = [record for record in rows if self._fits(record, chat)]
        if not found:
            raise DataError(
                f"repair: none of the {len(rows):,} rows {what} has an answer, and with its "
                f"question at most {self.training.max_tokens:,} tokens; `replaykit peek` shows them"
            )
        return found

    def _fits(self, record: Record, chat: Chat) -> bool:
        example = chat.example(record)
        short = len(example.tokens) <= self.training.max_tokens
        return short and example.loss_tokens > 0 and chat.unreadable(example) is None
