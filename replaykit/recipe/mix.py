"""How much of the training is replay, from which sources, and how the share moves."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)

from replaykit.errors import did_you_mean
from replaykit.recipe.base import FILES, Share, Strict

Replay = Literal["select", "generate", "buffer"]
Unit = Literal["rows", "tokens", "loss_tokens"]


def _equal_weights(value: Any) -> Any:
    # What is no name, such as a list in the list, is left to the validation.
    if isinstance(value, list) and all(isinstance(name, Hashable) for name in value):
        return dict.fromkeys(value, 1.0)
    return value


def _number_keys(value: Any) -> Any:
    """The keys as numbers where they are texts of numbers, which is all that JSON has for keys."""
    if not isinstance(value, dict):
        return value
    return {_number(key): inner for key, inner in value.items()}


def _number(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    try:
        return float(key)
    except ValueError:
        return key


def is_made(source: str) -> bool:
    """Whether a step makes the rows of this source; else it is a file of the user's own."""
    return source in get_args(Replay)


def is_source(name: str) -> bool:
    """Whether replay can come from what has this name: a step, or what looks like a file."""
    # A misspelt step would be taken for a file, so a file must look like one.
    return is_made(name) or "." in name or "/" in name


def _source_name(name: str) -> str:
    if is_source(name):
        return name
    near = did_you_mean(name, get_args(Replay))
    raise ValueError(
        f"must be 'select', 'generate', 'buffer', or rows of your own such as old.jsonl or ./old "
        f"(got '{name}'){near}"
    )


# A step, or a file, a folder or a Hub data set.
SourceName = Annotated[str, AfterValidator(_source_name)]
_NAME = {"anyOf": [{"enum": [*get_args(Replay)]}, {"type": "string", "pattern": "[./]"}]}
_WEIGHT = {"type": "number", "exclusiveMinimum": 0}
_WEIGHED = {"type": "object", "propertyNames": _NAME, "additionalProperties": _WEIGHT}
# The sources with their weights; a list gives each the same weight.
Sources = Annotated[
    dict[SourceName, PositiveFloat],
    BeforeValidator(_equal_weights),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _NAME}, _WEIGHED]}),
]


class Schedule(Strict):
    """How the share of replay moves from mix.ratio at the first step."""

    shape: Literal["linear", "cosine", "warm-down", "steps"] = "linear"
    """linear, cosine: from the first to the last step; warm-down: falls late; steps: in jumps."""
    to: float | None = Field(default=None, ge=0, lt=1)
    """The share at the last step, for linear, cosine and warm-down; null: 0, for warm-down only."""
    hold: float = Field(default=0.5, ge=0, lt=1)
    """For warm-down: the part of training, 0 to 1, before the share begins to fall."""
    at: Annotated[dict[float, float], BeforeValidator(_number_keys)] | None = None
    """For steps: the share from each part of training (0 to 1) on, such as {0.5: 0.1}."""

    @model_validator(mode="after")
    def _what_the_shape_needs(self) -> Schedule:
        if self.shape == "steps" and not self.at:
            raise ValueError("at: steps needs parts of training and shares, such as {0.5: 0.1}")
        if self.shape in ("linear", "cosine") and self.to is None:
            raise ValueError(f"to: {self.shape} needs the share of the last step")
        points = (self.at or {}).items()
        if any(not 0 <= part <= 1 or not 0 <= ratio < 1 for part, ratio in points):
            raise ValueError("at: parts of training are from 0 to 1, shares from 0 to below 1")
        return self


class Mix(Strict):
    """How much of the training is replay, and from which sources."""

    ratio: float = Field(default=0.05, ge=0, lt=1)
    """The share of replay in each optimiser step, replay over all, in units of unit."""
    unit: Unit = "rows"
    """What the share is counted in: rows, all tokens, or tokens that carry loss."""
    budget: Literal["add", "replace"] = "add"
    """add: replay on top of the target's epochs; replace: as many rows as without replay."""
    sources: Sources | None = None
    """Sources of replay and their weights: select, generate, buffer (the earlier tasks' rows, where
    there are tasks), or files of old data, such as {old.jsonl: 2, generate: 1}; a list weighs them
    alike; null: all that are made."""
    schedule: Schedule | None = None
    """How the share moves while training; null: it stays what it is."""
    skill: str = "skill"
    """The column of replay rows that names their skill, for min_rows and max_rows."""
    min_rows: dict[str, PositiveInt] = {}
    """Replay rows, by skill, that are trained on at least."""
    max_rows: dict[str, PositiveInt] = {}
    """Different replay rows, by skill, that are trained on at most."""
    near_duplicate: Share | None = 0.9
    """Jaccard similarity from which on a replay row repeats the target or another; null: off."""
    overlap: bool = True
    """Leave out rows, of the target too, that hold a prompt of eval."""
    against: Annotated[list[str], FILES] = []
    """Further evaluation sets that no row may hold: files, or lm_eval:TASK."""

    @model_validator(mode="after")
    def _floors_below_caps(self) -> Mix:
        over = [skill for skill, n in self.min_rows.items() if n > self.max_rows.get(skill, n)]
        if over:
            raise ValueError(
                f"min_rows: it asks for more rows of {', '.join(over)} than max_rows allows"
            )
        return self
