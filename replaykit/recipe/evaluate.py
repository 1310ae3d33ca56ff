"""Held-out rows: of the new task, and of the old skills that must not drop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, PositiveInt

from replaykit.recipe.base import Strict
from replaykit.recipe.data import Data, from_path

Score = Literal["exact", "numeric", "json", "cross_entropy"]


class Test(Data):
    """Held-out rows and how an answer to them is scored."""

    score: Score = "exact"
    """The same text, the same last number, the same JSON, or the loss of the reference answer."""
    max_tokens: PositiveInt = 256
    """Tokens of an answer, at most."""


TestOrPath = Annotated[Test, BeforeValidator(from_path, json_schema_input_type=str | Test)]


class Eval(Strict):
    """The target's held-out rows, and the old skills that must not drop."""

    target: TestOrPath | None = None
    """Held-out rows of the new task; null: it is not tested."""
    old: dict[str, TestOrPath] = {}
    """Held-out rows of each old skill, by its name."""
