"""The target in the model's own words."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from replaykit.recipe.base import MACHINE, Share, Strict
from replaykit.recipe.evaluate import Judge

Method = Literal["self-output", "min-change", "paraphrase", "cascade", "auto"]
Verifier = Literal[
    "exact",
    "normalised",
    "choice",
    "numeric",
    "symbolic",
    "json",
    "regex",
    "json_schema",
    "contains",
    "code",
    "judge",
]
# What the row's own answer is no reference for: a pattern, a schema.
APART = ("regex", "json_schema")
# The name of an environment variable; a key has small letters or a dash.
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class Verify(Strict):
    """How a new answer is verified. A bare word means ``{name: ...}``."""

    name: Verifier = "exact"
    """exact, normalised, choice, numeric, symbolic, json, regex, json_schema, contains, code, or
    judge: what of the answer must agree."""
    column: str | None = None
    """The column of a row that the answer is verified by: its pattern, its JSON schema, the words
    that it must have, its final answer; null: the reference answer."""
    text: str | None = None
    """The same for all rows, instead of a column."""

    @model_validator(mode="after")
    def _verified_by_something(self) -> Verify:
        if self.column is not None and self.text is not None:
            raise ValueError("text: it stands instead of column; leave one out")
        if self.name in APART and self.column is None and self.text is None:
            raise ValueError(
                f"column: {self.name} is verified by a column of the rows, or by a text that is "
                "the same for all; name one, since the reference answer is neither"
            )
        by_itself = self.name in ("code", "choice")
        if by_itself and not (self.column is None and self.text is None):
            raise ValueError(
                f"column: {self.name} reads columns of its own, as the README's table of scores "
                "says; leave column and text out"
            )
        return self


class Editor(Strict):
    """The model that repairs. A bare word means ``{model: ...}``."""

    model: str
    """An alias, a Hub id or a folder; with a server the name that this has for it."""
    server: str | None = None
    """The address of an OpenAI-compatible chat server, https://host/v1, to whose /chat/completions
    the rows' questions, references and answers go; null: the recipe's engine runs the model."""
    key_from: Annotated[str, MACHINE] = "OPENAI_API_KEY"
    """The environment variable that has the server's key, not the key itself."""
    options: dict[str, Any] = {}
    """Further keys of each request's JSON; null takes one out: {max_tokens: null,
    max_completion_tokens: 2048}."""
    concurrency: Annotated[PositiveInt, MACHINE] = 8
    """Requests that are with the server at a time."""
    timeout_seconds: Annotated[PositiveFloat, MACHINE] = 120.0
    """How long one request to the server may take, in seconds."""
    retries: Annotated[NonNegativeInt, MACHINE] = 8
    """Further tries of a request to the server that failed."""
    prompt_price: Annotated[NonNegativeFloat | None, MACHINE] = None
    """Of a million tokens that the server reads, in your currency, for --dry-run; null: no cost is
    said."""
    reply_price: Annotated[NonNegativeFloat | None, MACHINE] = None
    """Of a million tokens that it writes."""

    @field_validator("key_from")
    @classmethod
    def _is_a_variable(cls, name: str) -> str:
        # What was given is not repeated: it may be the key.
        if not VARIABLE.fullmatch(name):
            raise ValueError(
                "name the environment variable that has the key, in capitals, such as "
                "OPENAI_API_KEY; the key itself stands in no file"
            )
        return name

    @field_validator("server")
    @classmethod
    def _has_no_key(cls, server: str | None) -> str | None:
        if server is None:
            return None
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("an address begins with http:// or https://")
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                "an address with a password or a key in it would be copied into every run; put "
                "the key into the environment variable that key_from names"
            )
        return server

    @field_validator("options")
    @classmethod
    def _leave_the_question(cls, options: dict[str, Any]) -> dict[str, Any]:
        own = sorted({"messages", "model", "stream", "n"} & options.keys())
        if own:
            raise ValueError(f"{', '.join(own)}: replaykit says that itself; leave it out")
        return options

    @model_validator(mode="after")
    def _prices_go_together(self) -> Editor:
        if (self.prompt_price is None) != (self.reply_price is None):
            raise ValueError("prompt_price, reply_price: a cost needs both")
        return self


def _verifier_from_word(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    return value


def _editor_from_word(value: Any) -> Any:
    if isinstance(value, str):
        return {"model": value}
    return value


VerifyOrName = Annotated[
    Verify, BeforeValidator(_verifier_from_word, json_schema_input_type=Verifier | Verify)
]
EditorOrName = Annotated[
    Editor, BeforeValidator(_editor_from_word, json_schema_input_type=str | Editor)
]


class Rewrite(Strict):
    """The target in the model's own words. What it makes replaces the target in the mix."""

    method: Method = "cascade"
    """self-output takes the most probable of several right answers of the model's own; min-change
    repairs its one answer; paraphrase lets it answer with the reference in view; cascade tries them
    in this order, and masks the hardest tokens of the references that are left; auto tries each on
    some rows and takes the one that comes out best."""
    verify: VerifyOrName = Verify()
    """How a new answer is compared with the reference."""
    samples: PositiveInt = 8
    """Answers that self-output draws for each row."""
    temperature: PositiveFloat = 0.7
    """Of these answers, and of an edit that is tried again."""
    top_p: Share = 0.95
    """They are drawn from the most probable tokens that have this much together."""
    max_edit: float = Field(default=0.7, gt=0, le=1)
    """An edit may be this part of the reference's distance to the model's answer, at most."""
    retries: Annotated[int, Field(ge=0, le=2)] = 2
    """How often an edit that is refused is tried again, the editor being told why."""
    editor: EditorOrName | None = None
    """The model that repairs; null is the model itself."""
    judge: Judge | None = None
    """Of verify: judge; null: that of the section eval."""
    pilot: PositiveInt = 64
    """Rows on which auto tries each method."""
    max_tokens: PositiveInt = 1024
    """Tokens of a reply, at most."""
