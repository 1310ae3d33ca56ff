"""What the model writes itself, and which of it is kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from replaykit.recipe.base import MACHINE, Share, Strict, file_facts, in_order
from replaykit.recipe.data import AskedOrPath

Part = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[
    list[NonNegativeFloat], Field(min_length=2, max_length=2), AfterValidator(in_order)
]

# By what an answer is right or wrong, and nothing between: names of ``checks.scoring``, and calls.
Verify = Literal[
    "exact", "numeric", "json", "choice", "contains", "regex", "json_schema", "code", "tool_call"
]


class Checks(Strict):
    """Which questions are worth an answer, and which rows are kept. A check that is off is null or
    false. Loops, leaks, secrets and personal data are looked for in thoughts and calls as well.
    """

    min_chars: NonNegativeInt = 3
    """Characters of a question, at least."""
    max_repeat: Share | None = 0.5
    """Drops a text of whose 20-character windows more than this part stood before in it."""
    near_duplicate: Share | None = 0.9
    """Drops a question whose 5-character shingles have this Jaccard similarity with an
    earlier one's.
    """
    leaks: bool = True
    """Drops role headers and special tokens that are written out as text."""
    overlap: bool = True
    """Drops questions that hold a prompt of eval."""
    secrets: bool = True
    """Drops keys, tokens and card numbers."""
    personal: bool = False
    """Drops mail addresses and telephone numbers."""
    refusals: bool = False
    """Drops refusals. To refuse is an old skill too, so by default they stay."""
    truncated: bool = False
    """Drops answers that were cut at max_answer_tokens. What they say is the model's own, too, so
    by default they stay as they were cut, and no end of turn is trained after them. A question that
    was cut is always dropped, as an answer needs the whole of it.
    """
    languages: list[str] | None = None
    """ISO 639-1 codes of the languages to keep, such as [en, zh]."""
    perplexity: Range | None = None
    """Of an answer under the model: the least and the most that is kept."""
    question_perplexity: Range | None = None
    """Of a question under the model: the least and the most that is kept."""


class Phase(Strict):
    """A part of the rows of a schedule, drawn at its own temperature and top-p."""

    temperature: PositiveFloat
    """Of this part's questions."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of this part's questions."""
    weight: PositiveFloat = 1.0
    """How many of the rows, in proportion to the other parts' weights."""


class Tags(Strict):
    """What a judge says of each kept row; it is written into the row and drops none."""

    judge: str | None = None
    """The model that judges; null is the model itself."""
    reward: str | None = None
    """A sequence-classification model with one output, whose score is written too; null is none."""


ROWS = 2000  # to generate, where neither n nor prompts are given


class Generate(Strict):
    """The model's own questions and answers (Magpie)."""

    n: Annotated[PositiveInt | None, MACHINE] = None
    """Records to keep, after the checks; null is 2000, or an answer to each of the prompts."""
    turns: PositiveInt = 1
    """Questions of one conversation."""
    answers: PositiveInt = 1
    """Answers to each question."""
    prompts: AskedOrPath | None = None
    """The questions to answer; null lets the model write them."""
    verify: Verify | None = None
    """For prompts with answers: how the model's answer is compared with the row's own. Where it is
    right it is kept, where it is not the row stays as it is; null compares nothing, and every
    answer of the model is kept."""
    systems: dict[str, PositiveFloat] | None = None
    """System prompts that steer the questions, or names of presets, with their weights."""
    keep_system: bool = False
    """Leave the system prompt in the record, and answer under it."""
    thinking: bool | Part | None = None
    """Whether the model thinks before it answers; a part, such as 0.5, for that part of the rows;
    null: as chat.thinking says. Questions are drawn without a thought. A row of prompts with a
    column "thinking", true or false, has its own wish.
    """
    tools: str | None = None
    """A JSON or JSONL file with tools in OpenAI's form, or bare functions with name, description
    and parameters: what questions may be about, and answers may call. Rows of prompts that have
    tools keep their own.
    """
    temperature: PositiveFloat | Literal["model"] = 1.0
    """Of questions; "model" takes that of its generation_config."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of questions."""
    schedule: Literal["magpie-air", "magpie-pro"] | list[Phase] | None = None
    """Temperatures over the rows instead of one: a name, or a list of parts."""
    max_question_tokens: PositiveInt = 512
    """Tokens of a question, at most; a longer one is dropped."""
    answer_temperature: NonNegativeFloat | Literal["model"] = 0.0
    """Of answers; 0 is greedy, as in the paper; "model" takes that of its generation_config."""
    answer_top_p: float = Field(default=1.0, gt=0, le=1)
    """Of answers, where they are not greedy."""
    max_answer_tokens: PositiveInt = 1024
    """Tokens of an answer, at most; a longer one is cut there, and stays as it was cut unless
    checks.truncated drops it.
    """
    min_yield: Annotated[float, MACHINE] = Field(default=0.05, ge=0, lt=1)
    """Generation stops where less than this part of the last 500 rows could be kept."""
    checks: Checks = Checks()
    """Which questions and answers are kept."""
    tags: Tags | None = None
    """Let a judge describe the kept rows; null asks none."""

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the rows; of the tools' file its content."""
        found = super().decisive()
        if self.tools is not None:
            found["tools"] = file_facts(self.tools)
        return found

    @model_validator(mode="after")
    def _answers_differ(self) -> Generate:
        if self.answers > 1 and self.answer_temperature == 0:
            raise ValueError(
                "answers: several greedy answers are one and the same; set answer_temperature"
            )
        if self.turns > 1 and (self.answers > 1 or self.prompts):
            raise ValueError("turns: a conversation has one answer to each of its own questions")
        if self.prompts and self.systems:
            raise ValueError(
                "systems: they steer what the model asks; with prompts it asks nothing"
            )
        return self

    @model_validator(mode="after")
    def _compared(self) -> Generate:
        """What an answer is compared with, and that no row is left out then."""
        given = self.prompts
        if self.verify is None:
            if given is not None and given.answer is not None:
                raise ValueError(
                    "prompts.answer: the rows' own answers are read for verify alone; give verify, "
                    "or leave it out"
                )
            return self
        if given is None:
            raise ValueError(
                "verify: it compares answers with those of prompts; give prompts with answers"
            )
        if (given.prompt is None) is not (given.answer is None):
            raise ValueError(
                "prompts.prompt and prompts.answer are given together: the names of the two columns"
            )
        if self.checks.perplexity is not None or self.checks.question_perplexity is not None:
            raise ValueError(
                "verify: every row of prompts comes out, so none is dropped by its perplexity; "
                "leave checks.perplexity and checks.question_perplexity out"
            )
        return self
