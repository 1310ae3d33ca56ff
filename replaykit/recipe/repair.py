"""How a model that is tuned already is brought back towards its base."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from replaykit.recipe.base import Strict
from replaykit.recipe.data import Part

PARTS = (32, 16, 8, 4, 2, 1)  # of the steps: where a model is measured that is given no ``every``


class Repair(Strict):
    """Some hundred steps of the KL divergence from the base, on rows that the base writes itself;
    the point on the way is kept that the old skills allow and that knows the new one best.
    """

    rows: PositiveInt = 1000
    """Rows that the base writes; with fewer than steps * batch_rows they repeat evenly."""
    steps: PositiveInt = 200
    """Optimiser steps."""
    every: PositiveInt | None = None
    """Steps between two points that are measured, the last one always being one; null: after a
    32nd, a 16th and so on to half of the steps and all of them, since most is lost and won in the
    first."""
    batch_rows: PositiveInt = 16
    """Rows of one optimiser step."""
    rehearse: Part | None = None
    """The part of each step that are rows of the recipe's target, trained on as they are, so that
    the new skill stays; null: none, the base's own rows alone."""
    method: Literal["auto", "full", "lora"] = "auto"
    """What learns; auto: all parameters up to 1.6 billion of them, else an adapter."""
    learning_rate: PositiveFloat | None = None
    """The rate after warm-up, which does not fall; null: of full it falls with the root of the
    parameters, 2e-5 at 1.5 billion, and of an adapter it is 2e-4."""
    draw_tokens: PositiveInt = 256
    """Tokens of a question and of an answer of the base, at most, where the recipe has no section
    generate."""

    @model_validator(mode="after")
    def _measured_on_the_way(self) -> Repair:
        if self.every is not None and self.every > self.steps:
            raise ValueError(
                f"every: a point every {self.every:,} steps is none in {self.steps:,}; say "
                f"{self.steps:,} or fewer"
            )
        if self.rehearse is not None and self.batch_rows < 2:
            raise ValueError("rehearse: a step of one row has no part; raise batch_rows")
        return self

    @property
    def points(self) -> list[int]:
        """The steps after which the model is measured."""
        if self.every is None:
            parts = [self.steps // part for part in PARTS]
        else:
            parts = [*range(self.every, self.steps + 1, self.every), self.steps]
        return sorted({step for step in parts if step > 0})

    @property
    def rehearsed(self) -> int:
        """Rows of the target in each step."""
        if self.rehearse is None:
            return 0
        return min(max(1, round(self.rehearse * self.batch_rows)), self.batch_rows - 1)
