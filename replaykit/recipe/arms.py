"""Several trainings that are compared."""

from __future__ import annotations

from pydantic import Field

from replaykit.recipe.base import Strict
from replaykit.recipe.mix import Schedule, Sources
from replaykit.recipe.remedies import Remedies


class Arm(Strict):
    """One training of several: the recipe's mix and remedies, with these keys in their place.

    Null keeps what the recipe says.
    """

    ratio: float | None = Field(default=None, ge=0, lt=1)
    """Instead of mix.ratio; without a schedule of the arm's own, it is constant."""
    sources: Sources | None = None
    """Instead of mix.sources."""
    schedule: Schedule | None = None
    """Instead of mix.schedule."""
    remedies: Remedies | None = None
    """Instead of all of train.remedies; {} for none."""
