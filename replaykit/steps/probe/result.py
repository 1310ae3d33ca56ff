"""What ``probe`` finds."""

from __future__ import annotations

from pydantic import Field

from replaykit.result import Result


class Part(Result):
    """A fixed text of the chat template, with its token ids."""

    text: str
    ids: list[int]


class Stops(Result):
    """The tokens that end a turn."""

    text: list[str]
    ids: list[int]


class ProbeResult(Result):
    """What a chat template gives.

    A base model has no template: ``template`` has only ``start``, and ``system`` to ``thinking``
    are None.
    """

    model: str
    template: dict[str, Part | None]
    """By name; None where the template has no such part."""
    stop: Stops
    system: str | None = None
    """What becomes of a system message."""
    default_system: str | None = None
    date: str | None = None
    """The frozen date, None where the template does not ask for it."""
    bos: int | None = None
    """BOS tokens in the pre-query."""
    thinking: str | None = None
    """The text that opens or closes thoughts."""
    defaults: dict[str, float | None] | None = None
    """The sampling that the model's generation_config names."""
    samples: list[str] = Field(default_factory=list)
    """Questions that the model wrote, or texts of a base model."""
    verdict: str
