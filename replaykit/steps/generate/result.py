"""What ``generate`` makes, and what it will take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from replaykit.checks.fidelity import Fidelity
from replaykit.checks.funnel import FunnelCounts
from replaykit.recipe.chat import ChatOptions
from replaykit.recipe.generate import Generate
from replaykit.result import Noted, Result

Kind = Literal["magpie", "prompts", "text"]


MANY_MISSING = 0.1  # of the answers asked for with a thought: more without one are worth a warning


class ThoughtCounts(Result):
    """What became of the thoughts, of the rows whose answers were asked for with one."""

    valid: int = 0
    empty: int = 0
    """The model closed its thought at once."""
    missing: int = 0
    """The model answered without one."""
    cut: int = 0
    """The model did not come to its answer; such rows are dropped."""

    @property
    def words(self) -> str:
        """The counts on one line."""
        total = self.valid + self.empty + self.missing + self.cut
        return (
            f"{self.valid:,} valid, {self.empty:,} empty, {self.missing:,} missing, "
            f"{self.cut:,} cut, of {total:,} that were asked for"
        )

    @property
    def warning(self) -> str | None:
        """Says so where many are missing."""
        share = self.missing / (self.valid + self.empty + self.missing + self.cut)
        if share <= MANY_MISSING:
            return None
        return (
            f"{100 * share:.0f} % of the answers that were asked for with a thought have none, and "
            "stay as the model wrote them: it does not think where its template lets it, so replay "
            "would teach that; generate.thinking: false asks for none"
        )


class CallCounts(Result):
    """Of the kept rows that have tools: how many end with calls, and how many with words alone."""

    called: int = 0
    uncalled: int = 0

    @property
    def words(self) -> str:
        """The counts on one line."""
        total = self.called + self.uncalled
        return f"{self.called:,} of {total:,} rows with tools call them, {self.uncalled:,} do not"


class VerifiedCounts(Result):
    """Of old rows that the model answered anew: whose answer stands in how many."""

    own: int
    """The model's, which is right."""
    reference: dict[str, int] = Field(default={})
    """The row's own, by why the model's does not: wrong, cut (at max_answer_tokens),
    thought_missing, too_long (for the model), unverifiable, no_question, no_answer, or a check's
    reason."""

    @property
    def words(self) -> str:
        """The counts on one line."""
        total = self.own + sum(self.reference.values())
        said = f"{self.own:,} of {total:,} rows have the model's own answer"
        if not self.reference:
            return said
        why = ", ".join(f"{reason} {count:,}" for reason, count in self.reference.items())
        return f"{said}; the others keep the reference: {why}"


class GenerateResult(Noted):
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
    thoughts: ThoughtCounts | None = None
    """None where no answer was asked for with a thought."""
    calls: CallCounts | None = None
    """None where no kept row has tools."""
    verified: VerifiedCounts | None = None
    """None where no answer was compared with a row's own."""
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
