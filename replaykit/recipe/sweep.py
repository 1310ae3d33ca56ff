"""Several shares of replay, or other settings, compared at the same compute."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from replaykit.recipe.base import Strict

Ratio = Annotated[float, Field(ge=0, lt=1)]
# The sections that decide a training; all else would be another question, or another measure.
SWEPT = ("select", "generate", "rewrite", "augment", "mix", "train")
# What makes the arms alike in compute.
LENGTH = ("train.steps", "train.epochs", "train.batch_rows")


class Sweep(Strict):
    """The points of `replaykit sweep` and `advise`: every ratio with every value of the other keys.

    All have the same number of optimiser steps, and of rows in them, so they differ in what the
    rows are. A point without replay is always among them.
    """

    ratio: list[Ratio] = []
    """The shares of replay, in place of mix.ratio and mix.schedule; empty: 0, 0.01, 0.05 and 0.1,
    or with other keys in over the recipe's own ratio."""
    over: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Other keys of the recipe with their values, such as {mix.sources: [[select], [generate]]}."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Each point is trained once with each: the seed of its order, mixture and training; null: the
    recipe's seed alone."""
    steps: PositiveInt | None = None
    """Optimiser steps of every point; null: train.steps, or those of the point with the most."""
    controls: bool = True
    """Train two controls too: the target alone at its own length, where that is shorter; and, with
    a pool, half of the rows from all of it, as an upper bound of what replay can keep."""

    @field_validator("ratio", "seeds")
    @classmethod
    def _each_once(cls, values: list[Any] | None) -> list[Any] | None:
        again = sorted({value for value in values or [] if (values or []).count(value) > 1})
        if again:
            raise ValueError(f"{', '.join(map(str, again))} stands there twice")
        return values

    @field_validator("over")
    @classmethod
    def _what_can_be_swept(cls, over: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key in over:
            if key in ("mix.ratio", "mix.schedule"):
                raise ValueError(f"{key}: the shares stand under ratio")
            if key in LENGTH:
                raise ValueError(
                    f"{key}: every point has the same number of steps and rows, so that only what "
                    "is in them differs; `steps` states the number"
                )
            section, dot, _ = key.partition(".")
            if not dot or section not in SWEPT:
                raise ValueError(
                    f"{key}: all points are compared with one base on the same items, so keys of "
                    f"{', '.join(SWEPT)} alone can be swept, such as mix.unit"
                )
        return over
