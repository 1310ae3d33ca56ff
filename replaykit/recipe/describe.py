"""Targets for a model that hears or sees, written by a model that reads."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator

from replaykit.recipe.base import Strict
from replaykit.recipe.data import Prompts, PromptsOrPath

FIELD = re.compile(r"\{([^{}]+)\}")  # a column in a template


class Describe(Strict):
    """What the text model says of a recording or a picture, with a description of it in view."""

    rows: PromptsOrPath
    """The rows with the media and their attributes, in any columns."""
    template: str
    """The description, with columns in braces: "a {gender} voice, {duration} seconds"."""
    instructions: Annotated[list[str], Field(min_length=1)] = ["What can you hear?"]
    """What is asked; of several, the seed draws one for each row."""
    missing: Literal["refuse", "leave-out", "unknown"] = "refuse"
    """What becomes of a row without one of the attributes: refuse, an error; leave-out, it is left
    out; unknown, that word stands in the description."""
    column: str = "messages"
    """The column of what comes out that has the instruction and the answer."""
    temperature: NonNegativeFloat = 0.0
    """Of the answers; 0 is greedy."""
    max_tokens: PositiveInt = 512
    """Tokens of an answer, at most."""

    @field_validator("rows")
    @classmethod
    def _no_question_in_rows(cls, rows: Prompts) -> Prompts:
        if rows.prompt is not None:
            raise ValueError("prompt: the question is that of instructions; leave it out")
        return rows

    @field_validator("template")
    @classmethod
    def _names_columns(cls, template: str) -> str:
        if not FIELD.search(template):
            raise ValueError("it names no column; write one in braces, such as {gender}")
        return template

    @field_validator("instructions")
    @classmethod
    def _says_something(cls, instructions: list[str]) -> list[str]:
        if any(not text.strip() for text in instructions):
            raise ValueError("one of them is empty; write what is asked, or leave it out")
        again = sorted({text for text in instructions if instructions.count(text) > 1})
        if again:
            raise ValueError(f"'{again[0]}' stands there twice")
        return instructions

    @property
    def attributes(self) -> list[str]:
        """The columns that the template names, each once."""
        return list(dict.fromkeys(FIELD.findall(self.template)))
