"""The sections of a recipe about the mixture and the training: shares, arms, remedies, the
controller.

    mix: {ratio: 0.05, schedule: {to: 0.01}}
    train: {method: lora, remedies: {distill: {weight: 0.3}}}
    arms: {control: {ratio: 0}}

Where a remedy comes from, and its formula, stands in ``train/remedies`` and ``train/losses``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from replaykit.settings import DataOrPath, Share, Strict


class Schedule(Strict):
    """How the share moves from ``mix.ratio`` at the first step to ``to`` at the last."""

    shape: Literal["linear", "cosine", "warm-down", "steps"] = "linear"
    to: float | None = Field(default=None, ge=0, lt=1)  # the last share; for warm-down 0 by default
    hold: float = Field(
        default=0.5, ge=0, lt=1
    )  # for warm-down: the part of training before the share begins to fall
    at: dict[float, float] | None = None  # for steps: part of training -> share from there on

    @model_validator(mode="after")
    def _what_the_shape_needs(self) -> Schedule:
        if self.shape == "steps" and not self.at:
            raise ValueError("at: steps needs parts of training and shares, such as {0.5: 0.1}")
        if self.shape in ("linear", "cosine") and self.to is None:
            raise ValueError(f"to: {self.shape} needs the share of the last step")
        if self.at and any(
            not 0 <= part <= 1 or not 0 <= ratio < 1 for part, ratio in self.at.items()
        ):
            raise ValueError("at: parts of training are from 0 to 1, shares from 0 to below 1")
        return self


Replay = Literal["select", "generate"]


def _equal_weights(value: Any) -> Any:
    return dict.fromkeys(value, 1.0) if isinstance(value, list) else value


class Mix(Strict):
    """How much of the loss is replay, and from which sources."""

    ratio: float = Field(default=0.05, ge=0, lt=1)
    unit: Literal["loss_tokens", "tokens", "rows"] = "loss_tokens"
    budget: Literal["add", "replace"] = (
        "add"  # replay on top of the target's epochs, or as many rows as without replay
    )
    sources: Annotated[dict[Replay, PositiveFloat], BeforeValidator(_equal_weights)] | None = (
        None  # by default all that the recipe makes; a list gives each the same weight
    )
    schedule: Schedule | None = None  # by default the share stays what it is
    skill: str = (
        "skill"  # the column of replay rows that names their skill, for min_rows and max_rows
    )
    min_rows: dict[
        str, PositiveInt
    ] = {}  # replay rows of a skill that must be trained on, by skill
    max_rows: dict[str, PositiveInt] = {}  # different rows of a skill at most
    near_duplicate: Share | None = (
        0.9  # Jaccard similarity from which on a replay row repeats the target or another
    )
    overlap: bool = True  # leave out rows, of the target too, that hold a prompt of eval
    against: list[str] = []  # further evaluation sets that no row may hold: files, or lm_eval:TASK

    @model_validator(mode="after")
    def _floors_below_caps(self) -> Mix:
        over = [skill for skill, n in self.min_rows.items() if n > self.max_rows.get(skill, n)]
        if over:
            raise ValueError(
                f"min_rows: it asks for more rows of {', '.join(over)} than max_rows allows"
            )
        return self


class Stm(Strict):
    """Selective token masking: tokens that the base finds improbable carry no loss."""

    max_perplexity: float | None = Field(
        default=2.5, gt=1
    )  # of a token under the base, 1 / probability
    share: Share | None = (
        None  # instead of max_perplexity: this part of all answer tokens is masked
    )
    which: Literal["highest", "lowest", "random"] = (
        "highest"  # of the tokens by perplexity; the others are controls
    )
    keep: list[
        str
    ] = []  # texts whose tokens always carry loss, such as "{"; the end of a turn always does

    @model_validator(mode="after")
    def _one_limit(self) -> Stm:
        if self.which != "highest" and self.share is None:
            raise ValueError(f"share: {self.which} needs the part of the tokens to mask")
        if self.max_perplexity is None and self.share is None:
            raise ValueError(
                "max_perplexity: give the highest perplexity that carries loss, or a share to mask"
            )
        return self


class Flow(Strict):
    """Rows that the base finds probable weigh more: exp(-loss / temperature)."""

    temperature: PositiveFloat | None = (
        None  # nats a token; by default the median loss of the target under the base
    )
    unit: Literal["row", "token"] = "row"


class Eaft(Strict):
    """Entropy-adaptive fine-tuning: tokens of which the model is sure already weigh less."""

    top_k: Annotated[int, Field(ge=2)] = 20  # most probable tokens whose entropy is taken
    alpha: PositiveFloat = 1.0  # power of the weight


class Ewc(Strict):
    """Elastic weight consolidation: parameters that the old data needs are held near the base."""

    strength: NonNegativeFloat = 0.3  # lambda, of a Fisher information whose mean is 1
    auto: PositiveFloat | None = (
        None  # instead: the penalty's gradient norm over that of the loss (--ewc-auto)
    )
    rows: PositiveInt = 256  # of old data, whose gradients make the Fisher information
    old: DataOrPath | None = None  # the old data; by default the mixture's replay rows
    hard: Share | None = (
        # instead of a penalty: this part of the parameters, by Fisher, moves at most max_shift
        None
    )
    max_shift: Share = 0.2  # of the base's value


class L2sp(Strict):
    """The control of ewc: every parameter is held near the base alike."""

    strength: PositiveFloat = 0.3


class Distill(Strict):
    """The base's distribution is a second target: (1 - weight) * loss + weight * T^2 * KL(base ||
    model).
    """

    weight: Share = 0.5
    temperature: PositiveFloat = 2.0
    rows: Literal["replay", "all"] = "replay"
    teacher: Literal["auto", "adapter-off", "copy", "cache"] = (
        "auto"  # auto: adapter-off with an adapter, else copy
    )
    top_k: PositiveInt = 64  # of a cached distribution; the others' probability is kept as one
    layers: list[int] = []  # whose hidden states are held near the base's too; -1 is the last
    layer_weight: PositiveFloat = 0.1

    @field_validator("layers")
    @classmethod
    def _each_once(cls, layers: list[int]) -> list[int]:
        if len(set(layers)) < len(layers):
            raise ValueError("a layer is named twice")
        return layers

    @model_validator(mode="after")
    def _what_a_cache_has(self) -> Distill:
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


class Project(Strict):
    """The target's gradient is turned until its cosine with that of replay is at least min_cosine;
    0 is A-GEM.
    """

    min_cosine: float = Field(default=0.0, ge=0, lt=1)
    blockwise: bool = False  # each parameter tensor by itself


class Ema(Strict):
    """The exponential moving average of the parameters is what is saved."""

    decay: float = Field(default=0.99, gt=0, lt=1)


class Remedies(Strict):
    """Training methods against forgetting; all can be combined, all are off by default. ``{}``
    takes a remedy's defaults.
    """

    stm: Stm | None = None
    flow: Flow | None = None
    dft: bool = False  # tokens weigh as much as the model finds them probable (dynamic fine-tuning)
    eaft: Eaft | None = None
    ewc: Ewc | None = None
    l2sp: L2sp | None = None
    distill: Distill | None = None
    project: Project | None = None
    ema: Ema | None = None

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
        return self

    @property
    def need_replay(self) -> list[str]:
        """The remedies that are asked for and do nothing without replay rows."""
        distilled = self.distill is not None and self.distill.rows == "replay"
        needy = {
            "ewc": self.ewc is not None and self.ewc.old is None,
            "distill": distilled,
            "project": self.project is not None,
        }
        return [name for name, asked in needy.items() if asked]


class Arm(Strict):
    """One training of several: the recipe's mix with these keys changed, and other remedies where
    it names some.
    """

    ratio: float | None = Field(default=None, ge=0, lt=1)
    sources: Annotated[dict[Replay, PositiveFloat], BeforeValidator(_equal_weights)] | None = None
    schedule: Schedule | None = None
    remedies: Remedies | None = None


class Controller(Strict):
    """Old skills are tested while training, and the share of replay follows. Its drops are parts of
    the base's score.
    """

    every: PositiveInt = 500  # steps between two tests
    items: PositiveInt = 200  # of each old skill, the same every time
    max_drop: Share = 0.05  # from this lower bound of a drop on, the ratio grows
    factor: float = Field(default=1.2, gt=1)  # by so much
    max_ratio: float = Field(default=0.5, gt=0, lt=1)
    relax_drop: NonNegativeFloat = 0.02  # below this drop ...
    relax_after: PositiveInt = (
        3  # ... so many times in a row, the ratio shrinks by the factor, to mix.ratio at least
    )
    remedy: Literal["ewc", "distill", "project"] | None = (
        None  # of train.remedies: on only while skills drop
    )
    remedy_drop: Share = 0.03  # from this lower bound on it is on
    remedy_off: NonNegativeFloat = 0.015  # below this drop it is off
    by_skill: bool = False  # the skill that drops most gets most of the replay
    patience: PositiveInt | None = (
        5  # tests without a lower loss on the target's held-out rows, until training ends
    )


class Stage(Strict):
    """A part of training in which only the last layers learn."""

    # the last part of the layers, with what stands behind them; 1 is everything, embeddings too
    layers: Share = 1.0
    part: Share  # of the steps
    learning_rate: PositiveFloat | None = None


class LayerRates(Strict):
    """Learning rates from the first layer to the last, geometric between; embeddings as bottom, the
    head as top.
    """

    bottom: PositiveFloat = 1e-5
    top: PositiveFloat = 5e-4


class Train(Strict):
    """Supervised fine-tuning; only answer tokens carry loss."""

    method: Literal["full", "lora", "dora", "qlora"] = "full"
    peft: dict[str, Any] | None = (
        None  # any other PEFT configuration: {peft_type: IA3, ...}, instead of method
    )
    epochs: PositiveInt = 1  # passes over the target
    steps: PositiveInt | None = (
        None  # instead of epochs: exactly so many optimiser steps, the target repeating evenly
    )
    batch_rows: PositiveInt = 32  # of one optimiser step
    micro_batch_rows: PositiveInt | None = None  # that fit in memory at once; all by default
    max_tokens: PositiveInt = 2048  # of a row
    packing: bool = False  # rows behind one another instead of padding, each seeing only itself
    learning_rate: PositiveFloat | None = None  # 1e-5 for full, 2e-4 for adapters
    layer_rates: LayerRates | None = None  # instead of learning_rate
    min_rate: float = Field(
        default=0.0, ge=0, lt=1
    )  # the last learning rate over the highest, of each group
    stages: list[Stage] = []  # staged unfreezing, one after the other
    freeze: list[
        str
    ] = []  # parameters that do not learn: embeddings, head, or a part of their names
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)  # part of the steps
    weight_decay: NonNegativeFloat | dict[str, NonNegativeFloat] = (
        0.0  # or by a part of parameters' names
    )
    max_grad_norm: PositiveFloat = 1.0
    rank: PositiveInt = 16  # of lora, dora and qlora
    alpha: PositiveInt = 32
    gradient_checkpointing: bool = False  # less memory, a third more time
    precision: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # of the computation; auto is bfloat16 on a GPU
    )
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    save_every: PositiveInt = 200  # steps between checkpoints
    log_every: PositiveInt = 10
    remedies: Remedies = Remedies()
    conflict: bool | None = (
        None  # log the cosine of target's and replay's gradients; adapters do, for a copy of them
    )
    controller: Controller | None = None

    @model_validator(mode="after")
    def _what_cannot_combine(self) -> Train:
        remedies = self.remedies
        adapter = self.adapter
        if self.peft is not None and "peft_type" not in self.peft:
            raise ValueError("peft: it needs peft_type, a name of PEFT such as IA3, LOHA or OFT")
        if remedies.distill and remedies.distill.teacher == "adapter-off" and not adapter:
            raise ValueError(
                "remedies.distill.teacher: there is no adapter to switch off in full fine-tuning; "
                "say copy or cache, or "
                "train.method: lora"
            )
        if remedies.ewc and remedies.ewc.hard and adapter:
            raise ValueError(
                "remedies.ewc.hard: an adapter leaves the parameters where they are; leave hard out"
            )
        for name in ("ewc", "l2sp") if adapter else ():
            if getattr(remedies, name) and self.adapter_name.lower() != "lora":
                raise ValueError(
                    f"remedies.{name}: its form for adapters is that of lora, not "
                    f"{self.adapter_name}"
                )
            if getattr(remedies, name) and (self.peft or {}).get("modules_to_save"):
                raise ValueError(
                    f"remedies.{name}: it does not hold what peft.modules_to_save names; leave one "
                    f"of them out"
                )
        if self.stages and adapter:
            raise ValueError(
                "stages: an adapter is on all layers at once; stages are for method: full"
            )
        if self.stages and abs(sum(stage.part for stage in self.stages) - 1) > 1e-6:
            raise ValueError("stages: their parts make 1 together")
        if self.layer_rates and self.learning_rate:
            raise ValueError("layer_rates stands instead of learning_rate; leave one out")
        if (
            self.controller
            and self.controller.remedy
            and getattr(remedies, self.controller.remedy) is None
        ):
            raise ValueError(
                f"controller.remedy: {self.controller.remedy} is not among train.remedies"
            )
        return self

    @property
    def adapter(self) -> bool:
        """Whether an adapter learns and the base's own parameters do not."""
        return self.method != "full" or self.peft is not None

    @property
    def adapter_name(self) -> str:
        return str(self.peft["peft_type"]) if self.peft is not None else self.method
