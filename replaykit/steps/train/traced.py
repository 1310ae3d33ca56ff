"""The largest micro-batch of a training through its model, where no tensor has memory.

    found = traced(model, None, settings, plan)
    found.sizes.weights, found.activations, found.passing      # bytes

The model is built without memory, under its adapter, and the micro-batch goes through it, forward,
loss and backward. All storages that would be there are added up while they live, so the peak is
that of this architecture, checkpoints and adapters included.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from replaykit.errors import ReplaykitError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.model.classifier import TextClassifier
from replaykit.model.lm_head import Batch, Head, beneath, logits_of
from replaykit.recipe.train import Train
from replaykit.steps.train.batches import TokenisedRows, shape_of
from replaykit.steps.train.losses import cross_entropy, summed
from replaykit.steps.train.parameters import adapted
from replaykit.steps.train.remedies.teachers import decoder_layers
from replaykit.steps.train.shapes import not_packed, operation_counter, shapes_alone
from replaykit.steps.train.texts import collator

# A linear layer under NF4 with double quantisation has 4.127 bits a parameter (QLoRA, arXiv
# 2305.14314, section 3).
BYTES_IN_4_BITS = 4.127 / 8


@dataclass(frozen=True)
class Plan:
    """The micro-batches of a training; ``parts`` of them make a step."""

    chat: Chat
    data: TokenisedRows
    batches: Sequence[Sequence[int]]
    parts: int
    packing: bool

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Of all micro-batches: rows and length."""
        return [
            shape_of([self.data.lengths[k] for k in batch], packing=self.packing)
            for batch in self.batches
        ]

    @property
    def largest(self) -> int:
        """Which micro-batch has the most tokens."""
        return max(range(len(self.shapes)), key=lambda k: self.shapes[k][0] * self.shapes[k][1])

    @property
    def tokens(self) -> int:
        """In all steps, with their padding."""
        return sum(rows * length for rows, length in self.shapes)

    @property
    def loss_tokens(self) -> int:
        """The most answer tokens of a micro-batch."""
        counts = [int((row["weight"] != 0).sum()) for row in self.data]
        return max(sum(counts[k] for k in batch) for batch in self.batches)

    @property
    def batch(self) -> Batch:
        """The largest micro-batch as the model is given it."""
        rows = [self.data[k] for k in self.batches[self.largest]]
        found = collator(self.chat, packing=self.packing)(rows)
        if self.chat.seq2seq:
            found["decoder_input_ids"] = found["labels"]
        return found


@dataclass(frozen=True)
class Sizes:
    """What a model is, whatever goes through it."""

    parameters: int
    trainable: int
    """Of the parameters, those that learn."""
    weights: int
    """Bytes, as those below."""
    trainable_bytes: int
    outside: int
    """Of the weights those that are in no decoder layer, where offload asks for it."""


@dataclass(frozen=True)
class Traced:
    """What one micro-batch showed of a model that has no memory, in bytes."""

    sizes: Sizes
    activations: int
    """After the forward pass."""
    logits: int
    """What is there beside them at the peak of the loss."""
    passing: int
    """At the peak of forward pass, loss and backward pass, gradients included."""
    operations: float
    """Of the forward pass, for each token."""


class Untraceable(Exception):
    """A model whose code cannot run without memory; ``sizes`` are those of the model alone where no
    adapter could be put on it.
    """

    def __init__(self, reason: str, sizes: Sizes):
        super().__init__(reason)
        self.reason = reason
        self.sizes = sizes


def traced(model: str, revision: str | None, settings: Train, plan: Plan) -> Traced:
    """The largest micro-batch through the model, as it is trained.

    Raises Untraceable for a model whose code needs memory, as that of Switch Transformers, whose
    routers move their own weights; EngineError where the model's config.json cannot be had, and
    RecipeError for an adapter that cannot be made.
    """
    wide = settings.precision == "float32" or not settings.adapter
    device, dtype = loading.placement(train=wide, narrow=settings.weights == "bfloat16")
    given = plan.batch
    loss_tokens = plan.loss_tokens
    passes = min(plan.parts, 2)
    if isinstance(plan.chat, TextClassifier):
        empty = plan.chat.untrained(dtype=dtype)
    else:
        empty = loading.untrained(model, revision, dtype=dtype)
    # Whatever an adapter would add to it.
    bare = Sizes(sum(map(torch.numel, empty.parameters())), 0, _bytes(empty.parameters()), 0, 0)
    with _told(bare), torch.device("meta"):
        network = adapted(empty, settings).train()
    if settings.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    with shapes_alone(), torch.device(device):
        _place(network)
        sizes = _sizes(network, settings)
        batch = {
            name: torch.empty(value.shape, dtype=value.dtype)
            for name, value in given.items()
            if isinstance(value, torch.Tensor)
        }
        with _told(sizes), nullcontext() if settings.packing else not_packed():
            return _passes(network, batch, settings, sizes, passes, loss_tokens)


def _passes(
    network: Any, batch: Batch, settings: Train, sizes: Sizes, passes: int, loss_tokens: int
) -> Traced:
    """So many micro-batches of a step: from the second on there are gradients already."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    narrow = settings.precision == "bfloat16" or (settings.precision == "auto" and device == "cuda")
    counter = operation_counter()
    passing = 0
    with _Live(network.parameters()) as live:
        for _ in range(passes):
            before = live.bytes
            live.peak = before
            with counter, torch.autocast(device, torch.bfloat16, enabled=narrow):
                hidden, head = _forward(network, batch)
            activations = live.bytes - before
            passing = max(passing, live.peak)
            live.peak = live.bytes
            with torch.autocast(device, torch.bfloat16, enabled=narrow):
                loss = _loss(hidden, head, loss_tokens)
            logits = live.peak - before - activations
            del hidden
            loss.backward()
            del loss
            passing = max(passing, live.peak)
        return Traced(
            sizes=sizes,
            activations=activations,
            logits=logits,
            passing=passing,
            operations=counter.get_total_flops() / batch["input_ids"].numel(),
        )


@contextmanager
def _told(sizes: Sizes) -> Iterator[None]:
    """An error of a model's code is Untraceable, whatever it is: it computes with numbers that are
    not there.
    """
    try:
        yield
    except ReplaykitError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise Untraceable(str(error).partition("\n")[0], sizes) from error


def _place(network: nn.Module) -> None:
    """Gives tensors that have shapes alone the device on which they would be, where this is asked
    of torch: which kernel computes attention, and what it keeps, hangs on that.
    """
    placed: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            # Shared ones stay shared.
            if id(parameter) not in placed:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                placed[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module._parameters[name] = placed[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _sizes(network: Any, settings: Train) -> Sizes:
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return Sizes(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        trainable=sum(parameter.numel() for parameter in learning),
        weights=_weights(network, settings),
        trainable_bytes=_bytes(learning),
        outside=_outside(network) if settings.offload else 0,
    )


def _weights(network: Any, settings: Train) -> int:
    """Bytes of the parameters as they are loaded."""
    found = _bytes(network.parameters())
    if settings.method != "qlora":
        return found
    head = beneath(network).get_output_embeddings()
    layers = [
        module.weight
        for module in network.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    ]
    numbers = sum(weight.numel() for weight in layers)
    return found - _bytes(layers) + round(BYTES_IN_4_BITS * numbers)


def _outside(network: Any) -> int:
    """Bytes of the parameters that are in no decoder layer."""
    layers = {id(parameter) for parameter in decoder_layers(network).parameters()}
    return _bytes(parameter for parameter in network.parameters() if id(parameter) not in layers)


class _Live(TorchDispatchMode):
    """The bytes of all storages that are made while this is on and still live; those of
    ``parameters`` were there before, and views of them are not counted.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._before = [parameter.untyped_storage() for parameter in parameters]
        self._left_out = {id(storage) for storage in self._before}
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **kwargs or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._seen or key in self._left_out:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            self.bytes -= size
            del self._seen[key]

        # A storage has one object in Python for as long as it lives.
        self._seen[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def _forward(network: Any, batch: Batch) -> tuple[torch.Tensor, Head | None]:
    """The forward pass as the trainer does it: what goes into the head, or logits without one."""
    if "decoder_input_ids" in batch or "known" in batch:
        return logits_of(network, batch), None
    head = Head(beneath(network).get_output_embeddings())
    return head.hidden(network, batch), head


def _loss(given: torch.Tensor, head: Head | None, loss_tokens: int) -> torch.Tensor:
    """The loss of so many positions, as the trainer takes it."""
    where = given.flatten(0, 1)[:loss_tokens]
    targets = torch.zeros(len(where), dtype=torch.long)
    objective = cross_entropy(targets, torch.ones(len(where)))
    if head is None:
        return objective(where.float(), slice(0, len(where)))
    return summed(where, head, objective)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
