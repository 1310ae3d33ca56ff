"""What ``train`` makes."""

from __future__ import annotations

from replaykit.result import Result
from replaykit.steps.train.events import Event


class SourceWeights(Result):
    """What a remedy that weighs tokens did to the different rows of a source."""

    rows: int
    tokens: int
    masked: float
    """The part of the answer tokens whose weight is 0."""
    mean_weight: float
    median_loss: float
    """Of rows, in nats a token under the base."""
    rows_masked: int
    """Rows in which nothing is left but what always carries loss."""


class WeightSummary(Result):
    """What a remedy that weighs tokens did to the mixture."""

    temperature: float | None
    """FLOW's, in nats a token."""
    share: float | None
    """The weight of the replay rows' answer tokens over that of all; None under a controller, which
    draws replay on the way.
    """
    sources: dict[str, SourceWeights]


class TrainResult(Result):
    """A training: how long it was, its losses, and where the tuned model is."""

    steps: int
    loss: float
    """The last one logged, in nats a token."""
    losses: list[dict[str, int | float]]
    """Each log: "step", "loss", "loss/<source>" and what the remedies measured."""
    tokens: int
    """Of the rows that were trained on."""
    events: list[Event] | None = None
    """A controller's tests and decisions, in order."""
    model: str
    """The folder of the tuned model."""
    adapter: str | None = None
    """The folder of the adapter, where one was trained."""
    weights: WeightSummary | None = None
    base: str
    revision: str | None
