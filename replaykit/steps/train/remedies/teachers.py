"""A teacher that says what the base would have said, by a forward pass.

teacher = Live(model, 2.0, base=adapter_off)   # or a file: ``teacher_cache.Cached``
lesson = teacher.lesson(batch, distilled)      # of the tokens at which ``distilled`` is true
lesson.target(slice(0, 8), log_q)              # log-probabilities of the first 8 of them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import cpu_offload
from torch import nn
from torch.nn.functional import layer_norm

from replaykit.errors import RecipeError
from replaykit.model.lm_head import Batch, beneath, evaluating, inputs, logits_of, split_head
from replaykit.model.logprobs import IGNORED
from replaykit.steps.train.remedies import Run, learning_kept

NUMBERS = 2**22  # logits of a teacher that are made at a time: 16 MiB in float32

# For a slice of the distilled tokens and the model's log-probabilities of it, [n, vocabulary]:
# those of the target.
Target = Callable[[slice, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a batch."""

    target: Target
    """For its distilled tokens, in order."""
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    """Their hidden states, [distilled tokens, width], by layer."""


class States:
    """The outputs of chosen decoder layers: of forward passes with gradients, or of one that a
    teacher makes.

    Those with gradients are held here, with their graph, until they are ``taken``; so they are only
    kept while ``wanted()`` is true.
    """

    def __init__(
        self, model: nn.Module, layers: list[int], *, wanted: Callable[[], bool] = lambda: True
    ):
        self._wanted = wanted
        self._found: dict[int, torch.Tensor] = {}
        self._taught: dict[int, torch.Tensor] | None = None
        stack = decoder_layers(model)
        for layer in layers:
            if not -len(stack) <= layer < len(stack):
                problem = (
                    f"train.remedies.distill.layers: there is no layer {layer}; the model "
                    f"has {len(stack)}, from 0 on"
                )
                raise RecipeError("the recipe", [problem])
            stack[layer].register_forward_hook(self._hook(layer))

    def _hook(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def take(_: nn.Module, __: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            if self._taught is not None:
                self._taught[layer] = state
            elif torch.is_grad_enabled() and self._wanted():  # else it is an evaluation
                self._found[layer] = state

        return take

    def taken(self) -> dict[int, torch.Tensor]:
        """What the last pass with gradients left, [rows, length, width] by layer; it is not held
        here any longer.
        """
        found = self._found
        self._found = {}
        return found

    @contextmanager
    def taught(self) -> Iterator[dict[int, torch.Tensor]]:
        """Within it, forward passes fill the dictionary that is given."""
        found: dict[int, torch.Tensor] = {}
        self._taught = found
        try:
            yield found
        finally:
            self._taught = None


def distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The squared distance of layer-normed states [n, width], mean over the width, summed over
    tokens, in float32.
    """
    width = student.shape[-1:]
    gap = layer_norm(student.float(), width) - layer_norm(teacher.float(), width)
    return gap.square().mean(dim=-1).sum()


def decoder_layers(model: Any) -> nn.ModuleList:
    """The layers of the model's decoder, first to last: the outermost list of modules in it."""
    for module in beneath(model).get_decoder().modules():
        if isinstance(module, nn.ModuleList):
            return module
    raise AssertionError("a transformers model has its layers in a ModuleList")


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The base: the model in evaluation mode with its adapter off.

    Afterwards each module is in the mode in which it was, and what learned learns.
    """
    with evaluating(model), _switched_off(model):
        yield


@contextmanager
def _switched_off(model: Any) -> Iterator[None]:
    """Of LoRA only the flag that its layers look at; PEFT's own way takes as long as the forward
    pass of a short row.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    plain = [
        layer for layer in layers if isinstance(layer, LoraLayer) and not layer.disable_adapters
    ]
    if plain and len(plain) == len(layers):
        try:
            for layer in layers:
                layer._disable_adapters = True
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False
        return
    # PEFT lets the whole adapter learn when it is on again.
    with learning_kept(model), model.disable_adapter():
        yield


def has_base_beneath(model: Any) -> bool:
    """Whether an untrained model with its adapter off is the base, and stays so while the adapter
    learns.

    It is not with PiSSA, OLoRA and others that begin by taking a part of the base's weights, nor
    where biases of the base learn. An untrained adapter changes nothing, so what it is on and off
    is compared, on two tokens.
    """
    biases = [getattr(config, "bias", "none") for config in model.peft_config.values()]
    if any(bias not in ("none", False) for bias in biases):
        return False
    tokens = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    tried = {"input_ids": tokens, "use_cache": False}
    if model.config.is_encoder_decoder:
        tried["decoder_input_ids"] = tokens
    training = model.training
    model.eval()
    with torch.no_grad():
        on = model(**tried).logits
        with adapter_off(model):
            off = model(**tried).logits
    model.train(training)
    return on.shape == off.shape and torch.allclose(on, off, rtol=1e-3, atol=1e-3)


def frozen(run: Run) -> Any:
    """The base once more, in evaluation mode, on the model's device and in the precision in which
    it is loaded; with ``offload`` its decoder layers are there only while they compute.
    """
    teacher = run.load_base().eval().requires_grad_(False)
    device = next(run.model.parameters()).device
    if not run.offload:
        return teacher.to(device)
    for layer in decoder_layers(teacher):
        cpu_offload(layer, execution_device=device)
    for tensor in (*teacher.parameters(), *teacher.buffers()):
        if not tensor.is_meta:  # else it is a layer's, which accelerate brings
            tensor.data = tensor.data.to(device)
    return teacher


class Live:
    """A teacher that makes a forward pass; ``base`` is the context in which its model is the
    base.
    """

    def __init__(
        self,
        model: Any,
        temperature: float,
        *,
        base: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
        layers: States | None = None,
    ):
        self.model = model
        self.temperature = temperature
        self.base = base
        self.layers = layers
        self.head = split_head(model)

    def lesson(self, batch: Batch, distilled: torch.Tensor) -> Lesson:
        """Of the tokens at which ``distilled``, [rows, length], is true; the other rows are not
        looked at.
        """
        hidden, states = self.read(batch, distilled)
        return Lesson(lambda some, log_q: self.log_softmax(hidden[some], log_q.dtype), states)

    def read(
        self, batch: Batch, distilled: torch.Tensor
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """What goes into the head at those tokens, or its logits where they cannot be had apart,
        and ``layers``' states.
        """
        if self.model.config.is_encoder_decoder and "decoder_input_ids" not in batch:
            shifted = self.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
            batch = batch | {"decoder_input_ids": shifted}
        part, wanted = of_rows(batch, distilled)
        listening: AbstractContextManager[dict[int, torch.Tensor]] = nullcontext({})
        if self.layers is not None:
            listening = self.layers.taught()
        with torch.no_grad(), self.base(self.model), listening as states:
            if self.head is not None:
                hidden = self.head.hidden(self.model, part)
            else:
                hidden = logits_of(self.model, part)
        return hidden[wanted], {layer: state[wanted] for layer, state in states.items()}

    def log_softmax(self, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Log-probabilities at the temperature, [n, vocabulary], from what ``read`` gave."""
        with torch.no_grad():
            logits = hidden if self.head is None else self.head.logits(hidden)
            return torch.log_softmax(logits.to(dtype) / self.temperature, dim=-1)


def teachable(batch: Batch) -> torch.Tensor:
    """[rows, length], true where there is a label; of a text classifier where it is one of the
    base's own, since of others it has learned nothing.
    """
    labelled: torch.Tensor = batch["labels"] != IGNORED
    if "taught" in batch:
        labelled = labelled & batch["taught"]
    return labelled


def of_rows(batch: Batch, distilled: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    """What the model reads of the rows that have distilled tokens, and where these are in it;
    packed rows are taken apart.

    Under causal attention what stands behind the last distilled token changes nothing, so columns
    of padding go too.
    """
    if "row" in batch:
        kept = torch.isin(batch["row"][0], batch["row"][distilled])
        part = {name: batch[name][:, kept] for name in ("input_ids", "position_ids")}
        return part, distilled[:, kept]
    rows = distilled.any(dim=1)
    if "known" in batch:
        part = {name: batch[name][rows] for name in ("input_ids", "attention_mask", "known")}
        if "among" in batch:
            # The base has learned nothing of the labels that are new.
            part["among"] = batch["among"][rows] & part["known"]
        return part, distilled[rows]
    names = set(inputs(batch)) & set(batch)
    if "decoder_input_ids" in batch:
        return {name: batch[name][rows] for name in names}, distilled[rows]
    end = int(distilled.any(dim=0).nonzero().max()) + 1
    return {name: batch[name][rows, :end] for name in names}, distilled[rows, :end]
