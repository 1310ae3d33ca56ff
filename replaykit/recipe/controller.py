"""Old skills are tested while training, and the share of replay follows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from replaykit.recipe.base import Share, Strict

NO_TASKS = (
    "train.controller tests rows while it trains, and a task of lm-eval cannot be asked there; "
    "name held-out rows in a file, and measure the task after the training, by `replaykit eval "
    "--base MODEL --tuned MODEL` with a recipe whose eval.old has it"
)
"""What is said of a task of lm-eval beside a controller."""


class ControllerSettings(Strict):
    """Old skills are tested while training, and the share of replay follows.

    A drop is a part of the base's score: 0.05 is a fall from 0.80 to 0.76. Without eval.old only
    the loss on eval.target is watched, for patience.
    """

    every: PositiveInt = 500
    """Optimiser steps between two tests."""
    items: PositiveInt = 200
    """Rows of each old skill in a test, the same in every one."""
    max_drop: Share = 0.05
    """The ratio grows where the lower bound of a skill's drop is above this."""
    factor: float = Field(default=1.2, gt=1)
    """What the ratio is multiplied by when it grows, and divided by when it shrinks."""
    max_ratio: float = Field(default=0.5, gt=0, lt=1)
    """The ratio grows no further than this."""
    relax_drop: NonNegativeFloat = 0.02
    """A test is calm where the drop of every skill is below this."""
    relax_after: PositiveInt = 3
    """Calm tests in a row after which the ratio shrinks, to mix.ratio at least."""
    remedy: Literal["ewc", "distill", "project"] | None = None
    """One of train.remedies, on only while skills drop; null switches none."""
    remedy_drop: Share = 0.03
    """The remedy is switched on where the lower bound of a skill's drop is above this."""
    remedy_off: NonNegativeFloat = 0.015
    """The remedy is switched off where the drop of every skill is below this."""
    by_skill: bool = False
    """Give the skill that drops most the most of the replay."""
    patience: PositiveInt | None = 5
    """Tests without a lower loss on eval.target after which training ends; null: it never does."""

    def missing(self, *, old: bool, target: bool) -> list[str]:
        """What it cannot do without and does not have: tests of old skills, and for ``patience``
        held-out rows of the target. With these alone it watches only the loss on the target.
        """
        problems = []
        watches_target = self.patience is not None and target
        moves = self.by_skill or self.remedy is not None
        if not old and (moves or not watches_target):
            problems.append(
                "train.controller: it tests old skills; name their held-out rows in eval.old"
            )
        if self.patience is not None and not target:
            problems.append(
                "train.controller.patience: it needs eval.target, held-out rows of the target; or "
                "say null"
            )
        return problems
