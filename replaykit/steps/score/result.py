"""What ``score`` finds."""

from __future__ import annotations

from replaykit.result import Result


class Perplexity(Result):
    """How probable the model finds the answers of a source."""

    rows: int
    tokens: int
    perplexity: float
    """exp(mean negative log-likelihood) of all answer tokens together."""
    mean: float
    """Of the rows' own perplexities."""
    quantiles: dict[str, float]
    """Of the rows' own perplexities, by "0.05", "0.25", "0.5", "0.75" and "0.95"."""
    above: float
    """The part of the tokens whose perplexity 1 / p is above ``max_perplexity``."""


class ScoreResult(Result):
    """How probable the model finds the mixture's answers, the least probable source first."""

    rows: int
    """Different rows."""
    scored: int
    """Rows that were not known before."""
    max_perplexity: float
    sources: dict[str, Perplexity]
    model: str
    revision: str | None
