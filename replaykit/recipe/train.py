"""Supervised fine-tuning."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from replaykit.recipe.base import MACHINE, Share, Strict
from replaykit.recipe.controller import ControllerSettings
from replaykit.recipe.remedies import Remedies

# The learning rate where the recipe gives none.
FULL_LEARNING_RATE = 1e-5
ADAPTER_LEARNING_RATE = 2e-4
FULL_PARAMETERS = 1.6e9  # up to which all parameters learn: AdamW holds 16 bytes for each
# By a rule of thumb, of full fine-tuning: RATE at RATE_PARAMETERS, never outside of RATES.
RATE = 2e-5
RATE_PARAMETERS = 1.5e9
RATES = (1e-5, 1e-3)


def full_rate(parameters: int) -> float:
    """A learning rate of full fine-tuning for a model of so many parameters: it falls with their
    root.
    """
    rate = RATE * math.sqrt(RATE_PARAMETERS / parameters)
    return float(f"{min(max(rate, RATES[0]), RATES[1]):.1e}")


class Stage(Strict):
    """A part of training in which only the last layers learn."""

    layers: Share = 1.0
    """The last part of the layers, with the head, that learns; 1: everything, embeddings too.

    A head that shares the weights of the embeddings learns with these.
    """
    part: Share
    """This stage's part of the optimiser steps; those of all stages sum to 1."""
    learning_rate: PositiveFloat | None = None
    """The stage's highest learning rate; null: that of train."""


class LayerRates(Strict):
    """Learning rates that rise geometrically from the first layer to the last."""

    bottom: PositiveFloat = 1e-5
    """The rate of the first layer, of the embeddings, and of a head that shares their weights."""
    top: PositiveFloat = 5e-4
    """The rate of the last layer, and of a head with weights of its own."""


class Train(Strict):
    """Supervised fine-tuning; only answer tokens carry loss."""

    method: Literal["full", "lora", "dora", "qlora"] = "full"
    """What learns: all parameters, or an adapter; qlora has the base in 4 bits."""
    peft: dict[str, Any] | None = None
    """Instead of method: any other PEFT configuration, such as {peft_type: IA3}; null: method."""
    epochs: PositiveInt = 1
    """Passes over the target."""
    steps: PositiveInt | None = None
    """Optimiser steps, the target repeating evenly, instead of epochs; null: epochs."""
    batch_rows: PositiveInt = 32
    """Rows of one optimiser step."""
    micro_batch_rows: PositiveInt | None = None
    """Rows of one forward pass, at most; null: what suits this machine."""
    max_tokens: PositiveInt = 2048
    """Tokens of a row, at most."""
    packing: bool = False
    """Put rows behind one another instead of padding them; each sees only itself."""
    learning_rate: PositiveFloat | None = None
    """The highest learning rate; null: 1e-5 for full, 2e-4 for adapters."""
    layer_rates: LayerRates | None = None
    """A learning rate for each layer, instead of learning_rate; null: one for all."""
    min_rate: float = Field(default=0.0, ge=0, lt=1)
    """The last learning rate, as a part of the highest."""
    stages: list[Stage] = []
    """Staged unfreezing: the stages in order; empty: everything learns from the start."""
    freeze: list[str] = []
    """Parameters that do not learn: embeddings, head, or a part of their names."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """The part of the steps in which the learning rate rises from 0."""
    weight_decay: NonNegativeFloat | dict[str, NonNegativeFloat] = 0.0
    """AdamW's weight decay of matrices: one for all, or by a part of parameters' names."""
    max_grad_norm: PositiveFloat = 1.0
    """A gradient with a larger norm is scaled down to this one."""
    rank: PositiveInt = 16
    """The rank of lora, dora and qlora."""
    alpha: PositiveInt = 32
    """The scale of lora, dora and qlora is alpha / rank."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The precision of the computation; auto: bfloat16 on a GPU, float32 on a CPU."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """How the weights that learn are held; bfloat16: half the memory, updates rounded at random."""
    optimiser: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit holds AdamW's moments in 8 bits; it needs bitsandbytes."""
    fsdp: Annotated[bool, MACHINE] = False
    """The processes of torchrun share out weights, gradients and moments (FSDP2)."""
    offload: Annotated[bool, MACHINE] = False
    """What remedies keep of the base stays off the GPU, in the computer's memory: slower."""
    report_to: Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], MACHINE] = []
    """Trackers that the losses are sent to as well."""
    save_every: Annotated[PositiveInt, MACHINE] = 200
    """Optimiser steps between two checkpoints."""
    log_every: PositiveInt = 10
    """Optimiser steps between two lines of the log."""
    remedies: Remedies = Remedies()
    """Training methods against forgetting."""
    conflict: bool | None = None
    """Log the cosine of the target's and replay's gradients; null: only with an adapter."""
    controller: ControllerSettings | None = None
    """Test old skills while training, and move the share of replay; null: off."""

    @model_validator(mode="after")
    def _what_cannot_combine(self) -> Train:
        if self.peft is not None and "peft_type" not in self.peft:
            raise ValueError("peft: it needs peft_type, a name of PEFT such as IA3, LOHA or OFT")
        self._check_remedies()
        if self.weights == "bfloat16":
            self._check_narrow()
        if self.fsdp:
            self._check_sharded()
        if self.offload:
            self._check_offload()
        if self.stages and self.adapter:
            raise ValueError(
                "stages: an adapter is on all layers at once; stages are for method: full"
            )
        if self.stages and abs(sum(stage.part for stage in self.stages) - 1) > 1e-6:
            raise ValueError("stages: their parts make 1 together")
        if self.layer_rates and self.learning_rate:
            raise ValueError("layer_rates stands instead of learning_rate; leave one out")
        if self.controller is not None:
            switched = self.controller.remedy
            if switched is not None and getattr(self.remedies, switched) is None:
                raise ValueError(f"controller.remedy: {switched} is not among train.remedies")
        return self

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that are not as by default and do nothing beside the others: why, and what
        to do.

        No error of this section: a task gives some keys alone, and those of the recipe beside them.
        """
        found = {}
        for name in ("rank", "alpha"):
            if self.peft is not None:
                found[name] = "peft has its own; leave this one out"
            elif not self.adapter:
                found[name] = "method: full has no adapter; leave it out, or say method: lora"
        if self.schedule == "constant":
            found["min_rate"] = "with schedule: constant the rate does not fall; leave one out"
        fields = type(self).model_fields
        return {
            name: why for name, why in found.items() if getattr(self, name) != fields[name].default
        }

    def _check_narrow(self) -> None:
        """Raises ValueError where weights in bfloat16 are none that learn, or asked for against."""
        if self.adapter:
            raise ValueError(
                "weights: under an adapter the model's own weights do not learn, and those of the "
                "adapter are few; leave it out"
            )
        if self.precision == "float32":
            raise ValueError(
                "precision: weights in bfloat16 are computed with in bfloat16; leave it out, or "
                "say weights: float32"
            )

    def _check_sharded(self) -> None:
        """Raises ValueError for what needs whole weights in each process."""
        ewc = self.remedies.ewc
        needs = {
            f"method: {self.adapter_name}": self.adapter,
            "stages": bool(self.stages),
            "controller": self.controller is not None,
            "conflict: true": bool(self.conflict),
            "remedies.project": self.remedies.project is not None,
            "remedies.self_distill": self.remedies.self_distill is not None,
            "remedies.consistency": self.remedies.consistency is not None,
            "remedies.ewc.hard": ewc is not None and ewc.hard is not None,
        }
        wanted = [name for name, asked in needs.items() if asked]
        if wanted:
            raise ValueError(
                f"fsdp: {' and '.join(wanted)} needs the weights whole in each process; leave it "
                f"out, or leave fsdp out"
            )

    def _check_offload(self) -> None:
        """Raises ValueError where no remedy keeps anything of the base's size."""
        if self.fsdp:
            raise ValueError("offload: with fsdp each process keeps its part; leave one out")
        kept = self.copied_teacher
        if not self.adapter:
            kept = kept or self.remedies.ewc is not None or self.remedies.l2sp is not None
        if not kept:
            raise ValueError(
                "offload: no remedy keeps anything that is as large as the model; distill with a "
                "copy of it does, and in full fine-tuning ewc and l2sp; leave it out"
            )

    @property
    def copied_teacher(self) -> bool:
        """Whether ``remedies.distill`` holds the base a second time, as far as the recipe says."""
        distill = self.remedies.distill
        if distill is None or distill.teacher == "cache":
            return False
        return distill.teacher == "copy" or not self.adapter

    def _check_remedies(self) -> None:
        """Raises ValueError for a remedy that the method of training does not admit."""
        distill = self.remedies.distill
        if distill and distill.teacher == "adapter-off" and not self.adapter:
            raise ValueError(
                "remedies.distill.teacher: there is no adapter to switch off in full fine-tuning; "
                "say copy or cache, or train.method: lora"
            )
        if not self.adapter:
            return
        if self.remedies.ewc and self.remedies.ewc.hard:
            raise ValueError(
                "remedies.ewc.hard: an adapter leaves the parameters where they are; leave hard out"
            )
        for name in ("ewc", "l2sp"):
            if getattr(self.remedies, name) is None:
                continue
            if self.adapter_name.lower() != "lora":
                raise ValueError(
                    f"remedies.{name}: its form for adapters is that of lora, not "
                    f"{self.adapter_name}"
                )
            if self.peft is not None and self.peft.get("modules_to_save"):
                raise ValueError(
                    f"remedies.{name}: it does not hold what peft.modules_to_save names; leave one "
                    f"of them out"
                )

    @property
    def highest_learning_rate(self) -> float:
        """The learning rate after warm-up, of the layer that learns fastest."""
        if self.layer_rates is not None:
            return max(self.layer_rates.bottom, self.layer_rates.top)
        if self.learning_rate is not None:
            return self.learning_rate
        if self.adapter:
            return ADAPTER_LEARNING_RATE
        return FULL_LEARNING_RATE

    @property
    def adapter(self) -> bool:
        """Whether an adapter learns and the base's own parameters do not."""
        return self.method != "full" or self.peft is not None

    @property
    def adapter_name(self) -> str:
        """PEFT's name of the adapter where ``peft`` gives one, else the method."""
        if self.peft is not None:
            return str(self.peft["peft_type"])
        return self.method
