"""What ``train`` makes."""

from __future__ import annotations

from typing import Literal

from replaykit.result import Noted, Result
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


class Speed(Result):
    """How fast the steps of a training were that one process did without a break."""

    steps: int
    """Those that were timed: not the first, which sets up, nor those before a resume."""
    tokens: int
    """Of these, with their padding, in all processes."""
    seconds: float
    """From the end of the first step to the end of the last, tests and checkpoints included."""
    device: str
    processes: int
    fsdp: bool
    offload: bool

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class TrainResult(Noted):
    """A training: how long it was, its losses, and where the tuned model is."""

    steps: int
    loss: float
    """The last one logged, in nats a token."""
    losses: list[dict[str, int | float]]
    """Each log: "step", "loss", "loss/<source>" and what the remedies measured."""
    tokens: int
    """Of the rows that were trained on, without padding."""
    speed: Speed | None = None
    """None for fewer than two steps in a row, and for a training of an earlier version."""
    events: list[Event] | None = None
    """A controller's tests and decisions, in order."""
    model: str
    """The folder of the tuned model."""
    adapter: str | None = None
    """The folder of the adapter, where one was trained."""
    weights: WeightSummary | None = None
    base: str
    revision: str | None


class MemoryParts(Result):
    """What a training holds at its peak, in bytes."""

    weights: int
    gradients: int
    """Of what learns."""
    optimiser: int
    """AdamW's two moments."""
    activations: int
    """What the forward pass of the largest micro-batch leaves for the backward pass."""
    logits: int
    """What the loss takes beside them, at its peak."""
    teacher: int
    """The base a second time, for distill."""
    fisher: int
    """The Fisher information that ewc weighs with."""
    base: int
    """The base's values that ewc and l2sp hold by."""
    average: int
    """Of ema, and of the teacher of self_distill."""
    projection: int
    """The replay's gradient, for project."""
    program: int
    """Of this process and its libraries; 0 on a GPU."""
    peak: int
    """Of all together, which is not their sum: gradients come as activations go, and checkpointed
    activations are made again.
    """

    @property
    def held(self) -> int:
        """What is there all along, with the gradients."""
        of_remedies = self.teacher + self.fisher + self.base + self.average + self.projection
        return self.weights + self.gradients + self.optimiser + of_remedies


class TrainEstimate(Result):
    """What a training will take (``--dry-run``)."""

    model: str
    parameters: int
    trainable: int
    """Of the parameters, those that learn."""
    rows: int
    """In all steps; a row that comes twice counts twice."""
    steps: int
    micro_batches: int
    """Of a step."""
    tokens: int
    """In all steps, with their padding."""
    largest: tuple[int, int]
    """Rows and length of the micro-batch of the most tokens."""
    memory: MemoryParts
    free: int
    """Bytes that the device has free now."""
    device: str
    tokens_per_second: float
    hours: float
    basis: Literal["measured", "estimated"]
    """Of the speed."""
    price_per_hour: float | None
    """In dollars."""
    cost: float | None
    """In dollars."""
    instead: dict[str, int]
    """Where it does not fit: the peak in bytes with other settings of train."""
    text: list[str]
    """The same in sentences."""
