"""What a training holds at its peak, by part, of what one micro-batch showed (``traced``)."""

from __future__ import annotations

import psutil
import torch

from replaykit.recipe.train import Train
from replaykit.steps.train.optimiser import moment_bytes
from replaykit.steps.train.result import MemoryParts
from replaykit.steps.train.traced import Sizes, Traced

FLOAT32 = 4  # bytes


def memory_of(traced: Traced, settings: Train) -> MemoryParts:
    """What is held at the peak, in a step after the first one, when the optimiser has its state."""
    held = held_of(traced.sizes, settings)
    program = 0
    if not torch.cuda.is_available():
        program = psutil.Process().memory_info().rss
    # Gradients come in the pass as activations go.
    all_along = sum(held.values()) - held["gradients"]
    return MemoryParts(
        **held,
        activations=traced.activations,
        logits=traced.logits,
        program=program,
        peak=all_along + traced.passing + program,
    )


def held_of(sizes: Sizes, settings: Train) -> dict[str, int]:
    """What is there whatever goes through the model, in bytes, by the names of ``MemoryParts``."""
    wanted = settings.remedies
    own = sizes.trainable_bytes
    wide = FLOAT32 * sizes.trainable
    away = settings.offload and torch.cuda.is_available()
    teacher = fisher = base = 0
    if settings.copied_teacher:
        teacher = sizes.outside if away else sizes.weights
    if wanted.ewc is not None and not away:
        fisher = wide
        base = own
    if wanted.l2sp is not None and not away:
        base += own
    return {
        "weights": sizes.weights,
        "gradients": own,
        "optimiser": round(moment_bytes(settings) * sizes.trainable),
        "teacher": teacher,
        "fisher": fisher,
        "base": base,
        "average": wide * ((wanted.ema is not None) + (wanted.self_distill is not None)),
        "projection": 0 if wanted.project is None else own,
    }


def shared_out(memory: MemoryParts, processes: int) -> int:
    """The peak of each of so many processes under train.fsdp: an Nth of what is held all along,
    with activations and logits of its own.
    """
    held = memory.held
    return memory.peak - held + -(-held // processes)
