"""What a step found, as one frozen, typed object: the manifest holds it, and nothing else does.

    class ScoreResult(Result):
        rows: int

    ScoreResult(rows=3).to_json()                 ->  {"rows": 3}
    ScoreResult.model_validate({"rows": 3}).rows  ->  3

Tables, page, card, verdict and ``--json`` are views of it.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    """A result, or a part of one. An unknown key is an error, so no view reads what is absent."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON. A None stays, so all results of a step have the same keys."""
        return self.model_dump(mode="json")


class Noted(Result):
    """A result with sentences that the user must read."""

    notes: list[str] = Field(default=[])
    """Such as which rows were left out, and why."""

    def noted(self, *notes: str) -> Self:
        """The same with these sentences first; an empty one says nothing."""
        said = [note for note in notes if note]
        return self.model_copy(update={"notes": [*said, *self.notes]})
