"""What ``generate`` makes, and what it will take."""

from __future__ import annotations

from typing import Literal

from replaykit.checks.fidelity import Fidelity
from replaykit.checks.funnel import FunnelCounts
from replaykit.recipe.chat import ChatOptions
from replaykit.recipe.generate import Generate
from replaykit.result import Result

Kind = Literal["magpie", "prompts", "text"]


class GenerateResult(Result):
    """How many rows were made, of which kind, by which model, and what was left out."""

    n: int
    """Rows that were asked for."""
    rows: int
    """Rows that were kept."""
    kind: Kind
    """magpie: the model's own questions and answers; prompts: its answers to given questions; text:
    what a base model writes from BOS alone.
    """
    model: str
    revision: str | None
    seed: int
    sampling: Generate
    chat: ChatOptions
    pre_query: str | None
    """None for a base model."""
    date: str | None
    """The date that the template was told, None where it does not ask."""
    tokens: dict[str, int]
    """Drawn tokens of "questions" and "answers"."""
    funnel: FunnelCounts
    fidelity: Fidelity
    tags: dict[str, dict[str, int]] | None
    """Rows by tag and word, where a judge was asked."""


Known = Literal["measured", "assumed", "given", "unknown"]


class Basis(Result):
    """Where each figure of an estimate is from."""

    kept_share: Known
    question_tokens: Known
    answer_tokens: Known
    speed: Known
    price: Known


class EstimateResult(Result):
    """What a generation will take (``--dry-run``)."""

    model: str
    parameters: int
    rows: int
    kept: int
    """Rows that are there already."""
    draw: int
    """Questions, or prompts, that are still to be drawn or answered."""
    kept_share: float
    """Of the drawn rows."""
    tokens_per_question: float
    tokens_per_answer: float
    question_tokens: int
    answer_tokens: int
    device: str
    devices: int
    tokens_per_second: float | None
    hours: float | None
    price_per_hour: float | None
    """In dollars, of one device."""
    cost: float | None
    """In dollars."""
    basis: Basis
    text: list[str]
    """The same in sentences."""
