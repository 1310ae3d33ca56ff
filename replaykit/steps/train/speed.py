"""How fast a training was, and whether another one will be as fast.

clock = Clock()                                  # a callback of the trainer
clock.speed(batches, parts, shape, settings)     # Speed(steps=9, tokens=18_400, seconds=3.1, ...)
different(speed, manifest, settings)             # ["method", "micro_batch_rows"]
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import transformers

from replaykit.devices import free_memory
from replaykit.recipe.train import Train
from replaykit.runs import Manifest, machine
from replaykit.steps.train.batches import shape_of
from replaykit.steps.train.result import Speed

# Settings on which it does not hang how long a token takes.
AS_FAST = {
    *("epochs", "steps", "max_tokens"),
    *("learning_rate", "layer_rates", "min_rate", "schedule", "warmup"),
    *("weight_decay", "max_grad_norm", "alpha", "log_every"),
}


class Clock(transformers.TrainerCallback):
    """Notes when the first step of this process ended, and when its last one did."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._last = (0, 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last = (state.global_step, time.perf_counter())
        if self._first is None:
            self._first = self._last

    def speed(
        self,
        batches: Iterable[Sequence[int]],
        lengths: Sequence[int],
        settings: Train,
        *,
        parts: int,
        processes: int,
    ) -> Speed | None:
        """Of the steps after the first; None where there was none. ``batches`` are those of
        the whole training, ``parts`` of them in each step.
        """
        if self._first is None or self._last[0] == self._first[0]:
            return None
        begins, ends = (step * parts for step in (self._first[0], self._last[0]))
        tokens = 0
        for batch in islice(batches, begins, ends):
            rows, length = shape_of([lengths[k] for k in batch], packing=settings.packing)
            tokens += rows * length
        return Speed(
            steps=self._last[0] - self._first[0],
            tokens=tokens,
            seconds=self._last[1] - self._first[1],
            device=free_memory()[1],
            processes=processes,
            fsdp=settings.fsdp,
            offload=settings.offload,
        )


def different(speed: Speed, manifest: Manifest, settings: Train) -> list[str]:
    """In what a training differs from a finished one, of what decides how long a token takes."""
    before = {
        **manifest.inputs.get("train", {}),
        "fsdp": speed.fsdp,
        "offload": speed.offload,
        "number of processes": speed.processes,
        "device": speed.device,
        "machine": manifest.machine,
    }
    now = {
        **settings.decisive(),
        "fsdp": settings.fsdp,
        "offload": settings.offload,
        "number of processes": int(os.environ.get("WORLD_SIZE", "1")),
        "device": free_memory()[1],
        "machine": machine(),
    }
    return [
        name for name, value in now.items() if name not in AS_FAST and value != before.get(name)
    ]
