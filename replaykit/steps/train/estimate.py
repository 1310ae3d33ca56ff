"""What a training will take, in memory, steps, tokens, hours and money, before any weights are
loaded (``--dry-run``).

    3.4 GB at the peak: weights 0.5, gradients 0.5, optimiser 1.1, activations 1.2, ...
    21.3 GB are free on 2 CPU cores
    40 steps of 2 micro-batches, 672 rows, 71,000 tokens with their padding
    about 7 minutes at 160 tokens/s (estimate: ...)

The model is built without memory (torch's FakeTensorMode), under its adapter, and the largest
micro-batch of the plan goes through it, forward, loss and backward. All storages that would be
there are added up while they live, so the peak is that of this architecture, checkpoints and
adapters included. (On a CPU a process can hold more, for glibc does not give back all that is freed
in small pieces: it held 5.0 GB of SmolLM2 under LoRA, where 3.3 are estimated, and 3.1 with
``MALLOC_MMAP_THRESHOLD_=262144`` in the environment.) Operations are counted on the way (torch's
FlopCounterMode), and a product of matrices tells how many the machine does in a second. Where the
folder has a finished training of the same model, its speed counts.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from replaykit.data.planned import PlannedRow
from replaykit.data.record import TARGET
from replaykit.devices import PRICE_YEAR, free_memory, gpu_of, short, spoken_hours
from replaykit.errors import EngineError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.model.classifier import TextClassifier
from replaykit.model.lm_head import Batch, Head, beneath, logits_of
from replaykit.recipe.train import Train
from replaykit.runs import read_manifest
from replaykit.steps.step import typed
from replaykit.steps.train.batches import TokenisedRows
from replaykit.steps.train.fit import cut_of, planned_order, remedies_of
from replaykit.steps.train.losses import cross_entropy, summed
from replaykit.steps.train.optimiser import moment_bytes
from replaykit.steps.train.parameters import adapted
from replaykit.steps.train.remedies.teachers import decoder_layers
from replaykit.steps.train.result import MemoryParts, TrainEstimate, TrainResult
from replaykit.steps.train.texts import collator

FLOAT32 = 4  # bytes
# A linear layer under NF4 with double quantisation has 4.127 bits a parameter (QLoRA, arXiv
# 2305.14314, section 3).
BYTES_IN_4_BITS = 4.127 / 8
# Of what the backward pass takes: twice the forward pass, for inputs and weights; an adapter's
# frozen layers need no gradient of their weights.
BACKWARD = 2.0
BACKWARD_OF_ADAPTER = 1.0
# Of the operations of a large product of matrices a training step comes to this part: assumed, and
# not yet measured. Where the folder has a finished training, that counts instead.
EFFICIENCY = 0.5
MEASURED_FOR = 0.3  # seconds
LORA = {"method": "lora", "learning_rate": None, "weights": "float32"}
# Settings that take less memory, each by itself, as the recipe says them.
LIGHTER: Mapping[str, Mapping[str, Any]] = {
    "train.micro_batch_rows: 1": {"micro_batch_rows": 1},
    "train.gradient_checkpointing: true": {"gradient_checkpointing": True},
    "train.weights: bfloat16, optimiser: adamw_8bit": {
        "weights": "bfloat16",
        "optimiser": "adamw_8bit",
    },
    "train.method: lora": LORA,
    "train.method: lora, gradient_checkpointing: true, micro_batch_rows: 1": {
        **LORA,
        "gradient_checkpointing": True,
        "micro_batch_rows": 1,
    },
}


@dataclass(frozen=True)
class _Plan:
    """The micro-batches of a training."""

    chat: Chat
    data: TokenisedRows
    batches: Sequence[Sequence[int]]
    parts: int
    packing: bool

    def shape(self, lengths: Sequence[int]) -> tuple[int, int]:
        """Rows and length of a micro-batch with its padding, by the lengths of its rows."""
        if self.packing:
            return 1, sum(lengths)
        return len(lengths), max(lengths, default=0)

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Of all micro-batches."""
        return [self.shape([self.data.lengths[k] for k in batch]) for batch in self.batches]

    @property
    def largest(self) -> int:
        """Which micro-batch has the most tokens."""
        return max(range(len(self.shapes)), key=lambda k: self.shapes[k][0] * self.shapes[k][1])

    @property
    def tokens(self) -> int:
        """In all steps, with their padding."""
        return sum(rows * length for rows, length in self.shapes)

    @property
    def own_tokens(self) -> int:
        """In all steps, without padding."""
        return sum(self.data.lengths[k] for batch in self.batches for k in batch)

    @property
    def loss_tokens(self) -> int:
        """The most answer tokens of a micro-batch."""
        counts = [int((row["weight"] != 0).sum()) for row in self.data]
        return max(sum(counts[k] for k in batch) for batch in self.batches)


@dataclass(frozen=True)
class _Traced:
    """What one micro-batch showed of a model that has no memory."""

    parameters: int
    trainable: int
    weights: int
    """Bytes, as all others."""
    trainable_bytes: int
    outside: int
    """Of the weights those that are in no decoder layer, where offload asks for it."""
    activations: int
    """After the forward pass."""
    logits: int
    """What is there beside them at the peak of the loss."""
    passing: int
    """At the peak of forward pass, loss and backward pass, gradients included."""
    operations: float
    """Of the forward pass, for each token."""


def estimate(
    rows: Sequence[PlannedRow],
    model: str,
    revision: str | None,
    chat: Chat,
    settings: Train,
    *,
    folder: Path,
    price_per_hour: float | None = None,
) -> TrainEstimate:
    """What training on these rows will take. ``folder`` is where the training will be, or was.

    Memory is that of the step after the first one, when the optimiser has its moments. Raises
    EngineError where the model's config.json cannot be had or its code cannot be traced, as that of
    DeBERTa-v2, which is compiled by TorchScript, and RecipeError for an adapter that cannot be
    made.
    """
    data = TokenisedRows([row.record for row in rows], chat)
    plan = _plan(rows, chat, data, settings)
    traced = _traced(model, revision, settings, plan)
    memory = _memory(traced, settings)
    free, device = free_memory()
    speed, basis = _speed(folder, model, traced, settings)
    # A finished training tells tokens without padding.
    work = plan.tokens if basis == "estimated" else plan.own_tokens
    hours = work / speed / 3600
    gpu = gpu_of(device)
    price = price_per_hour
    if price is None and gpu is not None:
        price = gpu.price
    cost = None if price is None else price * hours
    instead = {}
    if memory.peak > free:
        instead = dict(_lighter(rows, chat, data, model, revision, settings))
    found = TrainEstimate(
        model=model,
        parameters=traced.parameters,
        trainable=traced.trainable,
        rows=len(rows),
        steps=len(plan.batches) // plan.parts,
        micro_batches=plan.parts,
        tokens=plan.tokens,
        largest=plan.shapes[plan.largest],
        memory=memory,
        free=free,
        device=device,
        tokens_per_second=round(speed, 1),
        hours=hours,
        basis=basis,
        price_per_hour=price,
        cost=cost,
        instead=instead,
        text=[],
    )
    text = list(_sentences(found, given=price_per_hour))
    if settings.fsdp:
        text.append(
            "these are figures of one process that holds all of it; with train.fsdp each of N "
            "processes has an Nth of weights, gradients, optimiser and micro-batches, and "
            "activations and logits of its own"
        )
    return found.model_copy(update={"text": text})


def _plan(rows: Sequence[PlannedRow], chat: Chat, data: TokenisedRows, settings: Train) -> _Plan:
    replayed = any(row.record.source != TARGET for row in rows)
    cut = cut_of(settings, remedies_of(settings, replayed))
    order = planned_order(rows, data, cut)
    return _Plan(chat, data, list(order.batches), order.parts, settings.packing)


# --- the model without memory ---------------------------------------------------------------------


def _traced(model: str, revision: str | None, settings: Train, plan: _Plan) -> _Traced:
    """The largest micro-batch through the model, as it is trained, where no tensor has memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    wide = settings.precision == "float32" or not settings.adapter
    device, dtype = loading.placement(train=wide, narrow=settings.weights == "bfloat16")
    narrow = settings.precision == "bfloat16" or (settings.precision == "auto" and device == "cuda")
    loss_tokens = plan.loss_tokens
    shapes = _largest_batch(plan)
    if isinstance(plan.chat, TextClassifier):
        empty = plan.chat.untrained(dtype=dtype)
    else:
        empty = loading.untrained(model, revision, dtype=dtype)
    with torch.device("meta"), _untraceable_told(model):
        network = adapted(empty, settings).train()
    if settings.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    counter = FlopCounterMode(display=False)
    with ExitStack() as inside:
        inside.enter_context(FakeTensorMode())
        inside.enter_context(torch.device(device))
        _place(network)
        batch = {
            name: torch.empty(value.shape, dtype=value.dtype)
            for name, value in shapes.items()
            if isinstance(value, torch.Tensor)
        }
        live = inside.enter_context(_Live(network.parameters()))
        # From the second micro-batch of a step on there are gradients already.
        for _ in range(min(plan.parts, 2)):
            before = live.bytes
            with (
                _untraceable_told(model),
                counter,
                torch.autocast(device, torch.bfloat16, enabled=narrow),
            ):
                hidden, head = _forward(network, batch)
            activations = live.bytes - before
            live.peak = live.bytes
            with torch.autocast(device, torch.bfloat16, enabled=narrow):
                loss = _loss(hidden, head, loss_tokens)
            logits = live.peak - before - activations
            del hidden
            loss.backward()
            del loss
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return _Traced(
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            trainable=sum(parameter.numel() for parameter in learning),
            weights=_weights(network, settings),
            trainable_bytes=_bytes(learning),
            outside=_outside(network) if settings.offload else 0,
            activations=activations,
            logits=logits,
            passing=live.peak,
            operations=counter.get_total_flops() / batch["input_ids"].numel(),
        )


@contextmanager
def _untraceable_told(model: str) -> Iterator[None]:
    """A model whose code computes with numbers that are not there is an EngineError."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        raise EngineError(
            f"{model}: its code cannot run without memory, so what a training takes cannot be told "
            f"beforehand ({first}); train.steps: 3 shows it"
        ) from error


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


def _largest_batch(plan: _Plan) -> Batch:
    """The micro-batch with the most tokens."""
    rows = [plan.data[k] for k in plan.batches[plan.largest]]
    batch = collator(plan.chat, packing=plan.packing)(rows)
    if plan.chat.seq2seq:
        batch["decoder_input_ids"] = batch["labels"]
    return batch


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


# --- memory, speed, and what to change ------------------------------------------------------------


def _memory(traced: _Traced, settings: Train) -> MemoryParts:
    """What is held at the peak, in a step after the first one, when the optimiser has its state."""
    optimiser = round(moment_bytes(settings) * traced.trainable)
    remedies = _remedies(traced, settings)
    program = 0
    if not torch.cuda.is_available():
        program = psutil.Process().memory_info().rss
    return MemoryParts(
        weights=traced.weights,
        gradients=traced.trainable_bytes,
        optimiser=optimiser,
        activations=traced.activations,
        logits=traced.logits,
        remedies=remedies,
        program=program,
        peak=traced.weights + optimiser + traced.passing + remedies + program,
    )


def _remedies(traced: _Traced, settings: Train) -> int:
    """What remedies hold all along: a teacher the weights once more, ewc the base's values and the
    Fisher information, l2sp the base's values, ema its average, project the replay's gradient.
    """
    wanted = settings.remedies
    own = traced.trainable_bytes
    wide = FLOAT32 * traced.trainable
    away = settings.offload and torch.cuda.is_available()
    found = 0
    if settings.copied_teacher:
        found += traced.outside if away else traced.weights
    if wanted.ewc is not None and not away:
        found += wide + own
    if wanted.l2sp is not None and not away:
        found += own
    if wanted.ema is not None:
        found += wide
    if wanted.project is not None:
        found += own
    return found


def _lighter(
    rows: Sequence[PlannedRow],
    chat: Chat,
    data: TokenisedRows,
    model: str,
    revision: str | None,
    settings: Train,
) -> Iterator[tuple[str, int]]:
    """Settings that take less memory, each with its peak."""
    for name, change in LIGHTER.items():
        # Under an adapter the weights do not learn.
        if settings.adapter and change.get("weights") == "bfloat16":
            continue
        other = settings.model_copy(update=change)
        plan = _plan(rows, chat, data, other)
        yield name, _memory(_traced(model, revision, other, plan), other).peak


def _speed(
    folder: Path, model: str, traced: _Traced, settings: Train
) -> tuple[float, Literal["measured", "estimated"]]:
    """Tokens a second: of a finished training of this model in the folder, or by the operations
    that a token takes and the machine's speed at them.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.seconds:
        before = typed(manifest, TrainResult, folder)
        if before.base == model:
            return before.tokens / manifest.seconds, "measured"
    passes = 1 + (BACKWARD_OF_ADAPTER if settings.adapter else BACKWARD)
    if settings.gradient_checkpointing:
        passes += 1
    return EFFICIENCY * _operations_per_second() / (passes * traced.operations), "estimated"


def _operations_per_second() -> float:
    """Floating-point operations of a product of matrices, measured for a moment."""
    device = "cpu"
    dtype = torch.float32
    size = 1024
    if torch.cuda.is_available():
        device = "cuda"
        dtype = torch.bfloat16
        size = 8192
    one = torch.ones(size, size, device=device, dtype=dtype)
    float((one @ one)[0, 0])  # the first one sets up, and the number waits for the device
    began = time.perf_counter()
    done = 0
    while time.perf_counter() - began < MEASURED_FOR:
        float((one @ one)[0, 0])
        done += 1
    return done * 2 * size**3 / (time.perf_counter() - began)


# --- in sentences ---------------------------------------------------------------------------------


def _sentences(found: TrainEstimate, *, given: float | None) -> Iterator[str]:
    memory = found.memory
    parts = memory.model_dump(exclude={"peak"})
    named = ", ".join(f"{name} {_gb(size)}" for name, size in parts.items() if size)
    yield f"{_gb(memory.peak)} GB at the peak: {named}"
    yield f"{_gb(found.free)} GB are free on {found.device}"
    if found.instead:
        lighter = "; ".join(f"{name}: {_gb(peak)} GB" for name, peak in found.instead.items())
        yield f"it does not fit; with {lighter}"
    rows, length = found.largest
    yield (
        f"{short(found.parameters)} parameters, {short(found.trainable)} of which learn; "
        f"{found.steps:,} steps of {found.micro_batches:,} micro-batches, {found.rows:,} rows, "
        f"{found.tokens:,} tokens with their padding; the largest micro-batch has {rows:,} rows of "
        f"{length:,} tokens"
    )
    how = "measured in this folder"
    if found.basis == "estimated":
        how = "estimated by a product of matrices"
    yield f"about {spoken_hours(found.hours)} at {found.tokens_per_second:,.0f} tokens/s ({how})"
    if found.cost is not None:
        where = f"assumed, {PRICE_YEAR}" if given is None else "as given"
        yield f"about ${found.cost:,.2f} at ${found.price_per_hour:.2f} an hour ({where})"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
