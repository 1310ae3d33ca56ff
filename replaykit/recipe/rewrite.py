"""The target in the model's own words."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from replaykit.recipe.base import Strict


class Rewrite(Strict):
    """The target in the model's own words. What it makes replaces the target in the mix."""

    method: Literal["min-change", "paraphrase"] = "min-change"
    """min-change repairs the model's own answer; paraphrase lets it answer with the
    reference in view.
    """
    verify: Literal["exact", "numeric"] = "exact"
    """How a final answer is compared with the reference's."""
    max_edit: float = Field(default=0.7, gt=0, le=1)
    """An edit may be this part of the reference's distance to the model's answer, at most."""
    editor: str | None = None
    """The model that repairs; null is the model itself."""
    max_tokens: PositiveInt = 1024
    """Tokens of a reply, at most."""
