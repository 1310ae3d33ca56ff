"""How the chat template is used."""

from __future__ import annotations

from datetime import date
from typing import Any

from pydantic import field_validator

from replaykit.recipe.base import Strict


class ChatOptions(Strict):
    """How the chat template is used; its parts by hand, for a tokenizer without a usable one."""

    thinking: bool | None = None
    """Whether the model may think before it answers; null: only where it always does."""
    date: str = "2025-01-01"
    """What a template that asks for today's date is told, YYYY-MM-DD; so results do not age."""
    pre_query: str | None = None
    """By hand: the text before the first question, BOS included; null: the tokenizer's template."""
    answer_header: str | None = None
    """By hand: the text from the end of a question to the answer; null: no answers are needed."""
    stop: list[str] = []
    """Further texts, of one token each, that end a turn; by hand, the first ends an answer."""

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads a bare 2025-06-01 as a date.
        if isinstance(value, date):
            return value.isoformat()
        return value

    @field_validator("date")
    @classmethod
    def _is_a_date(cls, text: str) -> str:
        date.fromisoformat(text)
        return text
