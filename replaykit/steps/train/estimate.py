"""What a training will take, in memory, steps, tokens, hours and money, before any weights are
loaded (``--dry-run``).

    3.4 GB at the peak: weights 0.5, gradients 0.5, optimiser 1.1, activations 1.2, ...
    21.3 GB are free on 2 CPU cores
    40 steps of 2 micro-batches, 672 rows, 71,000 tokens with their padding
    about 7 minutes at 160 tokens/s (estimate: ...)

The largest micro-batch of the plan goes through the model without memory (``traced``). Operations
are counted on the way (torch's FlopCounterMode), and a product of matrices tells how many the
machine does in a second. Where the folder has a finished training of the same model with settings
that are as fast, the speed of its steps counts.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from replaykit.data.planned import PlannedRow
from replaykit.data.record import TARGET
from replaykit.devices import PRICE_YEAR, free_memory, gpu_of, short, spoken_hours
from replaykit.errors import EngineError
from replaykit.model.chat import Chat
from replaykit.recipe.train import Train
from replaykit.runs import read_manifest
from replaykit.steps.step import typed
from replaykit.steps.train.batches import TokenisedRows
from replaykit.steps.train.fit import cut_of, planned_order, remedies_of
from replaykit.steps.train.lighter import lighter
from replaykit.steps.train.memory import held_of, memory_of
from replaykit.steps.train.result import MemoryParts, TrainEstimate, TrainResult
from replaykit.steps.train.speed import different
from replaykit.steps.train.traced import Plan, Traced, Untraceable, traced

# Of what the backward pass takes: twice the forward pass, for inputs and weights; an adapter's
# frozen layers need no gradient of their weights.
BACKWARD = 2.0
BACKWARD_OF_ADAPTER = 1.0
# Of the operations of a large product of matrices a training step comes to this part: assumed, and
# not yet measured. Where the folder has a finished training, that counts instead.
EFFICIENCY = 0.5
MEASURED_FOR = 0.3  # seconds
# On a CPU glibc keeps most of what is freed in pieces of less than 32 MiB. So many times the
# estimate a process was seen to hold: a Llama of 57M parameters in full training, and under LoRA.
KEPT = (1.3, 1.9)
# How glibc is told to give it back, and how many times as long a step took then: LoRA on that Llama
# by the processor's time, nano.
GIVES_BACK = "MALLOC_MMAP_THRESHOLD_"
SLOWER = (1.3, 1.6)
SHARED_OUT = (
    "these are figures of one process that holds all of it; with train.fsdp each of N processes "
    "has an Nth of weights, gradients, optimiser and micro-batches, and activations and logits of "
    "its own"
)

DRAWN = (
    "self_distill draws an answer to each row in each step, which takes longer than the step "
    "itself; neither that time nor the memory of its passes is in these figures"
)


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
    EngineError where the model's config.json cannot be had or its code cannot be traced, with what
    is known all the same, and RecipeError for an adapter that cannot be made.
    """
    data = TokenisedRows([row.record for row in rows], chat)
    plan = _plan(rows, chat, data, settings)
    try:
        found = traced(model, revision, settings, plan)
    except Untraceable as error:
        raise EngineError(_unknown(model, error, settings)) from error
    memory = memory_of(found, settings)
    free, device = free_memory()
    instead = {}
    if memory.peak > free:

        def weigh(other: Train) -> MemoryParts | None:
            plan = _plan(rows, chat, data, other)
            try:
                return memory_of(traced(model, revision, other, plan), other)
            except Untraceable:
                return None

        shared = torch.cuda.is_available() and not chat.only_texts
        width = max(map(len, plan.batches))
        instead = lighter(settings, memory, free=free, rows=width, weigh=weigh, apart=shared)
    speed, basis, other = _speed(folder, model, found, settings)
    hours = plan.tokens / speed / 3600
    gpu = gpu_of(device)
    price = price_per_hour
    if price is None and gpu is not None:
        price = gpu.price
    told = TrainEstimate(
        model=model,
        parameters=found.sizes.parameters,
        trainable=found.sizes.trainable,
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
        cost=None if price is None else price * hours,
        instead=instead,
        text=[],
    )
    text = list(_sentences(told, given=price_per_hour, other=other))
    if settings.fsdp:
        text.append(SHARED_OUT)
    if settings.remedies.self_distill is not None:
        text.append(DRAWN)
    return told.model_copy(update={"text": text})


def _plan(rows: Sequence[PlannedRow], chat: Chat, data: TokenisedRows, settings: Train) -> Plan:
    replayed = any(row.record.source != TARGET for row in rows)
    cut = cut_of(settings, remedies_of(settings, replayed))
    order = planned_order(rows, data, cut)
    return Plan(chat, data, list(order.batches), order.parts, settings.packing)


# --- speed --------------------------------------------------------------------------------------


def _speed(
    folder: Path, model: str, found: Traced, settings: Train
) -> tuple[float, Literal["measured", "estimated"], list[str]]:
    """Tokens a second, with padding: of a finished training in the folder that was as this one will
    be, or by the operations that a token takes and the machine's speed at them. Last, in what the
    training there was other.
    """
    other: list[str] = []
    manifest = read_manifest(folder)
    if manifest is not None:
        before = typed(manifest, TrainResult, folder)
        if before.base == model and before.speed is not None:
            other = different(before.speed, manifest, settings)
            if not other:
                return before.speed.tokens_per_second, "measured", []
    passes = 1 + (BACKWARD_OF_ADAPTER if settings.adapter else BACKWARD)
    if settings.gradient_checkpointing:
        passes += 1
    return EFFICIENCY * _operations_per_second() / (passes * found.operations), "estimated", other


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


def _sentences(found: TrainEstimate, *, given: float | None, other: Sequence[str]) -> Iterator[str]:
    memory = found.memory
    parts = memory.model_dump(exclude={"peak"})
    named = ", ".join(f"{name} {_gb(size)}" for name, size in parts.items() if size)
    yield f"{_gb(memory.peak)} GB at the peak: {named}"
    yield f"{_gb(found.free)} GB are free on {found.device}"
    if memory.peak > found.free:
        yield _instead(found)
    if _kept():
        yield _more(found)
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
    if other:
        how += f"; the training in this folder had another {' and '.join(other)}"
    yield f"about {spoken_hours(found.hours)} at {found.tokens_per_second:,.0f} tokens/s ({how})"
    if found.cost is not None:
        where = f"assumed, {PRICE_YEAR}" if given is None else "as given"
        yield f"about ${found.cost:,.2f} at ${found.price_per_hour:.2f} an hour ({where})"


def _kept() -> bool:
    """Whether the memory that tensors free stays with the process: on a CPU, under glibc, where
    nobody has told it otherwise.
    """
    if torch.cuda.is_available() or GIVES_BACK in os.environ:
        return False
    return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def _more(found: TrainEstimate) -> str:
    """What a process can hold beside what it needs."""
    least, most = KEPT
    said = (
        f"glibc keeps what is freed in pieces, so the process can hold {least} to {most} times as "
        f"much"
    )
    if found.memory.peak <= found.free < most * found.memory.peak:
        said += ", which may not fit"
    quick, slow = SLOWER
    return (
        f"{said}; with {GIVES_BACK}=262144 in the environment it gives that back, and a step takes "
        f"{quick} to {slow} times as long"
    )


def _instead(found: TrainEstimate) -> str:
    """What to change where it does not fit."""
    told = {name: f"{name}: {_gb(peak)} GB" for name, peak in found.instead.items()}
    fitting = [told[name] for name, peak in found.instead.items() if peak <= found.free]
    if fitting:
        return f"it does not fit; it does with {'; or with '.join(fitting)}"
    if told:
        least = min(found.instead, key=lambda name: found.instead[name])
        return f"it does not fit, nor with other settings; {told[least]} is the least of them"
    return "it does not fit, and no other setting takes less; a smaller model does"


def _unknown(model: str, error: Untraceable, settings: Train) -> str:
    """What is known of a model whose code cannot run without memory."""
    held = held_of(error.sizes, settings)
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in held.items() if size)
    return (
        f"{model}: its code cannot run without memory ({error.reason}), so its activations are not "
        f"known beforehand. {_gb(sum(held.values()))} GB are held beside them: {parts}; "
        f"train.steps: 3 shows the rest"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
