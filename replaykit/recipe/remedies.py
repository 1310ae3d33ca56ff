"""Training methods against forgetting.

The formula and the source of each stand with its code, in steps/train/remedies.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from replaykit.recipe.base import Share, Strict
from replaykit.recipe.data import DataOrPath


class StmSettings(Strict):
    """Selective token masking: tokens that the base finds improbable carry no loss."""

    max_perplexity: float | None = Field(default=2.5, gt=1)
    """Mask tokens whose perplexity under the base, 1 / probability, is higher; null: use share."""
    share: Share | None = None
    """Mask this part of all answer tokens, instead of those above max_perplexity; null: off."""
    which: Literal["highest", "lowest", "random"] = "highest"
    """Which tokens share masks, by perplexity; lowest and random are controls."""
    keep: list[str] = []
    """Texts whose tokens always carry loss, such as "{"; the end of a turn always does."""

    @model_validator(mode="after")
    def _one_limit(self) -> StmSettings:
        if self.which != "highest" and self.share is None:
            raise ValueError(f"share: {self.which} needs the part of the tokens to mask")
        if self.max_perplexity is None and self.share is None:
            raise ValueError(
                "max_perplexity: give the highest perplexity that carries loss, or a share to mask"
            )
        return self


class FlowSettings(Strict):
    """Rows that the base finds probable weigh more: exp(-loss / temperature)."""

    temperature: PositiveFloat | None = None
    """In nats a token; null: the median loss of the target under the base."""
    unit: Literal["row", "token"] = "row"
    """Weigh rows by their mean loss, or each token by its own."""


class EaftSettings(Strict):
    """Entropy-adaptive fine-tuning: tokens of which the model is sure already weigh less."""

    top_k: Annotated[int, Field(ge=2)] = 20
    """How many of the most probable tokens the entropy is taken of."""
    alpha: PositiveFloat = 1.0
    """The weight is raised to this power."""


class EwcSettings(Strict):
    """Elastic weight consolidation: parameters that the old data needs are held near the base."""

    strength: NonNegativeFloat | None = None
    """Lambda, the weight of the penalty, the Fisher information's mean being 1; null: see below.

    Null is 0.3, and 0 where auto or hard is given.
    """
    auto: PositiveFloat | None = None
    """Instead of strength: the penalty's gradient norm over that of the loss; null: off."""
    rows: PositiveInt = 256
    """Rows of old data whose gradients make the Fisher information, at most."""
    old: DataOrPath | None = None
    """The old data; null: the mixture's replay rows."""
    hard: Share | None = None
    """The part of the parameters, highest Fisher first, that is bounded; null: none.

    Instead of the penalty, or with it where strength or auto is given too.
    """
    max_shift: Share = 0.2
    """For hard: how far such a parameter moves at most, as a part of the base's value."""

    @model_validator(mode="after")
    def _one_strength(self) -> EwcSettings:
        if self.strength is not None and self.auto is not None:
            raise ValueError("auto stands instead of strength; leave one out")
        return self

    @property
    def fixed_strength(self) -> float:
        """Lambda where ``auto`` does not make it."""
        if self.strength is not None:
            return self.strength
        return 0.0 if self.hard is not None else 0.3


class L2spSettings(Strict):
    """The control of ewc: every parameter is held near the base alike."""

    strength: PositiveFloat = 0.3
    """Lambda, the weight of the penalty."""


class DistillSettings(Strict):
    """The base's distribution is a second target.

    The loss becomes (1 - weight) * loss + weight * T^2 * KL(base || model).
    """

    weight: Share = 0.5
    """The part of the second target in the loss."""
    temperature: PositiveFloat = 2.0
    """T: both distributions are softmax(logits / T)."""
    rows: Literal["replay", "all"] = "replay"
    """The rows that are distilled."""
    teacher: Literal["auto", "adapter-off", "copy", "cache"] = "auto"
    """Where the base's logits come from; auto: adapter-off with an adapter, else copy."""
    top_k: PositiveInt = 64
    """For cache: the most probable tokens kept; the probability of the others is kept as one."""
    layers: list[int] = []
    """Layers whose hidden states are held near the base's too; -1 is the last."""
    layer_weight: PositiveFloat = 0.1
    """The weight of the hidden states' loss, for layers."""

    @field_validator("layers")
    @classmethod
    def _each_once(cls, layers: list[int]) -> list[int]:
        if len(set(layers)) < len(layers):
            raise ValueError("a layer is named twice")
        return layers

    @model_validator(mode="after")
    def _what_a_cache_has(self) -> DistillSettings:
        if self.teacher == "cache" and self.rows == "all":
            raise ValueError(
                "teacher: cache has probabilities of replay rows only; say copy, adapter-off or "
                "rows: replay"
            )
        if self.teacher == "cache" and self.layers:
            raise ValueError(
                "teacher: cache has no hidden states for layers; say copy or adapter-off"
            )
        return self


class ProjectSettings(Strict):
    """The target's gradient is turned where it works against that of replay."""

    min_cosine: float = Field(default=0.0, ge=0, lt=1)
    """It is turned until its cosine with that of replay is at least this; 0 is A-GEM."""
    blockwise: bool = False
    """Turn the gradient of each parameter tensor by itself."""


class EmaSettings(Strict):
    """The exponential moving average of the parameters is what is saved."""

    decay: float = Field(default=0.99, gt=0, lt=1)
    """What the average keeps of itself at each optimiser step; the rest is the new parameters."""


class SelfDistillSettings(Strict):
    """The model with the answer in view teaches itself without it, on answers of its own (SDFT).

    The loss becomes (1 - weight) * loss + weight * KL(model || teacher) on an answer that the model
    draws to each row in each step, which takes several times as long as plain training.
    """

    weight: Share = 1.0
    """The part of the divergence in the loss of the rows."""
    teacher: Literal["ema", "base"] = "ema"
    """Whose parameters see the answer: the moving average of the model's, or the untrained
    model's."""
    decay: float = Field(default=0.99, gt=0, lt=1)
    """For ema: what the average keeps of itself at each optimiser step."""
    divergence: Literal["reverse", "forward"] = "reverse"
    """KL(model || teacher), or KL(teacher || model)."""
    temperature: PositiveFloat = 1.0
    """At which the model draws its answers."""
    max_tokens: PositiveInt = 256
    """Tokens of a drawn answer, at most."""
    rows: Literal["target", "all"] = "target"
    """The rows that are learned so; the others keep their loss."""
    prompt: str | None = None
    """The question that shows the answer, with {question} and {reference} in it; null: replaykit's
    own."""

    @field_validator("prompt")
    @classmethod
    def _has_both(cls, prompt: str | None) -> str | None:
        missing = [name for name in ("{question}", "{reference}") if name not in (prompt or name)]
        if missing:
            raise ValueError(f"it has no {' and no '.join(missing)}, which the row's own replaces")
        return prompt


class ConsistencySettings(Strict):
    """A row and its counterfactual, of `replaykit augment`, have like hidden states where both go
    on alike.
    """

    weight: PositiveFloat = 0.1
    """The weight of the distance of their states beside the loss of the tokens."""


class Remedies(Strict):
    """Training methods against forgetting. Null is off, ``{}`` takes a remedy's defaults.

    They can be combined, but for stm with flow, dft with eaft, ewc with l2sp, and self_distill at
    weight 1 with those that weigh tokens.
    """

    stm: StmSettings | None = None
    """Selective token masking: tokens that the base finds improbable carry no loss."""
    flow: FlowSettings | None = None
    """Rows that the base finds probable weigh more."""
    dft: bool = False
    """Dynamic fine-tuning: tokens weigh as much as the model finds them probable."""
    eaft: EaftSettings | None = None
    """Entropy-adaptive fine-tuning: tokens of which the model is sure already weigh less."""
    ewc: EwcSettings | None = None
    """Elastic weight consolidation: parameters that old data needs are held near the base."""
    l2sp: L2spSettings | None = None
    """Every parameter is held near the base alike; the control of ewc."""
    distill: DistillSettings | None = None
    """The base's distribution is a second target."""
    project: ProjectSettings | None = None
    """The target's gradient is turned where it works against that of replay."""
    ema: EmaSettings | None = None
    """The exponential moving average of the parameters is what is saved."""
    self_distill: SelfDistillSettings | None = None
    """The model with the answer in view teaches itself without it, on answers of its own."""
    consistency: ConsistencySettings | None = None
    """A row and its counterfactual have like hidden states where both go on alike."""

    @model_validator(mode="after")
    def _what_cannot_combine(self) -> Remedies:
        if self.stm and self.flow:
            raise ValueError(
                "stm and flow both weigh tokens by the base's probabilities; choose one"
            )
        if self.dft and self.eaft:
            raise ValueError(
                "dft and eaft both weigh tokens by the model's own probabilities; choose one"
            )
        if self.ewc and self.l2sp:
            raise ValueError("l2sp is ewc with the same Fisher information everywhere; choose one")
        if self.self_distill and self.self_distill.weight == 1:
            self._check_self_distill()
        return self

    def _check_self_distill(self) -> None:
        """Raises ValueError for what weighs tokens of a loss that the target does not have."""
        weighing = [name for name in ("stm", "flow", "dft", "eaft") if getattr(self, name)]
        if weighing:
            raise ValueError(
                f"{' and '.join(weighing)} weighs tokens of the target's loss, of which "
                f"self_distill with weight: 1 leaves nothing; give it a smaller weight, or leave "
                f"one out"
            )

    @property
    def need_replay(self) -> list[str]:
        """The remedies that are on and do nothing without replay rows."""
        needy = {
            "ewc": self.ewc is not None and self.ewc.old is None,
            "distill": self.distill is not None and self.distill.rows == "replay",
            "project": self.project is not None,
        }
        return [name for name, needs in needy.items() if needs]
