"""Which other settings take less memory, where a training does not fit.

    lighter(settings, memory, free=..., rows=16, weigh=..., apart=False)
    # {"train.micro_batch_rows: 4": 1_203_000_000}

Each is one that the recipe takes and that takes less than now. Those that fit come first. Several
changes at once are looked at only where none by itself is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from replaykit.recipe.train import Train
from replaykit.steps.train.memory import shared_out
from replaykit.steps.train.result import MemoryParts

Change = dict[str, Any]
# What settings take, None where it cannot be told.
Weigh = Callable[[Train], MemoryParts | None]

CHECKPOINTS: Change = {"gradient_checkpointing": True}
NARROW: Change = {"weights": "bfloat16", "optimiser": "adamw_8bit"}
LORA: Change = {"method": "lora", "weights": "float32"}
QLORA: Change = {"method": "qlora", "weights": "float32"}
OFFLOAD: Change = {"offload": True}
SINGLE = (CHECKPOINTS, NARROW, LORA, QLORA, OFFLOAD)
LEAST: Change = CHECKPOINTS | {"micro_batch_rows": 1}
SEVERAL = (LEAST, LEAST | NARROW, LEAST | LORA, LEAST | QLORA)
MOST_PROCESSES = 64  # that weights are shared out over, as far as it is looked at


def lighter(
    settings: Train, now: MemoryParts, *, free: int, rows: int, weigh: Weigh, apart: bool
) -> dict[str, int]:
    """The peaks in bytes by what is changed, those that fit first.

    ``rows`` are those of a micro-batch now. ``apart`` says that each process has memory of its own,
    so that weights can be shared out among them; then the peak is that of each.
    """
    found: dict[str, int] = {}

    def look(change: Change) -> bool:
        """Adds what the change takes; whether it fits."""
        other = changed(settings, change)
        memory = None if other is None else weigh(other)
        if other is None or memory is None or memory.peak >= now.peak:
            return False
        found[_name(settings, other)] = memory.peak
        return memory.peak <= free

    fits = False
    # What is held whatever goes through has to fit for less of that to be enough.
    if now.held + now.program <= free:
        fits = _fewer_rows(rows, look)
    for change in SINGLE:
        fits |= look(change)
    if not fits:
        for change in SEVERAL:
            look(change)
    if apart and changed(settings, {"fsdp": True}) is not None:
        found |= _processes(now, free)
    fitting = {name: peak for name, peak in found.items() if peak <= free}
    return fitting | dict(sorted(found.items(), key=lambda one: one[1]))


def changed(settings: Train, change: Change) -> Train | None:
    """The settings with a change; None where it changes nothing, or the recipe refuses it."""
    # What stands in peft counts instead of method.
    if settings.peft is not None and "method" in change:
        return None
    try:
        other = Train.model_validate(settings.model_dump() | change)
    except ValidationError:
        return None
    return None if other == settings else other


def _name(settings: Train, other: Train) -> str:
    """What is changed, as the recipe says it."""
    before = settings.model_dump()
    after = other.model_dump(mode="json")
    differ = [key for key, value in other.model_dump().items() if value != before[key]]
    return "train." + ", ".join(f"{key}: {_yaml(after[key])}" for key in differ)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fewer_rows(rows: int, look: Callable[[Change], bool]) -> bool:
    """Half the rows in a micro-batch, and half of these, until it fits; whether it does."""
    while rows > 1:
        rows //= 2
        if look({"micro_batch_rows": rows}):
            return True
    return False


def _processes(now: MemoryParts, free: int) -> Iterator[tuple[str, int]]:
    """Over how many processes the weights have to be shared out to fit, at the least."""
    for processes in range(2, MOST_PROCESSES + 1):
        peak = shared_out(now, processes)
        if peak <= free:
            yield f"train.fsdp: true over {processes} processes (each)", peak
            return
